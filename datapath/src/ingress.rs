//! A packet enters the node: its destination is rewritten if it goes to a frontend, or if it
//! is the reply to a masqueraded flow.

use crate::{
    address::{Address, Be16, protocol},
    algorithm::Algorithm,
    answer,
    backend::backend_flags,
    counter::{Hook, Reason},
    direct, echo,
    flow::{FlowKey, Parties, Place, flow_flags, hook, role},
    fragment::{FragmentKey, Ports},
    frontend::{FrontendKey, address_use},
    header::{self, IpHeader, Network, Part, Transport, tcp},
    icmp::{self, Entered},
    packet::{Packet, Verdict},
    policy::MASQUERADE_MARK,
    rewrite::{Side, rewrite},
    select::{Choice, Origin},
    source_range,
    tables::{KeepError, Store, Tables},
    track,
};

/// How far a packet has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Passes on.
    Done,
    Refused(Reason),
    /// No row: a flow may begin.
    Open,
    /// To be begun, to this Service by a frontend of this kind.
    Choose {
        service: u32,
        kind: u8,
    },
    /// The row's flow may be over, and this its successor's first packet.
    Restart,
    /// The row's flow has been answered and must be kept.
    Settle,
    /// ICMP, or a protocol that no Service speaks.
    Portless,
    /// To be answered so.
    Unreachable(Reason),
    /// A ping, to be answered.
    Echo,
    /// A TCP segment that belongs to no flow and begins none, or to one whose endpoint is gone: to be
    /// answered with RST.
    Reset(Reason),
}

impl Step {
    /// What [`look`] found as one number that a function of eBPF can return.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Open => 1,
            Self::Restart => 2,
            Self::Settle => 3,
            Self::Portless => 4,
            Self::Reset(_) => 5,
            Self::Refused(reason) => REFUSED + reason as u32,
            // What no look finds.
            Self::Choose { .. } | Self::Unreachable(_) | Self::Echo => 6,
        }
    }

    /// The reverse of [`Step::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(number: u32) -> Self {
        match number {
            0 => Self::Done,
            1 => Self::Open,
            2 => Self::Restart,
            3 => Self::Settle,
            4 => Self::Portless,
            5 => Self::Reset(Reason::EndpointGone),
            _ => match Reason::numbered(number.wrapping_sub(REFUSED)) {
                Some(reason) => Self::Refused(reason),
                None => Self::Refused(Reason::RewriteFailed),
            },
        }
    }
}

/// Packed reasons begin here.
const REFUSED: u32 = 16;

/// What [`begin`] found as one number, since a function of eBPF returns nothing wider, and of a narrower
/// value the compiler may leave a part as it was, which the verifier does not take for a number.
#[inline(always)]
const fn pack_begun(step: Step) -> u64 {
    match step {
        Step::Choose { service, kind } => (service as u64) << 32 | CHOOSE | kind as u64,
        Step::Unreachable(reason) => UNREACHABLE | reason as u64,
        Step::Reset(reason) => RESET | reason as u64,
        other => other.pack() as u64,
    }
}

/// The reverse of [`pack_begun`].
#[inline(always)]
const fn unpack_begun(number: u64) -> Step {
    let low = number as u8;
    let reason = match Reason::numbered(low as u32) {
        Some(reason) => reason,
        None => Reason::RewriteFailed,
    };
    match number as u32 as u64 & !0xff {
        CHOOSE => Step::Choose { service: (number >> 32) as u32, kind: low },
        UNREACHABLE => Step::Unreachable(reason),
        RESET => Step::Reset(reason),
        _ => Step::unpack(low as u32),
    }
}

const CHOOSE: u64 = 0x100;
const UNREACHABLE: u64 = 0x200;
const RESET: u64 = 0x300;

/// How much a look at the tables may lead to: less once it has been done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    First,
    Again,
}

