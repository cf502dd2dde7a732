//! Arrays of bytes that tell whether a table can know something: a byte that is set says
//! "perhaps", and most are not.

use aya_ebpf::btf_maps::Array;
use datapath::{
    address::{Address, Be16},
    hash,
    header::Network,
    maps::{MARKS_LEN, PEERMARKS_LEN},
};

use crate::{
    linear::masked,
    maps::{ADDRESSMARKS, PEERMARKS},
};

pub type Marks<const FLAGS: usize> = Array<[u8; MARKS_LEN], 1, FLAGS>;

/// True if the byte of a hash is set.
#[inline(always)]
pub fn is_set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) -> bool {
    let Some(bytes) = marks.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(masked::<{ MARKS_LEN - 1 }>(hash as usize)) != 0 }
}

/// Sets the byte of a hash.
#[inline(always)]
pub fn set<const FLAGS: usize>(marks: &Marks<FLAGS>, hash: u32) {
    if let Some(bytes) = marks.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        unsafe { *bytes.cast::<u8>().add(masked::<{ MARKS_LEN - 1 }>(hash as usize)) = 1 };
    }
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
