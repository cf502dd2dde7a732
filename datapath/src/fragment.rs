//! Ports for fragments that do not carry them: the first fragment of a packet leaves a row,
//! the others read it.

use crate::address::Be16;

/// Key of the LRU tables `FRAGMENTS4` and `FRAGMENTS6`: 16 and 40 bytes (RFC 791 §3.2,
/// RFC 8200 §4.5: source, destination, identification and protocol name a packet).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// As on the wire; IPv4's 16 bits are the number's low half.
    pub id: u32,
    pub proto: u8,
    /// [`crate::flow::hook`]: addresses differ before and after a rewrite.
    pub hook: u8,
    pub pad: u16,
}

/// Value of the fragment tables: 4 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    pub src_port: Be16,
    pub dst_port: Be16,
}

impl Ports {
    /// Both as the one word that they are in a transport header.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u32 {
        let ([a, b], [c, d]) = (self.src_port.bytes(), self.dst_port.bytes());
        u32::from_ne_bytes([a, b, c, d])
    }

    /// What they add to a checksum.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> u32 {
        self.src_port.raw() as u32 + self.dst_port.raw() as u32
    }
}