/// Decides over a packet that came in by a device. `hook` tells whether by a pod's.
///
/// What most packets need is done in one look; what few need is done apart, and then the
/// packet is looked at again, because a program and all it calls share 512 bytes of stack.
#[inline(always)]
pub fn ingress<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Verdict {
    let mut step = tables.look_in(packet, Look::First);
    if step == Step::Restart {
        step = if restart::<F, P, T>(packet, tables) { Step::Open } else { Step::Settle };
    } else if step == Step::Portless {
        step = without_ports::<F, P, T>(packet, tables, hook);
    } else if step == Step::Settle
        && !settle::<F, P, T>(packet, tables)
        && !(tables.reclaim() && settle::<F, P, T>(packet, tables))
    {
        step = Step::Refused(Reason::FlowTableFull);
    }
    if step == Step::Open {
        step = unpack_begun(begin::<F, P, T>(packet, tables, hook));
    }
    if let Step::Choose { service, kind } = step {
        // The node that it came by, if it came by one, has asked.
        let is_from_outside = matches!(hook, Hook::UplinkIngress);
        step = if is_from_outside && tables.is_over_rate() {
            Step::Refused(Reason::SourceRate)
        } else {
            choose::<F, T>(tables, hook, service, kind)
        };
    }
    if step == Step::Settle {
        step = tables.look_in(packet, Look::Again);
    }
    let answered = match step {
        Step::Done => Ok(Verdict::Pass),
        Step::Refused(reason) => Err(reason),
        Step::Unreachable(reason) => answer::unreachable::<F, P, T>(packet, tables, hook, reason),
        Step::Reset(reason) => answer::reset::<F, P, T>(packet, tables, hook, reason),
        Step::Echo if packet.write_echo::<F>() => Ok(Verdict::Answer),
        Step::Echo => Err(Reason::RewriteFailed),
        // A row that was there a moment ago has been evicted meanwhile.
        Step::Open | Step::Choose { .. } | Step::Restart | Step::Settle | Step::Portless => {
            Err(Reason::FlowTableFull)
        }
    };
    answered.unwrap_or_else(|reason| {
        tables.count_drop(hook, reason);
        Verdict::Drop
    })
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
    let mut transport = match header::transport::<F, P>(packet, &header) {
        Ok(transport) => transport,
        Err(reason) => return unreadable::<F, T>(tables, header.dst, reason),
    };
    if !transport.has_ports {
        return Step::Portless;
    }
    if transport.part == Part::Later {
        let fragment = fragment_key(&header, &transport, hook::INGRESS);
        let Some(ports) = tables.fragment(&fragment) else {
            return unreadable::<F, T>(tables, header.dst, Reason::FragmentWithoutFirst);
        };
        transport.ports = ports;
    }
    let key = key(&header, &transport, hook::INGRESS);
    let target = match known::<F, P, T>(packet, tables, &key, &transport, look) {
        Ok(target) => target,
        Err(Step::Open) if transport.part == Part::Later => {
            return unreadable::<F, T>(tables, header.dst, Reason::FragmentWithoutFirst);
        }
        Err(step) => return step,
    };
    if let Err(reason) = rewrite::<F, P>(packet, &header, &transport, Side::Destination, target) {
        return Step::Refused(reason);
    }
    if transport.part == Part::First {
        let fragment = fragment_key(&header, &transport, hook::INGRESS);
        tables.remember_fragment(&fragment, transport.ports);
    }
    Step::Done
}

/// What cannot be read is refused on an address that is only ours; on another it is somebody
/// else's.
#[inline(always)]
fn unreadable<F: Network, T: Tables<F>>(tables: &mut T, dst: F::Address, reason: Reason) -> Step {
    match tables.address_use(dst) {
        Some(usage) if usage.flags & address_use::CLUSTER_IP != 0 => Step::Refused(reason),
        _ => Step::Done,
    }
}

/// A packet, perhaps to one of our addresses, of a protocol that has no ports.
#[inline(always)]
fn without_ports<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Step {
    let Some(header) = F::header(packet, 0) else { return Step::Done };
    let flags = match tables.address_use(header.dst) {
        Some(usage) => usage.flags,
        // Perhaps another node's, about a flow that is direct.
        None if matches!(hook, Hook::TunnelIngress) => 0,
        None => return Step::Done,
    };
    if flags & address_use::ECHO != 0 && echo::is_request::<F, P>(packet, &header) {
        return Step::Echo;
    }
    let only_ours = flags & address_use::CLUSTER_IP != 0;
    match icmp::ingress::<F, P, T>(packet, tables) {
        Entered::Translated => Step::Done,
        Entered::Failed(reason) => Step::Refused(reason),
        Entered::Answerable if only_ours => Step::Unreachable(Reason::UnknownPort),
        _ if only_ours => Step::Refused(Reason::UnknownPort),
        _ => Step::Done,
    }
}

