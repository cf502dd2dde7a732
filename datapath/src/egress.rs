//! A packet leaves the node, or leaves it toward a pod: its source is rewritten if it is the
//! reply of a backend, or if its flow is masqueraded.

use crate::{
    address::{Be16, protocol},
    answer,
    counter::{Hook, Reason},
    flow::{FlowKey, Place, flow_flags, hook, role},
    hash,
    header::{self, IpHeader, Network, Part, Transport, tcp},
    icmp,
    ingress::{Look, fragment_key, key, read_key},
    masquerade,
    packet::{Packet, Verdict},
    policy::MASQUERADE_MARK,
    rewrite::{Side, rewrite},
    tables::{KeepError, Store, Tables},
    track,
};

/// How far a packet has got. A function of eBPF returns it as a number.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Done = 0,
    /// The packet could not be rewritten.
    Failed = 1,
    /// The flow is to be masqueraded and has no source yet.
    Assign = 2,
    /// The flow has been answered and must be kept.
    Settle = 3,
    /// ICMP: perhaps an error about a flow.
    Message = 4,
    /// A fragment whose checksum would have to change with the whole packet's.
    Fragment = 5,
    /// A TCP segment from an endpoint that is gone, to be answered with RST.
    Gone = 6,
    /// Of a flow that is [`crate::direct`]: its destination is to be rewritten, and not its source.
    Direct = 7,
    /// Answers a SYN that had no row: perhaps the flow is over, and its tuple is that of a connection by no
    /// Service.
    Heir = 8,
}

impl Step {
    /// The reverse of `as u32`.
    #[inline(always)]
    #[must_use]
    pub const fn unpack(number: u32) -> Self {
        match number {
            0 => Self::Done,
            2 => Self::Assign,
            3 => Self::Settle,
            4 => Self::Message,
            5 => Self::Fragment,
            6 => Self::Gone,
            7 => Self::Direct,
            8 => Self::Heir,
            _ => Self::Failed,
        }
    }
}

/// Decides over a packet that goes out by a device. As at ingress, what few packets need is
/// done apart, and then the packet is looked at again.
#[inline(always)]
pub fn egress<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Verdict {
    let mut step = tables.look_out(packet, Look::First);
    // Into a tunnel, which is not where pods are.
    let may_be_direct = matches!(hook, Hook::UplinkEgress);
    if may_be_direct && step == Step::Direct {
        step = tables.look_direct(packet);
    }
    if may_be_direct
        && step == Step::Message
        && tables.settings().dsr != 0
        && tables.restores_quote(packet)
    {
        return Verdict::Pass;
    }
    let done = match step {
        // To a pod of this node that has the address of a backend that was elsewhere.
        Step::Done | Step::Direct => return Verdict::Pass,
        Step::Failed => Err(Reason::RewriteFailed),
        Step::Fragment => Err(Reason::SctpFragment),
        Step::Message => icmp::egress::<F, P, T>(packet, tables),
        Step::Gone => match answer::reset::<F, P, T>(packet, tables, hook, Reason::EndpointGone) {
            Ok(verdict) => return verdict,
            Err(reason) => Err(reason),
        },
        Step::Heir if succeeds::<F, P, T>(packet, tables) => return Verdict::Pass,
        Step::Heir => once_more::<F, P, T>(packet, tables),
        Step::Assign => {
            assign::<F, P, T>(packet, tables).and_then(|()| once_more::<F, P, T>(packet, tables))
        }
        Step::Settle => {
            if settle::<F, P, T>(packet, tables)
                || tables.reclaim() && settle::<F, P, T>(packet, tables)
            {
                once_more::<F, P, T>(packet, tables)
            } else {
                Err(Reason::FlowTableFull)
            }
        }
    };
    let Err(reason) = done else { return Verdict::Pass };
    tables.count_drop(hook, reason);
    Verdict::Drop
}

/// The look after the rare has been done.
#[inline(always)]
fn once_more<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
) -> Result<(), Reason> {
    match tables.look_out(packet, Look::Again) {
        Step::Done => Ok(()),
        Step::Failed => Err(Reason::RewriteFailed),
        Step::Fragment => Err(Reason::SctpFragment),
        // A row that was there a moment ago has been evicted meanwhile. (Or it has just been marked,
        // and the segment will come again.)
        Step::Assign | Step::Settle | Step::Message | Step::Gone | Step::Direct | Step::Heir => {
            Err(Reason::FlowTableFull)
        }
    }
}

/// Forgets the packet's flow if it is over.
#[inline(never)]
fn succeeds<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T) -> bool {
    let mut key = FlowKey::default();
    read_key::<F, P>(packet, &mut key, hook::EGRESS) && tables.succeed::<{ role::REPLY }>(&key)
}

