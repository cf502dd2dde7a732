//! The engine's view of a packet: bytes from the network header on, reached by offset. In the
//! kernel a socket buffer, in tests a vector.

use crate::{
    answer, crc32c, echo,
    header::{self, Network},
    sctp,
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

    /// `skb->mark`; zero where there is no socket buffer yet.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    /// Sets it.
    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        let _ = mark;
    }

    /// True if a device is to compute the checksum at `offset` (CHECKSUM_PARTIAL), whose field holds
    /// zero. No helper tells, but the one that changes a checksum leaves such a one alone where the
    /// change is of what only the checksum covers; any other field is spoilt by asking.
    #[inline(always)]
    fn is_partial(&mut self, offset: u32) -> Option<bool> {
        self.change_transport_checksum(offset, 1, Covers::Payload, false)?;
        self.load::<2>(offset).map(|field| field == [0; 2])
    }

    /// The same number. Programs hide it from the verifier, behind any number `by` that it does not
    /// know: it would follow all that comes after once for each that it has been compared with.
    #[inline(always)]
    fn forget(&self, number: u8, by: u32) -> u8 {
        let _ = by;
        number
    }

    /// [`header::extensions`], packed; programs have it as a global function, like the last of
    /// [`crate::tables::Tables`].
    #[inline(always)]
    fn extensions(&self, offset: u32, next: u8) -> u64
    where
        Self: Sized,
    {
        header::pack(header::extensions(self, offset, next))
    }

    /// [`crc32c::change`], likewise.
    #[inline(always)]
    fn crc32c_change(&self, difference: u32, length: u32) -> u32 {
        crc32c::change(difference, length)
    }

    /// [`sctp::change_checksum`], likewise; false if the packet could not be written.
    #[inline(always)]
    fn change_crc32c<F: Network>(&mut self, offset: u32, difference: u32) -> bool
    where
        Self: Sized,
    {
        sctp::change_checksum::<F, Self>(self, offset, difference).is_some()
    }

    /// [`sctp::change_quoted`], likewise.
    #[inline(always)]
    fn change_quoted_crc32c<F: Network>(
        &mut self,
        start: u32,
        offset: u32,
        difference: u32,
    ) -> Option<u32>
    where
        Self: Sized,
    {
        sctp::change_quoted::<F, Self>(self, start, offset, difference)
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

    /// [`echo::write_reply`], likewise.
    #[inline(always)]
    fn write_echo<F: Network>(&mut self) -> bool
    where
        Self: Sized,
    {
        echo::write_reply::<F, Self>(self).is_some()
    }

    /// Cuts the packet off at `length` bytes, or makes it that long; what is added is undefined
    /// as yet.
    fn resize(&mut self, length: u32) -> Option<()>;

    /// Takes `length` bytes off the front. If a device was to complete a checksum that lay
    /// among them, it is not any more.
    fn shed(&mut self, length: u32) -> Option<()>;
}
