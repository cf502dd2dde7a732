//! Where pods of this node are, as their packets have told.

use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    header::Network,
    home::Home,
    maps::HOMES_CAPACITY,
};

use crate::maps;

type Table<A> = LruHashMap<A, Home, HOMES_CAPACITY>;

maps! {
    HOMES4: Table<Ipv4>,
    HOMES6: Table<Ipv6>,
}

/// The map of one family.
pub trait HomeMaps: Network {
    const HOMES: &'static Table<Self::Address>;
}

impl HomeMaps for V4 {
    const HOMES: &'static Table<Ipv4> = &HOMES4;
}

impl HomeMaps for V6 {
    const HOMES: &'static Table<Ipv6> = &HOMES6;
}

/// [`datapath::home::Homes::home`].
#[inline(always)]
pub fn home<'a, F: HomeMaps>(pod: F::Address) -> Option<&'a mut Home> {
    // SAFETY: a row's fields are plain numbers, each of which stands for itself.
    F::HOMES.get_ptr_mut(&pod).and_then(|row| unsafe { row.as_mut() })
}

/// [`datapath::home::Homes::settle`].
#[inline(always)]
pub fn settle<F: HomeMaps>(pod: F::Address, home: Home) {
    // An LRU map makes room; where it cannot, the stack carries the packets.
    let _ = F::HOMES.insert(&pod, &home, BPF_ANY as u64);
}
