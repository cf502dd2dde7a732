//! Flows that have many frames, each in one line of memory: its key and what its row says.
//!
//! A look-up in the table of flows reads a bucket and two lines of a row one after the other, of which
//! none is in the processor's cache where flows are many. So the first frame of a flow puts a copy of the
//! row at one of the places that its tuple tells, if that is free, and for some ticks the others find it
//! there. What they count is added to the row when the copy is made anew, or gives its place up.
//!
//! So that the copy of a flow of IPv6 fits in one line of 64 bytes too, it names two of its four addresses
//! by a place in another table: those which are this node's own, and many flows have in common ([`Common`]).
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
//!
//! So it is with a [`Common`], of which `used` tells, and [`UNUSED`] in place of [`FREE`].

use crate::{
    address::{Address, Be16, protocol},
    flow::{Flow, FlowKey, Place, flow_flags, hook, role, seen},
    hash, track,
};

/// Value of the arrays `FLOWCACHE4/6`: a copy of a row of an answered flow of TCP or UDP, where its packets
/// enter. 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line<A: Address> {
    /// When it was copied, in units of [`crate::flow::TICK_NS`]. First: the compiler finds no pointer to
    /// it before it has asked whether there is a line.
    pub since: u32,
    /// What was counted since then.
    pub packets: u32,
    pub bytes: u64,
    /// Of the key.
    pub src: A,
    /// Of the row.
    pub to: A,
    /// Of the key.
    pub src_port: Be16,
    pub dst_port: Be16,
    /// Of the row.
    pub to_port: Be16,
    pub other_port: Be16,
    pub service: u32,
    /// The place in `FLOWCOMMON4/6` of the other addresses of key and row.
    pub common: u16,
    /// Bits of [`kind`].
    pub kind: u8,
    /// The last byte of the time of the last packet that was counted here.
    pub last: u8,
    pub pad: A::Pad,
}

/// Value of the arrays `FLOWCOMMON4/6`: of the addresses of flows, those which are this node's: 16 and 40
/// bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Common<A> {
    /// When a row of such a flow was copied last. First, as in [`Line`].
    pub used: u32,
    /// When it was written. Lines that were written before mean another.
    pub since: u32,
    /// Of the key.
    pub dst: A,
    /// Of the row.
    pub other: A,
}

/// Bits of `Line::kind`. A row that more is to be said of is not copied.
pub mod kind {
    /// Of role `REPLY_TARGET`; otherwise `ORIGINAL`.
    pub const REPLY_TARGET: u8 = 1;
    /// Of UDP; otherwise TCP.
    pub const UDP: u8 = 2;
    /// As of [`crate::flow::flow_flags`].
    pub const MASQUERADE: u8 = 4;
    pub const DIRECT: u8 = 8;
}

/// Rows of `FLOWCOMMON4/6`; a power of two.
pub const COMMONS: u32 = 1 << 12;

/// Lines of `FLOWCACHE4/6`; a power of two.
pub const LINES: u32 = 1 << 17;

/// Places that a flow may have: of as many flows as half of the lines, 97 of 100 find one.
pub const WAYS: u32 = 4;

/// Ticks for which a copy is as good as its row: so long may a row seem idle that is not, which is well
/// below what flows live without a packet ([`crate::flow::timeout_sec`]), but for those that were reset.
pub const FRESH: u32 = 16;

/// Ticks after which its place is another's.
pub const FREE: u32 = FRESH + 4;

/// The same for what no flow has in common any more: long enough to tell by their age which lines mean
/// another ([`Common::is_meant`]).
pub const UNUSED: u32 = 64;

