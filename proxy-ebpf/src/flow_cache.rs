//! Copies of rows of flows that have many frames, and how they are made and unmade.

use core::ptr::read_volatile;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    flow::{Flow, FlowKey, hook, timeout_sec},
    flow_cache::{
        COMMONS, Common, FREE, FRESH, LINES, Line, RowOrCopy, UNUSED, WAYS, beside, claimed,
        common_place, fresh, is_claimed, is_free, is_fresh, kind_of, place,
    },
    track,
};

use crate::{
    flows::{FlowMaps, now},
    global,
    linear::opaque,
    maps,
};

/// Mapped, though nobody maps it: so its memory begins with a page, and its rows with a line of the
/// processor's cache.
type Lines<A> = Array<Line<A>, { LINES as usize }, { BPF_F_MMAPABLE as usize }>;
type Commons<A> = Array<Common<A>, { COMMONS as usize }>;

maps! {
    FLOWCACHE4: Lines<Ipv4>,
    FLOWCACHE6: Lines<Ipv6>,
    FLOWCOMMON4: Commons<Ipv4>,
    FLOWCOMMON6: Commons<Ipv6>,
    /// When the agent changed rows of flows last.
    FLOWCHANGES: Array<u32, 1>,
}

/// The maps of one family.
pub trait Cached: FlowMaps {
    const LINES: &'static Lines<Self::Address>;
    const COMMONS: &'static Commons<Self::Address>;
}

impl Cached for V4 {
    const LINES: &'static Lines<Ipv4> = &FLOWCACHE4;
    const COMMONS: &'static Commons<Ipv4> = &FLOWCOMMON4;
}

impl Cached for V6 {
    const LINES: &'static Lines<Ipv6> = &FLOWCACHE6;
    const COMMONS: &'static Commons<Ipv6> = &FLOWCOMMON6;
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

/// What the flow of a line has in common with others.
#[inline(always)]
fn common<'a, F: Cached>(place: u16) -> Option<&'a mut Common<F::Address>> {
    // SAFETY: as above.
    F::COMMONS.get_ptr_mut(place.into()).and_then(|common| unsafe { common.as_mut() })
}

/// Ticks for which copies are good now.
#[inline(always)]
fn fresh_now(now: u32) -> u32 {
    fresh(now, FLOWCHANGES.get(0).copied().unwrap_or(now))
}

/// The copy of a flow's row, or the row itself.
#[inline(always)]
pub fn row<'a, F: Cached>(
    key: &FlowKey<F::Address>,
    now: u32,
) -> Option<RowOrCopy<'a, F::Address>> {
    let first = place(key);
    let (line, other) = (line::<F>(first)?, line::<F>(beside(first, 1))?);
    // Both are asked of memory before one is looked at, and it answers them together.
    let ages = [read(&raw const line.since), read(&raw const other.since)];
    let fresh = fresh_now(now);
    let is_it = |line, age| is_fresh(age, now, fresh) && is_named::<F>(line, key);
    let line = if is_it(line, ages[0]) {
        line
    } else if is_it(other, ages[1]) {
        other
    } else {
        let pointer = core::ptr::from_ref(key);
        let filled = if F::V6 { fill6(pointer.cast(), now) } else { fill4(pointer.cast(), now) };
        match filled {
            MISSING => return None,
            FOUND => return own_row::<F>(key).map(RowOrCopy::row),
            _ => self::line::<F>(filled - COPIED)?,
        }
    };
    let common = common::<F>(line.common)?;
    Some(RowOrCopy::copy(line, common))
}

/// True if a line tells of a flow at this time. While it is fresh, it means what stands at the place that
/// it names.
#[inline(always)]
fn tells<F: Cached>(
    line: &Line<F::Address>,
    key: &FlowKey<F::Address>,
    now: u32,
    fresh: u32,
) -> bool {
    is_fresh(line.since, now, fresh) && is_named::<F>(line, key)
}

/// True if a line, which is fresh, names a flow.
#[inline(always)]
fn is_named<F: Cached>(line: &Line<F::Address>, key: &FlowKey<F::Address>) -> bool {
    common::<F>(line.common).is_some_and(|common| line.is_of(key, common))
}

/// True if a line is, or was, a flow's.
#[inline(always)]
fn is_of<F: Cached>(line: &Line<F::Address>, since: u32, key: &FlowKey<F::Address>) -> bool {
    common::<F>(line.common).is_some_and(|common| common.is_meant(since) && line.is_of(key, common))
}

/// What [`fill`] returns, the last with the place added.
const MISSING: u32 = 0;
const FOUND: u32 = 1;
const COPIED: u32 = 2;

/// The place that has a flow, fresh or stale, or else the first one that is free; as it was judged by, when
/// its copy was made; and true if it is the flow's.
#[inline(always)]
fn choose<F: Cached>(key: &FlowKey<F::Address>, now: u32) -> Option<(u32, u32, bool)> {
    let first = place(key);
    let mut free = None;
    for way in 0..WAYS {
        let place = beside(first, way);
        let line = line::<F>(place)?;
        // Before the key, which is written after it has changed.
        let since = read(&raw const line.since);
        if is_of::<F>(line, since, again(key)) {
            return Some((place, since, true));
        }
        if free.is_none() && is_free(since, now, FREE) {
            free = Some((place, since, false));
        }
    }
    free
}

