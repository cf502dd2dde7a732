//! The life of a flow's rows: opened, touched, settled when answered, forgotten when finished.

use crate::{
    address::Be16,
    flow::{
        Flow, FlowKey, Parties, Place, flow_flags, is_closed, role, seen as bit, timeout,
        timeout_sec,
    },
    hash,
    header::{Network, Transport, tcp},
    tables::{FlowTables, KeepError, Opening, Store},
};

/// What a packet shows, as bits of [`crate::flow::seen`].
#[inline(always)]
#[must_use]
pub const fn seen(transport: &Transport) -> u8 {
    seen_by(transport.flags)
}

/// The same of [`tcp`] bits.
#[inline(always)]
#[must_use]
pub const fn seen_by(flags: u8) -> u8 {
    // Without branches: the verifier would follow each way through all that comes later.
    const { assert!(bit::FIN == tcp::FIN << 1 && bit::RST == tcp::RST) };
    bit::PACKET | (flags & tcp::FIN) << 1 | flags & tcp::RST
}

/// Notes a packet in its row.
#[inline(always)]
pub fn touch<A>(row: &mut Flow<A>, seen: u8, now: u32, length: u32) {
    // Written only when it changes: the row's cache line is shared by processors.
    if row.last != now {
        row.last = now;
    }
    if row.seen | seen != row.seen {
        row.seen |= seen;
    }
    row.packets += 1;
    row.bytes += length as u64;
}

/// True if the flow's endpoint is gone. Then it is over: a successor may have its tuple, and a sweep
/// its row.
#[inline(always)]
pub fn is_to_end<A>(row: &mut Flow<A>) -> bool {
    let is_to_end = row.flags & flow_flags::RESET != 0;
    if is_to_end {
        row.seen |= bit::RST;
    }
    is_to_end
}

/// Notes a packet in the row at `key` and returns where the row sends it.
#[inline(always)]
pub fn pass<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    store: Store,
    seen: u8,
    length: u32,
) -> Option<Place<F::Address>> {
    let now = tables.now();
    let row = tables.flow(store, key)?;
    touch(row, seen, now, length);
    let (place, service) = (Place::new(row.to, row.to_port), row.service);
    tables.count_packet(service, length);
    Some(place)
}

/// True if nothing has passed in the row's direction for as long as an answered UDP flow
/// lives.
#[inline(always)]
pub fn is_idle<A>(row: &Flow<A>, now: u32) -> bool {
    now.wrapping_sub(row.last) > timeout_sec::UDP_ANSWERED
}

/// The key of another row of the flow whose row of role `ROLE` is at `key`. Derived anew each
/// time it is needed: a program and all it calls share 512 bytes of stack, in which a flow's
/// four keys do not fit.
#[inline(always)]
fn sibling<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    role: u8,
) -> Option<FlowKey<F::Address>> {
    let row = find::<F, T>(tables, key)?;
    Some(Parties::of_role(ROLE, key, row).key(role))
}

/// A row, wherever it is kept.
#[inline(always)]
fn find<'a, F: Network, T: FlowTables<F>>(
    tables: &'a mut T,
    key: &FlowKey<F::Address>,
) -> Option<&'a mut Flow<F::Address>> {
    tables.find(key).map(|(row, _)| row)
}

/// What a row shows and when it was last touched.
#[inline(always)]
fn look<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Option<(u8, u32)> {
    find::<F, T>(tables, key).map(|row| (row.seen, row.last))
}

/// True if the answers of the flow that has the row at `key` are not seen here.
#[inline(always)]
fn is_direct<F: Network, T: FlowTables<F>>(tables: &mut T, key: &FlowKey<F::Address>) -> bool {
    !T::BARE_MASQUERADE
        && find::<F, T>(tables, key).is_some_and(|row| row.flags & flow_flags::DIRECT != 0)
}