/// The tuple of a packet.
#[inline(always)]
pub(crate) const fn key<A: Address>(
    header: &IpHeader<A>,
    transport: &Transport,
    hook: u8,
) -> FlowKey<A> {
    let Ports { src_port, dst_port } = transport.ports;
    FlowKey::new(
        Place::new(header.src, src_port),
        Place::new(header.dst, dst_port),
        transport.proto,
        hook,
    )
}

/// What names a packet whose fragments belong together.
#[inline(always)]
pub(crate) const fn fragment_key<A: Address>(
    header: &IpHeader<A>,
    transport: &Transport,
    hook: u8,
) -> FragmentKey<A> {
    FragmentKey {
        src: header.src,
        dst: header.dst,
        id: transport.id,
        proto: transport.proto,
        hook,
        pad: 0,
    }
}

/// The new destination of a packet whose flow is known, and what turns its other port, or what
/// has to be done first.
#[inline(always)]
fn known<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    key: &FlowKey<F::Address>,
    transport: &Transport,
    look: Look,
) -> Result<(Place<F::Address>, Be16), Step> {
    let now = tables.now();
    let opens = transport.flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    // A later fragment has no ports by which `restart` and `settle` would find its row: its
    // first fragment has seen to the flow.
    let first = look == Look::First && transport.part != Part::Later;
    let Some((row, store)) = tables.find(key) else { return Err(Step::Open) };
    let pending = store == Store::Pending;
    if track::is_to_end(row) {
        let is_heir = first && opens && row.role == role::ORIGINAL;
        return Err(if is_heir { Step::Restart } else { Step::Reset(Reason::EndpointGone) });
    }
    if first && row.role == role::ORIGINAL {
        // Of a UDP flow that nobody has answered yet, an eviction may have taken the reply's
        // row, for which no reply can settle it: looked after once a tick.
        // Where none is going to come, it is kept by then.
        let udp = transport.proto == protocol::UDP;
        let is_direct = row.flags & flow_flags::DIRECT != 0;
        let is_unsure = pending && !is_direct && row.last != now;
        if opens || udp && (track::is_idle(row, now) || is_unsure) {
            return Err(Step::Restart);
        }
        if pending && (!udp || is_direct && row.last != now) {
            return Err(Step::Settle);
        }
    }
    let length = packet.len();
    track::touch(row, track::seen(transport), now, length);
    let (target, service) = (row.becomes(), row.service);
    // So that flannel-agent, which comes first where it leaves, knows that egress masquerades it.
    if row.role == role::ORIGINAL && row.flags & flow_flags::MASQUERADE != 0 {
        packet.set_mark(packet.mark() | MASQUERADE_MARK);
    }
    tables.count_packet(service, length);
    Ok(target)
}

/// Reads a packet's tuple into `key`; false if it has none.
#[inline(never)]
pub fn read_key<F: Network, P: Packet>(
    packet: &P,
    key: &mut FlowKey<F::Address>,
    hook: u8,
) -> bool {
    let Some(header) = F::header(packet, 0) else { return false };
    let Ok(transport) = header::transport::<F, P>(packet, &header) else { return false };
    *key = self::key(&header, &transport, hook);
    true
}

/// Forgets the packet's flow if it is over. Else writes again what an eviction has taken of
/// it; false.
#[inline(never)]
fn restart<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T) -> bool {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::INGRESS) {
        return false;
    }
    if tables.succeed::<{ role::ORIGINAL }>(&key) {
        return true;
    }
    track::restore::<F, T, { role::ORIGINAL }>(tables, &key);
    false
}

/// Keeps the packet's flow if the backend has answered it; false if there is no room.
#[inline(never)]
fn settle<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T) -> bool {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::INGRESS) {
        return false;
    }
    tables.settle::<{ role::ORIGINAL }>(&key) != Err(KeepError::Full)
}

/// [`beginning`], packed.
#[inline(never)]
fn begin<F: Network, P: Packet, T: Tables<F>>(packet: &mut P, tables: &mut T, hook: Hook) -> u64 {
    pack_begun(beginning::<F, P, T>(packet, tables, hook))
}

