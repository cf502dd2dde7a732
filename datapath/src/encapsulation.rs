//! Packets of pods into the tunnel and out of it.
//!
//! `encapsulate` runs where a packet leaves by the tunnel device, `decapsulate` where one has
//! come out of it; `shortcut` where a pod's packet enters the node, so that it need not take the
//! way over bridge and IP stack to the tunnel device, and `intercept` where a packet in a tunnel
//! enters the node, so that it need not take the way over a socket to that device. Both leave
//! to the tunnel device what is IPv6: a tunnel over IPv6 needs a checksum of its own, which the
//! kernel has at hand.

use crate::{
    address::{Address, Ipv4, V4, protocol},
    answer::Unreachable,
    counter::{Hook, Reason},
    echo, hash,
    header::{self, IpHeader, Network, Part},
    home, icmp,
    packet::Packet,
    tunnel::{Frame, Inner, Sender, Tunnel, Tunnels, Vtep, fast_path},
    vxlan::{self, Ends, OVERHEAD, Outer, Wrapped},
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
    /// Out to another node by the device of this index, at once: the packet has its outer headers.
    Underlay(u32),
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
    if !home.is_known(now) || longest::<F, P>(frame, &header, 0)? > tunnel.mtu {
        return None;
    }
    if is_proxys::<F, P, T>(frame, tables, tunnel, &header) {
        return None;
    }
    let words = F::forwarded(start(frame)?)?;
    frame.store_hardware(home.mac, tunnel.mac4, words)?;
    Some(Fate::Pod(home.device))
}

/// True if the Service proxy's programs must see the packet, which is then left to the stack.
#[inline(always)]
fn is_proxys<F: Network, P: Frame, T: Tunnels<F>>(
    frame: &P,
    tables: &mut T,
    tunnel: &Tunnel,
    header: &IpHeader<F::Address>,
) -> bool {
    // An error may be about a flow of the proxy, whoever sends it.
    tunnel.fast_path != fast_path::STRAIGHT
        || F::may_be_icmp(header.next) && !echo::is_echo::<F, P>(frame, header)
        || tables.is_translated(hash::way(header.src, header.dst))
}

/// A packet entered the node by an uplink. One that is out of the tunnel, for a pod whose place is
/// known and of which nothing is left for the kernel to say, leaves the tunnel here; any other is
/// not touched. What is refused, the tunnel device's program refuses.
#[inline(always)]
pub fn intercept<P: Frame, T: Tunnels<V4>>(frame: &mut P, tables: &mut T) -> Fate {
    let tunnel = tables.tunnel();
    if tunnel.uplink == 0 || tunnel.fast_path != fast_path::STRAIGHT {
        return Fate::Pass;
    }
    let Some(wrapped) = vxlan::read(frame, &tunnel) else { return Fate::Pass };
    receive(frame, tables, &tunnel, &wrapped).unwrap_or(Fate::Pass)
}

