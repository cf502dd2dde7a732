//! Sources for flows whose replies would not come back here by themselves.

use crate::{
    address::Be16,
    counter::Reason,
    flow::{FlowKey, Place, flow_flags, role},
    hash,
    header::{Network, has_ports},
    tables::{FlowTables, Opening, Store},
    track,
};

/// Ports tried before a flow is refused. With half of the range in use by flows to the same
/// backend, one attempt in 2^32 fails.
const TRIES: u32 = 32;

/// From this try on a port may be taken from a flow that is over. Without that, a port would serve one
/// flow to a backend in two minutes, for so long do closed rows stay.
const SECOND_HAND: u32 = 8;

/// The last of the tries take a port from a flow that has not been answered, if it comes to
/// that: a flood of such flows may push out its like, but not keep others from beginning.
const FORCED: u32 = 4;

/// Ticks after which a closed flow's port is given to another: a second at least, so that the
/// backend, if it keeps TIME-WAIT, knows the new connection by its timestamp (RFC 6191 §2, as
/// `net.ipv4.tcp_tw_reuse` has it).
const COOLED: u32 = 2;

/// Whose port may be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// Nobody's.
    Free,
    /// That of a flow that is over, too.
    Finished,
    /// And that of one which has not been answered.
    Unanswered,
}

impl Take {
    #[inline(always)]
    const fn at(attempt: u32) -> Self {
        if attempt < SECOND_HAND {
            Self::Free
        } else if attempt < TRIES - FORCED {
            Self::Finished
        } else {
            Self::Unanswered
        }
    }

    /// The reverse of `as u32`.
    #[inline(always)]
    #[must_use]
    pub const fn numbered(number: u32) -> Self {
        match number {
            0 => Self::Free,
            1 => Self::Finished,
            _ => Self::Unanswered,
        }
    }
}

/// Gives the flow whose `ORIGINAL_SOURCE` row is at `key` in `PENDING` a source: the address
/// of the device it leaves by, and a port that no other flow to the backend uses.
#[inline(never)]
pub fn assign<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
) -> Result<(), Reason> {
    let address = tables.device().map(|device| F::masquerade(&device)).unwrap_or_default();
    if address == <F::Address>::default() {
        return Err(Reason::NoMasqueradeAddress);
    }
    let staged = track::stage::<F, T, { role::ORIGINAL_SOURCE }>(tables, key);
    let Some((service, _)) = staged else { return Err(Reason::NatPortsExhausted) };
    find_port::<F, T>(tables, key, address, service)?;
    note::<F, T>(tables);
    Ok(())
}

/// Puts an address with a port that no other flow to the backend uses into [`FlowTables::parties`] as
/// source, and claims it. `key` is one of the flow's.
#[inline(always)]
pub fn find_port<F: Network, T: FlowTables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    address: F::Address,
    service: u32,
) -> Result<(), Reason> {
    let (first, last) = tables.nat_ports();
    let ports = last.wrapping_sub(first) as u32 + 1;
    let start = hash::tuple(key) ^ tables.random();
    for attempt in 0..TRIES {
        // Fibonacci hashing steps over the range without meeting a port twice soon.
        let step = start.wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
        let offset = ((step as u64 * ports as u64) >> 32) as u16;
        tables.parties().source = Place::new(address, Be16::new(first.wrapping_add(offset)));
        if tables.claim(service, Take::at(attempt)) {
            // By which a reply to the source is told from what else comes to this address.
            let backend = tables.parties().backend.addr;
            tables.mark(hash::way(backend, address));
            return Ok(());
        }
    }
    Err(Reason::NatPortsExhausted)
}

/// Takes the source that stands in [`FlowTables::parties`], unless another flow or a socket of this
/// node has it: the row for the replies is the claim. A flow that loses it is forgotten.
#[inline(always)]
pub fn claim<F: Network, T: FlowTables<F>>(tables: &mut T, service: u32, take: Take) -> bool {
    let (now, flags) = (tables.now(), flow_flags::MASQUERADE);
    let opening = Opening { role: role::REPLY_TARGET, service, flags, now, replace: false };
    let key = tables.parties().reply_target();
    let is_answered = tables.flow(Store::Answered, &key).is_some();
    if is_answered
        && (take == Take::Free
            || !track::is_over::<F, T, { role::REPLY_TARGET }>(tables, &key, COOLED))
    {
        return false;
    }
    // Of the identifiers of sockets that send ICMP echo themselves the kernel tells nothing.
    if (!T::BARE_MASQUERADE || has_ports(key.proto)) && tables.socket_holds(&key) {
        return false;
    }
    if is_answered || take == Take::Unanswered {
        track::forget_all::<F, T, { role::REPLY_TARGET }>(tables, &key);
    }
    tables.begin(opening)
}

/// Tells the flow's other rows its source.
#[inline(never)]
fn note<F: Network, T: FlowTables<F>>(tables: &mut T) {
    let source = tables.parties().source;
    let mut key = tables.parties().original_source();
    if let Some(row) = tables.flow(Store::Pending, &key) {
        (row.to, row.to_port) = (source.addr, source.port);
    }
    key = tables.parties().reply();
    if let Some(row) = tables.flow(Store::Pending, &key) {
        (row.other, row.other_port) = (source.addr, source.port);
    }
    key = tables.parties().original();
    if let Some(row) = tables.flow(Store::Pending, &key) {
        (row.other, row.other_port) = (source.addr, source.port);
    }
}
