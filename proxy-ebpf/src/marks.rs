//! Arrays of bytes that tell whether a table can know something: a byte that is set says
//! "perhaps", and most are not.

use aya_ebpf::btf_maps::Array;
use datapath::{
    address::{Address, Be16},
    hash,
    header::Network,
};

use crate::{
    linear::modulo,
    maps::{ADDRESSMARKS, PEERMARKS},
};

pub type Marks<const LEN: usize, const FLAGS: usize> = Array<[u8; LEN], 1, FLAGS>;

/// True if the byte of a number is set.
#[inline(always)]
pub fn is_set<const LEN: usize, const FLAGS: usize>(
    marks: &Marks<LEN, FLAGS>,
    number: u32,
) -> bool {
    let Some(bytes) = marks.get_ptr(0) else { return true };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(modulo::<LEN>(number as usize)) != 0 }
}

/// Sets the byte of a number.
#[inline(always)]
pub fn set<const LEN: usize, const FLAGS: usize>(marks: &Marks<LEN, FLAGS>, number: u32) {
    if let Some(bytes) = marks.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        unsafe { *bytes.cast::<u8>().add(modulo::<LEN>(number as usize)) = 1 };
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
    is_set(&PEERMARKS, port.raw().into())
}

/// Notes that a socket is given a backend with this port.
#[inline(always)]
pub fn mark_peer(port: Be16) {
    set(&PEERMARKS, port.raw().into());
}