/// Frees the packet of its tunnel and makes it ready for the pod.
#[inline(always)]
fn receive<P: Frame, T: Tunnels<V4>>(
    frame: &mut P,
    tables: &mut T,
    tunnel: &Tunnel,
    wrapped: &Wrapped,
) -> Option<Fate> {
    if wrapped.to != tunnel.mac4 || !tables.is_sender(Sender { mac: wrapped.from, pad: 0 }) {
        return None;
    }
    let header = &wrapped.header;
    // The kernel's helper leaves a GSO packet's note that it is in a tunnel. TCP never asks; the
    // segments of UDP would come out as what they are not.
    if frame.segment() != 0 && header.next != protocol::TCP {
        return None;
    }
    let now = tables.now();
    let home = *tables.home(header.dst)?;
    if !home.is_known(now) {
        return None;
    }
    if longest::<V4, P>(frame, header, OVERHEAD)? > tunnel.mtu {
        return None;
    }
    if is_proxys(frame, tables, tunnel, header) {
        return None;
    }
    let words = V4::forwarded(wrapped.words)?;
    frame.decapsulate()?;
    if frame.store_hardware(home.mac, tunnel.mac4, words).is_none() {
        tables.count_drop(Hook::UplinkIngress, Reason::RewriteFailed);
        return Some(Fate::Drop);
    }
    if let Some(traffic) = tables.traffic() {
        traffic.received_packets += 1;
        traffic.received_bytes += frame.len() as u64;
    }
    Some(Fate::Pod(home.device))
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
    send::<F, P, T>(frame, tables, &tunnel, device).unwrap_or(Fate::Pass)
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
) -> Option<Fate> {
    let header = F::header(frame, 0)?;
    let vtep = tables.vtep(header.dst)?;
    // What claims to come from elsewhere is for the stack's reverse path filter.
    if !F::pods(tunnel).contains(header.src) {
        return None;
    }
    let (to, mac) = frame.hardware()?;
    let now = tables.now();
    home::learn::<F, T>(tables, header.src, device, mac, now);
    if longest::<F, P>(frame, &header, 0)? > tunnel.mtu {
        return None;
    }
    let words = F::forwarded(start(frame)?)?;
    let is_plain = tunnel.uplink != 0 && vtep.by_uplink != 0 && !to.is_group();
    // What the proxy may have to translate, it does where packets leave by the tunnel device.
    if !F::V6 && is_plain && !is_proxys::<F, P, T>(frame, tables, tunnel, &header) {
        let fate = wrap::<F, P, T>(frame, tables, tunnel, &vtep, words);
        if fate.is_some() {
            return fate;
        }
    }
    frame.send_to::<F>(tunnel, &vtep)?;
    frame.store_hardware(vtep.mac, F::mac(tunnel), words)?;
    frame.mark_sent();
    Some(Fate::Tunnel)
}

/// Puts the packet, which is to begin with `words`, into the tunnel at once. `None` where the
/// tunnel device must: nothing changed.
#[inline(always)]
fn wrap<F: Network + Inner, P: Frame, T: Tunnels<F>>(
    frame: &mut P,
    tables: &mut T,
    tunnel: &Tunnel,
    vtep: &Vtep<F::Address>,
    words: [u32; 3],
) -> Option<Fate> {
    let whole = frame.len();
    // More than an outer header can tell of.
    if whole > u16::MAX as u32 - OVERHEAD {
        return None;
    }
    let ends = Ends {
        src: tunnel.underlay4,
        dst: Ipv4::from_raw(vtep.underlay.words()[0]),
        src_port: vxlan::source_port(
            tunnel.first_source_port,
            tunnel.last_source_port,
            frame.flow_hash(),
        ),
        dst_port: tunnel.port,
    };
    let macs = [vtep.mac, F::mac(tunnel)];
    let id = frame.random() as u16;
    let outer = Outer::new(&ends, tunnel.vni, macs, words, whole as u16, id);
    frame.encapsulate()?;
    if frame.store_outer(&outer).is_none() {
        tables.count_drop(Hook::PodIngress, Reason::RewriteFailed);
        return Some(Fate::Drop);
    }
    if let Some(traffic) = tables.traffic() {
        traffic.sent_packets += 1;
        traffic.sent_bytes += whole as u64;
    }
    Some(Fate::Underlay(tunnel.uplink))
}

/// Length of the packet that begins at `at`, or of the longest that a GSO packet becomes. What
/// cannot be told is left to the stack, and so are options, which each hop has to heed.
#[inline(always)]
fn longest<F: Network, P: Frame>(frame: &P, header: &IpHeader<F::Address>, at: u32) -> Option<u32> {
    if header.offset != at + F::HEADER {
        return None;
    }
    let segment = frame.segment();
    if segment == 0 {
        return frame.len().checked_sub(at);
    }
    let headers = match header.next {
        protocol::TCP => {
            let [word] = frame.words(header.offset + 12)?;
            F::HEADER + (word.to_ne_bytes()[0] >> 4) as u32 * 4
        }
        protocol::UDP => F::HEADER + 8,
        _ => return None,
    };
    Some(headers + segment)
}
