//! The maps of the overlay object, and as the engine's tables. Their keys and values, and what
//! they are for, stand in the crate `datapath`.

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    counter::{Hook, Reason},
    header::Network,
    maps::{HOMES_CAPACITY, MARKS_LEN, SENDERS_CAPACITY, VTEPS_CAPACITY},
    tunnel::{Home, Sender, Traffic, Tunnel, Tunnels, Vtep},
};

use crate::{drops, flows::now, map::LAZY, maps, marks::is_set};

type Vteps<A> = LpmTrie<A, Vtep<A>, VTEPS_CAPACITY>;
type Homes<A> = LruHashMap<A, Home, HOMES_CAPACITY>;

maps! {
    VTEPS4: Vteps<Ipv4>,
    VTEPS6: Vteps<Ipv6>,
    SENDERS: HashMap<Sender, u32, SENDERS_CAPACITY, LAZY>,
    HOMES4: Homes<Ipv4>,
    HOMES6: Homes<Ipv6>,
    TUNNELS: Array<Tunnel, 1>,
    TRAFFIC: PerCpuArray<Traffic, 1>,
    /// `MARKS` of the proxy's object, where there is one.
    PROXYMARKS: Array<[u8; MARKS_LEN], 1>,
}

/// The maps of one family.
pub trait FamilyMaps: Network {
    const VTEPS: &'static Vteps<Self::Address>;
    const HOMES: &'static Homes<Self::Address>;
    /// Length of an address in bits.
    const BITS: u32;
}

impl FamilyMaps for V4 {
    const VTEPS: &'static Vteps<Ipv4> = &VTEPS4;
    const HOMES: &'static Homes<Ipv4> = &HOMES4;
    const BITS: u32 = 32;
}

impl FamilyMaps for V6 {
    const VTEPS: &'static Vteps<Ipv6> = &VTEPS6;
    const HOMES: &'static Homes<Ipv6> = &HOMES6;
    const BITS: u32 = 128;
}

/// What the agent tells the programs; all zero before it has.
#[inline(always)]
pub fn tunnel() -> Tunnel {
    match TUNNELS.get(0) {
        Some(tunnel) => *tunnel,
        None => Tunnel::default(),
    }
}

/// The maps.
pub struct Maps;

impl<F: FamilyMaps> Tunnels<F> for Maps {
    #[inline(always)]
    fn tunnel(&mut self) -> Tunnel {
        tunnel()
    }

    #[inline(always)]
    fn now(&mut self) -> u32 {
        now()
    }

    #[inline(always)]
    fn vtep(&mut self, destination: F::Address) -> Option<Vtep<F::Address>> {
        F::VTEPS.get(&Key::new(F::BITS, destination)).copied()
    }

    #[inline(always)]
    fn is_sender(&mut self, sender: Sender) -> bool {
        SENDERS.get_ptr(&sender).is_some()
    }

    #[inline(always)]
    fn home(&mut self, pod: F::Address) -> Option<&mut Home> {
        // SAFETY: a row's fields are plain numbers, each of which stands for itself.
        F::HOMES.get_ptr_mut(&pod).and_then(|row| unsafe { row.as_mut() })
    }

    #[inline(always)]
    fn settle(&mut self, pod: F::Address, home: Home) {
        // An LRU map makes room; where it cannot, the stack carries the packets.
        let _ = F::HOMES.insert(&pod, &home, BPF_ANY as u64);
    }

    #[inline(always)]
    fn is_translated(&mut self, way: u32) -> bool {
        is_set(&PROXYMARKS, way)
    }

    #[inline(always)]
    fn traffic(&mut self) -> Option<&mut Traffic> {
        // SAFETY: the row is this processor's own.
        TRAFFIC.get_ptr_mut(0).and_then(|row| unsafe { row.as_mut() })
    }

    #[inline(always)]
    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        drops::count_drop(hook, reason);
    }
}
