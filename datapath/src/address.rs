//! Addresses, ports and protocols as they stand in packets and in table keys, and the
//! [`Family`] that makes one piece of code serve IPv4 and IPv6.

use core::{
    fmt::{self, Debug},
    hash::Hash,
};

/// A 16-bit number in network byte order, such as a port.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Be16(u16);

impl Be16 {
    pub const ZERO: Self = Self(0);

    /// What turns this one into another, and back; or this one turned by that.
    #[inline(always)]
    #[must_use]
    pub const fn xor(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// From a number in the byte order of this machine.
    #[inline(always)]
    #[must_use]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// In the byte order of this machine.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they stand on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// From two bytes as they stand on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// The number as it lies in memory, for arithmetic that does not care (checksums, hashes).
    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

impl Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A hardware address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// True for an address of many devices.
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Destination and source as they lie in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn words([Self(to), Self(from)]: [Self; 2]) -> [u32; 3] {
        [
            u32::from_ne_bytes([to[0], to[1], to[2], to[3]]),
            u32::from_ne_bytes([to[4], to[5], from[0], from[1]]),
            u32::from_ne_bytes([from[2], from[3], from[4], from[5]]),
        ]
    }

    /// The reverse of [`Mac::words`].
    #[inline(always)]
    #[must_use]
    pub fn of_words(words: [u32; 3]) -> (Self, Self) {
        let [a, b, c] = words.map(u32::to_ne_bytes);
        (Self([a[0], a[1], a[2], a[3], b[0], b[1]]), Self([b[2], b[3], c[0], c[1], c[2], c[3]]))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 address in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Ipv4(u32);

/// An IPv6 address in network byte order. Four words, because that is its alignment in table
/// keys and in the kernel's context structures.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Ipv6([u32; 4]);

impl Ipv4 {
    /// From the word as the kernel holds it (`user_ip4`, `iphdr.saddr`).
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
}

impl Ipv6 {
    /// From the words as the kernel holds them (`user_ip6`, `in6_addr.s6_addr32`).
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: [u32; 4]) -> Self {
        Self(raw)
    }

    #[inline(always)]
    #[must_use]
    pub const fn raw(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        // SAFETY: both are 16 bytes of plain data, and `u8` has no alignment to keep.
        unsafe { core::mem::transmute(self.0) }
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        // SAFETY: both are 16 bytes of plain data; `transmute` copies, so alignment is met.
        unsafe { core::mem::transmute(bytes) }
    }

    /// The IPv4 address inside `::ffff:a.b.c.d`, as dual-stack sockets show IPv4 peers
    /// (RFC 4291 §2.5.5.2).
    #[inline(always)]
    #[must_use]
    pub const fn v4_mapped(self) -> Option<Ipv4> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be() {
            Some(Ipv4(self.0[3]))
        } else {
            None
        }
    }
}

/// What the code needs of an address, whichever its family.
pub trait Address: Copy + Eq + Hash + Default + Debug + Ord + 'static {
    /// Fills up what has to be whole lines of the processor's cache
    /// ([`crate::flow_cache::Line`]).
    type Pad: Copy + Eq + Default + Debug + 'static;

    /// Folds the address into 32 bits, for hashes.
    fn fold(self) -> u32;
    /// The one's complement sum of the address's 16-bit words, as they lie in memory,
    /// not folded (RFC 1071).
    fn sum(self) -> u32;
    /// True if a packet to this address is for many (RFC 1112, RFC 4291 §2.7), or for all.
    fn is_multicast(self) -> bool;
    /// True if it is every network namespace's own (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3).
    fn is_loopback(self) -> bool;
    /// True if the first `bits` bits are those of the other address.
    fn shares(self, other: Self, bits: u32) -> bool;
    /// As words as they lie in memory; IPv4's is the first.
    fn words(self) -> [u32; 4];

    /// Whom packets with this source are from: of IPv4 the address, of IPv6 its first 64 bits, since one
    /// host may have all addresses that begin so (RFC 7421). No number is one of both families: IPv6
    /// gives nobody addresses that begin with 32 zeros.
    fn origin(self) -> u64;
}

/// The first `bits` bits of a word in network byte order, 32 at most.
#[inline(always)]
const fn mask(bits: u32) -> u32 {
    if bits == 0 { 0 } else { (u32::MAX << (32 - if bits < 32 { bits } else { 32 })).to_be() }
}

impl Address for Ipv4 {
    type Pad = [u64; 3];

    #[inline(always)]
    fn fold(self) -> u32 {
        self.0
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        (self.0 & 0xffff) + (self.0 >> 16)
    }

    #[inline(always)]
    fn is_multicast(self) -> bool {
        let [first, ..] = self.bytes();
        first >> 4 == 0xe || self.0 == u32::MAX
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        let [first, ..] = self.bytes();
        first == 127
    }

