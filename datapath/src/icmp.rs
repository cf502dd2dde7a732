//! ICMP errors about translated flows. An error about a packet from X to Y travels like a
//! packet from Y to X: where that one's destination would be rewritten, the error's
//! destination and the quoted packet's source are; where its source would be, the error's
//! source (if it is Y itself that complains) and the quoted packet's destination are.

use crate::{
    address::{Address, Be16, protocol},
    checksum::{difference, replace},
    counter::Reason,
    echo,
    flow::{Flow, FlowKey, Place, flow_flags, hook, role},
    hash,
    header::{self, IpHeader, Network, Part, Transport, has_ports},
    packet::{Covers, Packet},
    rewrite::Side,
    sctp,
    tables::{FlowTables, Store},
};

/// ICMP header of an error: type, code, checksum, and four bytes that depend on the type.
const HEADER: u32 = 8;

/// ICMP types (RFC 792, RFC 4443, RFC 4861).
mod kind {
    pub(super) const DESTINATION_UNREACHABLE: u8 = 3;
    pub(super) const SOURCE_QUENCH: u8 = 4;
    pub(super) const REDIRECT: u8 = 5;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
    pub(super) const REDIRECT6: u8 = 137;
    /// ICMPv6 types below this are errors.
    pub(super) const FIRST_INFORMATIONAL6: u8 = 128;
}

/// An error, as far as it could be read.
struct Quote<A> {
    /// Offset of the ICMP header.
    at: u32,
    redirect: bool,
    header: IpHeader<A>,
    /// Offset of the quoted packet's IP header.
    start: u32,
    transport: Transport,
}

impl<A: Address> Quote<A> {
    /// The tuple of the packet that would travel as the error does.
    #[inline(always)]
    fn key(&self, hook: u8) -> FlowKey<A> {
        FlowKey::new(
            Place::new(self.header.dst, self.transport.ports.dst_port),
            Place::new(self.header.src, self.transport.ports.src_port),
            self.transport.proto,
            hook,
        )
    }
}

/// What an ICMP message is.
enum Message<A> {
    Error(Quote<A>),
    Other { error: bool },
}

/// What an ICMP message to one of our addresses turned out to be.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// An error about a flow, translated.
    Translated,
    /// Nothing that we know of, and no error, so that an error may answer it.
    Answerable,
    /// Nothing that we know of.
    Other,
    /// An error about a flow that must not go on.
    Failed(Reason),
}

/// An ICMP message to one of our addresses entered the node. Reads the headers again rather
/// than have them handed down: eBPF functions take five arguments and little stack.
#[inline(never)]
pub fn ingress<F: Network, P: Packet, T: FlowTables<F>>(packet: &mut P, tables: &mut T) -> Entered {
    let Some(header) = F::header(packet, 0) else { return Entered::Other };
    let Ok(transport) = F::follow(packet, 0, &header) else { return Entered::Other };
    if transport.proto != F::ICMP && transport.part != Part::Later {
        return Entered::Answerable;
    }
    let quote = match read::<F, P, T>(packet, &transport) {
        Message::Error(quote) => quote,
        Message::Other { error: false } => return Entered::Answerable,
        Message::Other { error: true } => return Entered::Other,
    };
    let Some(target) = row::<F, T>(tables, &quote.key(hook::INGRESS)) else {
        return Entered::Other;
    };
    if quote.redirect {
        return Entered::Failed(Reason::IcmpRedirect);
    }
    match translate::<F, P, T>(packet, &header, &quote, Side::Destination, target) {
        Ok(()) => Entered::Translated,
        Err(reason) => Entered::Failed(reason),
    }
}

/// An ICMP message leaves the node, or leaves it toward a pod.
#[inline(never)]
pub fn egress<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &mut P,
    tables: &mut T,
) -> Result<(), Reason> {
    let Some(header) = F::header(packet, 0) else { return Ok(()) };
    let Ok(transport) = F::follow(packet, 0, &header) else { return Ok(()) };
    let Message::Error(quote) = read::<F, P, T>(packet, &transport) else { return Ok(()) };
    // It travels as what it is about would back.
    if !tables.is_marked(hash::way(quote.header.dst, quote.header.src)) {
        return Ok(());
    }
    match row::<F, T>(tables, &quote.key(hook::EGRESS)) {
        Some(_) if quote.redirect => Err(Reason::IcmpRedirect),
        Some(source) => translate::<F, P, T>(packet, &header, &quote, Side::Source, source),
        None => Ok(()),
    }
}

