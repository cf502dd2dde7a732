//! ICMP echo as a flow: what a port is to other protocols, the identifier is here (RFC 792,
//! RFC 4443 §4). It stands for the port of the side that asks; the other side has none.

use crate::{
    address::{Address, Be16},
    checksum::{difference, replace},
    counter::Reason,
    flow::Place,
    fragment::Ports,
    header::{IpHeader, Network, Part, Transport},
    packet::{Covers, Packet},
    rewrite::Side,
};

/// Offsets in the ICMP header.
pub const CHECKSUM: u32 = 2;
pub const IDENTIFIER: u32 = 4;

/// ICMP types: request and reply.
#[inline(always)]
const fn kinds<F: Network>() -> (u8, u8) {
    if F::V6 { (128, 129) } else { (8, 0) }
}

/// What stands for the ports of an ICMP message; `None` if it is neither request nor reply.
#[inline(always)]
pub fn ports<F: Network, P: Packet>(packet: &P, transport: &Transport) -> Option<Ports> {
    let (request, reply) = kinds::<F>();
    let [kind, _, _, _, a, b, _, _] = packet.load::<8>(transport.offset)?;
    let identifier = Be16::from_bytes([a, b]);
    if kind == request {
        return Some(Ports { src_port: identifier, dst_port: Be16::ZERO });
    }
    if kind == reply {
        return Some(Ports { src_port: Be16::ZERO, dst_port: identifier });
    }
    None
}

/// True if a packet is an echo request or reply, and no part of one: then it is no error.
#[inline(always)]
pub fn is_echo<F: Network, P: Packet>(packet: &P, header: &IpHeader<F::Address>) -> bool {
    if header.next != F::ICMP || header.part != Part::Whole {
        return false;
    }
    let Some([word]) = packet.words(header.offset) else { return false };
    let ([kind, ..], (request, reply)) = (word.to_ne_bytes(), kinds::<F>());
    kind == request || kind == reply
}

/// True if a packet to an address that answers pings asks for an echo: a whole one, without options or
/// extension headers.
#[inline(always)]
pub fn is_request<F: Network, P: Packet>(packet: &P, header: &IpHeader<F::Address>) -> bool {
    let is_plain = header.offset == F::HEADER && header.part == Part::Whole;
    is_plain
        && header.next == F::ICMP
        && packet.load::<2>(F::HEADER).is_some_and(|first| first == [kinds::<F>().0, 0])
}

/// Hop limit of an answer, as the kernel's own have it.
const HOPS: u8 = 64;

/// Turns a request into its reply (RFC 1122 §3.2.2.6, RFC 4443 §4.2). `None` if the packet could not be
/// written.
#[inline(always)]
pub fn write_reply<F: Network, P: Packet>(packet: &mut P) -> Option<()> {
    let (request, reply) = kinds::<F>();
    let word = |kind| u16::from_ne_bytes([kind, 0]) as u32;
    let by = difference(word(request), word(reply));
    packet.change_transport_checksum(F::HEADER + CHECKSUM, by, Covers::Payload, false)?;
    packet.store(F::HEADER, &[reply])?;
    // Sums do not change with addresses that change places.
    if F::V6 {
        let (src, dst) = (packet.words::<4>(F::SRC)?, packet.words::<4>(F::DST)?);
        packet.store_words(F::SRC, &dst)?;
        packet.store_words(F::DST, &src)?;
        return packet.store(F::HOPS, &[HOPS]);
    }
    let [first, src, dst] = packet.words(F::HOPS)?;
    let [ttl, proto, a, b] = first.to_ne_bytes();
    let lives = |hops| u16::from_ne_bytes([hops, proto]) as u32;
    let sum = replace(u16::from_ne_bytes([a, b]), difference(lives(ttl), lives(HOPS)));
    let [a, b] = sum.to_ne_bytes();
    packet.store_words(F::HOPS, &[u32::from_ne_bytes([HOPS, proto, a, b]), dst, src])
}

/// Replaces address and identifier of the side that asks, as [`crate::rewrite::rewrite`] does
/// address and port.
///
/// # Errors
/// As there.
#[inline(always)]
pub fn rewrite<F: Network, P: Packet>(
    packet: &mut P,
    header: &IpHeader<F::Address>,
    transport: &Transport,
    side: Side,
    new: Place<F::Address>,
) -> Result<(), Reason> {
    let (old, old_port) = side.pick(header, transport);
    write::<F, P>(packet, transport, side, old, old_port, new).ok_or(Reason::RewriteFailed)
}

#[inline(always)]
fn write<F: Network, P: Packet>(
    packet: &mut P,
    transport: &Transport,
    side: Side,
    old: F::Address,
    old_port: Be16,
    new: Place<F::Address>,
) -> Option<()> {
    if transport.part != Part::Later {
        let at = transport.offset + CHECKSUM;
        if F::V6 {
            // Of the two only ICMPv6 sums up a pseudo header (RFC 4443 §2.3).
            let by = difference(old.sum(), new.addr.sum());
            packet.change_transport_checksum(at, by, F::COVERS, false)?;
        }
        let by = difference(old_port.raw() as u32, new.port.raw() as u32);
        packet.change_transport_checksum(at, by, Covers::Payload, false)?;
        packet.store(transport.offset + IDENTIFIER, &new.port.bytes())?;
    }
    F::store_address(packet, 0, side.address_field::<F>(), old, new.addr)
}
