//! Copies of rows of flows that have many frames, and how they are made and unmade.

use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use datapath::{
    address::{Address, Ipv4, Ipv6, V4, V6},
    flow::{Flow, FlowKey, hook, timeout_sec},
    flow_cache::{
        FRESH, LINES, Line, WAYS, beside, claimed, fresh, is_claimed, is_free, is_settled, place,
    },
    track,
};

use crate::{
    flows::{FlowMaps, now},
    global, maps,
};

/// Mapped, though nobody maps it: so its memory begins with a page, and its rows with a line of the
/// processor's cache.
type Lines<A> = Array<Line<A>, { LINES as usize }, { BPF_F_MMAPABLE as usize }>;

maps! {
    FLOWCACHE4: Lines<Ipv4>,
    FLOWCACHE6: Lines<Ipv6>,
    /// When the agent changed rows of flows last.
    FLOWCHANGES: Array<u32, 1>,
}

/// The map of one family.
pub trait Cached: FlowMaps {
    const LINES: &'static Lines<Self::Address>;
}

impl Cached for V4 {
    const LINES: &'static Lines<Ipv4> = &FLOWCACHE4;
}

impl Cached for V6 {
    const LINES: &'static Lines<Ipv6> = &FLOWCACHE6;
}

/// The row itself.
#[inline(always)]
pub fn own_row<'a, F: FlowMaps>(key: &FlowKey<F::Address>) -> Option<&'a mut Flow<F::Address>> {
    // SAFETY: memory of a map's rows stays readable and writable while the program runs, even if
    // the row is removed meanwhile.
    F::FLOWS.get_ptr_mut(key).and_then(|row| unsafe { row.as_mut() })
}

#[inline(always)]
fn line<'a, F: Cached>(place: u32) -> Option<&'a mut Line<F::Address>> {
    // SAFETY: the map's rows are never freed. Another processor may write this one, but for another flow
    // only when it has been stale for longer than any program runs.
    F::LINES.get_ptr_mut(place).and_then(|line| unsafe { line.as_mut() })
}

/// Ticks for which copies are good now.
#[inline(always)]
fn fresh_now(now: u32) -> u32 {
    fresh(now, FLOWCHANGES.get(0).copied().unwrap_or(now))
}

/// The copy of a flow's row, or the row itself.
#[inline(always)]
pub fn row<'a, F: Cached>(key: &FlowKey<F::Address>, now: u32) -> Option<&'a mut Flow<F::Address>> {
    let mut place = place(key);
    if !line::<F>(place).is_some_and(|line| line.tells(key, now, fresh_now(now))) {
        let pointer = core::ptr::from_ref(key);
        let filled = if F::V6 { fill6(pointer.cast(), now) } else { fill4(pointer.cast(), now) };
        match filled {
            MISSING => return None,
            FOUND => return own_row::<F>(key),
            _ => place = filled - COPIED,
        }
    }
    line::<F>(place).map(|line| &mut line.row)
}

/// What [`fill`] returns, the last with the place added.
const MISSING: u32 = 0;
const FOUND: u32 = 1;
const COPIED: u32 = 2;

/// The place that has a flow, fresh or stale, or else the first one that is free, and, as it was judged by,
/// when its copy was made.
#[inline(always)]
fn choose<F: Cached>(key: &FlowKey<F::Address>, now: u32) -> Option<(u32, u32)> {
    let first = place(key);
    let mut free = None;
    for way in 0..WAYS {
        let place = beside(first, way);
        let line = line::<F>(place)?;
        // Before the key, which is written after it has changed.
        // SAFETY: the field lies in the line.
        let since = unsafe { read_volatile(addr_of!(line.row.since)) };
        if line.key == *key {
            return Some((place, since));
        }
        if free.is_none() && is_free(since, now) {
            free = Some((place, since));
        }
    }
    free
}

/// Claims a line whose copy was made at `then`; false if another processor was first.
#[inline(always)]
fn claim<A: Address>(line: *mut Line<A>, then: u32, now: u32) -> bool {
    let found: u64;
    // SAFETY: the field lies in the line, aligned to its four bytes.
    unsafe {
        core::arch::asm!(
            "w0 = cmpxchg32_32({p} + 0, w0, {new})",
            p = in(reg) addr_of_mut!((*line).row.since),
            new = in(wreg) claimed(now),
            inout("r0") u64::from(then) => found,
        );
    }
    found as u32 == then
}