/// Gives the packet's flow a source.
#[inline(never)]
fn assign<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
) -> Result<(), Reason> {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::EGRESS) {
        return Err(Reason::Malformed);
    }
    masquerade::assign::<F, T>(tables, &key)
}

/// Keeps the packet's flow; false if there is no room. Rows that are gone have been kept by
/// another processor, or evicted: then the packet is that of a backend without a flow, which
/// passes as it is.
#[inline(never)]
fn settle<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T) -> bool {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::EGRESS) {
        return false;
    }
    tables.settle::<{ role::REPLY }>(&key) != Err(KeepError::Full)
}

/// Does what can be done at once: all for a packet that is not ours, the rewrite for one whose
/// flow is known.
#[inline(always)]
pub fn look<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    look: Look,
) -> Step {
    let Some(header) = F::header(packet, 0) else { return Step::Done };
    if header.next == F::ICMP {
        return Step::Message;
    }
    if tables.is_marked(hash::way(header.src, header.dst)) {
        ours::<F, P, T, false>(packet, tables, &header, look)
    } else if F::may_be_icmp(header.next) {
        Step::Message
    } else {
        Step::Done
    }
}

/// The same for a packet of a flow that is [`crate::direct`], as [`look`] told.
#[inline(always)]
pub fn look_direct<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T) -> Step {
    match F::header(packet, 0) {
        Some(header) => ours::<F, P, T, true>(packet, tables, &header, Look::Again),
        None => Step::Done,
    }
}

/// There have been flows between the packet's addresses.
#[inline(always)]
fn ours<F: Network, P: Packet, T: Tables<F>, const DIRECT: bool>(
    packet: &mut P,
    tables: &mut T,
    header: &IpHeader<F::Address>,
    look: Look,
) -> Step {
    // What cannot be read has no row: it was refused where it would have begun.
    let Ok(mut transport) = header::transport::<F, P>(packet, header) else { return Step::Done };
    if !transport.has_ports {
        return if transport.proto == F::ICMP { Step::Message } else { Step::Done };
    }
    if transport.part == Part::Later {
        match tables.fragment(&fragment_key(header, &transport, hook::EGRESS)) {
            Some(ports) => transport.ports = ports,
            None => return Step::Done,
        }
    }
    let key = key(header, &transport, hook::EGRESS);
    let place = match known::<F, P, T, DIRECT>(packet, tables, &key, &transport, look) {
        Ok(place) => place,
        Err(step) => return step,
    };
    let side = if DIRECT { Side::Destination } else { Side::Source };
    match rewrite::<F, P>(packet, header, &transport, side, place) {
        Ok(()) => {}
        Err(Reason::SctpFragment) => return Step::Fragment,
        Err(_) => return Step::Failed,
    }
    if transport.part == Part::First {
        let fragment = fragment_key(header, &transport, hook::EGRESS);
        tables.remember_fragment(&fragment, transport.ports);
    }
    Step::Done
}

/// The new source of a packet that has a row (or the new destination, of one that is direct), and what
/// turns its other port, or what has to be done first.
#[inline(always)]
fn known<F: Network, P: Packet, T: Tables<F>, const DIRECT: bool>(
    packet: &mut P,
    tables: &mut T,
    key: &FlowKey<F::Address>,
    transport: &Transport,
    look: Look,
) -> Result<(Place<F::Address>, Be16), Step> {
    let now = tables.now();
    let Some((row, store)) = tables.find(key) else { return Err(Step::Done) };
    let pending = store == Store::Pending;
    let (source, service) = (row.becomes(), row.service);
    let reply = row.role == role::REPLY;
    if !reply && source.0.port.raw() == 0 {
        return Err(Step::Assign);
    }
    if (!reply && row.flags & flow_flags::DIRECT != 0) != DIRECT {
        return Err(if DIRECT { Step::Done } else { Step::Direct });
    }
    let answers = transport.flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
    if reply && answers && row.seen != 0 && look == Look::First {
        return Err(Step::Heir);
    }
    // TCP waits for the client's answer to the answer: a SYN with a forged source brings a
    // SYN-ACK, but nothing after it. Of a lone row the answer brings the other one.
    let is_lone = row.flags & flow_flags::LONE != 0;
    if reply && pending && (transport.proto == protocol::UDP || is_lone) {
        return Err(Step::Settle);
    }
    if track::is_to_end(row) {
        return Err(Step::Gone);
    }
    let length = packet.len();
    track::touch(row, track::seen(transport), now, length);
    if reply {
        // At ingress the other direction has been counted.
        tables.count_packet(service, length);
    } else {
        // Done: nobody is to heed it in what the packet is put into.
        packet.set_mark(packet.mark() & !MASQUERADE_MARK);
    }
    Ok(source)
}
