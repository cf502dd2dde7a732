//! What the tables of Services can know at all.

use datapath::{
    address::{Address, Be16},
    frontend::mark,
    hash,
    header::Network,
};

use crate::{
    maps::{ADDRESSMARKS, PEERMARKS, PORTMARKS},
    marks::{bits, is_set, set},
};

/// True if an address is certainly none of ours.
#[inline(always)]
pub fn is_foreign<F: Network>(address: F::Address) -> bool {
    uses::<F>(address) == 0
}

/// What an address may be used for, as bits of [`datapath::frontend::mark`].
#[inline(always)]
pub fn uses<F: Network>(address: F::Address) -> u8 {
    bits(&ADDRESSMARKS, hash::mix(address.fold()))
}

/// True if no frontend has the port but those with addresses that are ours as a whole.
#[inline(always)]
pub fn is_foreign_port(port: Be16, proto: u8) -> bool {
    bits(&PORTMARKS, port.raw().into()) & mark::of_protocol(proto) == 0
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
