//! Flows that have many frames, each in one line of memory: its key and a copy of its row.
//!
//! A look-up in the table of flows reads a bucket and two lines of a row one after the other, of which
//! none is in the processor's cache where flows are many. So the first frame of a flow puts a copy of the
//! row at one of the places that its tuple tells, if that is free, and for some ticks the others find it
//! there. What they count is added to the row when the copy is made anew, or gives its place up.
//!
//! What makes a copy wrong makes it stale: a segment that begins or ends a connection, who removes the row
//! ([`crate::tables::FlowTables::forget`]), and the agent, when it removes or marks rows: then all are
//! ([`fresh`]).
//!
//! | `now - since` | the copy is |
//! |---|---|
//! | below [`FRESH`] | read, and counted in |
//! | then | stale: its own flow may copy anew; who still reads it is done long before another writes |
//! | [`FREE`]` - 2`, and one more or less | being written ([`claimed`]): processors' clocks differ by one |
//! | [`FREE`] or more | to be written over |

use crate::{
    address::{Address, Be16, protocol},
    flow::{Flow, FlowKey, flow_flags, seen},
    hash, track,
};

/// Value of the arrays `FLOWCACHE4/6`: 64 and 128 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line<A: Address> {
    /// As in the table, but for [`flow_flags::COPY`], for `since`, which tells when it was copied, and for
    /// `packets` and `bytes`, of which the table knows nothing yet. First: the compiler finds no pointer
    /// to it before it has asked whether there is a line.
    pub row: Flow<A>,
    pub key: FlowKey<A>,
    pub pad: A::Pad,
}

/// Lines of `FLOWCACHE4/6`; a power of two.
pub const LINES: u32 = 1 << 17;

/// Places that a flow may have: of as many flows as half of the lines, 97 of 100 find one.
pub const WAYS: u32 = 4;

/// Ticks for which a copy is as good as its row: so long may a row seem idle that is not, which is well
/// below what flows live without a packet ([`crate::flow::timeout_sec`]), but for those that were reset.
pub const FRESH: u32 = 16;

/// Ticks after which its place is another's.
pub const FREE: u32 = FRESH + 4;

/// What `since` is while a line is being written: for this tick, and those beside it, neither fresh nor
/// free.
#[inline(always)]
#[must_use]
pub const fn claimed(now: u32) -> u32 {
    now.wrapping_sub(FREE - 2)
}

/// Ticks for which copies are good, of which those made when the agent changed rows last, or before, are
/// not.
#[inline(always)]
#[must_use]
pub const fn fresh(now: u32, changed: u32) -> u32 {
    let since = now.wrapping_sub(changed);
    if since < FRESH { since } else { FRESH }
}

/// The first of a tuple's places. The others are beside it ([`beside`]).
#[inline(always)]
#[must_use]
pub fn place<A: Address>(key: &FlowKey<A>) -> u32 {
    hash::tuple(key) & (LINES - 1)
}

/// The place of another way, of which the first is zero.
#[inline(always)]
#[must_use]
pub const fn beside(place: u32, way: u32) -> u32 {
    place ^ way
}

/// True if a row's frames have no news for it for some time, if they are no SYN, FIN or RST, so that a
/// copy does as well.
#[inline(always)]
pub fn is_settled<A>(row: &Flow<A>, proto: u8, now: u32) -> bool {
    let is_masqueraded = row.flags & flow_flags::MASQUERADE != 0;
    row.seen == seen::PACKET
        && row.flags & flow_flags::RESET == 0
        && !(is_masqueraded && row.other_port == Be16::ZERO)
        && !(proto == protocol::UDP && track::is_idle(row, now))
}

/// True if the flow's other row has not heard of this tick's packets. A copy sees to that when it is made.
#[inline(always)]
pub fn is_asleep<A>(row: &Flow<A>, now: u32) -> bool {
    row.last != now && (row.flags & flow_flags::COPY == 0 || row.since == now)
}

/// True if another may be written to a line whose copy was made at `since`. What is younger than `now` was
/// made by who has the next tick already.
#[inline(always)]
#[must_use]
pub const fn is_free(since: u32, now: u32) -> bool {
    let age = now.wrapping_sub(since);
    age >= FREE && age < 1 << 31
}

/// True if it may be being written.
#[inline(always)]
#[must_use]
pub const fn is_claimed(since: u32, now: u32) -> bool {
    let age = now.wrapping_sub(since);
    age >= FREE - 3 && age < FREE
}

