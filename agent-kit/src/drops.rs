//! What programs refused: the counters of either object.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use datapath::counter::{Hook, Reason, drop_index};

/// The map `DROPS`.
pub struct Drops(PerCpuArray<MapData, u64>);

impl std::fmt::Debug for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drops").finish_non_exhaustive()
    }
}

impl Drops {
    /// Opens the one pinned in `maps`.
    pub fn open(maps: &Path) -> Result<Self, MapError> {
        let map = MapData::from_pin(maps.join("DROPS")).and_then(Map::from_map_data)?;
        PerCpuArray::try_from(map).map(Self)
    }

    /// Of each hook and reason, all processors together.
    pub fn all(&self) -> impl Iterator<Item = (Hook, Reason, u64)> {
        let all = Hook::ALL.into_iter().flat_map(|hook| Reason::ALL.map(|reason| (hook, reason)));
        all.map(|(hook, reason)| {
            let counts = self.0.get(&drop_index(hook, reason), 0);
            (hook, reason, counts.map_or(0, |counts| counts.iter().sum()))
        })
    }
}
