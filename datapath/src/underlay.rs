//! VXLAN (RFC 7348) over a family, of packets of the same family, as flannel has it: what stands
//! before a packet in a tunnel, written and read where no device of the kernel does it.

use crate::{
    address::{Address, Be16, Ipv4, Ipv6, Mac, V4, V6, protocol},
    checksum,
    header::{self, Network},
    nexthop::NextHop,
    packet::Packet,
    tunnel::{Inner, Tunnel},
    vxlan::{self, ECN_MASK, Ends, FLAGS, TTL, congestion, halves, network, pair},
};

/// A family that tunnels go over.
pub trait Underlay: Network + Inner {
    /// Bytes before the packet: outer headers and the inner frame's.
    const OVERHEAD: u32;
    /// Of a frame, as it lies in memory.
    const ETHERTYPE: u16;
    /// True if UDP has no datagrams without a checksum (RFC 8200 §8.1).
    const NEEDS_CHECKSUM: bool;

    /// The hardware addresses of the frame in this tunnel, destination and source. `None` for what
    /// the kernel's device has to judge: another network, options, fragments, congestion on the way,
    /// bits that we do not know, and packets of another family.
    fn unwrap<P: Packet>(packet: &P, tunnel: &Tunnel) -> Option<(Mac, Mac)>;

    /// Sum of what an outer checksum covers in all packets of a tunnel, for [`NextHop::constant`].
    fn constant(hop: &NextHop<Self::Address>) -> u16;

    /// Writes all [`Underlay::OVERHEAD`] bytes before a packet of `length` bytes that begins with
    /// `start`, into the tunnel of this way. `id` is the outer identification, where there is one.
    fn wrap<P: Packet>(
        packet: &mut P,
        hop: &NextHop<Self::Address>,
        src_port: Be16,
        start: [u32; 2],
        length: u16,
        id: u16,
    ) -> Option<()>;
}

impl Underlay for V4 {
    const OVERHEAD: u32 = vxlan::OVERHEAD;
    const ETHERTYPE: u16 = vxlan::ETHERTYPE;
    const NEEDS_CHECKSUM: bool = false;

    #[inline(always)]
    fn unwrap<P: Packet>(packet: &P, tunnel: &Tunnel) -> Option<(Mac, Mac)> {
        vxlan::read(packet, tunnel).map(|wrapped| (wrapped.to, wrapped.from))
    }

    #[inline(always)]
    fn constant(hop: &NextHop<Ipv4>) -> u16 {
        vxlan::constant(hop.own, hop.underlay)
    }

    #[inline(always)]
    fn wrap<P: Packet>(
        packet: &mut P,
        hop: &NextHop<Ipv4>,
        src_port: Be16,
        [first, _]: [u32; 2],
        length: u16,
        id: u16,
    ) -> Option<()> {
        let [_, tos, _, _] = first.to_ne_bytes();
        let ends = Ends { src: hop.own, dst: hop.underlay, src_port, dst_port: hop.port };
        packet.store_words(0, &vxlan::headers(&ends, hop.constant, hop.vni, tos, length, id))?;
        store_frame(packet, Self::OVERHEAD, [hop.inner_to, hop.inner_from], Self::ETHERTYPE)
    }
}

impl Underlay for V6 {
    const OVERHEAD: u32 = Self::HEADER + TO_FRAME + FRAME;
    const ETHERTYPE: u16 = 0x86dd_u16.to_be();
    const NEEDS_CHECKSUM: bool = true;

