//! flannel's `--ip-masq`: flows that leave the pod network, or enter a part of it that is not
//! this node's, get the address of the device they leave by as source, and a port of our own
//! range. Which they are, [`crate::policy`] says.
//!
//! A flow from `c` to `o`, masqueraded with source `s`, has two rows:
//!
//! | row               | key     | hook    | becomes |
//! |-------------------|---------|---------|---------|
//! | `ORIGINAL_SOURCE` | `c → o` | egress  | `s → o` |
//! | `REPLY_TARGET`    | `o → s` | ingress | `o → c` |
//!
//! A flow is what its first packet made it, as with netfilter: what a pod answers to somebody
//! outside keeps its source. Of TCP the segment itself tells, for only a SYN begins a flow. With
//! UDP and ICMP echo the question leaves two rows that change nothing, `ORIGINAL` and `REPLY`
//! with one place as frontend and backend. Rows live as those of Services do.

use crate::{
    address::{Address, Be16},
    counter::{Hook, Reason},
    echo,
    flow::{FlowKey, Parties, Place, flow_flags, hook, role},
    hash,
    header::{self, IpHeader, Network, Part, Transport},
    icmp::{self, Entered},
    ingress::{Look, fragment_key, key},
    masquerade,
    packet::{Packet, Verdict},
    policy::{KUBE_PROXY_MARK, MASQUERADE_MARK},
    rewrite::{self, Side},
    tables::{FlowTables, KeepError, Opening, Store},
    track,
};

/// How far a packet has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Passes on.
    Done,
    Refused(Reason),
    /// A flow begins.
    Begin,
    /// The row's flow may be over, and this its successor's first packet.
    Restart,
    /// An eviction may have taken the flow's other row.
    Restore,
    /// The flow has been answered and must be kept.
    Settle,
    /// The same of a flow that keeps its source.
    SettleKept,
    /// The same as [`Step::Restore`] of such a flow.
    RestoreKept,
    /// ICMP, but no echo.
    Message,
    /// To be looked at again.
    Again,
}

/// Packed reasons begin here.
const REFUSED: u32 = 16;

impl Step {
    /// As one number that a function of eBPF can return.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Begin => 1,
            Self::Restart => 2,
            Self::Restore => 3,
            Self::Settle => 4,
            Self::SettleKept => 5,
            Self::RestoreKept => 6,
            Self::Message => 7,
            Self::Again => 8,
            Self::Refused(reason) => REFUSED + reason as u32,
        }
    }

    /// The reverse of [`Step::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(number: u32) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Begin,
            2 => Self::Restart,
            3 => Self::Restore,
            4 => Self::Settle,
            5 => Self::SettleKept,
            6 => Self::RestoreKept,
            7 => Self::Message,
            8 => Self::Again,
            _ => match Reason::numbered(number.wrapping_sub(REFUSED)) {
                Some(reason) => Self::Refused(reason),
                None => Self::Refused(Reason::RewriteFailed),
            },
        }
    }
}

/// The tables of flows, and what says which flows are masqueraded.
pub trait PolicyTables<F: Network>: FlowTables<F> {
    /// [`crate::policy::Networks::masquerades`] of this node's.
    fn is_masqueraded(&mut self, src: F::Address, dst: F::Address) -> bool;

    /// [`look_out`]. This and those below are global functions of programs, like the last of
    /// [`FlowTables`].
    #[inline(always)]
    fn look_out<P: Packet>(&mut self, packet: &mut P, look: Look) -> Step
    where
        Self: Sized,
    {
        look_out::<F, P, Self>(packet, self, look)
    }

    /// [`look_in`].
    #[inline(always)]
    fn look_in<P: Packet>(&mut self, packet: &mut P, look: Look) -> Step
    where
        Self: Sized,
    {
        look_in::<F, P, Self>(packet, self, look)
    }
}

/// Decides over a packet that leaves by a device. As with netfilter, a mark tells only of what begins:
/// a flow that is masqueraded here goes on being so.
#[inline(always)]
pub fn leave<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Verdict {
    let mut step = tables.look_out(packet, Look::First);
    if step == Step::Done {
        return Verdict::Pass;
    }
    if step == Step::Message {
        step = complain_out::<F, P, T>(packet, tables);
    } else if step != Step::Begin {
        step = mend_out::<F, P, T>(packet, tables, step);
    }
    if step == Step::Begin {
        if packet.mark() & (MASQUERADE_MARK | KUBE_PROXY_MARK) != 0 {
            return Verdict::Pass;
        }
        step = begin::<F, P, T>(packet, tables);
    }
    if step == Step::Again {
        step = tables.look_out(packet, Look::Again);
    }
    end(tables, Hook::UplinkEgress, step)
}

