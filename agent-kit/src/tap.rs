//! Taps: programs that run before and behind another program, told of its argument and its answer, for as
//! long as this process has them open. aya loads such programs for functions of the kernel alone.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::{
    maps::{
        Map, MapData, MapError, PerfEventArray,
        perf::{PerfBufferError, PerfEventArrayBuffer},
    },
    util,
};
use aya_obj::{Object, ParseError, relocation::EbpfRelocationError};
use datapath::capture::Places;

use crate::{
    bpf::{self, MapLayout, Tapped, attach_type, map_type},
    counts::Counts,
    kernel_types::{Types, TypesError},
    reason::hint,
};

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("the embedded capture object is broken: {0}")]
    Parse(#[from] ParseError),
    #[error("the embedded capture object is broken: {0}")]
    Relocation(#[from] EbpfRelocationError),
    #[error("the capture object holds no {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Types(#[from] TypesError),
    #[error("cannot make table {name} of the capture: {source}{}", hint(source))]
    Table { name: String, source: io::Error },
    #[error("cannot open the rings of the capture: {0}")]
    Map(#[from] MapError),
    #[error(
        "cannot open the capture's ring of processor {processor}: {source}{}",
        ring_hint(source)
    )]
    Ring { processor: u32, source: PerfBufferError },
    #[error("cannot tell the number of processors: {0}")]
    Processors(io::Error),
    #[error("the kernel refuses program {program}: {source}{}{log}", hint(source))]
    Load { program: &'static str, source: io::Error, log: String },
    #[error("cannot attach {program}: {source}{}", hint(source))]
    Attach { program: &'static str, source: io::Error },
    #[error("cannot tell where the program begins: {0}")]
    Target(io::Error),
}

fn ring_hint(err: &PerfBufferError) -> &'static str {
    match err {
        PerfBufferError::OpenError { io_error } => hint(io_error),
        _ => "",
    }
}

/// The ring of one processor.
pub type Ring = PerfEventArrayBuffer<MapData>;

/// The object whose programs are put before and behind others.
#[derive(Debug)]
pub struct Taps {
    object: Object,
    /// Programs refer to it by its descriptor.
    _places: OwnedFd,
    seen: OwnedFd,
    lost: OwnedFd,
}

/// Programs before and behind one other. Dropping it takes them off.
#[derive(Debug)]
pub struct Tap {
    _links: [OwnedFd; 2],
}

const SEEN: &str = "SEEN";
const PLACES: &str = "PLACES";
const LOST: &str = "LOST";

impl Taps {
    /// Makes the tables of the object, for frames of no more bytes.
    pub fn new(object: &[u8], snap_length: u32) -> Result<Self, TapError> {
        let mut object = Object::parse(object)?;
        let types = Types::read()?;
        let places = Places {
            queue: types.offset("xdp_buff", "rxq")?,
            device: types.offset("xdp_rxq_info", "dev")?,
            index: types.offset("net_device", "ifindex")?,
            pad: 0,
            snap_length,
        };
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| TapError::Table { name, source }
        };
        let array = |map_type, value_size, max_entries| {
            let layout = MapLayout { map_type, key_size: 4, value_size, max_entries, flags: 0 };
            bpf::map_create(layout, None)
        };
        let processors = util::nr_cpus().map_err(|(_, err)| TapError::Processors(err))? as u32;
        let seen = array(map_type::PERF_EVENT_ARRAY, 4, processors).map_err(failed(SEEN))?;
        let table =
            array(map_type::ARRAY, size_of::<Places>() as u32, 1).map_err(failed(PLACES))?;
        bpf::map_update(table.as_fd(), &0_u32, &places).map_err(failed(PLACES))?;
        let lost = array(map_type::PERCPU_ARRAY, 8, 1).map_err(failed(LOST))?;
        let maps = object.maps.clone();
        let mut fds = Vec::new();
        for (name, fd) in [(SEEN, &seen), (PLACES, &table), (LOST, &lost)] {
            let map = maps.get(name).ok_or(TapError::Missing(name))?;
            fds.push((name, fd.as_raw_fd(), map));
        }
        let sections: HashSet<usize> =
            object.functions.keys().map(|(section, _)| *section).collect();
        let sections = sections.into_iter().collect();
        object.relocate_maps(fds.into_iter(), &sections)?;
        object.relocate_calls(&sections)?;
        Ok(Self { object, _places: table, seen, lost })
    }

    /// A ring of this many pages, a power of two, or of the most that this process may have, for each
    /// processor.
    pub fn rings(&self, pages: usize) -> Result<Vec<Ring>, TapError> {
        let seen = self
            .seen
            .try_clone()
            .map_err(|source| TapError::Table { name: SEEN.into(), source })?;
        let mut seen = PerfEventArray::try_from(Map::PerfEventArray(MapData::from_fd(seen)?))?;
        let processors = util::online_cpus().map_err(|(_, err)| TapError::Processors(err))?;
        let (mut rings, mut pages) = (Vec::new(), pages);
        for processor in processors {
            let ring = loop {
                match seen.open(processor, Some(pages)) {
                    Ok(ring) => break ring,
                    // What a user may lock of the memory is used up (`kernel.perf_event_mlock_kb`).
                    Err(PerfBufferError::MMapError { .. }) if pages > 1 => pages /= 2,
                    Err(source) => return Err(TapError::Ring { processor, source }),
                }
            };
            rings.push(ring);
        }
        Ok(rings)
    }

    /// Frames that a ring had no room for.
    pub fn lost(&self) -> Result<Counts, TapError> {
        let lost = self.lost.try_clone();
        let lost = lost.map_err(|source| TapError::Table { name: LOST.into(), source })?;
        Ok(Counts::of(lost)?)
    }

    /// Has the programs `before` and `behind` run there, of which the latter comes first: so nothing
    /// goes in that does not come out.
    pub fn attach(
        &self,
        program: BorrowedFd<'_>,
        before: &'static str,
        behind: &'static str,
    ) -> Result<Tap, TapError> {
        let entry = bpf::program_entry(program).map_err(TapError::Target)?;
        let put = |name: &'static str, attach_type| {
            let found = self.object.programs.get(name);
            let function = found
                .and_then(|found| self.object.functions.get(&found.function_key()))
                .ok_or(TapError::Missing(name))?;
            let tapped = Tapped { program, entry, attach_type };
            let loaded =
                bpf::prog_load_tap(name, &function.instructions, &self.object.license, &tapped)
                    .map_err(|(source, log)| TapError::Load { program: name, source, log })?;
            bpf::tap(loaded.as_fd()).map_err(|source| TapError::Attach { program: name, source })
        };
        let behind = put(behind, attach_type::TRACE_FEXIT)?;
        Ok(Tap { _links: [behind, put(before, attach_type::TRACE_FENTRY)?] })
    }
}
