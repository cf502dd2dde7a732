//! A frame that enters by an uplink, seen before the kernel makes a socket buffer of it (XDP).
//!
//! What is done here is what most frames of a flow need once the packet path has begun it and it has
//! been answered: both of the packet path's steps at once, or, where the backend is on this node, the
//! first of them. What changes a flow's state, what has options or is a fragment, what is too long or
//! has no hop left, and whatever the kernel knows no way for, passes as it is: the packet path then
//! does the same by the same rows.
//!
//! | frame | row | becomes |
//! |---|---|---|
//! | `c → v` | none | itself, to the stack; nothing if `c` begins too many flows ([`source_rate`]) |
//! | `c → v`, a SYN | none | `c → b`, to the stack, where the tuple alone tells `b` ([`syn`]) |
//! | `c → v` | `ORIGINAL` | `c → b`, to the stack |
//! | `c → v` | `ORIGINAL`, masqueraded | `s → b`, out, in a tunnel if `b` is behind one |
//! | `c → v` | `ORIGINAL`, direct | itself, out in a tunnel |
//! | `c → v` in a tunnel | `ORIGINAL` | `c → b`, to the stack |
//! | `b → s`, perhaps in a tunnel | `REPLY_TARGET` | `v → c`, out |

use crate::{
    address::{Address, Be16, Mac, protocol},
    checksum,
    counter::{Hook, Reason},
    echo,
    flow::{Flow, FlowKey, Place, flow_flags, hook, role},
    flow_cache::RowOrCopy,
    fragment::Ports,
    frontend::{FrontendKey, mark},
    hash,
    header::{self, IpHeader, Part, checksum_offset, tcp},
    nexthop::{NextHop, Uplink},
    packet::{Covers, Packet},
    source_rate, syn, track,
    tunnel::{Sender, Tunnel},
    underlay::Underlay,
    vxlan,
};

/// What becomes of a frame.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// To the kernel, as it is or with another destination.
    Pass,
    /// Ends here. The reason has been counted.
    Drop,
    /// Out by the device of this index.
    Send(u32),
}

/// A [`Fate`], or what comes before it, as one number: what a function of eBPF can return. Of an enum the
/// compiler may leave a part as it was, which the verifier does not take for a number.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packed(pub u32);

impl Packed {
    const PASS: Self = Self(0);
    /// There are no devices of the last numbers.
    const DROP: Self = Self(u32::MAX);
    /// No row: a flow may begin.
    const OPEN: Self = Self(u32::MAX - 1);

    #[inline(always)]
    const fn send(device: u32) -> Self {
        Self(device)
    }

    #[inline(always)]
    const fn unpack(self) -> Fate {
        match self {
            Self::PASS => Fate::Pass,
            Self::DROP => Fate::Drop,
            Self(device) => Fate::Send(device),
        }
    }
}

/// What was done with a frame that did not pass untouched: index into the per-CPU array `CARRIED`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    /// To a backend on this node.
    Local = 0,
    /// To a backend elsewhere.
    Out = 1,
    /// The same in a tunnel.
    Tunnel = 2,
    /// From a backend elsewhere to a client.
    Back = 3,
    /// The same out of a tunnel.
    TunnelBack = 4,
    /// A ping to a Service's address, answered.
    Echo = 5,
    /// In a tunnel as it came, to a node that answers the client itself.
    Direct = 6,
    /// The same out of the tunnel, to a backend on this node.
    Arrived = 7,
}

impl Leg {
    pub const ALL: [Self; 8] = [
        Self::Local,
        Self::Out,
        Self::Tunnel,
        Self::Back,
        Self::TunnelBack,
        Self::Echo,
        Self::Direct,
        Self::Arrived,
    ];

    /// As metrics have it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Out => "out",
            Self::Tunnel => "tunnel",
            Self::Back => "back",
            Self::TunnelBack => "tunnel_back",
            Self::Echo => "echo",
            Self::Direct => "direct",
            Self::Arrived => "arrived",
        }
    }

    #[inline(always)]
    const fn of(is_original: bool, is_tunnelled: bool) -> Self {
        match (is_original, is_tunnelled) {
            (true, false) => Self::Out,
            (true, true) => Self::Tunnel,
            (false, false) => Self::Back,
            (false, true) => Self::TunnelBack,
        }
    }
}