/// Decides over a packet that came in by a device.
#[inline(always)]
pub fn enter<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Verdict {
    let mut step = tables.look_in(packet, Look::First);
    if step == Step::Done {
        return Verdict::Pass;
    }
    if step == Step::Message {
        step = complain_in::<F, P, T>(packet, tables);
    } else if step == Step::Begin {
        step = keep_source::<F, P, T>(packet, tables);
    } else {
        step = mend_in::<F, P, T>(packet, tables, step);
    }
    if step == Step::Again {
        step = tables.look_in(packet, Look::Again);
    }
    end(tables, Hook::UplinkIngress, step)
}

#[inline(always)]
fn end<F: Network, T: PolicyTables<F>>(tables: &mut T, hook: Hook, step: Step) -> Verdict {
    let reason = match step {
        Step::Done => return Verdict::Pass,
        Step::Refused(reason) => reason,
        // A row that was there a moment ago has been evicted meanwhile.
        _ => Reason::FlowTableFull,
    };
    tables.count_drop(hook, reason);
    Verdict::Drop
}

/// Does what can be done at once for a packet that leaves: all for one that is not ours, the
/// rewrite for one whose flow is known.
#[inline(always)]
pub fn look_out<F: Network, P: Packet, T: PolicyTables<F>>(
    packet: &mut P,
    tables: &mut T,
    look: Look,
) -> Step {
    let Some(header) = F::header(packet, 0) else { return Step::Done };
    if !tables.is_masqueraded(header.src, header.dst) {
        // An error of the node's own may be about a packet to a pod.
        return if F::may_be_icmp(header.next) { Step::Message } else { Step::Done };
    }
    // What has no tuple keeps its source.
    let Ok(mut transport) = header::transport::<F, P>(packet, &header) else { return Step::Done };
    if !transport.has_ports && transport.proto != F::ICMP {
        return Step::Done;
    }
    if transport.part == Part::Later {
        match tables.fragment(&fragment_key(&header, &transport, hook::EGRESS)) {
            Some(ports) => transport.ports = ports,
            None => return Step::Refused(Reason::FragmentWithoutFirst),
        }
    } else if transport.proto == F::ICMP {
        match echo::ports::<F, P>(packet, &transport) {
            Some(ports) => transport.ports = ports,
            None => return Step::Message,
        }
    }
    if transport.part == Part::First {
        let fragment = fragment_key(&header, &transport, hook::EGRESS);
        tables.remember_fragment(&fragment, transport.ports);
    }
    let key = key(&header, &transport, hook::EGRESS);
    match known_out::<F, T>(tables, &key, &transport, packet.len(), look) {
        Ok(source) => write::<F, P>(packet, &header, &transport, Side::Source, source),
        Err(step) => step,
    }
}

/// The new source of a packet whose flow is known, or what has to be done first.
#[inline(always)]
fn known_out<F: Network, T: PolicyTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    transport: &Transport,
    length: u32,
    look: Look,
) -> Result<Place<F::Address>, Step> {
    if !tables.is_marked(hash::way(key.src, key.dst)) {
        return Err(unknown_out(transport));
    }
    let now = tables.now();
    let Some((row, store)) = tables.find(key) else { return Err(unknown_out(transport)) };
    let first = look == Look::First && transport.part != Part::Later;
    let pending = store == Store::Pending;
    let has_handshake = transport.has_handshake;
    if row.role != role::ORIGINAL_SOURCE {
        // An answer to somebody outside.
        if first && pending {
            return Err(Step::SettleKept);
        }
        track::touch(row, track::seen(transport), now, length);
        return Err(Step::Done);
    }
    if first {
        if has_handshake && header::opens(transport.flags) {
            return Err(Step::Restart);
        }
        if has_handshake && pending {
            return Err(Step::Settle);
        }
        // For the answer, whose row it may have been; looked after once a tick.
        if pending && row.last != now {
            return Err(Step::Restore);
        }
    }
    track::touch(row, track::seen(transport), now, length);
    Ok(Place::new(row.to, row.to_port))
}

/// What becomes of a packet without a row.
#[inline(always)]
const fn unknown_out(transport: &Transport) -> Step {
    if transport.has_handshake {
        // Others are answers to somebody outside.
        let begins = header::opens(transport.flags);
        return if begins { Step::Begin } else { Step::Done };
    }
    if matches!(transport.part, Part::Later) {
        return Step::Refused(Reason::FragmentWithoutFirst);
    }
    if is_echo_reply(transport) { Step::Done } else { Step::Begin }
}

