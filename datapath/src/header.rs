//! Parsing of network and transport headers: IPv4 with options, IPv6 with extension headers,
//! fragments, TCP, UDP and SCTP ports.

use crate::{
    address::{Address, Be16, Family, Ipv4, Ipv6, V4, V6, protocol},
    checksum,
    counter::Reason,
    device::Masquerade,
    flow::Place,
    fragment::Ports,
    packet::{Covers, Packet},
    rewrite::Side,
    sctp,
};

/// The part of a packet that every hook looks at: addresses, and where the rest begins.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader<A> {
    pub src: A,
    pub dst: A,
    /// IPv4's protocol, IPv6's first next header.
    pub next: u8,
    /// Offset of what follows the fixed header and IPv4's options.
    pub offset: u32,
    pub part: Part,
    /// Identification, if `part` is not `Whole`.
    pub id: u32,
}

/// What [`extensions`] found, as one number that a function of eBPF can return: from the lowest
/// bit on 32 of the identification, 16 of the offset, 8 of the protocol, 2 of the part.
#[inline(always)]
#[must_use]
pub const fn pack(found: Result<Transport, Reason>) -> u64 {
    match found {
        Ok(transport) => {
            transport.id as u64
                | (transport.offset as u64 & 0xffff) << 32
                | (transport.proto as u64) << 48
                | (transport.part as u64) << 56
        }
        Err(Reason::Malformed) => 3 << 56,
        Err(_) => 4 << 56,
    }
}

/// The reverse of [`pack`].
#[inline(always)]
const fn unpack(word: u64) -> Result<Transport, Reason> {
    let part = match word >> 56 {
        0 => Part::Whole,
        1 => Part::First,
        2 => Part::Later,
        3 => return Err(Reason::Malformed),
        _ => return Err(Reason::ExtensionHeader),
    };
    Ok(Transport {
        proto: (word >> 48) as u8,
        offset: (word >> 32) as u32 & 0xffff,
        part,
        id: word as u32,
        has_ports: false,
        has_handshake: false,
        ports: Ports { src_port: Be16::ZERO, dst_port: Be16::ZERO },
        flags: 0,
    })
}

/// Which part of a packet this is (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Whole,
    /// Carries the transport header.
    First,
    /// Carries none.
    Later,
}

/// The transport header, as far as it matters.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    pub proto: u8,
    /// From the network header.
    pub offset: u32,
    pub part: Part,
    pub id: u32,
    /// [`has_ports`] of the protocol, once [`transport`] has looked.
    pub has_ports: bool,
    /// [`has_handshake`], likewise.
    pub has_handshake: bool,
    /// Zero for later fragments, and for protocols without ports.
    pub ports: Ports,
    /// [`tcp`] bits, of SCTP those that mean the same ([`sctp::flags`]); zero for other protocols.
    pub flags: u8,
}

/// Bits of TCP's flags byte (RFC 9293 §3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A family's headers.
pub trait Network: Family + Masquerade {
    /// Offset of what is left of its hops.
    const HOPS: u32;
    /// Offsets of the addresses in the fixed header.
    const SRC: u32;
    const DST: u32;
    /// Length of the fixed header.
    const HEADER: u32;

    /// `None` if this is no header of the family; the kernel deals with it.
    fn header<P: Packet>(packet: &P, at: u32) -> Option<IpHeader<Self::Address>>;

    /// True if a header whose next is of this kind may stand before an ICMP message.
    fn may_be_icmp(next: u8) -> bool;

    /// Follows the header at `at` to the transport header, without reading the latter.
    fn follow<P: Packet>(
        packet: &P,
        at: u32,
        header: &IpHeader<Self::Address>,
    ) -> Result<Transport, Reason>;

    /// Writes an address and corrects the IPv4 header's checksum. `at` is where the header
    /// begins, `field` one of `SRC` and `DST`.
    fn store_address<P: Packet>(
        packet: &mut P,
        at: u32,
        field: u32,
        old: Self::Address,
        new: Self::Address,
    ) -> Option<()>;

    /// Writes address and port of one side of a packet whose transport header follows its fixed
    /// header at once, and corrects the IPv4 header's checksum: all in one go, because each
    /// write is a call of the kernel. `header` and `ports` are the packet's as they were.
    fn store_place<P: Packet>(
        packet: &mut P,
        header: &IpHeader<Self::Address>,
        ports: Ports,
        side: Side,
        new: Place<Self::Address>,
    ) -> Option<()>;