/// What tells a row's age while it is being written, which is another's after `free` ticks: for this tick,
/// and those beside it, neither fresh nor free.
#[inline(always)]
#[must_use]
pub const fn claimed(now: u32, free: u32) -> u32 {
    now.wrapping_sub(free - 2)
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

/// The place of what flows have in common.
#[inline(always)]
#[must_use]
pub fn common_place<A: Address>(dst: A, other: A) -> u32 {
    hash::way(dst, other) & (COMMONS - 1)
}

/// The place of another way, of which the first is zero.
#[inline(always)]
#[must_use]
pub const fn beside(place: u32, way: u32) -> u32 {
    place ^ way
}

/// What [`Line::kind`] is for a row whose frames have no news for it for some time, if they are no SYN, FIN
/// or RST, so that a copy does as well. `None` for all others.
#[inline(always)]
pub fn kind_of<A>(row: &Flow<A>, proto: u8, now: u32) -> Option<u8> {
    let is_reply = row.role == role::REPLY_TARGET;
    let is_masqueraded = row.flags & flow_flags::MASQUERADE != 0;
    let is_settled = row.seen == seen::PACKET
        && (is_reply || row.role == role::ORIGINAL)
        && row.flags & !(flow_flags::MASQUERADE | flow_flags::DIRECT) == 0
        && !(is_masqueraded && row.other_port == Be16::ZERO)
        && row.alias == Be16::ZERO
        && row.turn == Be16::ZERO
        && (proto == protocol::TCP || proto == protocol::UDP && !track::is_idle(row, now));
    let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    let kind = bit(is_reply, kind::REPLY_TARGET)
        | bit(proto == protocol::UDP, kind::UDP)
        | bit(is_masqueraded, kind::MASQUERADE)
        | bit(row.flags & flow_flags::DIRECT != 0, kind::DIRECT);
    if is_settled { Some(kind) } else { None }
}

/// True if a copy of this age is as good as its row, where copies are for `fresh` ticks.
#[inline(always)]
#[must_use]
pub const fn is_fresh(since: u32, now: u32, fresh: u32) -> bool {
    now.wrapping_sub(since) < fresh
}

/// True if another may be written to a row of this age. What is younger than `now` was made by who has the
/// next tick already.
#[inline(always)]
#[must_use]
pub const fn is_free(since: u32, now: u32, free: u32) -> bool {
    let age = now.wrapping_sub(since);
    age >= free && age < 1 << 31
}

/// True if it may be being written.
#[inline(always)]
#[must_use]
pub const fn is_claimed(since: u32, now: u32, free: u32) -> bool {
    let age = now.wrapping_sub(since);
    age >= free - 3 && age < free
}

impl<A> Common<A> {
    /// True if a line of this age means this, and not what was here before: that it is older than this by
    /// [`UNUSED`] at least, where one that was made stale seems older by [`FRESH`] than it is.
    #[inline(always)]
    pub const fn is_meant(&self, since: u32) -> bool {
        since.wrapping_sub(self.since).wrapping_add(UNUSED / 2) < 1 << 31
    }
}

impl<A: Address> Line<A> {
    /// True if this is, or was, the copy of the row of the key, with what its place in `FLOWCOMMON4/6` has.
    #[inline(always)]
    pub fn is_of(&self, key: &FlowKey<A>, common: &Common<A>) -> bool {
        let ports = self.src_port == key.src_port && self.dst_port == key.dst_port;
        ports && self.src == key.src && self.proto() == key.proto && common.dst == key.dst
    }

    #[inline(always)]
    const fn proto(&self) -> u8 {
        if self.kind & kind::UDP != 0 { protocol::UDP } else { protocol::TCP }
    }

    /// The key of its row.
    #[inline(always)]
    pub const fn key(&self, common: &Common<A>) -> FlowKey<A> {
        let src = Place::new(self.src, self.src_port);
        FlowKey::new(src, Place::new(common.dst, self.dst_port), self.proto(), hook::INGRESS)
    }

    /// When the last packet was counted here, if there was any, in the copy that was made at `since`: by its
    /// field, unless that is claimed meanwhile.
    #[inline(always)]
    pub const fn last(&self, since: u32) -> Option<u32> {
        let ticks = self.last.wrapping_sub(since as u8) as u32;
        let ticks = if ticks < FREE { ticks } else { 0 };
        if self.packets == 0 { None } else { Some(since.wrapping_add(ticks)) }
    }

    /// Notes a packet.
    #[inline(always)]
    pub fn touch(&mut self, now: u32, length: u32) {
        if self.last != now as u8 {
            self.last = now as u8;
        }
        self.packets += 1;
        self.bytes += length as u64;
    }

    /// Adds what was counted in the copy that was made at `since` to the flow's row, unless it was counted for
    /// a flow before it.
    #[inline(always)]
    pub fn bring_home(&self, since: u32, row: &mut Flow<A>) {
        let Some(last) = self.last(since) else { return };
        if track::later(last, row.since) != last {
            return;
        }
        row.packets += self.packets as u64;
        row.bytes += self.bytes;
        row.last = track::later(last, row.last);
    }

    /// Becomes a row's copy but for the time, by which others know that it is there. Nothing is counted yet.
    #[inline(always)]
    pub fn copy(&mut self, key: &FlowKey<A>, row: &Flow<A>, kind: u8, common: u32, now: u32) {
        (self.packets, self.bytes) = (0, 0);
        (self.src, self.src_port, self.dst_port) = (key.src, key.src_port, key.dst_port);
        (self.to, self.to_port, self.other_port) = (row.to, row.to_port, row.other_port);
        (self.service, self.common, self.kind) = (row.service, common as u16, kind);
        self.last = now.wrapping_sub(1) as u8;
    }
}

/// A row of an answered flow, or its copy: what it says to a frame, and where that one is counted. Each
/// thing is read when it is needed, not kept: programs have little stack.
pub struct RowOrCopy<'a, A: Address> {
    row: Option<&'a mut Flow<A>>,
    copy: Option<&'a mut Line<A>>,
    common: Option<&'a Common<A>>,
}

