//! The engine's view of a packet: bytes from the network header on, reached by offset. In the
//! kernel a socket buffer, in tests a vector.

use crate::{
    answer,
    header::{self, Network},
};

/// What became of a packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not ours, or rewritten: whoever comes next goes on with it.
    Pass,
    /// Ends here. The reason has been counted.
    Drop,
    /// The packet was turned into an answer: send it back where it came from, with the link
    /// layer's addresses swapped; one that was leaving, into the node by the same device.
    Answer,
}

/// What the change of a transport checksum is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covers {
    /// Bytes of the packet that only the checksum covers.
    Payload,
    /// An IPv4 address: part of the pseudo header, which is all that a packet with
    /// CHECKSUM_PARTIAL has summed up.
    Pseudo4,
    /// An IPv6 address. Apart from IPv4 because no header checksum balances the change.
    Pseudo6,
}

/// Access to a packet. Offsets count from the network header. `None` means that the bytes are
/// not there, or that the kernel would not let them be changed.
#[expect(clippy::len_without_is_empty, reason = "a packet has a header at least")]
pub trait Packet {
    /// Length from the network header on, as it stands in the buffer (a GSO packet's is that of
    /// all its segments).
    fn len(&self) -> u32;

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// `W` words as they lie in memory. For what every packet is read for: programs read it
    /// straight from the packet.
    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]>;

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;

    /// Writes words as they are to lie in memory.
    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()>;

    /// Changes the transport checksum at `offset` by `difference`. With `zero_is_none` a field
    /// that holds zero is left alone, and a result of zero is written as 0xffff (UDP).
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        covers: Covers,
        zero_is_none: bool,
    ) -> Option<()>;

    /// [`header::extensions`], packed; programs have it as a global function, like the last of
    /// [`crate::tables::Tables`].
    #[inline(always)]
    fn extensions(&self, offset: u32, next: u8) -> u64
    where
        Self: Sized,
    {
        header::pack(header::extensions(self, offset, next))
    }

    /// [`answer::write_unreachable`], likewise; false if the packet could not be written.
    #[inline(always)]
    fn write_unreachable<F: Network>(&mut self, code: u8) -> bool
    where
        Self: Sized,
    {
        answer::write_unreachable::<F, Self>(self, code).is_some()
    }

    /// [`answer::write_reset`], likewise.
    #[inline(always)]
    fn write_reset<F: Network>(&mut self) -> bool
    where
        Self: Sized,
    {
        answer::write_reset::<F, Self>(self).is_some()
    }

    /// Cuts the packet off at `length` bytes, or makes it that long; what is added is undefined
    /// as yet.
    fn resize(&mut self, length: u32) -> Option<()>;

    /// Takes `length` bytes off the front. If a device was to complete a checksum that lay
    /// among them, it is not any more.
    fn shed(&mut self, length: u32) -> Option<()>;
}
