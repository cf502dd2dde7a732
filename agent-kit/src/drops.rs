//! What programs refused: the counters of either object.

use std::path::Path;

use aya::maps::MapError;
use datapath::counter::{Hook, Reason, drop_index};

use crate::counts::Counts;

/// The map `DROPS`.
#[derive(Debug)]
pub struct Drops(Counts);

impl Drops {
    /// Opens the one pinned in `maps`.
    pub fn open(maps: &Path) -> Result<Self, MapError> {
        Counts::open(maps, "DROPS").map(Self)
    }

    /// Of each hook and reason, all processors together.
    pub fn all(&self) -> impl Iterator<Item = (Hook, Reason, u64)> {
        let all = Hook::ALL.into_iter().flat_map(|hook| Reason::ALL.map(|reason| (hook, reason)));
        all.map(|(hook, reason)| (hook, reason, self.0.sum(drop_index(hook, reason))))
    }
}
