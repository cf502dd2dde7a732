//! VXLAN (RFC 7348) over IPv4, as a program writes and reads it: what stands between the link
//! layer's header and the packet of a pod.
//!
//! | offset | bytes | header |
//! |---|---|---|
//! | 0 | 20 | outer IPv4, without options |
//! | 20 | 8 | UDP, checksum zero (RFC 7348 §4.3) |
//! | 28 | 8 | VXLAN, with nothing but a network identifier |
//! | 36 | 14 | inner Ethernet |
//! | 50 | | the pod's packet |

use crate::{
    address::{Address, Be16, Ipv4, Mac, V4, protocol},
    checksum,
    header::IpHeader,
    header::Network,
    packet::Packet,
    tunnel::Tunnel,
};

/// Bytes before the pod's packet.
pub const OVERHEAD: u32 = 50;

/// What `ip_tunnel` sends with, unless `net.ipv4.ip_default_ttl` says otherwise.
pub(crate) const TTL: u8 = 64;
/// First octet and "I" flag alone, as `vxlan` has it, in network byte order.
pub(crate) const FLAGS: u32 = 0x0800_0000_u32.to_be();
/// First and last of the ports that a source is chosen from, unless others are asked for (RFC 7348 §5).
pub const SOURCE_PORTS: [u16; 2] = [49_152, 65_535];
pub(crate) const ETHERTYPE: u16 = 0x0800_u16.to_be();

/// Explicit congestion notification in the byte behind an IPv4 header's first (RFC 3168 §5).
pub(crate) const ECN_MASK: u8 = 3;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// Who sends to whom, of one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends<A> {
    pub src: A,
    pub dst: A,
    pub src_port: Be16,
    pub dst_port: Be16,
}

/// All bytes from the outer IPv4 header to the first three words of the pod's packet, in one
/// piece: each write is a call of the kernel. Of the 64 bytes, all but the last two.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// IPv4, UDP, VXLAN.
    headers: [u32; 9],
    to: [u16; 3],
    from: [u16; 3],
    kind: u16,
    packet: [u16; 6],
    pad: u16,
}

/// Bytes of [`Outer`] that are written.
pub const OUTER: u32 = OVERHEAD + 12;

/// The source port of a flow's packets, of those from `first` to `last`, so that routers may spread flows over
/// several paths.
#[inline(always)]
#[must_use]
pub const fn source_port(first: u16, last: u16, hash: u32) -> Be16 {
    let ports = last.wrapping_sub(first) as u64 + 1;
    let hash = hash ^ hash << 16;
    Be16::new(first.wrapping_add(((hash as u64 * ports) >> 32) as u16))
}

impl Outer {
    /// Before a packet of `length` bytes in all that begins with `words`. `id` is the outer
    /// identification: routers may divide it, as with the kernel's device.
    #[inline(always)]
    #[must_use]
    pub fn new(
        ends: &Ends<Ipv4>,
        vni: u32,
        [to, from]: [Mac; 2],
        words: [u32; 3],
        length: u16,
        id: u16,
    ) -> Self {
        let [_, inner_tos, _, _] = words[0].to_ne_bytes();
        let constant = constant(ends.src, ends.dst);
        let headers = headers(ends, constant, vni, inner_tos, length, id);
        let [a, b, c] = words.map(split);
        let packet = [a[0], a[1], b[0], b[1], c[0], c[1]];
        Self { headers, to: mac(to), from: mac(from), kind: ETHERTYPE, packet, pad: 0 }
    }

    /// The bytes as they are written.
    #[must_use]
    pub fn bytes(&self) -> [u8; OUTER as usize] {
        let mut bytes = [0; OUTER as usize];
        let words = self.headers.into_iter().flat_map(u32::to_ne_bytes);
        let halves = [self.to, self.from].into_iter().flatten().chain([self.kind]);
        let halves = halves.chain(self.packet).flat_map(u16::to_ne_bytes);
        for (to, byte) in bytes.iter_mut().zip(words.chain(halves)) {
            *to = byte;
        }
        bytes
    }
}

/// Sum of what the header of IPv4 has in all packets of a tunnel.
#[inline(always)]
#[must_use]
pub fn constant(src: Ipv4, dst: Ipv4) -> u16 {
    checksum::fold(u16::from_ne_bytes([TTL, protocol::UDP]) as u32 + src.sum() + dst.sum())
}