/// Sees whether the packet may begin a flow, and leaves its tuple in [`Tables::parties`].
#[inline(always)]
fn beginning<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Step {
    let mut key = FlowKey::default();
    if !read_key::<F, P>(packet, &mut key, hook::INGRESS) {
        return Step::Refused(Reason::Malformed);
    }
    let wanted = FrontendKey::new(key.dst, key.dst_port, key.proto);
    let mut found = tables.frontend(&wanted);
    if found.is_none() && matches!(hook, Hook::TunnelIngress) {
        found = match direct::frontend::<F, T>(tables, &wanted) {
            Ok(found) => found,
            Err(direct::NoSuchPort) => return Step::Refused(Reason::UnknownPort),
        };
    }
    let Some(frontend) = found else {
        let usage = tables.address_use(key.dst);
        return if usage.is_some_and(|usage| usage.flags & address_use::CLUSTER_IP != 0) {
            Step::Unreachable(Reason::UnknownPort)
        } else {
            Step::Done
        };
    };
    // What the socket path has for the node's own processes; the kernel calls such a packet martian.
    if key.dst.is_loopback() {
        return Step::Done;
    }
    if source_range::refuses::<F, T>(tables, &frontend, key.src) {
        return Step::Refused(Reason::SourceRange);
    }
    if key.proto != protocol::UDP {
        let flags = header::flags::<F, P>(packet);
        if !header::opens(flags) && !resumes::<F, T>(tables, frontend.service, key.proto, flags) {
            return stray(tables, key.proto);
        }
    }
    *tables.parties() = Parties {
        client: key.src(),
        frontend: key.dst(),
        backend: Place::default(),
        source: Place::default(),
        proto: key.proto,
        ..Parties::default()
    };
    Step::Choose { service: frontend.service, kind: frontend.kind }
}

/// True for a segment of a connection that may have come by another node, which is lost: where a
/// Service has Maglev, all nodes choose the same backend for its tuple, so that it goes on (Eisenbud
/// et al., Maglev, NSDI 2016, §3.3). While another proxy's rules are on the node, the connection may
/// be one that they know.
#[inline(always)]
fn resumes<F: Network, T: Tables<F>>(tables: &mut T, service: u32, proto: u8, flags: u8) -> bool {
    proto == protocol::TCP
        && flags & (tcp::ACK | tcp::SYN | tcp::RST) == tcp::ACK
        && Algorithm::of(tables.policy(service).flags) == Algorithm::Maglev
        && tables.settings().foreign_proxy == 0
}

/// What belongs to no flow and begins none: the flow's row is gone, or it was never here. Of SCTP
/// nothing answers it, as with kube-proxy, to whose conntrack it is invalid. While another proxy's
/// rules are on the node they may know the connection or association, so it passes.
#[inline(always)]
fn stray<F: Network, T: Tables<F>>(tables: &mut T, proto: u8) -> Step {
    if tables.settings().foreign_proxy != 0 {
        Step::Done
    } else if proto == protocol::TCP {
        Step::Reset(Reason::NotSyn)
    } else {
        Step::Refused(Reason::NotInit)
    }
}

/// Chooses a backend and opens a flow to it.
#[inline(never)]
fn choose<F: Network, T: Tables<F>>(tables: &mut T, hook: Hook, service: u32, kind: u8) -> Step {
    let origin = Origin::of(hook);
    let flags = match tables.select_for_sender(service, kind, origin) {
        Choice::Backend(flags) => flags,
        Choice::Reject => return Step::Unreachable(Reason::NoEndpoints),
        Choice::Drop => return Step::Refused(Reason::TrafficPolicy),
        Choice::Torn => return Step::Refused(Reason::BackendSetTorn),
    };
    let parties = tables.parties();
    // The reply passes here by itself if either end is on this node, but not if both ends
    // are one and the same.
    let local = flags & backend_flags::LOCAL != 0;
    let is_hairpin = parties.client.addr == parties.backend.addr;
    let masquerade = (origin != Origin::Inside && !local) || is_hairpin;
    let mut flags = if masquerade { flow_flags::MASQUERADE } else { 0 };
    if matches!(hook, Hook::UplinkIngress)
        && !local
        && !is_hairpin
        && tables.is_direct(service, kind)
    {
        flags |= flow_flags::DIRECT;
        let parties = tables.parties();
        parties.source = parties.frontend;
    }
    if tables.open(service, flags) {
        tables.count_connection(service);
        return Step::Settle;
    }
    Step::Refused(Reason::TupleInUse)
}
