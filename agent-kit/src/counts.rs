//! Counters that programs keep, one for each processor.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuArray};

/// A map of such counters.
pub struct Counts(PerCpuArray<MapData, u64>);

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

impl Counts {
    /// Opens the one pinned by this name in `maps`.
    pub fn open(maps: &Path, name: &str) -> Result<Self, MapError> {
        let map = MapData::from_pin(maps.join(name)).and_then(Map::from_map_data)?;
        PerCpuArray::try_from(map).map(Self)
    }

    /// A row, all processors together.
    pub fn sum(&self, index: u32) -> u64 {
        self.0.get(&index, 0).map_or(0, |counts| counts.iter().sum())
    }
}