impl<A: Address> Line<A> {
    /// True if this tells of a flow at this time.
    #[inline(always)]
    pub fn tells(&self, key: &FlowKey<A>, now: u32, fresh: u32) -> bool {
        now.wrapping_sub(self.row.since) < fresh && self.key == *key
    }

    /// Adds what was counted here to the flow's row, unless it was counted for a flow before it.
    #[inline(always)]
    pub fn bring_home(&self, row: &mut Flow<A>) {
        if track::later(self.row.last, row.since) != self.row.last {
            return;
        }
        row.packets += self.row.packets;
        row.bytes += self.row.bytes;
        row.last = track::later(self.row.last, row.last);
    }

    /// What a line is to hold of a flow.
    #[inline(always)]
    #[must_use]
    pub fn of(key: FlowKey<A>, row: &Flow<A>, now: u32) -> Self {
        let flags = row.flags | flow_flags::COPY;
        let row = Flow { flags, since: now, packets: 0, bytes: 0, ..*row };
        Self { row, key, pad: A::Pad::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ipv4;

    type Row = Flow<Ipv4>;

    fn key(port: u16) -> FlowKey<Ipv4> {
        FlowKey { src_port: Be16::new(port), ..FlowKey::default() }
    }

    #[test]
    fn a_line_ages() {
        for now in [10, 1_000, 3, u32::MAX] {
            let line =
                Line::of(key(1), &Row { packets: 7, bytes: 8, last: 9, ..Row::default() }, now);
            assert_eq!((line.row.packets, line.row.bytes, line.row.last), (0, 0, 9));
            let state = |ticks: u32| {
                let then = now.wrapping_add(ticks);
                let tells = |port| line.tells(&key(port), then, fresh(then, now.wrapping_sub(9)));
                (tells(1), tells(2), is_free(line.row.since, then))
            };
            for ticks in 0..FRESH {
                assert_eq!(state(ticks), (true, false, false), "{ticks}");
            }
            for ticks in FRESH..FREE {
                assert_eq!(state(ticks), (false, false, false), "{ticks}");
            }
            assert_eq!(state(FREE), (false, false, true));
            let written = Line { row: Row { since: claimed(now), ..line.row }, ..line };
            for then in [now.wrapping_sub(1), now, now.wrapping_add(1)] {
                let since = written.row.since;
                assert!(is_claimed(since, then) && !is_free(since, then));
                assert!(!written.tells(&key(1), then, FRESH) && !is_claimed(line.row.since, then));
                assert!(!is_free(line.row.since, then));
            }
            assert!(is_free(written.row.since, now.wrapping_add(2)));
        }
        // One that was never written, on a machine that has just begun or not.
        assert!(is_free(Row::default().since, FREE) && is_free(Row::default().since, 1 << 30));
    }

    #[test]
    fn what_was_copied_before_the_agent_changed_rows_is_stale() {
        for now in [100, 5, u32::MAX] {
            let line = |age| {
                let since = u32::wrapping_sub(now, age);
                Line { row: Row { since, ..Row::default() }, key: key(1), pad: () }
            };
            let tells = |age, changed| {
                line(age).tells(&key(1), now, fresh(now, u32::wrapping_sub(now, changed)))
            };
            assert!(!tells(0, 0) && !tells(1, 1) && !tells(2, 1));
            assert!(tells(0, 1) && tells(3, 4) && tells(FRESH - 1, FRESH) && !tells(FRESH, 1_000));
        }
    }

    #[test]
    fn places_are_neighbours() {
        for port in 0..1_000 {
            let first = place(&key(port));
            let mut places: Vec<u32> = (0..WAYS).map(|way| beside(first, way)).collect();
            places.sort_unstable();
            let begin = first / WAYS * WAYS;
            assert_eq!(places, (begin..begin + WAYS).collect::<Vec<_>>());
            assert!(begin + WAYS <= LINES);
        }
    }

    #[test]
    fn what_is_counted_comes_home() {
        let mut row = Row { packets: 5, bytes: 500, last: 100, ..Row::default() };
        let mut line = Line::of(key(1), &row, 100);
        (line.row.packets, line.row.bytes, line.row.last) = (2, 70, 103);
        line.bring_home(&mut row);
        assert_eq!((row.packets, row.bytes, row.last), (7, 570, 103));
        // The packet path saw one later.
        row.last = 104;
        line.bring_home(&mut row);
        assert_eq!(row.last, 104);
        // Of a flow that has the tuple since then.
        let mut row = Row { since: 104, last: 104, ..Row::default() };
        line.bring_home(&mut row);
        assert_eq!(row, Row { since: 104, last: 104, ..Row::default() });
    }
}
