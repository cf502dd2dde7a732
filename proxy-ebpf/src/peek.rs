//! Addresses read straight from a packet.

use aya_ebpf::programs::TcContext;
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    header::Network,
};

use crate::linear::{at, word};

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
pub fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    at(context, 0, F::HEADER)
}
