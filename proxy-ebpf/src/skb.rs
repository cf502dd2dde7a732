//! A socket buffer as the engine's packet.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated as helper,
    programs::TcContext,
};
use datapath::{
    address::Mac,
    header::Network,
    packet::{Covers, Packet},
};

use crate::{
    ipv6_checksum_flags,
    linear::{self, hidden, opaque},
    steps::{
        FAILED, change_crc32c4, change_crc32c6, change_quoted4, change_quoted6, crc32c_change,
        echo4, echo6, extensions, reset4, reset6, unreachable4, unreachable6,
    },
};

/// `TCX_NEXT`, and `TC_ACT_UNSPEC` of a clsact filter: not ours, or done with; the next
/// program goes on.
pub const NEXT: i32 = -1;
/// `skb->protocol` of the two families (`ETH_P_IP`, `ETH_P_IPV6`), in network byte order.
pub const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
pub const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// `skb->pkt_type` of a frame for the device's own address.
pub const PACKET_HOST: u32 = 0;

/// Length of the Ethernet header: the agent attaches to Ethernet devices only. VLAN tags are
/// not in the buffer but beside it.
pub const ETHERNET: u32 = 14;

/// `BPF_ADJ_ROOM_MAC`: room between link layer and network header.
pub const ADJUST_ROOM_MAC: u32 = 1;

/// One of `ETH_P_IP`, `ETH_P_IPV6`, or another that is none of ours.
#[inline(always)]
pub fn protocol(context: &TcContext) -> u32 {
    // SAFETY: the kernel's context.
    unsafe { (*context.skb.skb).protocol }
}

/// Frames for others are seen by a device that listens to all, or where a switch floods: IP drops
/// them later, and to refuse one would end somebody else's connection. On a device of a pod this
/// does not tell: its frames are for the bridge that it is a port of.
#[inline(always)]
pub fn is_for_this_node(context: &TcContext) -> bool {
    // SAFETY: the kernel's context.
    unsafe { (*context.skb.skb).pkt_type == PACKET_HOST }
}

/// The begin of a frame: link layer, and three words of the packet. 26 bytes.
#[repr(C, packed(2))]
struct Begin {
    to: Mac,
    from: Mac,
    kind: u16,
    words: [u32; 3],
}

/// A packet on a device.
pub struct Skb<'a> {
    pub context: &'a TcContext,
}

impl<'a> Skb<'a> {
    #[inline(always)]
    pub fn new(context: &'a TcContext) -> Self {
        Self { context }
    }

    /// Copies bytes of the packet, from an offset of the network header, wherever they lie.
    ///
    /// # Safety
    /// `to` has room for `length` bytes.
    #[inline(always)]
    unsafe fn read(&self, offset: u32, to: *mut c_void, length: u32) -> Option<()> {
        // SAFETY: the helper checks the bounds of the packet; the room is the caller's word. It
        // writes all the bytes or fails.
        done(unsafe {
            helper::bpf_skb_load_bytes(self.context.as_ptr(), ETHERNET + offset, to, length)
        })
    }

    /// Writes bytes of the packet, at an offset of the network header.
    ///
    /// # Safety
    /// `from` has `length` bytes.
    #[inline(always)]
    unsafe fn write(&mut self, offset: u32, from: *const c_void, length: u32) -> Option<()> {
        let skb = self.context.as_ptr().cast();
        // SAFETY: the helper checks the bounds of the packet; the bytes are the caller's word.
        done(unsafe { helper::bpf_skb_store_bytes(skb, ETHERNET + offset, from, length, 0) })
    }

    /// Writes the hardware addresses of the frame, destination and source, and behind its type the first three
    /// words of the packet, of which a hop limit is the news.
    #[inline(always)]
    pub fn store_begin(&mut self, to: Mac, from: Mac, words: [u32; 3]) -> Option<()> {
        let skb = self.context.as_ptr().cast();
        // SAFETY: the kernel's context.
        let kind = unsafe { (*self.context.skb.skb).protocol };
        // No checksum of the header makes up for it, so what a device may have summed up of the whole packet
        // (CHECKSUM_COMPLETE) changes. The kernel has it forgotten there (`skb_forward_csum`).
        if kind == ETH_P_IPV6 {
            let (offset, flags) = (ETHERNET + 4, BPF_F_RECOMPUTE_CSUM as u64);
            let word = (&raw const words[1]).cast();
            // SAFETY: the helper checks the bounds of the packet; the word has four bytes.
            done(unsafe { helper::bpf_skb_store_bytes(skb, offset, word, 4, flags) })?;
        }
        let begin = Begin { to, from, kind: kind as u16, words };
        let (from, length) = ((&raw const begin).cast(), size_of::<Begin>() as u32);
        // SAFETY: the helper checks the bounds of the packet; the structure has these bytes.
        done(unsafe { helper::bpf_skb_store_bytes(skb, 0, from, length, 0) })
    }