impl<'a, A: Address> RowOrCopy<'a, A> {
    #[inline(always)]
    pub const fn row(row: &'a mut Flow<A>) -> Self {
        Self { row: Some(row), copy: None, common: None }
    }

    /// A fresh one.
    #[inline(always)]
    pub const fn copy(line: &'a mut Line<A>, common: &'a Common<A>) -> Self {
        Self { row: None, copy: Some(line), common: Some(common) }
    }

    /// What the copy says, or else the row.
    #[inline(always)]
    fn say<T: Default>(
        &self,
        copy: impl FnOnce(&Line<A>) -> T,
        row: impl FnOnce(&Flow<A>) -> T,
    ) -> T {
        match (&self.copy, &self.row) {
            (Some(line), _) => copy(line),
            (_, Some(flow)) => row(flow),
            _ => T::default(),
        }
    }

    /// As `Flow::to`, with its port.
    #[inline(always)]
    pub fn to(&self) -> Place<A> {
        self.say(|line| Place::new(line.to, line.to_port), |row| Place::new(row.to, row.to_port))
    }

    /// As `Flow::other`.
    #[inline(always)]
    pub fn other(&self) -> A {
        match (self.common, &self.row) {
            (Some(common), _) => common.other,
            (_, Some(row)) => row.other,
            _ => A::default(),
        }
    }

    #[inline(always)]
    pub fn other_port(&self) -> Be16 {
        self.say(|line| line.other_port, |row| row.other_port)
    }

    #[inline(always)]
    pub fn turn(&self) -> Be16 {
        self.say(|_| Be16::ZERO, |row| row.turn)
    }

    #[inline(always)]
    pub fn alias(&self) -> Be16 {
        self.say(|_| Be16::ZERO, |row| row.alias)
    }

    #[inline(always)]
    pub fn service(&self) -> u32 {
        self.say(|line| line.service, |row| row.service)
    }

    #[inline(always)]
    pub fn role(&self) -> u8 {
        let of_copy = |line: &Line<A>| {
            if line.kind & kind::REPLY_TARGET != 0 { role::REPLY_TARGET } else { role::ORIGINAL }
        };
        self.say(of_copy, |row| row.role)
    }

    #[inline(always)]
    pub fn flags(&self) -> u16 {
        let of_copy = |line: &Line<A>| {
            let flag = |bit: u8, flag: u16| if line.kind & bit != 0 { flag } else { 0 };
            flag(kind::MASQUERADE, flow_flags::MASQUERADE) | flag(kind::DIRECT, flow_flags::DIRECT)
        };
        self.say(of_copy, |row| row.flags)
    }

    /// True if the packet path's rows have to learn of a packet of the protocol that shows this.
    #[inline(always)]
    pub fn is_news(&self, shown: u8, proto: u8, now: u32) -> bool {
        let is_idle = |row: &Flow<A>| proto == protocol::UDP && track::is_idle(row, now);
        self.say(
            |_| shown != seen::PACKET,
            |row| {
                row.seen | shown != row.seen || row.flags & flow_flags::RESET != 0 || is_idle(row)
            },
        )
    }

    /// True if the flow's other row has not heard of this tick's packets. A copy sees to that when it is
    /// made.
    #[inline(always)]
    pub fn is_asleep(&self, now: u32) -> bool {
        self.say(|line| line.since == now && line.last != now as u8, |row| row.last != now)
    }