    /// Writes both addresses and both ports of such a packet, with `hops` less to go, and corrects the
    /// IPv4 header's checksum.
    fn store_ends<P: Packet>(
        packet: &mut P,
        header: &IpHeader<Self::Address>,
        src: Self::Address,
        dst: Self::Address,
        ports: Ports,
        hops: u8,
    ) -> Option<()>;

    /// Writes an address at `offset` and nothing else.
    fn store_bare_address<P: Packet>(packet: &mut P, offset: u32, new: Self::Address)
    -> Option<()>;

    /// Writes a fixed header at offset 0, from `src` to `dst`, before `payload` bytes of
    /// protocol `proto`, and returns the sum of the pseudo header.
    fn write_header<P: Packet>(
        packet: &mut P,
        src: Self::Address,
        dst: Self::Address,
        proto: u8,
        payload: u16,
    ) -> Option<u32>;

    /// The first words of a packet after one more hop; `None` if it has no hop left.
    fn forwarded(words: [u32; 3]) -> Option<[u32; 3]>;

    /// Length of the packet by its own account, from its network header on, which is at `at`.
    fn total_length<P: Packet>(packet: &P, at: u32) -> Option<u32>;

    /// What the change of an address is to a transport checksum.
    const COVERS: Covers;
}

impl Network for V4 {
    const HOPS: u32 = 8;
    const SRC: u32 = 12;
    const DST: u32 = 16;
    const HEADER: u32 = 20;
    const COVERS: Covers = Covers::Pseudo4;

    #[inline(always)]
    fn header<P: Packet>(packet: &P, at: u32) -> Option<IpHeader<Ipv4>> {
        let [first, second, third, src, dst] = packet.words(at)?;
        let [start, _, _, _] = first.to_ne_bytes();
        let [id0, id1, fragment0, fragment1] = second.to_ne_bytes();
        let [_, next, _, _] = third.to_ne_bytes();
        let length = (start & 0x0f) as u32 * 4;
        if start >> 4 != 4 || length < Self::HEADER {
            return None;
        }
        let fragment = u16::from_be_bytes([fragment0, fragment1]);
        Some(IpHeader {
            src: Ipv4::from_raw(src),
            dst: Ipv4::from_raw(dst),
            next,
            offset: at + length,
            part: part(fragment & 0x1fff, fragment & 0x2000 != 0),
            id: u16::from_ne_bytes([id0, id1]) as u32,
        })
    }

    #[inline(always)]
    fn may_be_icmp(next: u8) -> bool {
        next == Self::ICMP
    }

    #[inline(always)]
    fn follow<P: Packet>(_: &P, _: u32, header: &IpHeader<Ipv4>) -> Result<Transport, Reason> {
        Ok(Transport {
            proto: header.next,
            offset: header.offset,
            part: header.part,
            id: header.id,
            has_ports: false,
            has_handshake: false,
            ports: Ports::default(),
            flags: 0,
        })
    }

    #[inline(always)]
    fn store_address<P: Packet>(
        packet: &mut P,
        at: u32,
        field: u32,
        old: Ipv4,
        new: Ipv4,
    ) -> Option<()> {
        let [third, src, dst] = packet.words(at + 8)?;
        let third = change_sum(third, old, new);
        let (src, dst) = if field == Self::SRC { (new.raw(), dst) } else { (src, new.raw()) };
        packet.store_words(at + 8, &[third, src, dst])
    }

    #[inline(always)]
    fn store_place<P: Packet>(
        packet: &mut P,
        header: &IpHeader<Ipv4>,
        ports: Ports,
        side: Side,
        new: Place<Ipv4>,
    ) -> Option<()> {
        let [third] = packet.words(8)?;
        let old = if side == Side::Source { header.src } else { header.dst };
        let third = change_sum(third, old, new.addr);
        let ports = side.put_port(ports, new.port).word();
        let (src, dst) = side.put_address(header, new.addr);
        packet.store_words(8, &[third, src.raw(), dst.raw(), ports])
    }

