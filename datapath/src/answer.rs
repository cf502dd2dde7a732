//! Answers made of the packet that asked: ICMP port unreachable, and TCP reset.

use crate::{
    address::protocol,
    checksum::fold,
    counter::{Hook, Reason},
    header::{self, Network, Part, tcp},
    packet::{Packet, Verdict},
    tables::Tables,
};

/// ICMP header and its four unused bytes.
const ICMP_HEADER: u32 = 8;
/// Bytes of the packet that an ICMP error quotes at most: headers with options, and what
/// follows them (RFC 792 asks for eight bytes, RFC 4443 §2.4 for as much as fits).
const QUOTE: u32 = 128;
/// TCP header without options.
const TCP_HEADER: u32 = 20;
/// Bytes from a transport header's begin to behind its checksum, in whole words so that what
/// follows is aligned as before.
const CHECKSUM_END: u32 = 20;

/// What an ICMP error says is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    Port,
    Host,
}

impl Unreachable {
    /// The code of a "destination unreachable" (RFC 792; RFC 4443 §3.1). As a number from here on:
    /// with two constants the verifier would follow all that comes after it twice.
    #[inline(always)]
    #[must_use]
    pub const fn code<F: Network>(self) -> u8 {
        match (F::V6, self) {
            (false, Self::Port) | (true, Self::Host) => 3,
            (false, Self::Host) => 1,
            (true, Self::Port) => 4,
        }
    }
}

/// Turns the packet into ICMP port unreachable about itself, from its destination to its
/// source, as kube-proxy's `reject` does for TCP too: `connect` fails with ECONNREFUSED.
///
/// # Errors
/// [`Reason::RewriteFailed`] if the packet could not be written.
#[inline(always)]
pub fn unreachable<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
    reason: Reason,
) -> Result<Verdict, Reason> {
    if !packet.write_unreachable::<F>(Unreachable::Port.code::<F>()) {
        return Err(Reason::RewriteFailed);
    }
    tables.count_drop(hook, reason);
    Ok(Verdict::Answer)
}

/// Writes the answer behind the packet and takes the packet away from before it, because a
/// device may still have to complete the packet's checksum (CHECKSUM_PARTIAL): it would write
/// into the quotation, after the message has been summed up.
#[inline(always)]
pub fn write_unreachable<F: Network, P: Packet>(packet: &mut P, code: u8) -> Option<()> {
    let header = F::header(packet, 0)?;
    let transport = F::follow(packet, 0, &header).ok()?;
    let length = packet.len();
    let quote = if length > QUOTE { QUOTE } else { length & !3 };
    let old = transport.offset + CHECKSUM_END;
    let old = if old > quote { old } else { quote };
    let start = F::HEADER + ICMP_HEADER;
    packet.resize(old + start + quote)?;
    // The message's header before its quotation: what is kept beside the loop, the compiler may
    // put where the verifier loses count of its rounds.
    let kind = [if F::V6 { 1 } else { 3 }, code];
    packet.store(old + F::HEADER, &[kind[0], kind[1], 0, 0, 0, 0, 0, 0])?;
    let mut sum = u16::from_ne_bytes(kind) as u32;
    for word in 0..QUOTE / 4 {
        if word * 4 >= quote {
            break;
        }
        let bytes = packet.load::<4>(word * 4)?;
        packet.store(old + start + word * 4, &bytes)?;
        let [a, b, c, d] = bytes;
        sum += u16::from_ne_bytes([a, b]) as u32 + u16::from_ne_bytes([c, d]) as u32;
    }
    packet.shed(old)?;
    let payload = (ICMP_HEADER + quote) as u16;
    let pseudo = F::write_header(packet, header.dst, header.src, F::ICMP, payload)?;
    if F::V6 {
        sum += pseudo;
    }
    let [a, b] = (!fold(sum)).to_ne_bytes();
    packet.store(F::HEADER + 2, &[a, b])
}

/// Answers a TCP segment that belongs to no flow and begins none, or to one whose endpoint is gone.
///
/// # Errors
/// The reason itself if there is no answer: see [`write_reset`].
#[inline(always)]
pub fn reset<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
    reason: Reason,
) -> Result<Verdict, Reason> {
    if !packet.write_reset::<F>() {
        return Err(reason);
    }
    tables.count_drop(hook, reason);
    Ok(Verdict::Answer)
}

/// Turns a segment into the reset that answers it (RFC 9293 §3.10.7.1). `None` for a reset, which is
/// never answered with another, for a later fragment, which tells nothing to answer, and if the packet
/// could not be written.
#[inline(always)]
pub fn write_reset<F: Network, P: Packet>(packet: &mut P) -> Option<()> {
    let header = F::header(packet, 0)?;
    let transport = header::transport::<F, P>(packet, &header).ok()?;
    let segment = packet.load::<14>(transport.offset)?;
    let [p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, data, flags] = segment;
    if flags & tcp::RST != 0 || transport.part == Part::Later {
        return None;
    }
    let (sequence, acknowledgement, reset) = if flags & tcp::ACK != 0 {
        ([a0, a1, a2, a3], [0; 4], tcp::RST)
    } else {
        let end = transport.offset + (data >> 4) as u32 * 4;
        let syn_and_fin = (flags & tcp::SYN != 0) as u32 + (flags & tcp::FIN != 0) as u32;
        let length = F::total_length(packet, 0)?.wrapping_sub(end) + syn_and_fin;
        let next = u32::from_be_bytes([s0, s1, s2, s3]).wrapping_add(length);
        ([0; 4], next.to_be_bytes(), tcp::RST | tcp::ACK)
    };
    let old = transport.offset + CHECKSUM_END;
    packet.resize(old + F::HEADER + TCP_HEADER)?;
    packet.shed(old)?;
    let pseudo = F::write_header(packet, header.dst, header.src, protocol::TCP, TCP_HEADER as u16)?;
    let [s0, s1, s2, s3] = sequence;
    let [a0, a1, a2, a3] = acknowledgement;
    let word = |a, b| u16::from_ne_bytes([a, b]) as u32;
    let sum = pseudo
        + word(p0, p1)
        + word(p2, p3)
        + word(s0, s1)
        + word(s2, s3)
        + word(a0, a1)
        + word(a2, a3)
        + word(0x50, reset);
    let [c0, c1] = (!fold(sum)).to_ne_bytes();
    packet.store(
        F::HEADER,
        &[p2, p3, p0, p1, s0, s1, s2, s3, a0, a1, a2, a3, 0x50, reset, 0, 0, c0, c1, 0, 0],
    )
}