    /// Notes a packet.
    #[inline(always)]
    pub fn touch(self, shown: u8, now: u32, length: u32) {
        if let Some(line) = self.copy {
            line.touch(now, length);
        } else if let Some(row) = self.row {
            track::touch(row, shown, now, length);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::{Ipv4, Ipv6};

    type Row = Flow<Ipv4>;

    fn key(port: u16) -> FlowKey<Ipv4> {
        let [src, dst] = [1, 2].map(|host| Ipv4::from(Ipv4Addr::from(0x0a00_0000 + host)));
        let dst = Place::new(dst, Be16::new(80));
        FlowKey::new(Place::new(src, Be16::new(port)), dst, protocol::TCP, hook::INGRESS)
    }

    fn common(since: u32) -> Common<Ipv4> {
        Common { used: since, since, dst: key(1).dst, other: key(7).src }
    }

    fn line(port: u16, row: &Row, now: u32) -> Line<Ipv4> {
        let mut line = Line { since: now, ..Line::default() };
        line.copy(&key(port), row, kind_of(row, protocol::TCP, now).unwrap_or_default(), 5, now);
        line
    }

    #[test]
    fn one_line_holds_a_flow() {
        assert_eq!((size_of::<Line<Ipv4>>(), size_of::<Line<Ipv6>>()), (64, 64));
    }

    #[test]
    fn a_line_ages() {
        for now in [10, 1_000, 3, u32::MAX] {
            let common = common(now);
            let line = line(1, &Row { packets: 7, bytes: 8, last: 9, ..Row::default() }, now);
            assert_eq!((line.packets, line.bytes, line.last(now)), (0, 0, None));
            assert_eq!(line.key(&common), key(1));
            assert!(line.is_of(&key(1), &common) && !line.is_of(&key(2), &common));
            let elsewhere = Common { dst: key(9).src, ..common };
            assert!(!line.is_of(&key(1), &elsewhere));
            let udp = FlowKey { proto: protocol::UDP, ..key(1) };
            assert!(!line.is_of(&udp, &common));
            let state = |ticks: u32| {
                let then = now.wrapping_add(ticks);
                let is_fresh = is_fresh(line.since, then, fresh(then, now.wrapping_sub(9)));
                (is_fresh, is_free(line.since, then, FREE))
            };
            for ticks in 0..FRESH {
                assert_eq!(state(ticks), (true, false), "{ticks}");
            }
            for ticks in FRESH..FREE {
                assert_eq!(state(ticks), (false, false), "{ticks}");
            }
            assert_eq!(state(FREE), (false, true));
            for free in [FREE, UNUSED] {
                let since = claimed(now, free);
                for then in [now.wrapping_sub(1), now, now.wrapping_add(1)] {
                    assert!(is_claimed(since, then, free) && !is_free(since, then, free));
                    assert!(!is_fresh(since, then, FRESH));
                    assert!(!is_claimed(line.since, then, free));
                    assert!(!is_free(line.since, then, free));
                }
                assert!(is_free(since, now.wrapping_add(2), free));
            }
        }
        // One that was never written, on a machine that has just begun or not.
        assert!(is_free(Row::default().since, FREE, FREE));
        assert!(is_free(Row::default().since, 1 << 30, FREE));
    }

    #[test]
    fn what_was_copied_before_the_agent_changed_rows_is_stale() {
        for now in [100, 5, u32::MAX] {
            let is_fresh = |age, changed| {
                let line = line(1, &Row::default(), u32::wrapping_sub(now, age));
                is_fresh(line.since, now, fresh(now, u32::wrapping_sub(now, changed)))
            };
            assert!(!is_fresh(0, 0) && !is_fresh(1, 1) && !is_fresh(2, 1));
            assert!(is_fresh(0, 1) && is_fresh(3, 4) && is_fresh(FRESH - 1, FRESH));
            assert!(!is_fresh(FRESH, 1_000));
        }
    }

    #[test]
    fn a_place_that_is_another_s_is_not_meant_by_older_lines() {
        for now in [100, 5, u32::MAX] {
            let common = common(now);
            // Written with it, by a clock that is behind, and made stale at once.
            for age in [0, 1, 1 + FRESH] {
                assert!(common.is_meant(now.wrapping_sub(age)), "{age}");
            }
            assert!(common.is_meant(now.wrapping_add(1_000)));
            // The last that used what was there before, by a clock that is ahead.
            for age in [UNUSED - 1, UNUSED, 10_000] {
                assert!(!common.is_meant(now.wrapping_sub(age)), "{age}");
            }
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
        assert!(COMMONS <= 1 << u16::BITS && COMMONS.is_power_of_two());
    }

    #[test]
    fn what_is_counted_comes_home() {
        let mut row = Row { packets: 5, bytes: 500, last: 100, ..Row::default() };
        let mut line = line(1, &row, 100);
        for now in [101, 103] {
            line.touch(now, 35);
        }
        // Some other flow has claimed the line, long after.
        for now in [104, 103 + 18, 103 + 255, 103 + 256, 1 << 20] {
            line.since = claimed(now, FREE);
            let mut row = row;
            line.bring_home(100, &mut row);
            assert_eq!((row.packets, row.bytes, row.last), (7, 570, 103));
        }
        line.bring_home(100, &mut row);
        assert_eq!((row.packets, row.bytes, row.last), (7, 570, 103));
        // Made stale since then.
        line.since = 105 - FRESH;
        assert_eq!(line.last(line.since), Some(103));
        // The packet path saw one later.
        row.last = 104;
        line.bring_home(line.since, &mut row);
        assert_eq!(row.last, 104);
        // Of a flow that has the tuple since then.
        let mut row = Row { since: 104, last: 104, ..Row::default() };
        line.bring_home(line.since, &mut row);
        assert_eq!(row, Row { since: 104, last: 104, ..Row::default() });
    }

    #[test]
    fn a_copy_says_what_the_row_says() {
        let now = 1_000;
        let place =
            |host: u32, port| (Ipv4::from(Ipv4Addr::from(0x0a01_0000 + host)), Be16::new(port));
        let ((to, to_port), (other, other_port)) = (place(1, 8_080), (key(7).src, Be16::new(9)));
        let row = Row { to, to_port, other, other_port, service: 77, ..Row::default() };
        let row = Row { seen: seen::PACKET, last: now - 1, ..row };
        let both = flow_flags::MASQUERADE | flow_flags::DIRECT;
        for role in [role::ORIGINAL, role::REPLY_TARGET] {
            for flags in [0, flow_flags::MASQUERADE, both] {
                for proto in [protocol::TCP, protocol::UDP] {
                    let mut row = Row { role, flags, ..row };
                    let key = FlowKey { proto, ..key(1) };
                    let kind = kind_of(&row, proto, now).expect("settled");
                    let mut line = Line { since: now, ..Line::default() };
                    line.copy(&key, &row, kind, 5, now);
                    let common = common(now);
                    assert!(line.is_of(&key, &common));
                    let copy = RowOrCopy::copy(&mut line, &common);
                    let own = RowOrCopy::row(&mut row);
                    let said = |row: &RowOrCopy<'_, Ipv4>| {
                        let ends = (row.to(), row.other(), row.other_port());
                        let turns = (row.turn(), row.alias());
                        let news =
                            [seen::PACKET, seen::FIN].map(|bit| row.is_news(bit, proto, now));
                        let is = (news, row.is_asleep(now));
                        (ends, turns, row.service(), row.role(), row.flags(), is)
                    };
                    assert_eq!(said(&copy), said(&own));
                    copy.touch(seen::PACKET, now, 60);
                    own.touch(seen::PACKET, now, 60);
                    assert_eq!((line.packets, line.bytes, line.last(now)), (1, 60, Some(now)));
                    assert_eq!((row.packets, row.bytes, row.last), (1, 60, now));
                    let copy = RowOrCopy::copy(&mut line, &common);
                    assert!(!copy.is_asleep(now) && !copy.is_asleep(now + 1));
                }
            }
        }
        let masqueraded = Row { role: role::ORIGINAL, flags: flow_flags::MASQUERADE, ..row };
        for (row, proto) in [
            (Row { seen: 0, ..masqueraded }, protocol::TCP),
            (Row { seen: seen::PACKET | seen::FIN, ..masqueraded }, protocol::TCP),
            (Row { flags: flow_flags::RESET, ..masqueraded }, protocol::TCP),
            (Row { role: role::REPLY, ..masqueraded }, protocol::TCP),
            (Row { other_port: Be16::ZERO, ..masqueraded }, protocol::TCP),
            (Row { alias: Be16::new(1), ..masqueraded }, protocol::TCP),
            (Row { turn: Be16::new(1), ..masqueraded }, protocol::TCP),
            (Row { last: now - 1_000, ..masqueraded }, protocol::UDP),
            (masqueraded, protocol::SCTP),
        ] {
            assert_eq!(kind_of(&row, proto, now), None, "{row:?}");
        }
    }
}
