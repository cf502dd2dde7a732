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

/// What lies at an offset from the network header, if `length` bytes of it are in the buffer's
/// linear part.
#[inline(always)]
fn at(context: &TcContext, offset: u32, length: u32) -> Option<*const u8> {
    // Opaque, or the compiler would load the packet's bounds before the call of the function
    // this is in and hand them over as numbers, which the verifier does not take for pointers.
    let skb = opaque(context.skb.skb);
    // SAFETY: the kernel's context.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // Opaque, or the compiler would compare one sum and read through another, of which the
    // verifier does not know that they are the same.
    let start = opaque((data + offset as usize) as *mut u8);
    let start = start as usize + ETHERNET as usize;
    (start + length as usize <= end).then_some(start as *const u8)
}

/// The same pointer, of which the compiler knows nothing.
#[inline(always)]
pub fn opaque<T>(mut pointer: *mut T) -> *mut T {
    // SAFETY: moves a register to itself. (With no instruction at all, two lines of source
    // would belong to the next, which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(nostack)) };
    pointer
}

/// The network header, if all of it is there.
#[inline(always)]
fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    at(context, 0, F::HEADER)
}

/// `W` words of the packet, if they are in the buffer's linear part.
#[inline(always)]
pub fn words<const W: usize>(context: &TcContext, offset: u32) -> Option<[u32; W]> {
    // The verifier keeps no track of a pointer that might reach further than 64 KiB, nor does it
    // see through the comparison that the compiler makes of this one.
    if offset > LAST_OFFSET {
        return None;
    }
    let offset = masked::<{ LAST_OFFSET as usize }>(offset as usize) as u32;
    let start = at(context, offset, 4 * W as u32)?;
    // SAFETY: `at` has checked that the bytes are there.
    Some(core::array::from_fn(|index| unsafe { word(start.add(4 * index)) }))
}

/// The lowest bits, in one instruction where it stands. In Rust, the compiler would move the mask
/// before or behind other steps, where the verifier (of Linux 6.1 more than any) does not see
/// what it bounds.
#[inline(always)]
pub fn masked<const MASK: usize>(mut number: usize) -> usize {
    // SAFETY: changes one register.
    unsafe {
        core::arch::asm!(
            "{number} &= {mask}",
            number = inout(reg) number,
            mask = const MASK,
            options(pure, nomem, nostack)
        );
    }
    number
}

/// Far behind any header. All bits below its highest are set.
const LAST_OFFSET: u32 = 0x7fff;

#[inline(always)]
pub fn is_set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) -> bool {
    let Some(bytes) = marks.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(masked::<{ MARKS_LEN - 1 }>(hash as usize)) != 0 }
}

#[inline(always)]
pub fn set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) {
    if let Some(bytes) = marks.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        unsafe { *bytes.cast::<u8>().add(masked::<{ MARKS_LEN - 1 }>(hash as usize)) = 1 };
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