    #[inline(always)]
    fn store_ends<P: Packet>(
        packet: &mut P,
        header: &IpHeader<Ipv4>,
        src: Ipv4,
        dst: Ipv4,
        ports: Ports,
        hops: u8,
    ) -> Option<()> {
        let [third] = packet.words(8)?;
        let [ttl, proto, a, b] = third.to_ne_bytes();
        let less = ttl.wrapping_sub(hops);
        let word = |ttl| u16::from_ne_bytes([ttl, proto]) as u32;
        let before = header.src.sum() + header.dst.sum() + word(ttl);
        let after = src.sum() + dst.sum() + word(less);
        let difference = checksum::difference(before, after);
        let [a, b] = checksum::replace(u16::from_ne_bytes([a, b]), difference).to_ne_bytes();
        let third = u32::from_ne_bytes([less, proto, a, b]);
        packet.store_words(8, &[third, src.raw(), dst.raw(), ports.word()])
    }

    #[inline(always)]
    fn store_bare_address<P: Packet>(packet: &mut P, offset: u32, new: Ipv4) -> Option<()> {
        packet.store(offset, &new.bytes())
    }

    #[inline(always)]
    fn write_header<P: Packet>(
        packet: &mut P,
        src: Ipv4,
        dst: Ipv4,
        proto: u8,
        payload: u16,
    ) -> Option<u32> {
        let length = (Self::HEADER as u16 + payload).to_be_bytes();
        let mut header = [0; 20];
        header[0] = 0x45;
        (header[2], header[3]) = (length[0], length[1]);
        header[8] = ANSWER_TTL;
        header[9] = proto;
        packet.store(0, &header)?;
        packet.store(Self::SRC, &src.bytes())?;
        packet.store(Self::DST, &dst.bytes())?;
        let addresses = src.sum() + dst.sum();
        let sum = u16::from_ne_bytes([0x45, 0]) as u32
            + u16::from_ne_bytes(length) as u32
            + u16::from_ne_bytes([ANSWER_TTL, proto]) as u32
            + addresses;
        packet.store(10, &(!checksum::fold(sum)).to_ne_bytes())?;
        Some(addresses + pseudo(proto, payload))
    }

    #[inline(always)]
    fn forwarded([first, second, third]: [u32; 3]) -> Option<[u32; 3]> {
        let [ttl, proto, a, b] = third.to_ne_bytes();
        if ttl <= 1 {
            return None;
        }
        let word = |ttl| u16::from_ne_bytes([ttl, proto]) as u32;
        let difference = checksum::difference(word(ttl), word(ttl - 1));
        let [a, b] = checksum::replace(u16::from_ne_bytes([a, b]), difference).to_ne_bytes();
        Some([first, second, u32::from_ne_bytes([ttl - 1, proto, a, b])])
    }

    #[inline(always)]
    fn total_length<P: Packet>(packet: &P, at: u32) -> Option<u32> {
        packet.load::<2>(at + 2).map(|bytes| u16::from_be_bytes(bytes) as u32)
    }
}

/// The third word of an IPv4 header, which ends with its checksum, after an address changed.
#[inline(always)]
fn change_sum(third: u32, old: Ipv4, new: Ipv4) -> u32 {
    let [ttl, proto, a, b] = third.to_ne_bytes();
    let difference = checksum::difference(old.sum(), new.sum());
    let [a, b] = checksum::replace(u16::from_ne_bytes([a, b]), difference).to_ne_bytes();
    u32::from_ne_bytes([ttl, proto, a, b])
}

/// Follows IPv6 extension headers from `offset` on, where one of the kind `next` begins.
///
/// # Errors
/// [`Reason::Malformed`] if the packet ends too early, [`Reason::ExtensionHeader`] for headers
/// that are not followed.
#[inline(always)]
pub fn extensions<P: Packet>(packet: &P, offset: u32, next: u8) -> Result<Transport, Reason> {
    let mut transport = Transport {
        proto: next,
        offset,
        part: Part::Whole,
        id: 0,
        has_ports: false,
        has_handshake: false,
        ports: Ports::default(),
        flags: 0,
    };
    for _ in 0..=EXTENSIONS {
        match transport.proto {
            extension::HOP_BY_HOP | extension::DESTINATION => {
                let [next, length] = packet.load::<2>(transport.offset).ok_or(Reason::Malformed)?;
                transport.proto = next;
                transport.offset += (length as u32 + 1) * 8;
            }
            extension::ROUTING => {
                let [next, length, _, left] =
                    packet.load::<4>(transport.offset).ok_or(Reason::Malformed)?;
                // With segments left the destination is a station, not the end.
                if left != 0 {
                    return Err(Reason::ExtensionHeader);
                }
                transport.proto = next;
                transport.offset += (length as u32 + 1) * 8;
            }
            extension::FRAGMENT => {
                let h = packet.load::<8>(transport.offset).ok_or(Reason::Malformed)?;
                let fragment = u16::from_be_bytes([h[2], h[3]]);
                transport.proto = h[0];
                transport.offset += 8;
                transport.part = part(fragment >> 3, fragment & 1 != 0);
                transport.id = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
                if transport.part == Part::Later {
                    return Ok(transport);
                }
            }
            extension::ESP | extension::AUTHENTICATION | extension::MOBILITY => {
                return Err(Reason::ExtensionHeader);
            }
            _ => return Ok(transport),
        }
    }
    Err(Reason::ExtensionHeader)
}

