//! Packets made field by field, with their checksums summed up from scratch and not by the
//! engine's own arithmetic.

use bytes::BufMut;

use crate::{
    address::{Ipv4, Ipv6, V4, V6, protocol},
    flow::Place,
    header::{Network, tcp},
    sctp::chunk,
};

/// A family with addresses to use in tests.
pub trait Sample: Network {
    const ETHERTYPE: u16;
    /// `10.net.host` and `fd00::net:host`.
    fn address(net: u8, host: u16) -> Self::Address;
    /// `11.net.host` and `fd00:0:0:net::host`: of IPv6, each net has 64 bits of its own.
    fn elsewhere(net: u8, host: u16) -> Self::Address;
    fn octets(address: Self::Address) -> Vec<u8>;
    /// The group of mDNS (RFC 6762).
    fn group() -> Self::Address;
    fn loopback() -> Self::Address;
}

impl Sample for V4 {
    const ETHERTYPE: u16 = 0x0800;

    fn address(net: u8, host: u16) -> Ipv4 {
        let [high, low] = host.to_be_bytes();
        Ipv4::from_bytes([10, net, high, low])
    }

    fn elsewhere(net: u8, host: u16) -> Ipv4 {
        let [high, low] = host.to_be_bytes();
        Ipv4::from_bytes([11, net, high, low])
    }

    fn octets(address: Ipv4) -> Vec<u8> {
        address.bytes().to_vec()
    }

    fn group() -> Ipv4 {
        Ipv4::from_bytes([224, 0, 0, 251])
    }

    fn loopback() -> Ipv4 {
        Ipv4::from(std::net::Ipv4Addr::LOCALHOST)
    }
}

impl Sample for V6 {
    const ETHERTYPE: u16 = 0x86dd;

    fn address(net: u8, host: u16) -> Ipv6 {
        let [high, low] = host.to_be_bytes();
        Ipv6::from_bytes([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, net, high, low])
    }

    fn elsewhere(net: u8, host: u16) -> Ipv6 {
        let [high, low] = host.to_be_bytes();
        Ipv6::from_bytes([0xfd, 0, 0, 0, 0, 0, 0, net, 0, 0, 0, 0, 0, 0, high, low])
    }

    fn octets(address: Ipv6) -> Vec<u8> {
        address.bytes().to_vec()
    }

    fn group() -> Ipv6 {
        Ipv6::from_bytes([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb])
    }

    fn loopback() -> Ipv6 {
        Ipv6::from(std::net::Ipv6Addr::LOCALHOST)
    }
}

/// The one's complement sum of big-endian words (RFC 1071), folded.
pub(super) fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// CRC32c bit by bit (RFC 9260, appendix A).
#[must_use]
pub fn crc32c(message: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in message {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
        }
    }
    !crc
}

/// The pseudo header (RFC 9293 §3.1, RFC 8200 §8.1). Both families sum up to the same if the
/// fields are the same.
pub(super) fn pseudo<F: Sample>(
    src: F::Address,
    dst: F::Address,
    proto: u8,
    length: usize,
) -> Vec<u8> {
    let mut bytes = F::octets(src);
    bytes.extend(F::octets(dst));
    bytes.put_u32(length as u32);
    bytes.put_u32(proto.into());
    bytes
}

/// What a packet's transport checksum is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    Full,
    /// None (UDP over IPv4).
    Zero,
    /// That of the pseudo header, for CHECKSUM_PARTIAL; of SCTP, zero.
    Partial,
}