/// True if the flow whose row of role `ROLE` is at `key` has been idle for too long, lacks a
/// direction, or has been closed and idle for `closed` already. Seconds and ticks are taken for
/// the same: a tick is 7 % longer.
#[inline(always)]
fn is_finished<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    closed: u32,
) -> bool {
    let now = tables.now();
    let Some((mine, last)) = look::<F, T>(tables, key) else { return true };
    let Some(other) = sibling::<F, T, ROLE>(tables, key, role::opposite(ROLE)) else { return true };
    let (theirs, touched) = match look::<F, T>(tables, &other) {
        Some(seen) => seen,
        // An eviction took the answers' row; without the other a flow that was kept is lost. One that was
        // not may have no other yet ([`flow_flags::LONE`]), or be resumed.
        None if role::asks(ROLE) || tables.flow(Store::Pending, key).is_some() => (0, last),
        None => return true,
    };
    // One side stands for both.
    let both = if is_direct::<F, T>(tables, key) { mine | theirs } else { 0 };
    let (mine, theirs) = (mine | both, theirs | both);
    let idle = now.wrapping_sub(later(last, touched));
    if is_closed(mine, theirs) && idle >= closed {
        return true;
    }
    let (original, reply) = if role::asks(ROLE) { (mine, theirs) } else { (theirs, mine) };
    idle > timeout(key.proto, original, reply)
}

/// [`is_finished`] in a frame of its own, for who has no room for another key.
#[inline(never)]
pub fn is_over<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    closed: u32,
) -> bool {
    is_finished::<F, T, ROLE>(tables, key, closed)
}

/// The later of two times, on a clock that wraps.
#[inline(always)]
#[must_use]
pub const fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) < 1 << 31 { a } else { b }
}

/// Forgets the flow whose row of role `ROLE` is at `key` if it has been idle too long, or closed
/// and idle for `closed`: at once if that is zero, because a successor with the same tuple asks
/// for its place. False if it lives.
#[inline(always)]
pub fn forget_finished<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    closed: u32,
) -> bool {
    if !is_finished::<F, T, ROLE>(tables, key, closed) {
        return false;
    }
    forget_all::<F, T, ROLE>(tables, key);
    true
}

/// Removes all rows of the flow whose row of role `ROLE` is at `key`, that one last.
#[inline(always)]
pub fn forget_all<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) {
    if !T::BARE_MASQUERADE || !role::masquerades(ROLE) {
        forget_sibling::<F, T, ROLE, { role::ORIGINAL }>(tables, key);
        forget_sibling::<F, T, ROLE, { role::REPLY }>(tables, key);
    }
    if !T::BARE_MASQUERADE || role::masquerades(ROLE) {
        forget_sibling::<F, T, ROLE, { role::ORIGINAL_SOURCE }>(tables, key);
        forget_sibling::<F, T, ROLE, { role::REPLY_TARGET }>(tables, key);
    }
    tables.forget(key);
}

/// Removes one other row of a flow.
#[inline(never)]
fn forget_sibling<F: Network, T: FlowTables<F>, const ROLE: u8, const OTHER: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) {
    if ROLE != OTHER
        && let Some(row) = find::<F, T>(tables, key)
    {
        let other = Parties::of_role(ROLE, key, row).key(OTHER);
        tables.forget(&other);
    }
}

/// Opens the flow of [`FlowTables::parties`] in `PENDING`. If the tuple between client and backend
/// belongs to a live flow by way of another frontend, the client gets another port toward the backend,
/// as netfilter does it; false if none is free.
#[inline(always)]
pub fn open<F: Network, T: FlowTables<F>>(tables: &mut T, service: u32, flags: u16) -> bool {
    let mut flags = flags;
    if is_taken::<F, T>(tables) {
        if !find_alias::<F, T>(tables) {
            return false;
        }
        // Under its alias nobody else knows the client: it is masqueraded.
        if flags & flow_flags::DIRECT != 0 {
            flags &= !flow_flags::DIRECT;
            tables.parties().source = Place::default();
        }
    }
    let now = tables.now();
    let opening = |role| Opening { role, service, flags, now, replace: true };
    if flags & flow_flags::MASQUERADE != 0 {
        tables.begin(opening(role::ORIGINAL_SOURCE));
    }
    tables.begin(opening(role::REPLY));
    tables.begin(opening(role::ORIGINAL));
    // What leaves is looked up only on a way that has rows of such: without a masquerade, the way back.
    let Parties { client, backend, .. } = *tables.parties();
    tables.mark(hash::way(backend.addr, client.addr));
    if flags & flow_flags::MASQUERADE != 0 {
        tables.mark(hash::way(client.addr, backend.addr));
    }
    true
}