/// Says when a line's copy was made, once all of it is there: no memory access goes past this.
#[inline(always)]
fn publish<A: Address>(line: *mut Line<A>, since: u32) {
    // SAFETY: the field lies in the line, aligned to its four bytes.
    unsafe {
        core::arch::asm!(
            "{since} = xchg32_32({p} + 0, {since})",
            p = in(reg) addr_of_mut!((*line).row.since),
            since = inout(wreg) since => _,
        );
    }
}

/// Finds a flow's copy at one of its places, or copies its row to one that is free or has an old copy of
/// it; what was counted there comes home first.
#[inline(always)]
fn fill<F: Cached>(key: *const FlowKey<F::Address>, now: u32) -> u32 {
    // SAFETY: that of a frame, or null.
    let Some(key) = (unsafe { key.as_ref() }).copied() else { return MISSING };
    let found = choose::<F>(&key, now);
    let (place, then) = found.unwrap_or_default();
    let (Some(_), Some(line)) = (found, line::<F>(place)) else {
        return if own_row::<F>(&key).is_some() { FOUND } else { MISSING };
    };
    if line.tells(&key, now, fresh_now(now)) {
        return COPIED + place;
    }
    let Some(row) = own_row::<F>(&key) else { return MISSING };
    let is_good = is_settled(row, key.proto, now) && fresh_now(now) != 0;
    let counts = line.key == key && line.row.packets != 0;
    if !is_good && !counts || is_claimed(then, now) || !claim(line, then, now) {
        return FOUND;
    }
    if line.key == key {
        line.bring_home(row);
    } else if line.row.packets != 0 {
        if let Some(row) = own_row::<F>(&line.key) {
            line.bring_home(row);
        }
    }
    let copy = Line::of(key, row, now);
    line.key = copy.key;
    line.row = Flow { since: claimed(now), ..copy.row };
    // What is not published stays claimed until another tick.
    if !is_good {
        return FOUND;
    }
    let row = core::ptr::from_mut(row);
    publish(line, now);
    // Who removed the row meanwhile has not found the copy.
    if own_row::<F>(&key).map(core::ptr::from_mut) != Some(row) {
        publish(line, now.wrapping_sub(FRESH));
        return FOUND;
    }
    COPIED + place
}

/// Makes the copy of a row stale, if there is one: the row is gone, or has news.
#[inline(always)]
fn expire<F: Cached>(key: *const FlowKey<F::Address>) -> u32 {
    // SAFETY: that of a row, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    let now = now();
    for way in 0..WAYS {
        if let Some(line) = line::<F>(beside(place(key), way))
            && line.tells(key, now, FRESH)
        {
            publish(line, now.wrapping_sub(FRESH));
        }
    }
    0
}

/// [`expire`]. Rows of what leaves have no copies.
#[inline(always)]
pub fn forgotten<F: FlowMaps>(key: &FlowKey<F::Address>) {
    if key.hook != hook::INGRESS {
        return;
    }
    let key = core::ptr::from_ref(key);
    if F::V6 {
        expire6(key.cast())
    } else {
        expire4(key.cast())
    };
}

/// The later of `last` and the time of the last packet that a copy of the flow's row has counted.
#[inline(always)]
fn last_of<F: Cached>(key: *const FlowKey<F::Address>, mut last: u32) -> u32 {
    // SAFETY: that of a row, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return last };
    for way in 0..WAYS {
        if let Some(line) = line::<F>(beside(place(key), way))
            && line.key == *key
        {
            last = track::later(line.row.last, last);
        }
    }
    last
}

/// When the flow was used last, that has the row: of one that may have to go, copies are asked too.
#[inline(always)]
pub fn last_used<F: FlowMaps>(key: &FlowKey<F::Address>, last: u32, now: u32) -> u32 {
    if now.wrapping_sub(last) <= timeout_sec::TCP_RESET || key.hook != hook::INGRESS {
        return last;
    }
    let key = core::ptr::from_ref(key);
    if F::V6 { last_of6(key.cast(), last) } else { last_of4(key.cast(), last) }
}

global! {
    last_of4(key: *const FlowKey<Ipv4>, last: u32) = last_of::<V4>(key, last);
    last_of6(key: *const FlowKey<Ipv6>, last: u32) = last_of::<V6>(key, last);
    fill4(key: *const FlowKey<Ipv4>, now: u32) = fill::<V4>(key, now);
    fill6(key: *const FlowKey<Ipv6>, now: u32) = fill::<V6>(key, now);
    expire4(key: *const FlowKey<Ipv4>) = expire::<V4>(key);
    expire6(key: *const FlowKey<Ipv6>) = expire::<V6>(key);
}