/// A packet with ports, or one of another protocol.
#[derive(Clone, Debug)]
pub struct Datagram<F: Sample> {
    pub src: Place<F::Address>,
    pub dst: Place<F::Address>,
    pub proto: u8,
    /// TCP's; of SCTP, the type of the chunk.
    pub flags: u8,
    /// Of SCTP, the verification tag.
    pub sequence: u32,
    pub acknowledgement: u32,
    pub payload: Vec<u8>,
    pub sum: Sum,
    pub hops: u8,
    pub id: u32,
    /// IPv4 options, whole words.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number, and bytes whose first is overwritten.
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl<F: Sample> Datagram<F> {
    fn new(src: Place<F::Address>, dst: Place<F::Address>, proto: u8) -> Self {
        Self {
            src,
            dst,
            proto,
            flags: 0,
            sequence: 0x1000_0000,
            acknowledgement: 0x2000_0000,
            payload: Vec::new(),
            sum: Sum::Full,
            hops: 63,
            id: 0x1234,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    #[must_use]
    pub fn tcp(src: Place<F::Address>, dst: Place<F::Address>, flags: u8) -> Self {
        Self { flags, ..Self::new(src, dst, protocol::TCP) }
    }

    #[must_use]
    pub fn udp(src: Place<F::Address>, dst: Place<F::Address>) -> Self {
        Self { payload: b"datagram".to_vec(), ..Self::new(src, dst, protocol::UDP) }
    }

    /// An SCTP packet of one chunk of this kind.
    #[must_use]
    pub fn sctp(src: Place<F::Address>, dst: Place<F::Address>, kind: u8) -> Self {
        Self { flags: kind, ..Self::new(src, dst, protocol::SCTP) }
    }

    /// TCP, UDP or SCTP: that with the chunk that the flags mean.
    #[must_use]
    pub fn of(proto: u8, src: Place<F::Address>, dst: Place<F::Address>, flags: u8) -> Self {
        let kind = match flags {
            tcp::SYN => chunk::INIT,
            flags if flags & tcp::SYN != 0 => chunk::INIT_ACK,
            flags if flags & tcp::RST != 0 => chunk::ABORT,
            flags if flags & tcp::FIN != 0 => chunk::SHUTDOWN,
            _ => chunk::COOKIE_ECHO,
        };
        match proto {
            protocol::TCP => Self::tcp(src, dst, flags),
            protocol::SCTP => Self::sctp(src, dst, kind),
            _ => Self::udp(src, dst),
        }
    }

    /// A protocol that the engine knows nothing of, with `payload` behind the headers.
    #[must_use]
    pub fn other(src: F::Address, dst: F::Address, proto: u8, payload: &[u8]) -> Self {
        let place = |addr| Place::new(addr, crate::address::Be16::ZERO);
        Self { payload: payload.to_vec(), ..Self::new(place(src), place(dst), proto) }
    }

    #[must_use]
    pub fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The same packet to elsewhere.
    #[must_use]
    pub fn to(mut self, dst: Place<F::Address>) -> Self {
        self.dst = dst;
        self
    }

    /// The same packet from elsewhere.
    #[must_use]
    pub fn from(mut self, src: Place<F::Address>) -> Self {
        self.src = src;
        self
    }

    /// From the network header on.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.wrap(&self.body(), None)
    }

    /// The packet in pieces that carry `size` bytes each, a multiple of eight.
    #[must_use]
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let body = self.body();
        let count = body.len().div_ceil(size);
        let piece = |(index, piece): (usize, &[u8])| {
            self.wrap(piece, Some(((index * size) as u16, index + 1 < count)))
        };
        body.chunks(size).enumerate().map(piece).collect()
    }

    /// Transport header and payload.
    fn body(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let field = match self.proto {
            protocol::TCP => {
                bytes.put_slice(&self.src.port.bytes());
                bytes.put_slice(&self.dst.port.bytes());
                bytes.put_u32(self.sequence);
                bytes.put_u32(self.acknowledgement);
                bytes.put_slice(&[0x50, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
                16
            }
            protocol::UDP => {
                bytes.put_slice(&self.src.port.bytes());
                bytes.put_slice(&self.dst.port.bytes());
                bytes.put_u16(8 + self.payload.len() as u16);
                bytes.put_u16(0);
                6
            }
            protocol::SCTP => {
                bytes.put_slice(&self.src.port.bytes());
                bytes.put_slice(&self.dst.port.bytes());
                bytes.put_u32(self.sequence);
                bytes.put_u32(0);
                bytes.put_slice(&[self.flags, 0]);
                bytes.put_u16(4 + self.payload.len() as u16);
                bytes.put_slice(&self.payload);
                if self.sum == Sum::Full {
                    let value = crc32c(&bytes);
                    bytes[8..12].copy_from_slice(&value.to_le_bytes());
                }
                return bytes;
            }
            _ => return self.payload.clone(),
        };
        bytes.put_slice(&self.payload);
        let pseudo = pseudo::<F>(self.src.addr, self.dst.addr, self.proto, bytes.len());
        let value = match self.sum {
            Sum::Zero => 0,
            Sum::Partial => sum(&[&pseudo]),
            Sum::Full => match !sum(&[&pseudo, &bytes]) {
                0 if self.proto == protocol::UDP => 0xffff,
                value => value,
            },
        };
        bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    fn wrap(&self, body: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        if F::V6 { self.wrap6(body, fragment) } else { self.wrap4(body, fragment) }
    }

    fn wrap4(&self, body: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        let length = 20 + self.options.len();
        let mut bytes = Vec::new();
        bytes.put_u8(0x40 | (length / 4) as u8);
        bytes.put_u8(0);
        bytes.put_u16((length + body.len()) as u16);
        bytes.put_u16(self.id as u16);
        bytes.put_u16(match fragment {
            None => 0x4000,
            Some((offset, more)) => (offset / 8) | (u16::from(more) << 13),
        });
        bytes.put_slice(&[self.hops, self.proto, 0, 0]);
        bytes.put_slice(&F::octets(self.src.addr));
        bytes.put_slice(&F::octets(self.dst.addr));
        bytes.put_slice(&self.options);
        let value = !sum(&[&bytes]);
        bytes[10..12].copy_from_slice(&value.to_be_bytes());
        bytes.put_slice(body);
        bytes
    }

    fn wrap6(&self, body: &[u8], fragment: Option<(u16, bool)>) -> Vec<u8> {
        let mut chain = self.extensions.clone();
        if let Some((offset, more)) = fragment {
            let mut header = vec![0, 0];
            header.put_u16(offset | u16::from(more));
            header.put_u32(self.id);
            chain.push((44, header));
        }
        let mut numbers = chain.iter().map(|(number, _)| *number).chain([self.proto]);
        let first = numbers.next().unwrap_or(self.proto);
        let mut payload = Vec::new();
        for ((_, header), next) in chain.iter().zip(numbers) {
            payload.put_u8(next);
            payload.put_slice(&header[1..]);
        }
        payload.put_slice(body);
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.put_u16(payload.len() as u16);
        bytes.put_slice(&[first, self.hops]);
        bytes.put_slice(&F::octets(self.src.addr));
        bytes.put_slice(&F::octets(self.dst.addr));
        bytes.put_slice(&payload);
        bytes
    }
}

/// An ICMP message: type and code, four more bytes of header, and what follows.
#[must_use]
pub fn icmp<F: Sample>(
    src: F::Address,
    dst: F::Address,
    kind: [u8; 2],
    rest: [u8; 4],
    body: &[u8],
) -> Datagram<F> {
    let mut message = vec![kind[0], kind[1], 0, 0];
    message.put_slice(&rest);
    message.put_slice(body);
    let pseudo = if F::V6 { pseudo::<F>(src, dst, F::ICMP, message.len()) } else { Vec::new() };
    let value = !sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&value.to_be_bytes());
    Datagram::other(src, dst, F::ICMP, &message)
}
