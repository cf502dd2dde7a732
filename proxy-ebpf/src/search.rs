//! A set of backends, looked through for one of them: by a helper of the kernel, whose callback
//! the verifier follows once, where it would follow each turn of a loop.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use datapath::{
    address::{V4, V6},
    flow::Place,
    service::SetRef,
    tables::Tables,
};

use crate::{flows::Maps, tables::FamilyMaps};

/// What is looked for, and where it was found.
#[repr(C)]
struct Search<A> {
    place: Place<A>,
    set: SetRef,
    /// A slot, or [`NOWHERE`].
    found: u64,
}

const NOWHERE: u64 = u64::MAX;

/// Callback of the search: 1 ends it.
///
/// # Safety
/// To be called by `bpf_loop` only, with a pointer to a [`Search`] of the family.
#[inline(always)]
unsafe fn compare<F: FamilyMaps>(index: u64, search: *mut c_void) -> i64 {
    // SAFETY: the caller's.
    let search = unsafe { &mut *search.cast::<Search<F::Address>>() };
    let slot = search.set.block.wrapping_add(index as u32);
    let backend = Tables::<F>::backend(&mut Maps { packet: None }, slot);
    if let Some(backend) = backend
        && backend.is(search.place, search.set)
    {
        search.found = slot.into();
        return 1;
    }
    0
}

#[inline(never)]
extern "C" fn compare4(index: u64, search: *mut c_void) -> i64 {
    // SAFETY: called by the kernel as `find` below says.
    unsafe { compare::<V4>(index, search) }
}

#[inline(never)]
extern "C" fn compare6(index: u64, search: *mut c_void) -> i64 {
    // SAFETY: called by the kernel as `find` below says.
    unsafe { compare::<V6>(index, search) }
}

/// The slot of the set that has the backend at a place.
#[inline(always)]
pub fn find<F: FamilyMaps>(set: SetRef, place: Place<F::Address>) -> Option<u32> {
    let mut search = Search { place, set, found: NOWHERE };
    let compare = if F::V6 { compare6 as *mut c_void } else { compare4 as *mut c_void };
    // SAFETY: the callback has the form that the helper asks for, and the search outlives it.
    unsafe { bpf_loop(set.count.into(), compare, (&raw mut search).cast(), 0) };
    // SAFETY: our own; volatile because the compiler does not see who wrote it.
    let found = unsafe { core::ptr::read_volatile(&raw const search.found) };
    (found != NOWHERE).then_some(found as u32)
}
