//! The maps of the overlay object, and as the engine's tables. Their keys and values, and what
//! they are for, stand in the crate `datapath`.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use datapath::{
    address::{V4, V6},
    counter::{Hook, Reason},
    home::{Home, Homes},
    maps::MARKS_LEN,
    tunnel::{Sender, Traffic, Tunnel, Tunnels, Vtep},
};

use crate::{
    drops,
    flows::now,
    homes::{self, HomeMaps},
    maps,
    marks::is_set,
    nodes::{NodeMaps, is_sender, tunnel, vtep},
};

maps! {
    TRAFFIC: PerCpuArray<Traffic, 1>,
    /// `MARKS` of the proxy's object, where there is one.
    PROXYMARKS: Array<[u8; MARKS_LEN], 1>,
}

/// The maps of one family.
pub trait FamilyMaps: NodeMaps + HomeMaps {}

impl FamilyMaps for V4 {}

impl FamilyMaps for V6 {}

/// The maps.
pub struct Maps;

impl<F: FamilyMaps> Homes<F> for Maps {
    #[inline(always)]
    fn home(&mut self, pod: F::Address) -> Option<&mut Home> {
        homes::home::<F>(pod)
    }

    #[inline(always)]
    fn settle(&mut self, pod: F::Address, home: Home) {
        homes::settle::<F>(pod, home);
    }
}

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
        vtep::<F>(destination)
    }

    #[inline(always)]
    fn is_sender(&mut self, sender: Sender) -> bool {
        is_sender(sender)
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