/// Ports that a client may have toward a backend in place of its own: above all that Linux gives to
/// sockets by itself (`net.ipv4.ip_local_port_range`), since connections of its own to that backend,
/// by no Service, have no rows.
const ALIASES: core::ops::RangeInclusive<u16> = 61_000..=u16::MAX;

/// Of which so many are tried.
const TRIES: u32 = 4;

/// Finds a port for the client. What is tried hangs on the tuple alone, so that a flow of which an
/// eviction took a row finds what is left of it.
#[inline(always)]
fn find_alias<F: Network, T: FlowTables<F>>(tables: &mut T) -> bool {
    let key = tables.parties().original();
    let start = hash::tuple(&key);
    let ports = (*ALIASES.end() - *ALIASES.start()) as u64 + 1;
    for attempt in 0..TRIES {
        // As for the ports of the masquerade.
        let step = start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
        let offset = ((step as u64 * ports) >> 32) as u16;
        let alias = Be16::new(ALIASES.start().wrapping_add(offset));
        tables.parties().alias = alias.xor(key.src_port);
        if !is_taken::<F, T>(tables) {
            return true;
        }
    }
    false
}

/// True if replies of this backend to this client belong to another flow that lives.
#[inline(always)]
fn is_taken<F: Network, T: FlowTables<F>>(tables: &mut T) -> bool {
    let key = tables.parties().reply();
    let Some((row, store)) = tables.find(&key) else { return false };
    let (to, client_port) = (Place::new(row.to, row.to_port), key.dst_port.xor(row.alias));
    let parties = tables.parties();
    let same = to == parties.frontend && client_port == parties.client.port;
    // A row of the same flow is what eviction left of it.
    !(same && store == Store::Pending || tables.succeed::<{ role::REPLY }>(&key))
}

/// Writes again what eviction took of the unanswered flow whose row of role `ROLE` is at `key`.
#[inline(never)]
pub fn restore<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) {
    let now = tables.now();
    let Some((service, flags)) = stage::<F, T, ROLE>(tables, key) else { return };
    let opening = |role| Opening { role, service, flags, now, replace: false };
    if role::masquerades(ROLE) {
        tables.begin(opening(role::ORIGINAL_SOURCE));
        tables.begin(opening(role::REPLY_TARGET));
        return;
    }
    tables.begin(opening(role::ORIGINAL));
    tables.begin(opening(role::REPLY));
    if flags & flow_flags::MASQUERADE == 0 {
        return;
    }
    tables.begin(opening(role::ORIGINAL_SOURCE));
    if has_reply_target::<F, T>(tables, flags) {
        tables.begin(opening(role::REPLY_TARGET));
    }
}

/// True if the masqueraded flow of [`FlowTables::parties`] has a row for replies that enter.
#[inline(always)]
fn has_reply_target<F: Network, T: FlowTables<F>>(tables: &mut T, flags: u16) -> bool {
    flags & flow_flags::DIRECT == 0 && tables.parties().source != Place::default()
}

/// Puts the parties of the unanswered flow whose row of role `ROLE` is at `key` where
/// [`FlowTables::begin`] and [`FlowTables::keep`] find them, and returns its service and its flags.
#[inline(never)]
pub fn stage<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Option<(u32, u16)> {
    let row = tables.flow(Store::Pending, key)?;
    let (service, flags) = (row.service, row.flags);
    let parties = Parties::of_role(ROLE, key, row);
    *tables.parties() = parties;
    Some((service, flags))
}

