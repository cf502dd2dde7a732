//! A frame that the kernel has made no socket buffer of yet, as the engine's packet: bytes that are
//! read and written where they lie.

use aya_ebpf::{helpers::generated as helper, programs::XdpContext};
use datapath::{
    address::Mac,
    checksum,
    packet::{Covers, Packet},
    wire::Wire,
};

use crate::{
    linear::{self, Linear, at, hidden},
    skb::ETHERNET,
};

/// Writes a word where it need not be aligned.
///
/// # Safety
/// The four bytes are in the packet, and it may be written there.
#[inline(always)]
unsafe fn put_word(at: *mut u8, word: u32) {
    // SAFETY: writes what the caller has checked.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({at} + 0) = {word}",
            at = in(reg) at,
            word = in(wreg) word,
            options(nostack)
        );
    }
}

/// A frame on a device.
pub struct Buffer<'a> {
    pub context: &'a XdpContext,
}

impl Buffer<'_> {
    /// Where bytes of the packet may be written.
    #[inline(always)]
    fn place(&mut self, offset: u32, length: u32) -> Option<*mut u8> {
        at(self.context, offset, length).map(<*const u8>::cast_mut)
    }

    /// Moves the beginning of the frame: up by so many bytes, or down.
    #[inline(always)]
    fn move_head(&mut self, by: i32) -> Option<()> {
        // SAFETY: the helper checks the length against the frame, and the room before it.
        let result = unsafe { helper::bpf_xdp_adjust_head(self.context.ctx, by) };
        (result == 0).then_some(())
    }
}

impl Packet for Buffer<'_> {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the helper takes the kernel's context.
        let length = unsafe { helper::bpf_xdp_get_buff_len(self.context.ctx) };
        (length as u32).wrapping_sub(ETHERNET)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = at(self.context, offset, N as u32)?;
        // SAFETY: `at` has checked that the bytes are there.
        Some(core::array::from_fn(|index| unsafe { *start.add(index) }))
    }

    #[inline(always)]
    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]> {
        linear::words(self.context, offset)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        let start = self.place(offset, N as u32)?;
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: `place` has checked that the bytes are there.
            unsafe { *start.add(index) = byte };
        }
        Some(())
    }

    #[inline(always)]
    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()> {
        let start = self.place(offset, 4 * W as u32)?;
        for (index, &word) in words.iter().enumerate() {
            // SAFETY: `place` has checked that the words are there.
            unsafe { put_word(start.add(4 * index), word) };
        }
        Some(())
    }

    #[inline(always)]
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        _covers: Covers,
        zero_is_none: bool,
    ) -> Option<()> {
        let field = u16::from_ne_bytes(self.load(offset)?);
        if zero_is_none && field == 0 {
            return Some(());
        }
        let changed = checksum::replace(field, difference);
        let changed = if zero_is_none && changed == 0 { u16::MAX } else { changed };
        self.store(offset, &changed.to_ne_bytes())
    }

    #[inline(always)]
    fn forget(&self, number: u8, by: u32) -> u8 {
        hidden(number.into(), by) as u8
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> Option<()> {
        let by = (length as i32).wrapping_sub(self.len() as i32);
        // SAFETY: the helper checks the length against the frame, and the room behind it.
        let result = unsafe { helper::bpf_xdp_adjust_tail(self.context.ctx, by) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn shed(&mut self, length: u32) -> Option<()> {
        self.move_head(length as i32)
    }
}

impl Wire for Buffer<'_> {
    #[inline(always)]
    fn hardware(&self) -> Option<(Mac, Mac)> {
        linear::hardware(self.context)
    }

    #[inline(always)]
    fn holds(&self, length: u32) -> bool {
        let (data, end) = self.context.bounds();
        // Nearly every frame is in one buffer.
        end - data >= (ETHERNET + length) as usize || self.len() >= length
    }

    #[inline(always)]
    fn grow(&mut self, length: u32) -> Option<()> {
        self.move_head(-(length as i32))
    }

    #[inline(always)]
    fn store_link(&mut self, to: Mac, from: Mac, kind: u16) -> Option<()> {
        let network = self.place(0, 0)?;
        let [a, b, c] = Mac::words([to, from]);
        // SAFETY: `place` has checked that all before the network header is there; the type stands at
        // an even address.
        unsafe {
            let start = network.sub(ETHERNET as usize);
            put_word(start, a);
            put_word(start.add(4), b);
            put_word(start.add(8), c);
            start.add(12).cast::<u16>().write(kind);
        }
        Some(())
    }
}