/// The headers of IPv4, UDP and VXLAN before a packet of `length` bytes, of this type of service.
/// `constant` is [`constant`]'s.
#[inline(always)]
#[must_use]
pub fn headers(
    ends: &Ends<Ipv4>,
    constant: u16,
    vni: u32,
    inner_tos: u8,
    length: u16,
    id: u16,
) -> [u32; 9] {
    let total = length.wrapping_add(OVERHEAD as u16);
    let first = u32::from_ne_bytes(pair([0x45, congestion(inner_tos)], total.to_be_bytes()));
    let second = u32::from_ne_bytes(pair(id.to_ne_bytes(), [0, 0]));
    let sum = halves(first) + halves(second) + constant as u32;
    let check = (!checksum::fold(sum)).to_ne_bytes();
    let third = u32::from_ne_bytes(pair([TTL, protocol::UDP], check));
    let ports = u32::from_ne_bytes(pair(ends.src_port.bytes(), ends.dst_port.bytes()));
    let udp_length = total.wrapping_sub(V4::HEADER as u16);
    let udp = u32::from_ne_bytes(pair(udp_length.to_be_bytes(), [0, 0]));
    let (src, dst) = (ends.src.raw(), ends.dst.raw());
    [first, second, third, src, dst, ports, udp, FLAGS, network(vni)]
}

/// What the outer header says of congestion (RFC 6040 §4.1, normal mode): as the inner, but that
/// congestion so far is the inner header's to tell.
#[inline(always)]
pub(crate) const fn congestion(inner: u8) -> u8 {
    match inner & ECN_MASK {
        CE => ECT_0,
        other => other,
    }
}

/// A packet in a tunnel, as far as can be told without a table.
#[derive(Clone, Copy, Debug)]
pub struct Wrapped {
    pub to: Mac,
    pub from: Mac,
    /// Offsets are from the outer header.
    pub header: IpHeader<Ipv4>,
    /// The first words of the inner packet.
    pub words: [u32; 3],
}

/// Reads the headers of a packet out of this tunnel. `None` for any other, and for what the
/// kernel's device has to judge: options, fragments, a UDP checksum, congestion on the way, bits
/// that we do not know, and packets but of IPv4.
#[inline(always)]
pub fn read<P: Packet>(packet: &P, tunnel: &Tunnel) -> Option<Wrapped> {
    let [first, second, third, _, dst, ports, udp] = packet.words(0)?;
    let [start, tos, _, _] = first.to_ne_bytes();
    let [_, next, _, _] = third.to_ne_bytes();
    let [_, _, to_port, port_end] = ports.to_ne_bytes();
    if start != 0x45
        || next != protocol::UDP
        || Be16::from_bytes([to_port, port_end]) != tunnel.port
        || Ipv4::from_raw(dst) != tunnel.underlay4
    {
        return None;
    }
    let [_, _, fragment, fragment_end] = second.to_ne_bytes();
    let [_, _, check, check_end] = udp.to_ne_bytes();
    if fragment & 0x3f | fragment_end | check | check_end != 0 {
        return None;
    }
    let [flags, vni, a, b, c, kind] = packet.words(V4::HEADER + 8)?;
    let [kind, kind_end, _, inner_tos] = kind.to_ne_bytes();
    let is_congested = tos & 1 != 0 && (tos ^ inner_tos) & ECN_MASK != 0;
    if flags != FLAGS
        || vni != network(tunnel.vni)
        || u16::from_ne_bytes([kind, kind_end]) != ETHERTYPE
        || is_congested
    {
        return None;
    }
    let header = V4::header(packet, OVERHEAD)?;
    let (to, from) = Mac::of_words([a, b, c]);
    Some(Wrapped { to, from, header, words: packet.words(OVERHEAD)? })
}

/// The second word of a VXLAN header.
#[inline(always)]
pub(crate) const fn network(vni: u32) -> u32 {
    (vni << 8).to_be()
}

#[inline(always)]
pub(crate) const fn pair([a, b]: [u8; 2], [c, d]: [u8; 2]) -> [u8; 4] {
    [a, b, c, d]
}

/// Both halves of a word, as they lie in memory.
#[inline(always)]
const fn split(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

/// Their sum.
#[inline(always)]
pub(crate) const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[inline(always)]
const fn mac(Mac(bytes): Mac) -> [u16; 3] {
    [
        u16::from_ne_bytes([bytes[0], bytes[1]]),
        u16::from_ne_bytes([bytes[2], bytes[3]]),
        u16::from_ne_bytes([bytes[4], bytes[5]]),
    ]
}
