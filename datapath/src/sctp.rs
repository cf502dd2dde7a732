//! SCTP (RFC 9260): what a packet is to its flow, and its checksum when a port changes.

use crate::{
    checksum,
    fragment::Ports,
    header::{Network, tcp},
    packet::Packet,
};

/// Offset of the checksum in the common header (RFC 9260 §3.1).
pub const CHECKSUM: u32 = 8;

/// Types of chunks (RFC 9260 §3.2).
pub mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const HEARTBEAT: u8 = 4;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The flags of TCP that say of a connection what a packet's first chunk says of an association:
/// INIT opens one, ABORT ends it, and with the three chunks of a shutdown a side has no more to
/// send. Chunks that say so stand alone or first, all but some ABORT and SHUTDOWN (§6.10), without
/// which the flow ends by its timeout. A table of four bits for each type, in one word.
#[inline(always)]
#[must_use]
pub const fn flags(kind: u8) -> u8 {
    const fn entry(kind: u8, flag: u8) -> u64 {
        (flag as u64) << (4 * kind)
    }
    const FLAGS: u64 = entry(chunk::INIT, tcp::SYN)
        | entry(chunk::ABORT, tcp::RST)
        | entry(chunk::SHUTDOWN, tcp::FIN)
        | entry(chunk::SHUTDOWN_ACK, tcp::FIN)
        | entry(chunk::SHUTDOWN_COMPLETE, tcp::FIN);
    if kind > 15 { 0 } else { (FLAGS >> (4 * kind as u32)) as u8 & 0xf }
}

/// How the first word of a packet, its ports, changes when these do.
#[inline(always)]
#[must_use]
pub const fn difference(old: Ports, new: Ports) -> u32 {
    u32::from_le(old.word() ^ new.word())
}

/// Corrects the checksum of a packet, whose common header is at `offset`, for a `difference` of its
/// ports. It covers no address. One that a device is to compute (CHECKSUM_PARTIAL) is left alone:
/// its field holds zero, and is summed up with the rest. (The kernel does so in software too:
/// `skb_crc32c_csum_help`.)
#[inline(always)]
pub fn change_checksum<F: Network, P: Packet>(
    packet: &mut P,
    offset: u32,
    difference: u32,
) -> Option<()> {
    let at = offset + CHECKSUM;
    let [field] = packet.words::<1>(at)?;
    // A checksum may come to zero by itself.
    if field == 0 && packet.is_partial(at)? {
        return Some(());
    }
    let length = F::total_length(packet, 0)?.wrapping_sub(offset);
    let change = packet.crc32c_change(difference, length);
    packet.store_words(at, &[field ^ change.to_le()])
}

/// The same for a packet that an ICMP error quotes, whose network header is at `start`, as far as it
/// is quoted. Returns what that is to the sum of the error itself.
#[inline(always)]
pub fn change_quoted<F: Network, P: Packet>(
    packet: &mut P,
    start: u32,
    offset: u32,
    difference: u32,
) -> Option<u32> {
    let at = offset + CHECKSUM;
    // A field of zero was none yet where the packet was quoted.
    let Some(field @ [a, b, c, d]) = packet.load::<4>(at).filter(|field| *field != [0; 4]) else {
        return Some(0);
    };
    let length = F::total_length(packet, start)?.wrapping_sub(offset - start);
    let change = packet.crc32c_change(difference, length);
    let new @ [e, f, g, h] = (u32::from_le_bytes(field) ^ change).to_le_bytes();
    packet.store(at, &new)?;
    let sum = |high: [u8; 2], low: [u8; 2]| {
        u16::from_ne_bytes(high) as u32 + u16::from_ne_bytes(low) as u32
    };
    Some(checksum::difference(sum([a, b], [c, d]), sum([e, f], [g, h])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Be16;

    #[test]
    fn chunks_as_flags() {
        let expected = |kind| match kind {
            chunk::INIT => tcp::SYN,
            chunk::ABORT => tcp::RST,
            chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE => tcp::FIN,
            _ => 0,
        };
        for kind in 0..=255 {
            assert_eq!(flags(kind), expected(kind), "chunk type {kind}");
        }
    }

    #[test]
    fn a_port_is_half_of_the_first_word() {
        let (old, new) = (Be16::new(0x1234), Be16::new(0x5678));
        let ports = |src_port, dst_port| Ports { src_port, dst_port };
        let by = |new| difference(ports(old, old), new).to_le_bytes();
        assert_eq!(by(ports(new, old)), [0x44, 0x4c, 0, 0]);
        assert_eq!(by(ports(old, new)), [0, 0, 0x44, 0x4c]);
        assert_eq!(by(ports(new, new)), [0x44, 0x4c, 0x44, 0x4c]);
    }
}