/// Length of `CARRIED`.
pub const CARRIED_LEN: usize = 8;

/// A packet behind an Ethernet header, without a tag.
pub trait Wire: Packet {
    /// Destination and source.
    fn hardware(&self) -> Option<(Mac, Mac)>;

    /// True if there are so many bytes from the network header on.
    fn holds(&self, length: u32) -> bool;

    /// Makes room of so many bytes before all there is.
    fn grow(&mut self, length: u32) -> Option<()>;

    /// Writes destination, source and type of the frame, before the network header.
    fn store_link(&mut self, to: Mac, from: Mac, kind: u16) -> Option<()>;
}

/// The table of answered flows of one family, and counters.
pub trait Rows<F: Underlay> {
    /// The row of an answered flow, or a copy of it.
    fn row(&mut self, key: &FlowKey<F::Address>, now: u32) -> Option<RowOrCopy<'_, F::Address>>;
    /// Has the next look find the row itself.
    fn expire(&mut self, key: &FlowKey<F::Address>);
    /// The row itself.
    fn own_row(&mut self, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>>;
    /// Counts a frame that did not pass untouched.
    fn count(&mut self, leg: Leg);
    /// The same, and for its Service.
    fn count_packet(&mut self, leg: Leg, service: u32, bytes: u32);
    fn count_drop(&mut self, hook: Hook, reason: Reason);

    /// True if a ping to the address is to be answered.
    fn answers_pings(&mut self, address: F::Address) -> bool;
    /// True if a source outside would begin one flow more than it may.
    fn is_over_rate(&mut self, origin: u64) -> bool;
    /// [`syn::begin`]; tells the backend.
    fn begin(&mut self, key: &FlowKey<F::Address>, length: u32) -> Option<Place<F::Address>>;
    /// True if there is a row of a flow that is not answered yet.
    fn is_pending(&mut self, key: &FlowKey<F::Address>) -> bool;
    fn is_frontend(&mut self, key: &FrontendKey<F::Address>) -> bool;

    /// [`source_rate::foresees`], which programs have as a global function.
    #[inline(always)]
    fn is_refused(&mut self, key: &FlowKey<F::Address>) -> bool
    where
        Self: Sized,
    {
        source_rate::foresees::<F, Self>(self, key)
    }

    /// [`wake`], which programs have as a global function.
    #[inline(always)]
    fn wake(&mut self, key: &FlowKey<F::Address>, now: u32)
    where
        Self: Sized,
    {
        wake::<F, Self>(self, key, now);
    }
}

/// What else a frame hangs on.
pub trait Wires<F: Underlay> {
    /// Monotonic clock in units of [`crate::flow::TICK_NS`].
    fn now(&mut self) -> u32;
    /// The device that the frame came in by; `None` if nothing is to be done there.
    fn uplink(&mut self) -> Option<Uplink>;
    /// Bits of [`mark`] for an address.
    fn uses(&mut self, address: F::Address) -> u8;
    /// True if some frontend may have the port.
    fn is_port(&mut self, port: Be16, proto: u8) -> bool;
    /// True if there may be flows with rows for the way, as [`hash::way`] has it.
    fn is_marked(&mut self, way: u32) -> bool;
    fn tunnel(&mut self) -> Tunnel;
    /// True if a node sends by this device, or did within the last tick.
    fn is_sender(&mut self, sender: Sender, now: u32) -> bool;
    /// The way of packets of these addresses, at this time.
    fn next_hop(
        &mut self,
        to: F::Address,
        from: F::Address,
        now: u32,
    ) -> Option<&NextHop<F::Address>>;

