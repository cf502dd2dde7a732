//! The overlay's tables of nodes, which both objects read: where tunnels end, and who sends by them.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    header::Network,
    maps::{SENDERS_CAPACITY, VTEPS_CAPACITY},
    tunnel::{Sender, Tunnel, Vtep},
};

use crate::{map::LAZY, maps};

type Vteps<A> = LpmTrie<A, Vtep<A>, VTEPS_CAPACITY>;

maps! {
    VTEPS4: Vteps<Ipv4>,
    VTEPS6: Vteps<Ipv6>,
    SENDERS: HashMap<Sender, u32, SENDERS_CAPACITY, LAZY>,
    TUNNELS: Array<Tunnel, 1>,
}

/// The maps of one family.
pub trait NodeMaps: Network {
    const VTEPS: &'static Vteps<Self::Address>;
    /// Length of an address in bits.
    const BITS: u32;
}

impl NodeMaps for V4 {
    const VTEPS: &'static Vteps<Ipv4> = &VTEPS4;
    const BITS: u32 = 32;
}

impl NodeMaps for V6 {
    const VTEPS: &'static Vteps<Ipv6> = &VTEPS6;
    const BITS: u32 = 128;
}

/// What the overlay's agent tells; all zero before it has, and where there is none.
#[inline(always)]
pub fn tunnel() -> Tunnel {
    match TUNNELS.get(0) {
        Some(tunnel) => *tunnel,
        None => Tunnel::default(),
    }
}

/// The end of the tunnel to the narrowest network that holds the address.
#[inline(always)]
pub fn vtep<F: NodeMaps>(destination: F::Address) -> Option<Vtep<F::Address>> {
    F::VTEPS.get(&Key::new(F::BITS, destination)).copied()
}

/// True if a lease tells of this device.
#[inline(always)]
pub fn is_sender(sender: Sender) -> bool {
    SENDERS.get_ptr(&sender).is_some()
}
