//! The tap: has the programs tell of frames while it is open, and for a little while after this process has
//! ended without a word. The rings go with the process.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use agent_kit::{
    bpf,
    counts::Counts,
    object::Pins,
    reason::{chain, hint},
    table::{MapTable, OpenError, Table, TableError, open_pinned},
};
use aya::{
    maps::{
        Map, MapData, MapError, PerfEventArray,
        perf::{PerfBufferError, PerfEventArrayBuffer},
    },
    util,
};
use datapath::capture::Capture;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    time::{ClockId, clock_gettime},
};

/// How long the programs go on telling if they are not told to.
const LEASE: Duration = Duration::from_secs(3);

/// Of each processor's ring: 2 MB, or as much of that as this process may lock.
const PAGES: usize = 512;

const SEEN: &str = "SEEN";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("another capture is under way: its programs tell one at a time")]
    Busy,
    #[error("cannot lock the tables for one capture: {0}{hint}", hint = hint(.0))]
    Lock(io::Error),
    #[error("{0}; is the agent older than this command? Then restart it")]
    Open(#[from] OpenError),
    #[error("cannot open the tables of captures: {reason}", reason = chain(.0))]
    Map(#[from] MapError),
    #[error("cannot write table CAPTURE: {0}")]
    Write(#[from] TableError),
    #[error("cannot open the ring of processor {processor}: {}", chain(source))]
    Ring { processor: u32, source: PerfBufferError },
    #[error("cannot tell which processors there are: {0}")]
    Processors(io::Error),
}

/// The ring of one processor.
pub type Ring = PerfEventArrayBuffer<MapData>;

/// An open tap.
pub struct Tap {
    table: MapTable<u32, Capture>,
    lost: Counts,
    lost_before: u64,
    snap_length: u32,
    /// Of the table that the rings are in.
    seen: u32,
    _lock: File,
}

/// The programs' clock.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned() as u32)
}

impl Tap {
    /// Opens the one there is, and a ring for each processor.
    pub fn open(pins: &Pins, snap_length: u32) -> Result<(Self, Vec<Ring>), TapError> {
        let maps = pins.maps();
        let table = MapTable::open(&maps, "CAPTURE")?;
        let lock = File::open(&maps).map_err(TapError::Lock)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(TapError::Busy),
            result => result.map_err(|err| TapError::Lock(err.into()))?,
        }
        let lost = Counts::open(&maps, "LOST")?;
        let map: OwnedFd = open_pinned(&maps, SEEN, Ok)?;
        let seen = bpf::map_id(map.as_fd()).map_err(TapError::Lock)?;
        let rings = rings(map)?;
        let lost_before = lost.sum(0);
        let mut tap = Self { table, lost, lost_before, snap_length, seen, _lock: lock };
        tap.renew()?;
        Ok((tap, rings))
    }

    /// To be called more often than once in [`LEASE`].
    pub fn renew(&mut self) -> Result<(), TapError> {
        let until = (monotonic() + LEASE).as_nanos() as u64;
        let row = Capture { until, snap_length: self.snap_length, pad: 0 };
        Ok(self.table.insert(&0, &row)?)
    }

    /// Frames are told of no more.
    pub fn close(&mut self) -> Result<(), TapError> {
        Ok(self.table.insert(&0, &Capture::default())?)
    }

    /// False once the agent has made its tables anew, and the programs tell elsewhere.
    pub fn is_here(&self, pins: &Pins) -> bool {
        let map = bpf::obj_get(&pins.maps().join(SEEN));
        map.and_then(|map| bpf::map_id(map.as_fd())).is_ok_and(|id| id == self.seen)
    }

    /// Frames that a ring had no room for.
    pub fn lost(&self) -> u64 {
        self.lost.sum(0).saturating_sub(self.lost_before)
    }
}

fn rings(map: OwnedFd) -> Result<Vec<Ring>, TapError> {
    let mut array = PerfEventArray::try_from(Map::PerfEventArray(MapData::from_fd(map)?))?;
    let processors = util::online_cpus().map_err(|(_, err)| TapError::Processors(err))?;
    let mut pages = PAGES;
    let mut open = |processor| loop {
        match array.open(processor, Some(pages)) {
            // What a user may lock of the memory is used up (`kernel.perf_event_mlock_kb`).
            Err(PerfBufferError::MMapError { .. }) if pages > 1 => pages /= 2,
            result => return result.map_err(|source| TapError::Ring { processor, source }),
        }
    };
    processors.into_iter().map(&mut open).collect()
}