/// Next header numbers that are extension headers (RFC 8200 §4, IANA).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ESP: u8 = 50;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
}

/// How many extension headers are followed before a packet is refused.
const EXTENSIONS: u32 = 8;

impl Network for V6 {
    const HOPS: u32 = 7;
    const SRC: u32 = 8;
    const DST: u32 = 24;
    const HEADER: u32 = 40;
    const COVERS: Covers = Covers::Pseudo6;

    #[inline(always)]
    fn header<P: Packet>(packet: &P, at: u32) -> Option<IpHeader<Ipv6>> {
        let words: [u32; 10] = packet.words(at)?;
        let [start, _, _, _] = words[0].to_ne_bytes();
        let [_, _, next, _] = words[1].to_ne_bytes();
        if start >> 4 != 6 {
            return None;
        }
        Some(IpHeader {
            src: Ipv6::from_raw([words[2], words[3], words[4], words[5]]),
            dst: Ipv6::from_raw([words[6], words[7], words[8], words[9]]),
            next,
            offset: at + Self::HEADER,
            part: Part::Whole,
            id: 0,
        })
    }

    #[inline(always)]
    fn may_be_icmp(next: u8) -> bool {
        use extension::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
        matches!(next, Self::ICMP | HOP_BY_HOP | DESTINATION | ROUTING | FRAGMENT)
    }

    #[inline(always)]
    fn follow<P: Packet>(packet: &P, _: u32, header: &IpHeader<Ipv6>) -> Result<Transport, Reason> {
        let start = Transport {
            proto: header.next,
            offset: header.offset,
            part: Part::Whole,
            id: 0,
            has_ports: false,
            has_handshake: false,
            ports: Ports::default(),
            flags: 0,
        };
        if has_ports(start.proto) || start.proto == Self::ICMP {
            return Ok(start);
        }
        unpack(packet.extensions(start.offset, start.proto))
    }

    #[inline(always)]
    fn store_address<P: Packet>(
        packet: &mut P,
        at: u32,
        field: u32,
        _: Ipv6,
        new: Ipv6,
    ) -> Option<()> {
        packet.store_words(at + field, &new.raw())
    }

    #[inline(always)]
    fn store_place<P: Packet>(
        packet: &mut P,
        header: &IpHeader<Ipv6>,
        ports: Ports,
        side: Side,
        new: Place<Ipv6>,
    ) -> Option<()> {
        let ports = side.put_port(ports, new.port).word();
        let (new, dst) = (new.addr.raw(), header.dst.raw());
        if side == Side::Destination {
            return packet.store_words(Self::DST, &[new[0], new[1], new[2], new[3], ports]);
        }
        let words = [new[0], new[1], new[2], new[3], dst[0], dst[1], dst[2], dst[3], ports];
        packet.store_words(Self::SRC, &words)
    }

