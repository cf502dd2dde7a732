//! Packets of pods into the tunnel and out of it.
//!
//! `encapsulate` runs where a packet leaves by the tunnel device, `decapsulate` where one has
//! come out of it; `shortcut` where a pod's packet enters the node, so that it need not take the
//! way over bridge and IP stack to the tunnel device.

use crate::{
    address::{Address, protocol},
    answer::Unreachable,
    counter::{Hook, Reason},
    hash,
    header::{self, IpHeader, Network, Part},
    icmp,
    packet::Packet,
    tunnel::{Frame, HOME_TICKS, Home, Inner, Mac, Sender, Tunnel, Tunnels, fast_path},
};

/// What becomes of a packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// On by the way it was on.
    Pass,
    /// Ends here. The reason has been counted.
    Drop,
    /// The packet was turned into an answer; see [`crate::packet::Verdict::Answer`].
    Answer,
    /// Out by the tunnel device, at once.
    Tunnel,
    /// Out by the device of this index, which leads to a pod, at once.
    Home(u32),
    /// Into the pod behind that device, past what is attached to it.
    Pod(u32),
}

/// A packet leaves by the tunnel device.
#[inline(always)]
pub fn encapsulate<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
) -> Fate {
    const HOOK: Hook = Hook::TunnelEgress;
    if frame.take_sent() {
        return Fate::Pass;
    }
    let Some(header) = F::header(frame, 0) else {
        tables.count_drop(HOOK, Reason::Malformed);
        return Fate::Drop;
    };
    let Some(vtep) = tables.vtep(header.dst) else {
        tables.count_drop(HOOK, Reason::NoPeer);
        return nowhere::<F, P>(frame, &header);
    };
    let tunnel = tables.tunnel();
    let sent = start(frame).and_then(|words| {
        frame.store_hardware(vtep.mac, F::mac(&tunnel), words)?;
        frame.send_to::<F>(&tunnel, &vtep)
    });
    if sent.is_none() {
        tables.count_drop(HOOK, Reason::RewriteFailed);
        return Fate::Drop;
    }
    Fate::Pass
}

/// A packet to a pod network that no node has: the sender is told, unless the packet is none
/// that an error may answer (RFC 1122 §3.2.2, RFC 4443 §2.4).
#[inline(always)]
fn nowhere<F: Network, P: Frame>(packet: &mut P, header: &IpHeader<F::Address>) -> Fate {
    let is_answerable = !header.dst.is_multicast()
        && header::transport::<F, P>(packet, header).is_ok_and(|transport| {
            transport.part != Part::Later && icmp::is_answerable::<F, P>(packet, &transport)
        });
    if is_answerable && packet.write_unreachable::<F>(Unreachable::Host.code::<F>()) {
        packet.mark_sent();
        Fate::Answer
    } else {
        Fate::Drop
    }
}

/// The first words of the packet.
#[inline(always)]
fn start<P: Packet>(packet: &P) -> Option<[u32; 3]> {
    packet.words(0)
}

/// A packet came out of the tunnel.
#[inline(always)]
pub fn decapsulate<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
) -> Fate {
    // An answer of ours to what was to leave by the device.
    if frame.take_sent() {
        return Fate::Pass;
    }
    let tunnel = tables.tunnel();
    if let Err(reason) = admit::<F, P, T>(frame, tables, &tunnel) {
        tables.count_drop(Hook::TunnelIngress, reason);
        return Fate::Drop;
    }
    if tunnel.fast_path == fast_path::OFF {
        return Fate::Pass;
    }
    deliver::<F, P, T>(frame, tables, &tunnel).unwrap_or(Fate::Pass)
}

/// Whether the frame came from one of us. Its outer source is not asked: a node may be known by
/// another address than it sends from, and flanneld does not ask either.
#[inline(always)]
fn admit<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
    tunnel: &Tunnel,
) -> Result<(), Reason> {
    if frame.vni::<F>() != Some(tunnel.vni) {
        return Err(Reason::WrongVni);
    }
    let (to, from) = frame.hardware().ok_or(Reason::Malformed)?;
    if to != F::mac(tunnel) {
        return Err(Reason::WrongMac);
    }
    if !tables.is_sender(Sender { mac: from, pad: 0 }) {
        return Err(Reason::UnknownPeer);
    }
    if to != tunnel.mac4 {
        frame.adopt().ok_or(Reason::RewriteFailed)?;
    }
    Ok(())
}