/// Moves the flow whose row of role `ROLE` is at `key` in `PENDING` to `FLOWS`, if it has been
/// answered. That it has not, as far as the rows tell, may be because an eviction has taken the
/// reply's; and the client, which has its SYN-ACK, will send no SYN again: so it is written
/// again.
///
/// # Errors
/// [`KeepError::Full`] if there is no room; rows that found some stay, and go by themselves if
/// the others never follow. [`KeepError::Missing`] if the flow's rows are gone.
#[inline(always)]
pub fn settle<F: Network, T: FlowTables<F>, const ROLE: u8>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Result<(), KeepError> {
    let now = tables.now();
    let Some((service, flags)) = stage::<F, T, ROLE>(tables, key) else {
        return Err(KeepError::Missing);
    };
    if ROLE == role::REPLY && flags & flow_flags::LONE != 0 {
        join::<F, T>(tables, key, service, flags, now);
        return Ok(());
    }
    let is_seen = flags & flow_flags::DIRECT == 0;
    if is_seen && role::asks(ROLE) && !is_answered::<F, T, ROLE>(tables) {
        restore::<F, T, ROLE>(tables, key);
        return Ok(());
    }
    let opening = |role| Opening { role, service, flags, now, replace: false };
    if role::masquerades(ROLE) {
        keep::<F, T>(tables, opening(role::REPLY_TARGET))?;
        return keep::<F, T>(tables, opening(role::ORIGINAL_SOURCE));
    }
    keep::<F, T>(tables, opening(role::REPLY))?;
    if flags & flow_flags::MASQUERADE != 0 {
        keep::<F, T>(tables, opening(role::ORIGINAL_SOURCE))?;
        if has_reply_target::<F, T>(tables, flags) {
            keep::<F, T>(tables, opening(role::REPLY_TARGET))?;
        }
    }
    // Last, since it is what makes the flow.
    keep::<F, T>(tables, opening(role::ORIGINAL))
}

/// Writes the other row of the flow of [`FlowTables::parties`], whose `REPLY` is at `key` by itself.
#[inline(always)]
fn join<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    service: u32,
    flags: u16,
    now: u32,
) {
    let flags = flags & !flow_flags::LONE;
    tables.begin(Opening { role: role::ORIGINAL, service, flags, now, replace: false });
    if let Some(row) = tables.flow(Store::Pending, key) {
        row.flags = flags;
    }
}

/// True if the flow of [`FlowTables::parties`], which has a row of role `ROLE`, has been answered.
#[inline(always)]
fn is_answered<F: Network, T: FlowTables<F>, const ROLE: u8>(tables: &mut T) -> bool {
    let reply = tables.parties().key(role::opposite(ROLE));
    tables.find(&reply).is_some_and(|(row, _)| row.seen != 0)
}

/// Moves one row of the flow of [`FlowTables::parties`]; one that an eviction has taken is written
/// again first.
#[inline(never)]
fn keep<F: Network, T: FlowTables<F>>(tables: &mut T, opening: Opening) -> Result<(), KeepError> {
    match tables.keep(opening.role) {
        Err(KeepError::Missing) => {
            tables.begin(opening);
            tables.keep(opening.role)
        }
        done => done,
    }
}

/// Removes the flow that a row in `FLOWS` belongs to, if it has expired. Only `ORIGINAL` rows
/// decide, or those that take their place where there is no Service; another row goes by itself
/// only when that one is gone. True if removed.
#[inline(always)]
pub fn expire<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    row: &Flow<F::Address>,
    now: u32,
    is_pressed: bool,
) -> bool {
    // No flow is forgotten sooner, so most rows are done with here.
    if now.wrapping_sub(row.last) <= timeout_sec::TCP_RESET {
        return false;
    }
    // Late segments of a closed connection are worth a row only while there are rows enough.
    let closed = if is_pressed { timeout_sec::TCP_RESET } else { timeout_sec::TCP_CLOSED };
    if row.role == role::ORIGINAL {
        return forget_finished::<F, T, { role::ORIGINAL }>(tables, key, closed);
    }
    if T::BARE_MASQUERADE && row.role == role::ORIGINAL_SOURCE {
        return forget_finished::<F, T, { role::ORIGINAL_SOURCE }>(tables, key, closed);
    }
    // A flow on its way from `PENDING` lacks it for a moment.
    let parties = Parties::of(key, row);
    let original = if T::BARE_MASQUERADE && row.role == role::REPLY_TARGET {
        parties.original_source()
    } else {
        parties.original()
    };
    let orphan = now.wrapping_sub(row.last) > timeout_sec::TCP_OPENING
        && tables.flow(Store::Answered, &original).is_none();
    if orphan {
        tables.forget(key);
    }
    orphan
}
