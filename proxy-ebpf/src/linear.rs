//! What lies in the linear part of a socket buffer, read without a call of the kernel, and the
//! few instructions by which compiler and verifier agree on it.

use aya_ebpf::programs::{TcContext, XdpContext};
use datapath::address::Mac;

use crate::skb::ETHERNET;

/// A word of the packet as it lies in memory, at an address that need not be aligned. In Rust
/// this would be four loads of a byte: the target does not know that the processors for which
/// the verifier lets such a load pass do it in one.
///
/// # Safety
/// The four bytes are in the packet.
#[inline(always)]
pub unsafe fn word(at: *const u8) -> u32 {
    let word: u32;
    // SAFETY: reads what the caller has checked.
    unsafe {
        core::arch::asm!(
            "{word} = *(u32 *)({at} + 0)",
            word = out(wreg) word,
            at = in(reg) at,
            options(pure, readonly, nostack)
        );
    }
    word
}

/// A context of the kernel's that tells where a packet lies.
pub trait Linear {
    /// Where the linear part begins, with the link layer's header, and where it ends.
    fn bounds(&self) -> (usize, usize);
}

impl Linear for TcContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // Opaque, or the compiler would load the packet's bounds before the call of the function
        // this is in and hand them over as numbers, which the verifier does not take for pointers.
        let skb = opaque(self.skb.skb);
        // SAFETY: the kernel's context.
        unsafe { ((*skb).data as usize, (*skb).data_end as usize) }
    }
}

impl Linear for XdpContext {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let frame = opaque(self.ctx);
        // SAFETY: the kernel's context.
        unsafe { ((*frame).data as usize, (*frame).data_end as usize) }
    }
}

/// What lies at an offset from the network header, if `length` bytes of it are in the buffer's
/// linear part.
#[inline(always)]
pub fn at<C: Linear>(context: &C, offset: u32, length: u32) -> Option<*const u8> {
    let (data, end) = context.bounds();
    // Opaque, or the compiler would compare one sum and read through another, of which the
    // verifier does not know that they are the same.
    let start = opaque((data + offset as usize) as *mut u8);
    let start = start as usize + ETHERNET as usize;
    (start + length as usize <= end).then_some(start as *const u8)
}

/// The hardware addresses of a frame: destination and source.
#[inline(always)]
pub fn hardware<C: Linear>(context: &C) -> Option<(Mac, Mac)> {
    let network = at(context, 0, 0)?;
    // SAFETY: `at` has checked that all before the network header is there.
    let words = unsafe {
        let start = network.sub(ETHERNET as usize);
        [word(start), word(start.add(4)), word(start.add(8))]
    };
    Some(Mac::of_words(words))
}

/// The same pointer, of which the compiler knows nothing.
#[inline(always)]
pub fn opaque<T>(mut pointer: *mut T) -> *mut T {
    // SAFETY: moves a register to itself. (With no instruction at all, two lines of source
    // would belong to the next, which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(nostack)) };
    pointer
}

/// `W` words of the packet, if they are in the buffer's linear part.
#[inline(always)]
pub fn words<C: Linear, const W: usize>(context: &C, offset: u32) -> Option<[u32; W]> {
    // The verifier keeps no track of a pointer that might reach further than 64 KiB, nor does it
    // see through the comparison that the compiler makes of this one.
    if offset >= REACH {
        return None;
    }
    let offset = modulo::<{ REACH as usize }>(offset as usize) as u32;
    let start = at(context, offset, 4 * W as u32)?;
    // SAFETY: `at` has checked that the bytes are there.
    Some(core::array::from_fn(|index| unsafe { word(start.add(4 * index)) }))
}

/// What remains of a division by a power of two, in one instruction where it stands. In Rust, the
/// compiler would move it before or behind other steps, where the verifier (of Linux 6.1 more than
/// any) does not see what it bounds.
#[inline(always)]
pub fn modulo<const DIVISOR: usize>(mut number: usize) -> usize {
    const { assert!(DIVISOR.is_power_of_two()) };
    // SAFETY: changes one register.
    unsafe {
        core::arch::asm!(
            "{number} &= {mask}",
            number = inout(reg) number,
            mask = const DIVISOR - 1,
            options(pure, nomem, nostack)
        );
    }
    number
}

/// The same number, of which neither compiler nor verifier knows anything, as long as the latter does
/// not know `by`.
#[inline(always)]
pub fn hidden(mut number: u32, by: u32) -> u32 {
    // SAFETY: changes one register, and back.
    unsafe {
        core::arch::asm!(
            "{number} ^= {by}",
            "{number} ^= {by}",
            number = inout(wreg) number,
            by = in(wreg) by,
            options(pure, nomem, nostack)
        );
    }
    number
}

/// Far behind any header.
const REACH: u32 = 0x8000;
