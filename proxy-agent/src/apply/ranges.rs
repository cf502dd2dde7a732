//! Source ranges: which rows of `RANGES4` and `RANGES6` are due.
//!
//! A Service's flag that it has ranges stands only while the ranges do: those that come are written
//! before the flag is set, and those that go are removed after it is cleared, or after the new ones
//! stand. So whoever is admitted before and after a change is admitted at each moment of it, and
//! nobody is who is neither before nor after.

use std::collections::BTreeSet;

use datapath::service::service_flags::{NODE_ADMITTED, SOURCE_RANGES};
use ipnetwork::IpNetwork;

use super::{
    ledger::{Ledger, Row},
    op::{Op, RangeAt},
};
use crate::desired::{DesiredService, IpFamily};

/// Flags that stand or fall with the ranges.
const GUARD: u32 = SOURCE_RANGES | NODE_ADMITTED;

/// The flags of a row that may be in force, of those that it should have: its ranges' only if these
/// stand, and else those that are in force now.
pub(super) fn allowed(
    row: &Row,
    wanted: &DesiredService,
    held: Option<&BTreeSet<IpNetwork>>,
) -> u32 {
    if stand(row, wanted, held) {
        wanted.flags
    } else {
        wanted.flags & !GUARD | row.policy.flags & GUARD
    }
}

/// True if the flag may be as it is wanted. Where it is to be set, nothing more may be admitted than
/// is wanted, either.
fn stand(row: &Row, wanted: &DesiredService, held: Option<&BTreeSet<IpNetwork>>) -> bool {
    if wanted.flags & SOURCE_RANGES == 0 {
        return true;
    }
    let Some(held) = held else { return wanted.ranges.is_empty() };
    let are_all_there = wanted.ranges.iter().all(|range| held.contains(range));
    let is_in_force = row.policy.flags & SOURCE_RANGES != 0;
    are_all_there && (is_in_force || held.len() == wanted.ranges.len())
}

/// False if the row should have ranges, and they are not in force.
pub(super) fn is_guarded(row: &Row, wanted: &DesiredService) -> bool {
    wanted.flags & !row.policy.flags & SOURCE_RANGES == 0
}

impl Ledger {
    /// Ranges that are wanted and missing.
    pub fn missing_ranges(&mut self) -> Vec<Op> {
        if !self.is_complete {
            return Vec::new();
        }
        let mut puts = [Vec::new(), Vec::new()];
        for &index in &self.dirty {
            let Some(wanted) = self.rows.get(&index).and_then(|row| row.wanted.as_ref()) else {
                continue;
            };
            let held = self.ranges.get(&index);
            for &range in &wanted.ranges {
                if held.is_none_or(|held| !held.contains(&range)) {
                    let at = RangeAt { service: index, range };
                    puts[at.family() as usize].push(at);
                }
            }
        }
        puts.into_iter().filter(|rows| !rows.is_empty()).map(Op::PutRanges).collect()
    }

    /// Ranges that stand, that nobody wants, and that may go. Whoever has no row is given one first:
    /// it may be one with ranges.
    pub fn stale_ranges(&mut self) -> Vec<Op> {
        if !self.is_complete {
            return Vec::new();
        }
        self.house();
        let mut ops = Vec::new();
        for &index in self.dirty.union(&self.stray_ranges) {
            let Some(held) = self.ranges.get(&index) else { continue };
            let row = self.rows.get(&index);
            let wanted = row.and_then(|row| row.wanted.as_ref());
            let may_go = match (row, wanted) {
                (None, _) => true,
                // Until nothing leads to it.
                (Some(row), None) => row.frontends.is_empty(),
                (Some(row), Some(wanted)) => {
                    let is_in_force = row.policy.flags & SOURCE_RANGES != 0;
                    let is_to_stay = wanted.flags & SOURCE_RANGES != 0;
                    !is_in_force || is_to_stay && stand(row, wanted, Some(held))
                }
            };
            if may_go {
                let is_wanted =
                    |range: &&IpNetwork| wanted.is_some_and(|wanted| wanted.ranges.contains(range));
                let stale = held.iter().filter(|range| !is_wanted(range));
                ops.extend(stale.map(|&range| Op::RemoveRange(RangeAt { service: index, range })));
            }
        }
        ops
    }

    /// True if a row's ranges are those that it wants, and its policy says so.
    pub(super) fn is_guarded_as_wanted(
        &self,
        index: u32,
        row: &Row,
        wanted: &DesiredService,
    ) -> bool {
        let held = self.ranges.get(&index).map_or(0, BTreeSet::len);
        row.policy.flags & GUARD == wanted.flags & GUARD
            && held == wanted.ranges.len()
            && stand(row, wanted, self.ranges.get(&index))
    }

    pub(super) fn range_put(&mut self, at: RangeAt) {
        if self.ranges.entry(at.service).or_default().insert(at.range) {
            self.range_rows[at.family() as usize] += 1;
        }
        if !self.rows.contains_key(&at.service) {
            self.stray_ranges.insert(at.service);
        }
    }

    pub(super) fn range_removed(&mut self, at: RangeAt) {
        let Some(held) = self.ranges.get_mut(&at.service) else { return };
        if held.remove(&at.range) {
            self.range_rows[at.family() as usize] -= 1;
        }
        if held.is_empty() {
            self.ranges.remove(&at.service);
            self.stray_ranges.remove(&at.service);
        }
    }

    /// All ranges of a family that were written.
    pub(super) fn ranges_of(&self, family: IpFamily) -> impl Iterator<Item = RangeAt> {
        let all = self
            .ranges
            .iter()
            .flat_map(|(&service, held)| held.iter().map(move |&range| RangeAt { service, range }));
        all.filter(move |at| at.family() == family)
    }
}
