//! The kernel's routes and neighbours, asked for a packet's way.

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated as helper};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    header::Network,
};

/// A family as the kernel's look-up has it.
pub trait Routed: Network {
    /// `AF_INET` or `AF_INET6`.
    const FAMILY: u8;

    /// Says whose way the kernel is to tell.
    fn put(question: &mut bpf_fib_lookup, from: Self::Address, to: Self::Address);
}

impl Routed for V4 {
    const FAMILY: u8 = 2;

    #[inline(always)]
    fn put(question: &mut bpf_fib_lookup, from: Ipv4, to: Ipv4) {
        question.__bindgen_anon_3.ipv4_src = from.raw();
        question.__bindgen_anon_4.ipv4_dst = to.raw();
    }
}

impl Routed for V6 {
    const FAMILY: u8 = 10;

    #[inline(always)]
    fn put(question: &mut bpf_fib_lookup, from: Ipv6, to: Ipv6) {
        question.__bindgen_anon_3.ipv6_src = from.raw();
        question.__bindgen_anon_4.ipv6_dst = to.raw();
    }
}

/// Nobody's way.
#[inline(always)]
pub fn nowhere() -> bpf_fib_lookup {
    // SAFETY: of plain numbers, for which zero is one.
    unsafe { core::mem::zeroed() }
}

/// What the kernel answers that knows a packet's way, and nothing to do or to say before it goes there.
pub const KNOWN: i64 = 0;
/// The same, but the next hop's address has to be found out first (`BPF_FIB_LKUP_RET_NO_NEIGH`).
pub const NO_NEIGHBOUR: i64 = 7;

/// Writes into `way`, which must be [`nowhere`], what the kernel does with a packet that comes in by
/// `device`. `context` is that of the running program.
#[inline(always)]
pub fn ask<F: Routed>(
    way: &mut bpf_fib_lookup,
    context: *mut c_void,
    device: u32,
    from: F::Address,
    to: F::Address,
) -> i64 {
    way.family = F::FAMILY;
    way.ifindex = device;
    F::put(way, from, to);
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the helper checks the length, and writes into the structure alone.
    unsafe { helper::bpf_fib_lookup(context, way, length, 0) }
}