    /// [`look`]. This and those below are global functions of programs, which share 512 bytes of stack
    /// with what they call.
    #[inline(always)]
    fn look<P: Wire, R: Rows<F>>(&mut self, frame: &mut P, rows: &mut R) -> Packed
    where
        Self: Sized,
    {
        look::<F, P, R, Self>(frame, rows, self)
    }

    /// [`open`].
    #[inline(always)]
    fn open<P: Wire, R: Rows<F>>(&mut self, frame: &mut P, rows: &mut R) -> Packed
    where
        Self: Sized,
    {
        open::<F, P, R>(frame, rows)
    }

    /// [`echo`].
    #[inline(always)]
    fn echo<P: Wire, R: Rows<F>>(&mut self, frame: &mut P, rows: &mut R) -> Packed
    where
        Self: Sized,
    {
        echo::<F, P, R, Self>(frame, rows, self)
    }
}

/// A packet that can be dealt with here: not divided, without options, of a protocol whose checksum
/// changes with its addresses.
#[derive(Clone, Copy)]
struct Plain<A> {
    header: IpHeader<A>,
    ports: Ports,
    /// [`tcp`] bits.
    flags: u8,
    /// The checksum as it lies in the transport header.
    checksum: u16,
    /// From the network header on, by its own account.
    length: u32,
}

impl<A: Address> Plain<A> {
    /// What its row is found by.
    #[inline(always)]
    const fn key(&self) -> FlowKey<A> {
        let Self { header, ports, .. } = self;
        FlowKey::new(
            Place::new(header.src, ports.src_port),
            Place::new(header.dst, ports.dst_port),
            header.next,
            hook::INGRESS,
        )
    }
}

/// Reads what lies at `at`.
#[inline(always)]
fn plain<F: Underlay, P: Packet>(packet: &P, at: u32) -> Option<Plain<F::Address>> {
    let header = F::header(packet, at)?;
    if header.offset != at + F::HEADER || header.part != Part::Whole {
        return None;
    }
    let length = F::total_length(packet, at)?;
    let (both, flags, checksum) = if header.next == protocol::TCP {
        let [both, _, _, flags, checksum] = packet.words(at + F::HEADER)?;
        if length < F::HEADER + 20 {
            return None;
        }
        (both, flags.to_ne_bytes()[1], first_half(checksum))
    } else if header.next == protocol::UDP {
        let [both, last] = packet.words(at + F::HEADER)?;
        let [a, b, high, low] = last.to_ne_bytes();
        // Behind the datagram its checksum covers nothing, which a tunnel's relies on.
        let datagram = u16::from_be_bytes([a, b]) as u32;
        if datagram < 8 || datagram + F::HEADER != length {
            return None;
        }
        (both, 0, u16::from_ne_bytes([high, low]))
    } else {
        return None;
    };
    Some(Plain { header, ports: header::ports(both.to_ne_bytes()), flags, checksum, length })
}

/// The first two bytes of a word.
#[inline(always)]
const fn first_half(word: u32) -> u16 {
    let [high, low, _, _] = word.to_ne_bytes();
    u16::from_ne_bytes([high, low])
}

/// Decides over a frame.
#[inline(always)]
pub fn receive<F: Underlay, P: Wire, R: Rows<F>, W: Wires<F>>(
    frame: &mut P,
    rows: &mut R,
    wires: &mut W,
) -> Fate {
    let mut packed = wires.look::<P, R>(frame, rows);
    if packed == Packed::OPEN {
        packed = wires.open::<P, R>(frame, rows);
    }
    packed.unpack()
}

/// Does what a row says, if the frame has one.
#[inline(always)]
pub fn look<F: Underlay, P: Wire, R: Rows<F>, W: Wires<F>>(
    frame: &mut P,
    rows: &mut R,
    wires: &mut W,
) -> Packed {
    let Some(outer) = plain::<F, P>(frame, 0) else {
        return wires.echo::<P, R>(frame, rows);
    };
    let tunnel = wires.tunnel();
    let is_tunnel = tunnel.port == outer.ports.dst_port && outer.header.next == protocol::UDP;
    // Unless the overlay has its device do all.
    if !is_tunnel || tunnel.uplink == 0 {
        if is_foreign::<F, W>(wires, &outer) {
            return Packed::PASS;
        }
        let now = wires.now();
        return translate::<F, P, R, W>(frame, rows, wires, &outer, 0, now);
    }
    let now = wires.now();
    if !is_ours::<F, P, W>(frame, wires, &tunnel, now) {
        return Packed::PASS;
    }
    let Some(inner) = plain::<F, P>(frame, F::OVERHEAD) else { return Packed::PASS };
    // To a pod, unless it is a reply; to another address, by a node that has it.
    if F::pods(&tunnel).contains(inner.header.dst) && is_foreign::<F, W>(wires, &inner) {
        return Packed::PASS;
    }
    translate::<F, P, R, W>(frame, rows, wires, &inner, F::OVERHEAD, now)
}

/// Answers a ping to an address that answers them; all else passes.
#[inline(always)]
pub fn echo<F: Underlay, P: Wire, R: Rows<F>, W: Wires<F>>(
    frame: &mut P,
    rows: &mut R,
    wires: &mut W,
) -> Packed {
    let Some(header) = F::header(frame, 0) else { return Packed::PASS };
    if !echo::is_request::<F, P>(frame, &header)
        || wires.uses(header.dst) & mark::WHOLE == 0
        || !rows.answers_pings(header.dst)
    {
        return Packed::PASS;
    }
    let Some(uplink) = wires.uplink() else { return Packed::PASS };
    let Some((to, from)) = frame.hardware() else { return Packed::PASS };
    if uplink.mac != to {
        return Packed::PASS;
    }
    let written = echo::write_reply::<F, P>(frame);
    match written.and_then(|()| frame.store_link(from, to, F::ETHERTYPE)) {
        Some(()) => {
            rows.count(Leg::Echo);
            Packed::send(uplink.device)
        }
        None => failed::<F, R>(rows),
    }
}

/// True for a frame that a node we know sent through the tunnel.
#[inline(always)]
fn is_ours<F: Underlay, P: Wire, W: Wires<F>>(
    frame: &P,
    wires: &mut W,
    tunnel: &Tunnel,
    now: u32,
) -> bool {
    let Some((to, from)) = F::unwrap(frame, tunnel) else { return false };
    to == F::mac(tunnel) && wires.is_sender(Sender { mac: from, pad: 0 }, now)
}

/// Looks for the flow of the packet at `at`, and does what its row says.
#[inline(always)]
fn translate<F: Underlay, P: Wire, R: Rows<F>, W: Wires<F>>(
    frame: &mut P,
    rows: &mut R,
    wires: &mut W,
    plain: &Plain<F::Address>,
    at: u32,
    now: u32,
) -> Packed {
    let &Plain { header, ports, length, .. } = plain;
    if !is_for_this_node::<F, P, W>(frame, wires) {
        return Packed::PASS;
    }
    let key = plain.key();
    let row = if plain.flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0 {
        rows.row(&key, now)
    } else if rows.own_row(&key).is_some() {
        rows.expire(&key);
        rows.own_row(&key).map(RowOrCopy::row)
    } else {
        None
    };
    let Some(row) = row else {
        // From a pod elsewhere, it is for the packet path to see to.
        let may_begin = at == 0 && source_rate::may_begin(header.next, plain.flags);
        return if may_begin { Packed::OPEN } else { Packed::PASS };
    };
    let seen = track::seen_by(plain.flags);
    // What begins or ends something has more to say to the packet path's rows.
    let is_news = plain.flags & tcp::SYN != 0 || row.is_news(seen, header.next, now);
    if is_news || is_partial::<F>(plain) || !frame.holds(at + length) {
        return Packed::PASS;
    }
    let (flags, role) = (row.flags(), row.role());
    let is_masqueraded = flags & flow_flags::MASQUERADE != 0;
    let is_original = role == role::ORIGINAL;
    if !is_original && role != role::REPLY_TARGET {
        return Packed::PASS;
    }
    let to = row.to();
    if is_original && !is_masqueraded {
        // A pod elsewhere asks, and is not to be found where this came in.
        if at != 0 && F::pods(&wires.tunnel()).contains(header.dst) {
            return Packed::PASS;
        }
        let src = Place::new(header.src, ports.src_port.xor(row.turn()));
        let service = row.service();
        row.touch(seen, now, length);
        rows.count_packet(if at == 0 { Leg::Local } else { Leg::Arrived }, service, length);
        let handed = if at == 0 { Some(()) } else { unwrap::<F, P>(frame, at) };
        return match handed.and_then(|()| turn::<F, P>(frame, plain, src, to, 0)) {
            Some(()) => Packed::PASS,
            None => failed::<F, R>(rows),
        };
    }
    // In the reply's row the client is called as the backend knows it.
    let alias = if is_original { Be16::ZERO } else { row.alias() };
    let other = Place::new(row.other(), row.other_port());
    let dst = Place::new(to.addr, to.port.xor(alias));
    // The packet path has to find a source first.
    if other.port == Be16::ZERO {
        return Packed::PASS;
    }
    let Some(hop) = wires.next_hop(dst.addr, other.addr, now) else { return Packed::PASS };
    let has_hops = frame.words(at).and_then(F::forwarded).is_some();
    if hop.device == 0 || length > hop.mtu || !has_hops {
        return Packed::PASS;
    }
    let is_direct = is_original && flags & flow_flags::DIRECT != 0;
    // Without a tunnel, or out of one, the kernel sees to it that it comes to the right node.
    if is_direct && (hop.port == Be16::ZERO || at != 0) {
        return Packed::PASS;
    }
    // The kernel has to sum up what has no checksum in a tunnel that needs one.
    if hop.port != Be16::ZERO && F::NEEDS_CHECKSUM && plain.checksum == 0 {
        return Packed::PASS;
    }
    let (service, is_asleep) = (row.service(), row.is_asleep(now));
    row.touch(seen, now, length);
    if is_asleep {
        rows.wake(&key, now);
    }
    let is_tunnelled = if is_original { hop.port != Be16::ZERO } else { at != 0 };
    let leg = if is_direct { Leg::Direct } else { Leg::of(is_original, is_tunnelled) };
    rows.count_packet(leg, service, length);
    let path = hash::tuple(&key);
    let (src, dst) = if is_direct { (key.src(), key.dst()) } else { (other, dst) };
    let sent = send::<F, P>(frame, plain, at, src, dst, hop, path);
    match sent {
        Some(()) => Packed::send(hop.device),
        None => failed::<F, R>(rows),
    }
}

/// Begins a flow with a frame that has no row, if that can be done here.
#[inline(always)]
pub fn open<F: Underlay, P: Wire, R: Rows<F>>(frame: &mut P, rows: &mut R) -> Packed {
    let Some(plain) = plain::<F, P>(frame, 0) else { return Packed::PASS };
    let (key, length) = (plain.key(), plain.length);
    if key.proto == protocol::TCP
        && syn::is_first(plain.flags)
        && !is_partial::<F>(&plain)
        && frame.holds(length)
        && let Some(backend) = rows.begin(&key, length)
    {
        rows.count(Leg::Local);
        return match turn::<F, P>(frame, &plain, key.src(), backend, 0) {
            Some(()) => Packed::PASS,
            None => failed::<F, R>(rows),
        };
    }
    if !rows.is_refused(&key) {
        return Packed::PASS;
    }
    rows.count_drop(Hook::XdpIngress, Reason::SourceRate);
    Packed::DROP
}

/// Takes a frame that stays here out of its tunnel.
#[inline(always)]
fn unwrap<F: Underlay, P: Wire>(frame: &mut P, at: u32) -> Option<()> {
    let (to, from) = frame.hardware()?;
    frame.shed(at)?;
    frame.store_link(to, from, F::ETHERTYPE)
}

#[inline(always)]
fn failed<F: Underlay, R: Rows<F>>(rows: &mut R) -> Packed {
    rows.count_drop(Hook::XdpIngress, Reason::RewriteFailed);
    Packed::DROP
}

/// True if the packet is certainly for none of ours.
#[inline(always)]
fn is_foreign<F: Underlay, W: Wires<F>>(wires: &mut W, plain: &Plain<F::Address>) -> bool {
    let Plain { header, ports, .. } = plain;
    let uses = wires.uses(header.dst);
    if uses == 0 {
        return true;
    }
    uses & mark::WHOLE == 0
        && !wires.is_port(ports.dst_port, header.next)
        && !wires.is_marked(hash::way(header.src, header.dst))
}

/// False for what a device sees that listens to all, or where a switch floods.
#[inline(always)]
fn is_for_this_node<F: Underlay, P: Wire, W: Wires<F>>(frame: &P, wires: &mut W) -> bool {
    let (Some(uplink), Some((to, _))) = (wires.uplink(), frame.hardware()) else { return false };
    uplink.mac == to
}

/// True if a device may yet have to complete the checksum (CHECKSUM_PARTIAL), whose field then holds
/// the sum of the pseudo header: nothing else tells, and one in 65,536 of those that are complete
/// looks like it.
#[inline(always)]
fn is_partial<F: Underlay>(plain: &Plain<F::Address>) -> bool {
    let Plain { header, length, checksum, .. } = plain;
    let payload = length.wrapping_sub(F::HEADER) as u16;
    let sum = header.src.sum() + header.dst.sum() + header::pseudo(header.next, payload);
    checksum::fold(sum) == *checksum
}

/// Writes both ends, with `hops` less to go.
#[inline(always)]
fn turn<F: Underlay, P: Packet>(
    packet: &mut P,
    plain: &Plain<F::Address>,
    src: Place<F::Address>,
    dst: Place<F::Address>,
    hops: u8,
) -> Option<()> {
    let Plain { header, ports, .. } = plain;
    let new = Ports { src_port: src.port, dst_port: dst.port };
    let before = header.src.sum() + header.dst.sum() + ports.sum();
    let after = src.addr.sum() + dst.addr.sum() + new.sum();
    let (at, by) = (F::HEADER + checksum_offset(header.next), checksum::difference(before, after));
    // All of it lies in the field: none is partial.
    packet.change_transport_checksum(at, by, Covers::Payload, header.next == protocol::UDP)?;
    F::store_ends(packet, header, src.addr, dst.addr, new, hops)
}

/// Writes both ends and what stands before the packet.
#[inline(always)]
fn send<F: Underlay, P: Wire>(
    frame: &mut P,
    plain: &Plain<F::Address>,
    at: u32,
    src: Place<F::Address>,
    dst: Place<F::Address>,
    hop: &NextHop<F::Address>,
    path: u32,
) -> Option<()> {
    if at != 0 {
        frame.shed(at)?;
    }
    turn::<F, P>(frame, plain, src, dst, 1)?;
    if hop.port == Be16::ZERO {
        return frame.store_link(hop.to, hop.from, F::ETHERTYPE);
    }
    let start = frame.words(0)?;
    frame.grow(F::OVERHEAD)?;
    let src_port = vxlan::source_port(hop.first_source_port, hop.last_source_port, path);
    // Of what differs from packet to packet: the packet's own identification, where it has one, and its
    // checksum.
    let id = first_half(start[1]) ^ plain.checksum ^ path as u16;
    F::wrap(frame, hop, src_port, start, plain.length as u16, id)?;
    frame.store_link(hop.to, hop.from, F::ETHERTYPE)
}

/// Notes that a masqueraded flow lives in the other row that its packets would have passed on the
/// packet path: not by each packet, but in each tick in which there are any. `key` is that of the row
/// that they have here.
#[inline(always)]
pub fn wake<F: Underlay, R: Rows<F>>(rows: &mut R, key: &FlowKey<F::Address>, now: u32) {
    let Some(row) = rows.own_row(key) else { return };
    let leaves = key.onward(row);
    if let Some(row) = rows.own_row(&leaves) {
        row.last = now;
    }
}