/// True for the answer to a ping, which has an identifier where only those have one who ask.
#[inline(always)]
const fn is_echo_reply(transport: &Transport) -> bool {
    !transport.has_ports && transport.ports.src_port.raw() == 0
}

/// Does what can be done at once for a packet that came in.
#[inline(always)]
pub fn look_in<F: Network, P: Packet, T: PolicyTables<F>>(
    packet: &mut P,
    tables: &mut T,
    look: Look,
) -> Step {
    let Some(header) = F::header(packet, 0) else { return Step::Done };
    let Ok(mut transport) = header::transport::<F, P>(packet, &header) else { return Step::Done };
    if !transport.has_ports && transport.proto != F::ICMP {
        return Step::Done;
    }
    if transport.part == Part::Later {
        match tables.fragment(&fragment_key(&header, &transport, hook::INGRESS)) {
            Some(ports) => transport.ports = ports,
            None => return Step::Done,
        }
    } else if transport.proto == F::ICMP {
        match echo::ports::<F, P>(packet, &transport) {
            Some(ports) => transport.ports = ports,
            None => return Step::Message,
        }
    }
    let asks = !transport.has_handshake
        && !is_echo_reply(&transport)
        && tables.is_masqueraded(header.dst, header.src);
    if !asks && !is_ours::<F, T>(tables, transport.ports.dst_port) {
        return Step::Done;
    }
    let key = key(&header, &transport, hook::INGRESS);
    let target = match known_in::<F, T>(tables, &key, &transport, packet.len(), look) {
        Ok(target) => target,
        Err(Step::Begin) if !asks => return Step::Done,
        Err(step) => return step,
    };
    if transport.part == Part::First {
        let fragment = fragment_key(&header, &transport, hook::INGRESS);
        tables.remember_fragment(&fragment, transport.ports);
    }
    write::<F, P>(packet, &header, &transport, Side::Destination, target)
}

/// True for a port that only our flows have.
#[inline(always)]
fn is_ours<F: Network, T: PolicyTables<F>>(tables: &mut T, port: Be16) -> bool {
    let (first, last) = tables.nat_ports();
    port.get() >= first && port.get() <= last
}

/// The new destination of a packet whose flow is known, or what has to be done first.
#[inline(always)]
fn known_in<F: Network, T: PolicyTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    transport: &Transport,
    length: u32,
    look: Look,
) -> Result<Place<F::Address>, Step> {
    let now = tables.now();
    let Some((row, store)) = tables.find(key) else { return Err(Step::Begin) };
    let first = look == Look::First && transport.part != Part::Later;
    let pending = store == Store::Pending;
    if row.role != role::REPLY_TARGET {
        // Somebody outside asks a pod.
        if first && pending && row.last != now {
            return Err(Step::RestoreKept);
        }
        track::touch(row, track::seen(transport), now, length);
        return Err(Step::Done);
    }
    if first && pending {
        if !transport.has_handshake {
            return Err(Step::Settle);
        }
        // The client, once it has the SYN-ACK, sends no SYN again.
        if row.seen == 0 {
            return Err(Step::Restore);
        }
    }
    track::touch(row, track::seen(transport), now, length);
    Ok(Place::new(row.to, row.to_port))
}

/// Rewrites a packet of any protocol that has flows.
#[inline(always)]
fn write<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    transport: &Transport,
    side: Side,
    new: Place<F::Address>,
) -> Step {
    let written = if transport.proto == F::ICMP {
        echo::rewrite::<F, P>(packet, header, transport, side, new)
    } else {
        rewrite::rewrite::<F, P>(packet, header, transport, side, (new, Be16::ZERO))
    };
    match written {
        Ok(()) => Step::Done,
        Err(reason) => Step::Refused(reason),
    }
}

/// Reads a packet's tuple into `key`; false if it has none.
#[inline(never)]
fn read_key<F: Network, P: Packet>(packet: &P, key: &mut FlowKey<F::Address>, hook: u8) -> bool {
    let Some(header) = F::header(packet, 0) else { return false };
    let Ok(mut transport) = header::transport::<F, P>(packet, &header) else { return false };
    if transport.proto == F::ICMP {
        let Some(ports) = echo::ports::<F, P>(packet, &transport) else { return false };
        transport.ports = ports;
    }
    *key = self::key(&header, &transport, hook);
    true
}