/// An ICMP message goes into a tunnel: if it is an error about a flow that is [`crate::direct`], it goes
/// there as it came, like what it is about; true if it does.
#[inline(never)]
pub fn egress_direct<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &mut P,
    tables: &mut T,
) -> bool {
    let Some(header) = F::header(packet, 0) else { return false };
    let Ok(transport) = F::follow(packet, 0, &header) else { return false };
    let Message::Error(quote) = read::<F, P, T>(packet, &transport) else { return false };
    let Some((row, _)) = tables.find(&quote.key(hook::EGRESS)) else { return false };
    if row.role == role::REPLY || row.flags & flow_flags::DIRECT == 0 || quote.redirect {
        return false;
    }
    let frontend = row.becomes();
    translate::<F, P, T>(packet, &header, &quote, Side::Destination, frontend).is_ok()
}

/// What the row at `key` makes of a packet. The error itself does not count as one.
#[inline(always)]
fn row<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Option<(Place<F::Address>, Be16)> {
    if let Some(row) = tables.flow(Store::Answered, key) {
        return (!keeps_all::<F, T>(row)).then_some(row.becomes());
    }
    let row = tables.flow(Store::Pending, key)?;
    if keeps_all::<F, T>(row) {
        return None;
    }
    // A masquerade without a source yet has sent nothing that could be complained about.
    (row.to_port.raw() != 0).then_some(row.becomes())
}

/// True for the rows of a flow that is not translated ([`crate::ipmasq`]).
#[inline(always)]
const fn keeps_all<F: Network, T: FlowTables<F>>(row: &Flow<F::Address>) -> bool {
    T::BARE_MASQUERADE && !role::masquerades(row.role)
}

/// True for messages about a packet, which no error may answer.
#[inline(always)]
const fn is_error_kind<F: Network>(kind: u8) -> bool {
    if F::V6 {
        return kind < kind::FIRST_INFORMATIONAL6 || kind == kind::REDIRECT6;
    }
    matches!(
        kind,
        kind::DESTINATION_UNREACHABLE
            | kind::SOURCE_QUENCH
            | kind::REDIRECT
            | kind::TIME_EXCEEDED
            | kind::PARAMETER_PROBLEM
    )
}

/// True if a packet without ports is no error, so that an error may answer it (RFC 1122
/// §3.2.2, RFC 4443 §2.4).
#[inline(always)]
pub fn is_answerable<F: Network, P: Packet>(packet: &P, transport: &Transport) -> bool {
    transport.proto != F::ICMP
        || packet.load::<1>(transport.offset).is_some_and(|[kind]| !is_error_kind::<F>(kind))
}

/// Reads an ICMP message and the packet it quotes.
#[inline(always)]
fn read<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &P,
    transport: &Transport,
) -> Message<F::Address> {
    if transport.part == Part::Later || transport.proto != F::ICMP {
        return Message::Other { error: true };
    }
    let at = transport.offset;
    let Some([kind]) = packet.load::<1>(at) else { return Message::Other { error: true } };
    if !is_error_kind::<F>(kind) {
        return Message::Other { error: false };
    }
    let redirect = kind == if F::V6 { kind::REDIRECT6 } else { kind::REDIRECT };
    let start = if F::V6 && redirect { redirected(packet, at) } else { Some(at + HEADER) };
    let quote = start.and_then(|start| quoted::<F, P, T>(packet, at, start, redirect));
    quote.map_or(Message::Other { error: true }, Message::Error)
}

/// Where an ICMPv6 redirect quotes the packet it is about: in its Redirected Header option
/// (RFC 4861 §4.5, §4.6.3), which may stand behind the target's link-layer address.
#[inline(always)]
fn redirected<P: Packet>(packet: &P, at: u32) -> Option<u32> {
    const TARGET_LINK_LAYER: u8 = 2;
    const REDIRECTED_HEADER: u8 = 4;
    let mut option = at + 40;
    for _ in 0..2 {
        let [kind, length] = packet.load::<2>(option)?;
        match kind {
            REDIRECTED_HEADER => return Some(option + 8),
            TARGET_LINK_LAYER => option += length as u32 * 8,
            _ => return None,
        }
    }
    None
}

/// Reads the quoted packet as far as its ports.
#[inline(always)]
fn quoted<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &P,
    at: u32,
    start: u32,
    redirect: bool,
) -> Option<Quote<F::Address>> {
    let header = F::header(packet, start)?;
    let mut transport = F::follow(packet, start, &header).ok()?;
    if transport.part == Part::Later {
        return None;
    }
    if is_echo::<F, T>(&transport) {
        transport.ports = echo::ports::<F, P>(packet, &transport)?;
        return Some(Quote { at, redirect, header, start, transport });
    }
    if !has_ports(transport.proto) {
        return None;
    }
    let ports = packet.load::<4>(transport.offset)?;
    transport.ports = header::ports(ports);
    transport.proto = packet.forget(transport.proto, u32::from_ne_bytes(ports));
    Some(Quote { at, redirect, header, start, transport })
}

/// True for a packet of ICMP where ICMP echo has flows.
#[inline(always)]
const fn is_echo<F: Network, T: FlowTables<F>>(transport: &Transport) -> bool {
    T::BARE_MASQUERADE && transport.proto == F::ICMP
}