    #[inline(always)]
    fn unwrap<P: Packet>(packet: &P, tunnel: &Tunnel) -> Option<(Mac, Mac)> {
        let header = Self::header(packet, 0)?;
        let [ports, udp, flags, vni] = packet.words(Self::HEADER)?;
        let [_, _, check, check_end] = udp.to_ne_bytes();
        if header.next != protocol::UDP
            || header.dst != tunnel.underlay6
            || header::ports(ports.to_ne_bytes()).dst_port != tunnel.port
            || check | check_end == 0
            || flags != FLAGS
            || vni != network(tunnel.vni)
        {
            return None;
        }
        let [outer] = packet.words(0)?;
        let [a, b, c, kind] = packet.words(Self::OVERHEAD - FRAME)?;
        let [kind, kind_end, first, second] = kind.to_ne_bytes();
        let (tos, inner_tos) = (class(outer.to_ne_bytes()), class([first, second, 0, 0]));
        let is_congested = tos & 1 != 0 && (tos ^ inner_tos) & ECN_MASK != 0;
        if u16::from_ne_bytes([kind, kind_end]) != Self::ETHERTYPE || is_congested {
            return None;
        }
        Some(Mac::of_words([a, b, c]))
    }

    #[inline(always)]
    fn constant(hop: &NextHop<Ipv6>) -> u16 {
        let link = Mac::words([hop.inner_to, hop.inner_from]);
        let sum = hop.own.sum()
            + hop.underlay.sum()
            + header::pseudo(protocol::UDP, 0)
            + hop.port.raw() as u32
            + halves(FLAGS)
            + halves(network(hop.vni))
            + halves(link[0])
            + halves(link[1])
            + halves(link[2])
            + Self::ETHERTYPE as u32;
        checksum::fold(sum)
    }

    #[inline(always)]
    fn wrap<P: Packet>(
        packet: &mut P,
        hop: &NextHop<Ipv6>,
        src_port: Be16,
        [first, second]: [u32; 2],
        length: u16,
        _id: u16,
    ) -> Option<()> {
        let bytes = first.to_ne_bytes();
        let class = congestion(class(bytes));
        let start = u32::from_ne_bytes([0x60 | class >> 4, class << 4, 0, 0]);
        let udp_length = length.wrapping_add((TO_FRAME + FRAME) as u16);
        let payload = u32::from_ne_bytes(pair(udp_length.to_be_bytes(), [protocol::UDP, TTL]));
        let ports = u32::from_ne_bytes(pair(src_port.bytes(), hop.port.bytes()));
        // The inner packet's checksum makes its transport header and data add up to what its pseudo
        // header lacks: so of the packet the first words are all that counts
        // (Documentation/networking/checksum-offloads.rst, "LCO").
        let [_, _, proto, hops] = second.to_ne_bytes();
        let inner = halves(first)
            + u16::from_ne_bytes([proto, hops]) as u32
            + checksum::difference(u16::from_ne_bytes([0, proto]) as u32, 0);
        // The length stands in the pseudo header, too.
        let lengths = udp_length.to_be() as u32 * 2;
        let sum = inner + lengths + src_port.raw() as u32 + hop.constant as u32;
        let check = match !checksum::fold(sum) {
            0 => u16::MAX,
            check => check,
        };
        let udp = u32::from_ne_bytes(pair(udp_length.to_be_bytes(), check.to_ne_bytes()));
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (hop.own.raw(), hop.underlay.raw());
        packet.store_words(0, &[start, payload, s0, s1, s2, s3, d0, d1, d2, d3])?;
        packet.store_words(Self::HEADER, &[ports, udp, FLAGS, network(hop.vni)])?;
        store_frame(packet, Self::OVERHEAD, [hop.inner_to, hop.inner_from], Self::ETHERTYPE)
    }
}

/// Headers of UDP and VXLAN.
const TO_FRAME: u32 = 16;
/// An Ethernet header.
const FRAME: u32 = 14;

/// IPv6's traffic class.
#[inline(always)]
const fn class([first, second, _, _]: [u8; 4]) -> u8 {
    first << 4 | second >> 4
}

/// Writes an Ethernet header that ends at `end`.
#[inline(always)]
fn store_frame<P: Packet>(packet: &mut P, end: u32, macs: [Mac; 2], kind: u16) -> Option<()> {
    packet.store_words(end - FRAME, &Mac::words(macs))?;
    packet.store(end - 2, &kind.to_ne_bytes())
}