/// Begins a flow with the address of the device as source.
#[inline(never)]
fn begin<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Step {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::EGRESS) {
        return Step::Refused(Reason::Malformed);
    }
    let address = tables.device().map(|device| F::masquerade(&device)).unwrap_or_default();
    if address == <F::Address>::default() {
        return Step::Refused(Reason::NoMasqueradeAddress);
    }
    // The node itself asks: its answer comes back by itself.
    if address == key.src {
        return Step::Done;
    }
    *tables.parties() = parties(&key);
    if let Err(reason) = masquerade::find_port::<F, T>(tables, &key, address, NO_SERVICE) {
        return Step::Refused(reason);
    }
    let now = tables.now();
    tables.begin(Opening {
        role: role::ORIGINAL_SOURCE,
        service: NO_SERVICE,
        flags: flow_flags::MASQUERADE,
        now,
        replace: true,
    });
    tables.mark(hash::way(key.src, key.dst));
    Step::Again
}

/// `Flow::service` of flows that know no Service.
const NO_SERVICE: u32 = 0;

/// Who takes part in a flow of which `key` is the first packet's tuple.
#[inline(always)]
fn parties<A: Address>(key: &FlowKey<A>) -> Parties<A> {
    Parties {
        client: key.src(),
        frontend: key.dst(),
        backend: key.dst(),
        source: Place::default(),
        proto: key.proto,
        ..Parties::default()
    }
}

/// Notes that a flow begun by somebody outside keeps its addresses.
#[inline(never)]
fn keep_source<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Step {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::INGRESS) {
        return Step::Done;
    }
    *tables.parties() = parties(&key);
    let reply = tables.parties().reply();
    if tables.find(&reply).is_some_and(|(row, _)| row.role != role::REPLY) {
        // A masqueraded flow has the tuple.
        return Step::Done;
    }
    let now = tables.now();
    let opening = |role| Opening { role, service: NO_SERVICE, flags: 0, now, replace: true };
    tables.begin(opening(role::REPLY));
    tables.begin(opening(role::ORIGINAL));
    tables.mark(hash::way(key.dst, key.src));
    Step::Done
}

/// Does what has to be done for the row of a packet that leaves, before it is looked at again.
#[inline(never)]
fn mend_out<F: Network, P: Packet, T: PolicyTables<F>>(
    packet: &mut P,
    tables: &mut T,
    step: Step,
) -> Step {
    if let Step::Refused(_) = step {
        return step;
    }
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::EGRESS) {
        return Step::Refused(Reason::Malformed);
    }
    if step == Step::SettleKept {
        return settle::<F, T, { role::REPLY }>(tables, &key);
    }
    if step == Step::Settle {
        return settle::<F, T, { role::ORIGINAL_SOURCE }>(tables, &key);
    }
    if step == Step::Restart && tables.succeed::<{ role::ORIGINAL_SOURCE }>(&key) {
        return Step::Begin;
    }
    track::restore::<F, T, { role::ORIGINAL_SOURCE }>(tables, &key);
    Step::Again
}

/// The same for a packet that came in.
#[inline(never)]
fn mend_in<F: Network, P: Packet, T: PolicyTables<F>>(
    packet: &mut P,
    tables: &mut T,
    step: Step,
) -> Step {
    if let Step::Refused(_) = step {
        return step;
    }
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::INGRESS) {
        return Step::Refused(Reason::Malformed);
    }
    if step == Step::Settle {
        return settle::<F, T, { role::REPLY_TARGET }>(tables, &key);
    }
    if step == Step::RestoreKept {
        track::restore::<F, T, { role::ORIGINAL }>(tables, &key);
    } else {
        track::restore::<F, T, { role::REPLY_TARGET }>(tables, &key);
    }
    Step::Again
}

/// Keeps the flow whose row of role `ROLE` is at `key`. Rows that are gone have been kept by
/// another processor, or evicted.
#[inline(always)]
fn settle<F: Network, T: PolicyTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Step {
    if tables.settle::<ROLE>(key) != Err(KeepError::Full) {
        return Step::Again;
    }
    if tables.reclaim() && tables.settle::<ROLE>(key) != Err(KeepError::Full) {
        return Step::Again;
    }
    Step::Refused(Reason::FlowTableFull)
}

/// An ICMP message that is no echo leaves.
#[inline(always)]
fn complain_out<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Step {
    match icmp::egress::<F, P, T>(packet, tables) {
        Ok(()) => Step::Done,
        Err(reason) => Step::Refused(reason),
    }
}

/// An ICMP message that is no echo came in.
#[inline(always)]
fn complain_in<F: Network, P: Packet, T: PolicyTables<F>>(packet: &mut P, tables: &mut T) -> Step {
    match icmp::ingress::<F, P, T>(packet, tables) {
        Entered::Failed(reason) => Step::Refused(reason),
        Entered::Translated | Entered::Answerable | Entered::Other => Step::Done,
    }
}
