//! Most packets are none of ours, and to tell so must cost next to nothing: addresses are read
//! straight from the packet, and one byte of an array tells whether the tables can know them.
//! Where it says "perhaps", the engine looks.

use aya_ebpf::programs::TcContext;
use datapath::{
    address::{Be16, Ipv4, Ipv6, V4, V6},
    frontend::mark,
    hash,
    header::Network,
};

use crate::{
    flows::MARKS,
    known::{is_foreign_port, uses},
    linear::{at, word},
    marks::is_set,
    tables::{FamilyMaps, is_service_network},
};

/// A family's addresses at their places in a packet.
pub trait Peek: Network {
    /// Offset of the protocol, or of the first next header.
    const NEXT: usize;

    /// # Safety
    /// The address's bytes are in the packet.
    unsafe fn peek(at: *const u8) -> Self::Address;

    /// True if what has ports has them right behind the fixed header: no options, no fragment. (An
    /// IPv6 header that is followed by another says so in [`Peek::NEXT`].)
    ///
    /// # Safety
    /// The fixed header's bytes are in the packet.
    unsafe fn is_plain(header: *const u8) -> bool;
}

impl Peek for V4 {
    const NEXT: usize = 9;

    #[inline(always)]
    unsafe fn peek(at: *const u8) -> Ipv4 {
        // SAFETY: the caller's.
        Ipv4::from_raw(unsafe { word(at) })
    }

    #[inline(always)]
    unsafe fn is_plain(header: *const u8) -> bool {
        /// More fragments, and the offset of this one.
        const FRAGMENT: u32 = u32::from_be(0x3fff);
        // SAFETY: the caller's.
        unsafe { *header == 0x45 && word(header.add(4)) & FRAGMENT == 0 }
    }
}

impl Peek for V6 {
    const NEXT: usize = 6;

    #[inline(always)]
    unsafe fn peek(at: *const u8) -> Ipv6 {
        // SAFETY: the caller's.
        Ipv6::from_raw(unsafe { [word(at), word(at.add(4)), word(at.add(8)), word(at.add(12))] })
    }

    #[inline(always)]
    unsafe fn is_plain(_header: *const u8) -> bool {
        true
    }
}

/// The network header, if all of it is there.
#[inline(always)]
fn header<F: Peek>(context: &TcContext) -> Option<*const u8> {
    at(context, 0, F::HEADER)
}

/// True if an entering packet is certainly for none of ours. On an address that has other ports
/// too, the node's own above all, it is told by its port and its source.
#[inline(always)]
pub fn is_foreign_destination<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    match uses::<F>(destination) {
        0 => true,
        uses if uses & mark::WHOLE == 0 => is_foreign_tuple::<F>(context),
        _ => false,
    }
}

/// The same by port and source. A function of its own, for what it needs of the stack.
#[inline(never)]
fn is_foreign_tuple<F: Peek>(context: &TcContext) -> bool {
    if !has_foreign_port::<F>(context) {
        return false;
    }
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    unsafe { !is_marked_way::<F>(header) }
}

/// True if flows may have rows for the way that a packet goes.
///
/// # Safety
/// The fixed header's bytes are in the packet.
#[inline(always)]
unsafe fn is_marked_way<F: Peek>(header: *const u8) -> bool {
    // SAFETY: the caller's.
    let (source, destination) =
        unsafe { (F::peek(header.add(F::SRC as usize)), F::peek(header.add(F::DST as usize))) };
    is_set(&MARKS, hash::way(source, destination))
}

/// True if a packet has the port of no frontend; false if it cannot be told from its first bytes.
#[inline(always)]
fn has_foreign_port<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = at(context, 0, F::HEADER + 4) else { return false };
    // SAFETY: `at` has checked that header and ports are there.
    let (is_plain, proto, ports) = unsafe {
        (F::is_plain(header), *header.add(F::NEXT), word(header.add(F::HEADER as usize)))
    };
    // The second of two, in network byte order as it lies there.
    let [_, _, high, low] = ports.to_ne_bytes();
    let port = Be16::new(u16::from_be_bytes([high, low]));
    is_plain && mark::of_protocol(proto) != 0 && is_foreign_port(port, proto)
}

/// True if a leaving packet's destination is certainly none that it could be refused for.
#[inline(always)]
pub fn is_never_refused<F: Peek + FamilyMaps>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    uses::<F>(destination) & (mark::WHOLE | mark::LOAD_BALANCER) == 0
        && !is_service_network::<F>(destination)
}

/// True if a leaving packet is certainly of no flow, and no ICMP error about one.
#[inline(always)]
pub fn is_foreign_way<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    unsafe { !F::may_be_icmp(*header.add(F::NEXT)) && !is_marked_way::<F>(header) }
}

/// The same, beside a program that needs the stack: two IPv6 addresses take more registers than
/// there are.
#[inline(always)]
pub fn is_foreign_way_apart<F: Peek>(context: &TcContext) -> bool {
    if F::V6 { is_foreign_way6(context) } else { is_foreign_way::<V4>(context) }
}

#[inline(never)]
fn is_foreign_way6(context: &TcContext) -> bool {
    is_foreign_way::<V6>(context)
}