/// Rewrites one side of the error and the other side of the packet it quotes.
///
/// # Errors
/// [`Reason::RewriteFailed`], as for any packet.
#[inline(always)]
fn translate<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    quote: &Quote<F::Address>,
    side: Side,
    (new, turn): (Place<F::Address>, Be16),
) -> Result<(), Reason> {
    translate_quote::<F, P, T>(packet, quote, side, new, turn)
        .and_then(|()| translate_outer::<F, P>(packet, header, quote, side, new))
        .ok_or(Reason::RewriteFailed)
}

/// Rewrites the quoted packet, whose side is the opposite of the error's, and turns its other port.
#[inline(always)]
fn translate_quote<F: Network, P: Packet, T: FlowTables<F>>(
    packet: &mut P,
    quote: &Quote<F::Address>,
    side: Side,
    new: Place<F::Address>,
    turn: Be16,
) -> Option<()> {
    let (quoted_side, old) = match side {
        Side::Destination => (Side::Source, quote.header.src),
        Side::Source => (Side::Destination, quote.header.dst),
    };
    let old_ports = quote.transport.ports;
    let address = difference(old.sum(), new.addr.sum());
    // What the ICMP checksum has to follow: every byte changed below.
    let offset = quote.transport.offset;
    let is_echo = is_echo::<F, T>(&quote.transport);
    let ports = quoted_side.put_ports(old_ports, new.port, turn);
    let port = if is_echo {
        // Its identifier stands for either port.
        packet.store(offset + echo::IDENTIFIER, &new.port.bytes())?;
        difference(old_ports.sum(), new.port.raw() as u32)
    } else {
        packet.store_words(offset, &[ports.word()])?;
        difference(old_ports.sum(), ports.sum())
    };
    let mut total = address + port;
    if !F::V6 {
        total += change_word(packet, quote.start + 10, address, false)?;
    }
    // The quoted transport checksum, if the quotation reaches that far and there is one.
    if quote.transport.proto == protocol::SCTP {
        let by = sctp::difference(old_ports, ports);
        total += packet.change_quoted_crc32c::<F>(quote.start, offset, by)?;
    } else {
        let field =
            if is_echo { echo::CHECKSUM } else { header::checksum_offset(quote.transport.proto) };
        let at = offset + field;
        // ICMP has no pseudo header over IPv4.
        let covered = if is_echo && !F::V6 { port } else { address + port };
        let udp = quote.transport.proto == protocol::UDP;
        if let Some(field) = packet.load::<2>(at)
            && !(udp && field == [0, 0])
        {
            total += change_word(packet, at, covered, udp)?;
        }
    }
    store_quoted_address::<F, P>(packet, quote.start, quoted_side, new.addr)?;
    packet.change_transport_checksum(quote.at + 2, total, Covers::Payload, false)
}

/// Changes a checksum inside the quoted packet and returns what that changed in turn. With
/// `zero_is_none` a result of zero is written as 0xffff, as in the packet itself.
#[inline(always)]
fn change_word<P: Packet>(packet: &mut P, at: u32, by: u32, zero_is_none: bool) -> Option<u32> {
    let old = u16::from_ne_bytes(packet.load::<2>(at)?);
    let new = match replace(old, by) {
        0 if zero_is_none => 0xffff,
        new => new,
    };
    packet.store(at, &new.to_ne_bytes())?;
    Some(difference(old as u32, new as u32))
}

/// Writes an address of the quoted packet; its header checksum has been seen to.
#[inline(always)]
fn store_quoted_address<F: Network, P: Packet>(
    packet: &mut P,
    start: u32,
    side: Side,
    new: F::Address,
) -> Option<()> {
    F::store_bare_address(packet, start + side.address_field::<F>(), new)
}

/// Rewrites the error's own address on this side: also the source of one that a router sends. Its own
/// may be of a network that who is told does not know, or drops packets from (RFC 5508 §5, REQ-5; netfilter
/// does the same in `nf_nat_icmp_reply_translation`).
#[inline(always)]
fn translate_outer<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    quote: &Quote<F::Address>,
    side: Side,
    new: Place<F::Address>,
) -> Option<()> {
    let (old, stays) = match side {
        Side::Destination => (header.dst, header.dst != quote.header.src),
        Side::Source => (header.src, quote.header.dst == new.addr),
    };
    if stays || old == new.addr {
        return Some(());
    }
    if F::V6 {
        // ICMPv6 sums up a pseudo header too (RFC 4443 §2.3).
        let by = difference(old.sum(), new.addr.sum());
        packet.change_transport_checksum(quote.at + 2, by, F::COVERS, false)?;
    }
    F::store_address(packet, 0, side.address_field::<F>(), old, new.addr)
}
