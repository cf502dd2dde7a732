//! Counters of dropped packets.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use datapath::counter::{DROPS_LEN, Hook, Reason, drop_index};

use crate::maps;

maps! {
    DROPS: PerCpuArray<u64, DROPS_LEN>,
}

/// Counts a packet that a hook did not pass on.
#[inline(always)]
pub fn count_drop(hook: Hook, reason: Reason) {
    if let Some(counter) = DROPS.get_ptr_mut(drop_index(hook, reason)) {
        // SAFETY: the row is this processor's own.
        unsafe { *counter += 1 };
    }
}
