//! The rows of `SOCKETS4` and `SOCKETS6`: which frontend a connected socket means.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::btf_maps::Array;
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    flow::Place,
    header::Network,
    maps::SOCKETS_CAPACITY,
    socket::{Connected, WAYS, place},
};

use crate::{
    known::mark_peer,
    maps::{MMAP, SOCKETS4, SOCKETS6},
};

type Sockets<A> = Array<Connected<A>, SOCKETS_CAPACITY, MMAP>;

/// The table of a family.
pub trait ConnectedMaps: Network {
    const SOCKETS: &'static Sockets<Self::Address>;
}

impl ConnectedMaps for V4 {
    const SOCKETS: &'static Sockets<Ipv4> = &SOCKETS4;
}

impl ConnectedMaps for V6 {
    const SOCKETS: &'static Sockets<Ipv6> = &SOCKETS6;
}

/// Notes the translation of a `connect`; false if there is no room. Then the packet path serves
/// pods, and the node's own processes see the backend as their peer.
#[inline(always)]
pub fn remember<F: ConnectedMaps>(
    cookie: u64,
    frontend: Place<F::Address>,
    backend: Place<F::Address>,
    service: u32,
) -> bool {
    mark_peer(backend.port);
    let Some(row) = row::<F>(cookie).or_else(|| claim::<F>(cookie)) else { return false };
    // SAFETY: the map's rows are never freed, and this one is the socket's own.
    unsafe {
        *row = Connected {
            cookie,
            frontend: frontend.addr,
            backend: backend.addr,
            frontend_port: frontend.port,
            backend_port: backend.port,
            service,
        };
    }
    true
}

/// The row of a socket, if it has one.
#[inline(always)]
pub fn row<F: ConnectedMaps>(cookie: u64) -> Option<*mut Connected<F::Address>> {
    (0..WAYS).find_map(|way| {
        let row = F::SOCKETS.get_ptr_mut(place(cookie, way))?;
        // SAFETY: the map's rows are never freed; volatile because others are being taken.
        (unsafe { read_volatile(&raw const (*row).cookie) } == cookie).then_some(row)
    })
}

/// Takes a row for a socket, if one of its places is free.
#[inline(always)]
fn claim<F: ConnectedMaps>(cookie: u64) -> Option<*mut Connected<F::Address>> {
    (0..WAYS).find_map(|way| {
        let row = F::SOCKETS.get_ptr_mut(place(cookie, way))?;
        // SAFETY: the map's rows are never freed.
        unsafe { take(&raw mut (*row).cookie, cookie) }.then_some(row)
    })
}

/// Writes a word where zero stands; false if something else does.
///
/// # Safety
/// The word lies in a row of a map.
#[inline(always)]
unsafe fn take(word: *mut u64, value: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's. The target has no compare-and-exchange in Rust.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word,
            value = in(reg) value,
            inout("r0") 0_u64 => found,
        );
    }
    found == 0
}

/// Frees a socket's row, if it has one.
#[inline(always)]
pub fn forget<F: ConnectedMaps>(cookie: u64) {
    if let Some(row) = row::<F>(cookie) {
        // SAFETY: the map's rows are never freed, and this one is the socket's own.
        unsafe { write_volatile(&raw mut (*row).cookie, 0) };
    }
}
