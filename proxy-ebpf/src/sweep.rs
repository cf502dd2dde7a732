//! Removal of expired flows: all of them when the agent asks, some of them when the table is
//! full and a new flow needs room, which needs no agent.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use datapath::{
    address::{V4, V6},
    flow::{Flow, FlowKey, Walk},
};

use crate::{
    flows::{FlowMaps, WALKS, expire, now},
    last_used,
};

/// Callback of the walk over one family's flows.
///
/// # Safety
/// To be called by `bpf_for_each_map_elem` only, with pointers to a row of the map.
#[inline(always)]
unsafe fn visit<F: FlowMaps>(key: *const c_void, row: *const c_void) -> i64 {
    let Some(walk) = WALKS.get_ptr_mut(F::V6 as u32) else { return 1 };
    // SAFETY: the kernel passes the key and the value of a row; the walk is a row of numbers
    // that any processor may write, and a race costs one walk more.
    unsafe {
        let key = *key.cast::<FlowKey<F::Address>>();
        let now = now();
        let is_pressed = (*walk).is_pressed(now);
        let row = row.cast::<Flow<F::Address>>().cast_mut();
        let last = last_used::<F>(&key, (*row).last, now);
        if last != (*row).last {
            (*row).last = last;
        }
        if expire::<F>(&key, &*row, now, is_pressed) {
            (*walk).removed += 1;
        }
        i64::from((*walk).removed >= (*walk).enough)
    }
}

#[inline(never)]
extern "C" fn visit4(_map: *mut c_void, key: *mut c_void, row: *mut c_void) -> i64 {
    // SAFETY: called by the kernel as `walk` below says.
    unsafe { visit::<V4>(key, row) }
}

#[inline(never)]
extern "C" fn visit6(_map: *mut c_void, key: *mut c_void, row: *mut c_void) -> i64 {
    // SAFETY: called by the kernel as `walk` below says.
    unsafe { visit::<V6>(key, row) }
}

/// Walks over the flows until `enough` of them are removed; returns how many were. The counts
/// stand in a map and not on the stack, where the verifier would follow their every value.
#[inline(always)]
fn walk<F: FlowMaps>(enough: u32) -> u32 {
    let Some(walk) = WALKS.get_ptr_mut(F::V6 as u32) else { return 0 };
    let visit = if F::V6 { visit6 as *mut c_void } else { visit4 as *mut c_void };
    // SAFETY: the callback has the form that the helper asks for hash maps; the walk is a row
    // of numbers.
    unsafe {
        (*walk).removed = 0;
        (*walk).enough = enough;
        bpf_for_each_map_elem(
            core::ptr::from_ref(F::FLOWS).cast_mut().cast(),
            visit,
            core::ptr::null_mut(),
            0,
        );
        (*walk).removed
    }
}

/// Makes room in a full table, if some of its flows have expired: 1 if it did. A table full of
/// live flows is walked over once a second at most, or a flood would be made worse by looking.
#[inline(always)]
fn reclaim<F: FlowMaps>() -> u32 {
    let Some(last) = WALKS.get_ptr_mut(F::V6 as u32) else { return 0 };
    // SAFETY: a row of numbers, as above.
    unsafe {
        let now = now();
        (*last).full = now;
        if (*last).in_vain == now {
            return 0;
        }
        let removed = walk::<F>(Walk::ROOM);
        if removed == 0 {
            (*last).in_vain = now;
        }
        u32::from(removed != 0)
    }
}

/// Global functions, which the verifier looks at once and not at every call.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reclaim4() -> u32 {
    reclaim::<V4>()
}

/// As [`reclaim4`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reclaim6() -> u32 {
    reclaim::<V6>()
}

/// Removes all expired flows of both families.
#[inline(always)]
pub fn sweep() {
    walk::<V4>(u32::MAX);
    walk::<V6>(u32::MAX);
}
