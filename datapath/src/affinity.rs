//! Session affinity: a client's new connections to one port of a Service go to the backend that
//! its last one went to, by whatever frontend, as long as each comes within the timeout after the
//! one before it (`sessionAffinity: ClientIP`).

use crate::{address::Be16, flow::Place, header::Network, service::SetRef, tables::Tables};

/// Key of the LRU tables `AFFINITY4` and `AFFINITY6`: 8 and 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct AffinityKey<A> {
    /// Index into `SERVICES`.
    pub service: u32,
    /// Source address of the client's packets; unspecified for all of the node's own processes
    /// together, whose source is not known when they name a frontend.
    pub client: A,
}

/// Value of the affinity tables: where a client's last connection went. 16 and 28 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Affinity<A> {
    pub addr: A,
    pub port: Be16,
    pub pad: u16,
    /// Slot of `BACKENDS4` or `BACKENDS6` that the backend was found in.
    pub slot: u32,
    /// When that was, in units of [`crate::flow::TICK_NS`].
    pub last: u32,
}

/// Who a connection is from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// The client in [`crate::tables::FlowTables::parties`]: the packet path.
    Sender,
    /// A process of the node itself: the socket path.
    Node,
}

/// The slot of the set that a new connection goes to: where the client's last one went if that is
/// still there, and the one that was chosen for it if not.
///
/// What a row says is no more than a hint: a backend is used only out of a slot of the set that
/// applies. So nothing has to be removed when a backend leaves, when the traffic policy gives one
/// of a Service's frontends another set, or when another Service comes to have the index.
#[inline(always)]
pub fn stick<F: Network, T: Tables<F>>(
    tables: &mut T,
    service: u32,
    client: Client,
    set: SetRef,
    chosen: u32,
) -> u32 {
    let timeout = tables.policy(service).affinity;
    let client = match client {
        Client::Sender => tables.parties().client.addr,
        Client::Node => <F::Address as Default>::default(),
    };
    let key = AffinityKey { service, client };
    let now = tables.now();
    let last = tables.affinity(&key).filter(|row| now.wrapping_sub(row.last) <= timeout);
    let slot = match last {
        Some(row) if holds::<F, T>(tables, set, &row) => Some(row.slot),
        Some(row) => tables.find_backend(set, Place::new(row.addr, row.port)),
        None => None,
    };
    let slot = slot.unwrap_or(chosen);
    if last.is_none_or(|row| row.slot != slot || row.last != now)
        && let Some(backend) = tables.backend(slot)
    {
        let row = Affinity { addr: backend.addr, port: backend.port, pad: 0, slot, last: now };
        tables.remember_affinity(&key, &row);
    }
    slot
}

/// True if the backend is in the set, where it was found last.
#[inline(always)]
fn holds<F: Network, T: Tables<F>>(
    tables: &mut T,
    set: SetRef,
    row: &Affinity<F::Address>,
) -> bool {
    row.slot.wrapping_sub(set.block) < u32::from(set.count)
        && tables
            .backend(row.slot)
            .is_some_and(|backend| backend.is(Place::new(row.addr, row.port), set))
}

/// A timeout in seconds as the tables have it, in units of [`crate::flow::TICK_NS`]: the nearest,
/// and at least one.
#[must_use]
pub const fn ticks(seconds: u32) -> u32 {
    let nanoseconds = seconds as u64 * 1_000_000_000;
    let ticks = (nanoseconds + crate::flow::TICK_NS / 2) / crate::flow::TICK_NS;
    if ticks == 0 { 1 } else { ticks as u32 }
}

/// The reverse of [`ticks`]: the seconds that are nearest, which give the same ticks again.
#[must_use]
pub const fn seconds(ticks: u32) -> u32 {
    let nanoseconds = ticks as u64 * crate::flow::TICK_NS;
    ((nanoseconds + 500_000_000) / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_ticks_and_the_ticks_of_their_seconds() {
        assert_eq!([1, 2, 10, 10_800, 86_400].map(ticks), [1, 2, 9, 10_058, 80_466]);
        assert_eq!(ticks(0), 1);
        for time in 1..=86_400 {
            assert_eq!(ticks(seconds(ticks(time))), ticks(time), "{time}");
            assert!(seconds(ticks(time)).abs_diff(time) <= 1, "{time}");
        }
    }
}