/// The same, whose words are read again: programs have little stack to keep them in.
#[inline(always)]
fn again<T>(read: &T) -> &T {
    // SAFETY: the same reference.
    unsafe { &*opaque(core::ptr::from_ref(read).cast_mut()) }
}

/// Reads what tells the age of a row.
#[inline(always)]
fn read(age: *const u32) -> u32 {
    // SAFETY: a field of a row of a map.
    unsafe { read_volatile(age) }
}

/// Makes what tells the age of a row another, if it still is as it was judged by; false if another
/// processor was first.
#[inline(always)]
fn exchange(age: *mut u32, then: u32, new: u32) -> bool {
    let found: u64;
    // SAFETY: a field of a row of a map, aligned to its four bytes.
    unsafe {
        core::arch::asm!(
            "w0 = cmpxchg32_32({p} + 0, w0, {new})",
            p = in(reg) age,
            new = in(wreg) new,
            inout("r0") u64::from(then) => found,
        );
    }
    found as u32 == then
}

/// Writes what tells the age of a row, once all of it is there: no memory access goes past this.
#[inline(always)]
fn publish(age: *mut u32, since: u32) {
    // SAFETY: a field of a row of a map, aligned to its four bytes.
    unsafe {
        core::arch::asm!(
            "{since} = xchg32_32({p} + 0, {since})",
            p = in(reg) age,
            since = inout(wreg) since => _,
        );
    }
}

/// The place of what a row has in common with others, which is another's only when no copy is fresh any more
/// that is made now. `None` if it is another's yet.
#[inline(always)]
fn share<F: Cached>(dst: &F::Address, other: &F::Address, now: u32) -> Option<u32> {
    let place = common_place(*dst, *other);
    let common = common::<F>(place as u16)?;
    let used = read(&raw const common.used);
    if is_claimed(used, now, UNUSED) {
        return None;
    }
    let (dst, other) = (again(dst), again(other));
    if common.dst == *dst && common.other == *other {
        // Or in the next tick already, by another processor's clock.
        let is_used_now = track::later(used, now) == used;
        return (is_used_now || exchange(&raw mut common.used, used, now)).then_some(place);
    }
    let is_unwritten = used == 0;
    if !(is_unwritten || is_free(used, now, UNUSED))
        || !exchange(&raw mut common.used, used, claimed(now, UNUSED))
    {
        return None;
    }
    (common.dst, common.other, common.since) = (*again(dst), *again(other), now);
    publish(&raw mut common.used, now);
    Some(place)
}

/// Finds a flow's copy at one of its places, or copies its row to one that is free or has an old copy of
/// it; what was counted there comes home first.
#[inline(always)]
fn fill<F: Cached>(key: *const FlowKey<F::Address>, now: u32) -> u32 {
    // SAFETY: that of a frame, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return MISSING };
    // The one place on the stack for what is looked up.
    let mut wanted = *key;
    let found = choose::<F>(key, now);
    let (place, then, is_own) = found.unwrap_or_default();
    let (Some(_), Some(line)) = (found, line::<F>(place)) else {
        return if own_row::<F>(&wanted).is_some() { FOUND } else { MISSING };
    };
    if tells::<F>(line, key, now, fresh_now(now)) {
        return COPIED + place;
    }
    let Some(row) = own_row::<F>(&wanted) else { return MISSING };
    let kind = if fresh_now(now) == 0 { None } else { kind_of(row, key.proto, now) };
    let shared = kind.and_then(|_| share::<F>(&key.dst, &row.other, now));
    if shared.is_none() && !(is_own && line.packets != 0)
        || is_claimed(then, now, FREE)
        || !exchange(&raw mut line.since, then, claimed(now, FREE))
    {
        return FOUND;
    }
    if is_own {
        line.bring_home(then, row);
    } else if line.packets != 0
        && let Some(common) = common::<F>(line.common)
        && common.is_meant(then)
    {
        wanted = line.key(common);
        if let Some(row) = own_row::<F>(&wanted) {
            line.bring_home(then, row);
        }
        wanted = *key;
    }
    // What is not published stays claimed until another tick.
    line.packets = 0;
    let (Some(kind), Some(common)) = (kind, shared) else { return FOUND };
    line.copy(key, row, kind, common, now);
    // So that what the copy does not tell it for some time is not more than that.
    row.last = track::later(now, row.last);
    let row = core::ptr::from_mut(row);
    publish(&raw mut line.since, now);
    // Who removed the row meanwhile has not found the copy.
    if own_row::<F>(&wanted).map(core::ptr::from_mut) != Some(row) {
        publish(&raw mut line.since, now.wrapping_sub(FRESH));
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
            && tells::<F>(line, key, now, FRESH)
        {
            publish(&raw mut line.since, now.wrapping_sub(FRESH));
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
            && let since = read(&raw const line.since)
            && is_of::<F>(line, since, key)
            && let Some(counted) = line.last(since)
        {
            last = track::later(counted, last);
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
