//! What the tables of Services can know at all.

use datapath::{
    address::{Address, Be16},
    hash,
    header::Network,
};

use crate::{
    maps::{ADDRESSMARKS, PEERMARKS},
    marks::{is_set, set},
};

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
