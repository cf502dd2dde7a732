//! Most packets are none of ours, and to tell so must cost next to nothing: addresses are read
//! straight from the packet, and one byte of an array tells whether the tables can know them.
//! A byte that is set says "perhaps"; then the engine looks.

use aya_ebpf::{btf_maps::Array, programs::TcContext};
use datapath::{
    address::{Address, Be16, Ipv4, Ipv6, V4, V6},
    hash,
    header::Network,
    maps::{MARKS_LEN, PEERMARKS_LEN},
};

use crate::{
    maps::{ADDRESSMARKS, MARKS, PEERMARKS},
    skb::ETHERNET,
    tables::mark_place,
};

pub type Marks<const FLAGS: usize> = Array<[u8; MARKS_LEN], 1, FLAGS>;

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
        // SAFETY: the caller's.
        Ipv4::from_raw(unsafe { word(at) })
    }
}

impl Peek for V6 {
    const NEXT: usize = 6;

    #[inline(always)]
    unsafe fn peek(at: *const u8) -> Ipv6 {
        // SAFETY: the caller's.
        Ipv6::from_raw(unsafe { [word(at), word(at.add(4)), word(at.add(8)), word(at.add(12))] })
    }
}

/// A word of the packet as it lies in memory, at an address that need not be aligned. In Rust
/// this would be four loads of a byte: the target does not know that the processors for which
/// the verifier lets such a load pass do it in one.
///
/// # Safety
/// The four bytes are in the packet.
#[inline(always)]
unsafe fn word(at: *const u8) -> u32 {
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

/// The network header, if all of it lies in the buffer's linear part.
#[inline(always)]
fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    let mut skb = context.skb.skb;
    // SAFETY: does nothing, which the compiler does not know: else it would load the packet's
    // bounds before the call of the function this is in and hand them over as numbers, which
    // the verifier does not take for pointers any more.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) skb, options(nomem, nostack)) };
    // SAFETY: the kernel's context.
    let (start, end) = unsafe { ((*skb).data as usize + ETHERNET as usize, (*skb).data_end) };
    (start + F::HEADER as usize <= end as usize).then_some(start as *const u8)
}

#[inline(always)]
pub fn is_set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) -> bool {
    let Some(bytes) = marks.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(mark_place(hash)) != 0 }
}

#[inline(always)]
pub fn set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) {
    if let Some(bytes) = marks.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        unsafe { *bytes.cast::<u8>().add(mark_place(hash)) = 1 };
    }
}

/// True if an entering packet's destination is certainly none of ours.
#[inline(always)]
pub fn is_foreign_destination<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    is_foreign::<F>(destination)
}

/// True if an address is certainly none of ours.
#[inline(always)]
pub fn is_foreign<F: Network>(address: F::Address) -> bool {
    !is_set(&ADDRESSMARKS, hash::mix(address.fold()))
}

/// True if a socket may have been given a backend with this port. By ports and not by places:
/// there are few, and so the marks of all the other ports that sockets have stay in the cache.
#[inline(always)]
pub fn is_peer(port: Be16) -> bool {
    let Some(bytes) = PEERMARKS.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(peer_place(port)) != 0 }
}

/// Notes that a socket is given a backend with this port.
#[inline(always)]
pub fn mark_peer(port: Be16) {
    if let Some(bytes) = PEERMARKS.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        unsafe { *bytes.cast::<u8>().add(peer_place(port)) = 1 };
    }
}

#[inline(always)]
fn peer_place(port: Be16) -> usize {
    usize::from(port.raw()) & (PEERMARKS_LEN - 1)
}

/// True if a leaving packet is certainly of no flow, and no ICMP error about one.
#[inline(always)]
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