    #[inline(always)]
    fn shares(self, other: Self, bits: u32) -> bool {
        (self.0 ^ other.0) & mask(bits) == 0
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.0, 0, 0, 0]
    }

    #[inline(always)]
    fn origin(self) -> u64 {
        u64::from(self.0) << 32
    }
}

impl Address for Ipv6 {
    type Pad = ();

    #[inline(always)]
    fn fold(self) -> u32 {
        self.0[0] ^ self.0[1].rotate_left(8) ^ self.0[2].rotate_left(16) ^ self.0[3]
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self.0;
        (a & 0xffff)
            + (a >> 16)
            + (b & 0xffff)
            + (b >> 16)
            + (c & 0xffff)
            + (c >> 16)
            + (d & 0xffff)
            + (d >> 16)
    }

    #[inline(always)]
    fn is_multicast(self) -> bool {
        self.0[0].to_ne_bytes()[0] == 0xff
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | c == 0 && d == 1_u32.to_be()
    }

    #[inline(always)]
    fn shares(self, other: Self, bits: u32) -> bool {
        let differs = |word: usize| {
            let rest = bits.saturating_sub(32 * word as u32);
            (self.0[word] ^ other.0[word]) & mask(rest)
        };
        differs(0) | differs(1) | differs(2) | differs(3) == 0
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    fn origin(self) -> u64 {
        let [first, second, ..] = self.0;
        u64::from(first) | u64::from(second) << 32
    }
}

impl From<core::net::Ipv4Addr> for Ipv4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<Ipv4> for core::net::Ipv4Addr {
    fn from(address: Ipv4) -> Self {
        address.bytes().into()
    }
}

impl From<core::net::Ipv6Addr> for Ipv6 {
    fn from(address: core::net::Ipv6Addr) -> Self {
        Self::from_bytes(address.octets())
    }
}

impl From<Ipv6> for core::net::Ipv6Addr {
    fn from(address: Ipv6) -> Self {
        address.bytes().into()
    }
}

impl Debug for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&core::net::Ipv4Addr::from(*self), f)
    }
}

impl Debug for Ipv6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&core::net::Ipv6Addr::from(*self), f)
    }
}

/// IPv4 or IPv6, as a type parameter.
pub trait Family: Copy + Debug + 'static {
    type Address: Address + Into<core::net::IpAddr>;
    /// True for IPv6.
    const V6: bool;
    /// The protocol number of the family's ICMP.
    const ICMP: u8;
    /// Ends the names of the family's maps: `"4"` or `"6"`.
    const SUFFIX: &'static str;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Address = Ipv4;
    const V6: bool = false;
    const ICMP: u8 = protocol::ICMP;
    const SUFFIX: &'static str = "4";
}

impl Family for V6 {
    type Address = Ipv6;
    const V6: bool = true;
    const ICMP: u8 = protocol::ICMPV6;
    const SUFFIX: &'static str = "6";
}

impl From<Ipv4> for core::net::IpAddr {
    fn from(address: Ipv4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Ipv6> for core::net::IpAddr {
    fn from(address: Ipv6) -> Self {
        Self::V6(address.into())
    }
}

/// Protocol numbers (IANA) as they stand in the IPv4 `protocol` and IPv6 next header fields.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// As people call it.
    #[must_use]
    pub const fn name(proto: u8) -> &'static str {
        match proto {
            TCP => "TCP",
            UDP => "UDP",
            SCTP => "SCTP",
            ICMP => "ICMP",
            ICMPV6 => "ICMPv6",
            _ => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shared_to_the_bit() {
        let v4 = |text: &str| Ipv4::from(text.parse::<core::net::Ipv4Addr>().unwrap());
        let v6 = |text: &str| Ipv6::from(text.parse::<core::net::Ipv6Addr>().unwrap());
        let shared = |a: &str, b: &str| (0..=32).take_while(|&n| v4(a).shares(v4(b), n)).count();
        assert_eq!(shared("10.244.1.1", "10.244.2.1"), 23);
        assert_eq!(shared("10.244.1.1", "10.244.1.1"), 33);
        let shared = |a: &str, b: &str| (0..=128).take_while(|&n| v6(a).shares(v6(b), n)).count();
        for (a, b, count) in [
            ("fd00::1", "fd00::1", 129),
            ("fd00::1", "fd00::", 128),
            ("fd00:10:244:1::", "fd00:10:244:2::", 63),
            ("fd00:0:1::", "fd00::", 48),
            ("fd00::", "fe00::", 7),
        ] {
            assert_eq!(shared(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn packets_to_many() {
        let v4 = |text: &str| Ipv4::from(text.parse::<core::net::Ipv4Addr>().unwrap());
        assert!(v4("224.0.0.251").is_multicast() && v4("255.255.255.255").is_multicast());
        assert!(!v4("240.0.0.1").is_multicast() && !v4("10.0.0.255").is_multicast());
        assert!(Ipv6::from("ff02::16".parse::<core::net::Ipv6Addr>().unwrap()).is_multicast());
    }
}