    /// Sends the packet over its device to where it came from: out of it, or, with
    /// `BPF_F_INGRESS`, into the node that was sending it. Apart, so that its stack is not in
    /// that of everything else.
    #[inline(never)]
    pub fn send_back(&mut self, flags: u64) -> Option<i32> {
        let mut addresses = [0_u8; 12];
        let skb = self.context.as_ptr();
        // SAFETY: the helper checks the bounds of the packet; the array holds the 12 bytes.
        unsafe {
            if helper::bpf_skb_load_bytes(skb, 0, addresses.as_mut_ptr().cast(), 12) != 0 {
                return None;
            }
            let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
            let swapped = [g, h, i, j, k, l, a, b, c, d, e, f];
            if helper::bpf_skb_store_bytes(skb.cast(), 0, swapped.as_ptr().cast(), 12, 0) != 0 {
                return None;
            }
            Some(helper::bpf_redirect((*self.context.skb.skb).ifindex, flags) as i32)
        }
    }
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (*self.context.skb.skb).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: the kernel's context, whose mark programs may write.
        unsafe { (&raw mut (*self.context.skb.skb).mark).write_volatile(mark) };
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.context.len().wrapping_sub(ETHERNET)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = core::mem::MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the array has N bytes, and only when all are written are they read.
        unsafe {
            self.read(offset, bytes.as_mut_ptr().cast(), N as u32)?;
            Some(bytes.assume_init())
        }
    }

    #[inline(always)]
    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]> {
        let mut words = core::mem::MaybeUninit::<[u32; W]>::uninit();
        let to = words.as_mut_ptr();
        match linear::words(self.context, offset) {
            // SAFETY: the array's own place.
            Some(words) => unsafe { to.write(words) },
            // Not in the buffer's linear part.
            // SAFETY: the array has W words.
            None => unsafe { self.read(offset, to.cast(), 4 * W as u32)? },
        }
        // Kept in memory: so both ways here leave the same behind, and the verifier goes on from
        // here once.
        let words = opaque(to);
        // SAFETY: written above, either way.
        Some(unsafe { *words })
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        // SAFETY: the array has N bytes.
        unsafe { self.write(offset, bytes.as_ptr().cast(), N as u32) }
    }

    #[inline(always)]
    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()> {
        // SAFETY: the array has W words.
        unsafe { self.write(offset, words.as_ptr().cast(), 4 * W as u32) }
    }

    #[inline(always)]
    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        covers: Covers,
        zero_is_none: bool,
    ) -> Option<()> {
        let covers = match covers {
            Covers::Payload => 0,
            Covers::Pseudo4 => BPF_F_PSEUDO_HDR as u64,
            Covers::Pseudo6 => ipv6_checksum_flags() as u64,
        };
        let zero = if zero_is_none { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        // SAFETY: the helper checks the bounds of the packet.
        done(unsafe {
            helper::bpf_l4_csum_replace(
                self.context.as_ptr().cast(),
                ETHERNET + offset,
                0,
                difference.into(),
                covers | zero,
            )
        })
    }

    #[inline(always)]
    fn extensions(&self, offset: u32, next: u8) -> u64 {
        extensions(self.context.skb.skb, offset, next)
    }

    #[inline(always)]
    fn forget(&self, number: u8, by: u32) -> u8 {
        hidden(number.into(), by) as u8
    }

    #[inline(always)]
    fn crc32c_change(&self, difference: u32, length: u32) -> u32 {
        crc32c_change(difference, length)
    }

    #[inline(always)]
    fn change_crc32c<F: Network>(&mut self, offset: u32, difference: u32) -> bool {
        let skb = self.context.skb.skb;
        let change = if F::V6 { change_crc32c6 } else { change_crc32c4 };
        change(skb, offset, difference) != 0
    }

    #[inline(always)]
    fn change_quoted_crc32c<F: Network>(
        &mut self,
        start: u32,
        offset: u32,
        difference: u32,
    ) -> Option<u32> {
        let skb = self.context.skb.skb;
        let change = if F::V6 { change_quoted6 } else { change_quoted4 };
        let sum = change(skb, start, offset, difference);
        (sum != FAILED).then_some(sum)
    }

    #[inline(always)]
    fn write_unreachable<F: Network>(&mut self, code: u8) -> bool {
        let (skb, code) = (self.context.skb.skb, code.into());
        (if F::V6 { unreachable6(skb, code) } else { unreachable4(skb, code) }) != 0
    }

    #[inline(always)]
    fn write_reset<F: Network>(&mut self) -> bool {
        let skb = self.context.skb.skb;
        (if F::V6 { reset6(skb) } else { reset4(skb) }) != 0
    }

    #[inline(always)]
    fn write_echo<F: Network>(&mut self) -> bool {
        let skb = self.context.skb.skb;
        (if F::V6 { echo6(skb) } else { echo4(skb) }) != 0
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> Option<()> {
        // SAFETY: the helper checks the length.
        done(unsafe {
            helper::bpf_skb_change_tail(self.context.as_ptr().cast(), ETHERNET + length, 0)
        })
    }

    #[inline(always)]
    fn shed(&mut self, length: u32) -> Option<()> {
        let less = -(length as i32);
        // SAFETY: the helper checks the length against the packet.
        done(unsafe {
            helper::bpf_skb_adjust_room(self.context.as_ptr().cast(), less, ADJUST_ROOM_MAC, 0)
        })
    }
}
