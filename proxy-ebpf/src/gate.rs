//! Most packets are none of ours, and to tell so must cost next to nothing: addresses are read
//! straight from the packet, and one byte of an array tells whether the tables can know them.
//! Where it says "perhaps", the engine looks.

use aya_ebpf::programs::TcContext;
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    hash,
    header::Network,
};

use crate::{
    flows::MARKS,
    known::is_foreign,
    linear::{at, word},
    marks::is_set,
};

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

/// The network header, if all of it is there.
#[inline(always)]
fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    at(context, 0, F::HEADER)
}

/// True if an entering packet's destination is certainly none of ours.
#[inline(always)]
pub fn is_foreign_destination<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    is_foreign::<F>(destination)
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