    #[inline(always)]
    fn store_ends<P: Packet>(
        packet: &mut P,
        _header: &IpHeader<Ipv6>,
        src: Ipv6,
        dst: Ipv6,
        ports: Ports,
        hops: u8,
    ) -> Option<()> {
        let [second] = packet.words(4)?;
        let [a, b, next, limit] = second.to_ne_bytes();
        let second = u32::from_ne_bytes([a, b, next, limit.wrapping_sub(hops)]);
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.raw(), dst.raw());
        let words = [second, s0, s1, s2, s3, d0, d1, d2, d3, ports.word()];
        packet.store_words(4, &words)
    }

    #[inline(always)]
    fn store_bare_address<P: Packet>(packet: &mut P, offset: u32, new: Ipv6) -> Option<()> {
        packet.store(offset, &new.bytes())
    }

    #[inline(always)]
    fn write_header<P: Packet>(
        packet: &mut P,
        src: Ipv6,
        dst: Ipv6,
        proto: u8,
        payload: u16,
    ) -> Option<u32> {
        let length = payload.to_be_bytes();
        packet.store(0, &[0x60, 0, 0, 0, length[0], length[1], proto, ANSWER_TTL])?;
        packet.store(Self::SRC, &src.bytes())?;
        packet.store(Self::DST, &dst.bytes())?;
        Some(src.sum() + dst.sum() + pseudo(proto, payload))
    }

    #[inline(always)]
    fn forwarded([first, second, third]: [u32; 3]) -> Option<[u32; 3]> {
        let [a, b, next, hops] = second.to_ne_bytes();
        (hops > 1).then(|| [first, u32::from_ne_bytes([a, b, next, hops - 1]), third])
    }

    #[inline(always)]
    fn total_length<P: Packet>(packet: &P, at: u32) -> Option<u32> {
        packet.load::<2>(at + 4).map(|bytes| u16::from_be_bytes(bytes) as u32 + Self::HEADER)
    }
}

/// TTL and hop limit of packets made here (RFC 1700, IANA's default).
const ANSWER_TTL: u8 = 64;

/// Sum of the pseudo header without its addresses (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline(always)]
pub(crate) const fn pseudo(proto: u8, payload: u16) -> u32 {
    proto.to_be() as u32 * PROTO_PLACE + payload.to_be() as u32
}

/// A protocol number is the low byte of a word in network byte order.
const PROTO_PLACE: u32 = u16::from_ne_bytes([0, 1]) as u32;

#[inline(always)]
const fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    }
}

/// True for the protocols whose header begins with two ports.
#[inline(always)]
#[must_use]
pub const fn has_ports(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// True for the protocols whose flows begin with a packet that says so ([`opens`]).
#[inline(always)]
#[must_use]
pub const fn has_handshake(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::SCTP)
}

/// Follows a packet's headers and reads ports and flags.
///
/// # Errors
/// [`Reason::Malformed`] if the packet ends too early, [`Reason::ExtensionHeader`] for IPv6
/// headers that are not followed.
#[inline(always)]
pub fn transport<F: Network, P: Packet>(
    packet: &P,
    header: &IpHeader<F::Address>,
) -> Result<Transport, Reason> {
    let mut transport = F::follow(packet, 0, header)?;
    if transport.part == Part::Later {
        transport.has_ports = has_ports(transport.proto);
        transport.has_handshake = has_handshake(transport.proto);
        return Ok(transport);
    }
    let both = if has_handshake(transport.proto) {
        // SCTP's first chunk begins where TCP has its flags, behind ports, tag and checksum; a
        // packet without any is none (RFC 9260 §3).
        let [both, _, _, last] = packet.words(transport.offset).ok_or(Reason::Malformed)?;
        let [first, second, _, _] = last.to_ne_bytes();
        transport.flags =
            if transport.proto == protocol::TCP { second } else { sctp::flags(first) };
        transport.has_handshake = true;
        both
    } else if transport.proto == protocol::UDP {
        let [both, _] = packet.words(transport.offset).ok_or(Reason::Malformed)?;
        both
    } else {
        return Ok(transport);
    };
    transport.has_ports = true;
    transport.ports = ports(both.to_ne_bytes());
    transport.proto = packet.forget(transport.proto, both);
    Ok(transport)
}

/// The flags of a packet ([`Transport::flags`]). Reads the headers again.
#[inline(never)]
pub fn flags<F: Network, P: Packet>(packet: &P) -> u8 {
    let transport = F::header(packet, 0).map(|header| transport::<F, P>(packet, &header));
    let Some(Ok(transport)) = transport else { return 0 };
    transport.flags
}

/// True for the flags of a packet that asks for a connection, and for nothing else.
#[inline(always)]
#[must_use]
pub const fn opens(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
}

/// The two ports that a transport header begins with.
#[inline(always)]
#[must_use]
pub const fn ports(bytes: [u8; 4]) -> Ports {
    Ports {
        src_port: Be16::from_bytes([bytes[0], bytes[1]]),
        dst_port: Be16::from_bytes([bytes[2], bytes[3]]),
    }
}

/// Offset of the checksum in a header of TCP or UDP.
#[inline(always)]
#[must_use]
pub const fn checksum_offset(proto: u8) -> u32 {
    if proto == protocol::TCP { 16 } else { 6 }
}
