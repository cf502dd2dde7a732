//! Most packets are none of ours, and to tell so must cost next to nothing: addresses are read
//! straight from the packet, and one byte of an array tells whether the tables can know them.
//! A byte that is set says "perhaps"; then the engine looks.

use aya_ebpf::{btf_maps::Array, programs::TcContext};
use datapath::{
    address::{Address, Ipv4, Ipv6, V4, V6},
    hash,
    header::Network,
    maps::MARKS_LEN,
};

use crate::{
    maps::{ADDRESSMARKS, MARKS},
    skb::ETHERNET,
    tables::mark_place,
};

type Marks<const FLAGS: usize> = Array<[u8; MARKS_LEN], 1, FLAGS>;

/// A family's addresses at their places in a packet.
pub trait Peek: Network {
    /// Offset of the protocol, or of the first next header.
    const NEXT: usize;

    /// # Safety
    /// The address's bytes are in the packet.
    unsafe fn peek(at: *const u8) -> Self::Address;
}

impl Peek for V4 {
    const NEXT: usize = 9;

    #[inline(always)]
    unsafe fn peek(at: *const u8) -> Ipv4 {
        // SAFETY: the caller has checked the bounds; network headers lie at even addresses.
        let [a, b] = unsafe { *at.cast::<[u16; 2]>() };
        Ipv4::from_raw(word(a, b))
    }
}

impl Peek for V6 {
    const NEXT: usize = 6;

    #[inline(always)]
    unsafe fn peek(at: *const u8) -> Ipv6 {
        // SAFETY: the caller has checked the bounds; network headers lie at even addresses.
        let [a, b, c, d, e, f, g, h] = unsafe { *at.cast::<[u16; 8]>() };
        Ipv6::from_raw([word(a, b), word(c, d), word(e, f), word(g, h)])
    }
}

/// Two halves of a word as they follow each other in memory.
#[inline(always)]
const fn word(first: u16, second: u16) -> u32 {
    first as u32 | (second as u32) << 16
}

/// The network header, if all of it lies in the buffer's linear part.
#[inline(always)]
fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    let mut skb = context.skb.skb;
    // SAFETY: does nothing, which the compiler does not know: else it would load the packet's
    // bounds before the call of the function this is in and hand them over as numbers, which
    // the verifier does not take for pointers any more.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) skb, options(nomem, nostack)) };
    // SAFETY: the kernel's context.
    let (start, end) = unsafe { ((*skb).data as usize + ETHERNET as usize, (*skb).data_end) };
    (start + F::HEADER as usize <= end as usize).then_some(start as *const u8)
}

#[inline(always)]
fn is_set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) -> bool {
    let Some(bytes) = marks.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(mark_place(hash)) != 0 }
}

/// True if an entering packet's destination is certainly none of ours.
#[inline(never)]
pub fn is_foreign_destination<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    !is_set(&ADDRESSMARKS, hash::mix(destination.fold()))
}

/// True if a leaving packet is certainly of no flow, and no ICMP error about one.
#[inline(never)]
pub fn is_foreign_pair<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let (source, destination, next) = unsafe {
        (
            F::peek(header.add(F::SRC as usize)),
            F::peek(header.add(F::DST as usize)),
            *header.add(F::NEXT),
        )
    };
    !F::may_be_icmp(next) && !is_set(&MARKS, hash::pair(source, destination))
}