/// Makes the packet ready for the pod that it is for, if that is known and nothing is left for
/// the IP stack to say.
#[inline(always)]
fn deliver<F: Network, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
    tunnel: &Tunnel,
) -> Option<Fate> {
    let header = F::header(frame, 0)?;
    let now = tables.now();
    let home = *tables.home(header.dst)?;
    if home.device == 0 || is_old(&home, now) || !fits::<F, P>(frame, &header, tunnel.mtu) {
        return None;
    }
    let words = F::forwarded(start(frame)?)?;
    frame.store_hardware(home.mac, tunnel.mac4, words)?;
    let is_seen = tunnel.fast_path != fast_path::STRAIGHT
        || tables.is_translated(hash::pair(header.src, header.dst));
    Some(if is_seen { Fate::Home(home.device) } else { Fate::Pod(home.device) })
}

/// A pod's packet entered the node by the device of this index.
#[inline(always)]
pub fn shortcut<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
    device: u32,
) -> Fate {
    let tunnel = tables.tunnel();
    if tunnel.fast_path == fast_path::OFF {
        return Fate::Pass;
    }
    match send::<F, P, T>(frame, tables, &tunnel, device) {
        Some(()) => Fate::Tunnel,
        None => Fate::Pass,
    }
}

/// Makes the packet ready for the tunnel, if it is for another node's pod and nothing is left for
/// the IP stack to say. A packet that is half ready is not harmed: the stack writes a frame's
/// addresses anew.
#[inline(always)]
fn send<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
    tunnel: &Tunnel,
    device: u32,
) -> Option<()> {
    let header = F::header(frame, 0)?;
    let vtep = tables.vtep(header.dst)?;
    // What claims to come from elsewhere is for the stack's reverse path filter.
    if !F::pods(tunnel).contains(header.src) {
        return None;
    }
    let (_, mac) = frame.hardware()?;
    learn::<F, T>(tables, header.src, device, mac);
    if !fits::<F, P>(frame, &header, tunnel.mtu) {
        return None;
    }
    let words = F::forwarded(start(frame)?)?;
    frame.send_to::<F>(tunnel, &vtep)?;
    frame.store_hardware(vtep.mac, F::mac(tunnel), words)?;
    frame.mark_sent();
    Some(())
}

/// Learns where a pod is. An address that two devices claim within [`HOME_TICKS`] is left to the
/// bridge until one of them falls silent.
#[inline(always)]
fn learn<F: Network, T: Tunnels<F>>(tables: &mut T, pod: F::Address, device: u32, mac: Mac) {
    let now = tables.now();
    let Some(home) = tables.home(pod) else {
        return tables.settle(pod, Home { device, last: now, mac, pad: 0 });
    };
    if home.device == device && home.mac == mac {
        // Written only when it changes: the cache line is shared by processors.
        if home.last != now {
            home.last = now;
        }
    } else if is_old(home, now) {
        // A new row, for the fields of one that stands cannot change at once.
        tables.settle(pod, Home { device, last: now, mac, pad: 0 });
    } else if home.device != 0 {
        home.device = 0;
    }
}

#[inline(always)]
const fn is_old(home: &Home, now: u32) -> bool {
    now.wrapping_sub(home.last) > HOME_TICKS
}

/// True if the packet, or each that a GSO packet becomes, is no longer than `mtu`. What cannot be
/// told is left to the stack.
#[inline(always)]
fn fits<F: Network, P: Frame>(frame: &P, header: &IpHeader<F::Address>, mtu: u32) -> bool {
    let segment = frame.segment();
    if segment == 0 {
        return frame.len() <= mtu;
    }
    let headers = match header.next {
        protocol::TCP => match frame.words::<1>(header.offset + 12) {
            Some([word]) => header.offset + (word.to_ne_bytes()[0] >> 4) as u32 * 4,
            None => return false,
        },
        protocol::UDP => header.offset + 8,
        _ => return false,
    };
    headers + segment <= mtu
}
