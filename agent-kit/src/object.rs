//! Objects loaded with every map pinned.
//!
//! Maps live in `ROOT/maps-LAYOUT-SERIAL/NAME`, and `ROOT/maps` is a symbolic link to the
//! directory in force (a bpf file system takes no dots in names). A process that finds maps of the same make there goes on with them. If
//! they are of another make, it fills a fresh directory beside, puts its programs in place of
//! the old ones, and only then turns the link: until then the old programs and maps work on,
//! and a crash at any point leaves a whole set in force.
//!
//! Maps live as long as the programs that use them, and as the process that has them open: where
//! somebody removes their pins, it pins them again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{Ebpf, EbpfError, EbpfLoader, util::nr_cpus};
use aya_obj::{EbpfSectionKind, Object};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    bpf::{self, MapLayout},
    reason::{chain, hint},
};

/// How long another process may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an object is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("the embedded eBPF object is broken: {0}")]
    Parse(#[from] aya_obj::ParseError),
    #[error("cannot use pin {path}: {source}{}", hint(source))]
    Pin { path: PathBuf, source: io::Error },
    #[error("another agent writes the tables in {path}; stop it, or give this one another --bpffs")]
    Busy { path: PathBuf },
    #[error("{}", chain(source))]
    Load {
        #[from]
        source: EbpfError,
    },
}

/// Where an agent's pins are: `maps`, and `links` beside it.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The maps in force.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn pin_error(&self) -> impl Fn(io::Error) -> ObjectError {
        let path = self.root.clone();
        move |source| ObjectError::Pin { path: path.clone(), source }
    }

    /// Makes this process the one that writes the tables, for as long as the file lives. Waits
    /// a little for one that is just ending. The kernel lets go of the lock of a process that
    /// was killed.
    pub fn claim(&self) -> Result<fs::File, ObjectError> {
        self.claim_within(PATIENCE)
    }

    /// The same at once, for a process that has waited.
    pub fn claim_again(&self) -> Result<fs::File, ObjectError> {
        self.claim_within(Duration::ZERO)
    }

    /// Whether what was claimed is still where others look for it.
    #[must_use]
    pub fn is_here(&self, claim: &fs::File) -> bool {
        let place = |data: fs::Metadata| (data.dev(), data.ino());
        let here = fs::metadata(&self.root).map(place);
        here.is_ok_and(|here| claim.metadata().is_ok_and(|claimed| place(claimed) == here))
    }

    fn claim_within(&self, patience: Duration) -> Result<fs::File, ObjectError> {
        let fail = self.pin_error();
        fs::create_dir_all(&self.root).map_err(&fail)?;
        let root = fs::File::open(&self.root).map_err(&fail)?;
        let give_up = Instant::now() + patience;
        loop {
            match flock(&root, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(root),
                Err(Errno::WOULDBLOCK) if Instant::now() < give_up => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(ObjectError::Busy { path: self.root.clone() });
                }
                Err(err) => return Err(fail(err.into())),
            }
        }
    }

    /// Whether some process writes the tables.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        let Ok(root) = fs::File::open(&self.root) else { return false };
        flock(&root, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }

    /// The directory in force.
    fn current(&self) -> Option<PathBuf> {
        fs::read_link(self.maps()).ok().map(|target| self.root.join(target))
    }

    /// All directories of maps.
    fn generations(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("maps-") {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Removes all pins, which frees maps and takes programs off.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }
}

/// What to load, and where.
#[derive(Debug)]
pub struct Request<'a> {
    pub object: &'a [u8],
    pub pins: &'a Pins,
    /// Version of the meaning of keys and values, where their sizes do not tell.
    pub layout: u32,
    /// Rows of maps where they are not as compiled in.
    pub capacities: &'a BTreeMap<String, u32>,
    /// Maps whose rows refer to each other: if one is made anew, all are.
    pub groups: &'a [&'a [&'a str]],
    /// Maps of another object that this one reads: the name here, and the pin there. Where none of
    /// the same make is pinned, one is made here.
    pub shared: &'a [(&'a str, PathBuf)],
}

/// An object with its maps pinned; its programs are yet to be loaded and attached.
#[derive(Debug)]
pub struct Loaded {
    pub ebpf: Ebpf,
    /// Where the maps are pinned.
    pub maps: PathBuf,
    /// Maps that had to be made anew beside those in force.
    pub remade: Vec<String>,
    /// The maps in force until [`Loaded::take_over`].
    pub replaces: Option<PathBuf>,
    pins: Pins,
    /// Names of maps that are pinned in `maps`.
    names: Vec<String>,
}

/// Creates what is missing, and loads.
pub fn load(request: &Request<'_>) -> Result<Loaded, ObjectError> {
    let pins = request.pins;
    let fail = pins.pin_error();
    fs::create_dir_all(pins.links()).map_err(&fail)?;
    let mut wanted = layouts(request)?;
    let is_same = |(name, path): &&(&str, PathBuf)| {
        let pinned = bpf::obj_get(path).and_then(|map| bpf::map_layout(map.as_fd()));
        pinned.is_ok_and(|pinned| wanted.get(*name) == Some(&pinned))
    };
    let shared: Vec<_> = request.shared.iter().filter(is_same).collect();
    for (name, _) in &shared {
        wanted.remove(*name);
    }
    let current = pins.current().filter(|dir| dir.exists());
    for stale in pins.generations().map_err(&fail)? {
        if current.as_ref() != Some(&stale) {
            fs::remove_dir_all(&stale).map_err(&fail)?;
        }
    }
    let remade = match &current {
        Some(dir) => mismatches(dir, request, &wanted),
        None => Vec::new(),
    };
    let maps = match &current {
        Some(dir) if remade.is_empty() => dir.clone(),
        _ => beside(pins, current.as_deref(), request.layout).map_err(&fail)?,
    };
    if let Some(old) = &current
        && !remade.is_empty()
    {
        for name in wanted.keys().filter(|name| !remade.contains(name)) {
            if let Ok(map) = bpf::obj_get(&old.join(name)) {
                bpf::obj_pin(map.as_fd(), &maps.join(name)).map_err(&fail)?;
            }
        }
    }
    let mut loader = EbpfLoader::new();
    // The kernel's own type information is 20 MB once parsed, and of use to no object of ours.
    loader.btf(None);
    for name in wanted.keys() {
        loader.map_pin_path(name, maps.join(name));
    }
    for (name, path) in shared {
        loader.map_pin_path(name, path);
    }
    for (name, rows) in request.capacities {
        loader.map_max_entries(name, *rows);
    }
    let ebpf = match loader.load(request.object) {
        Ok(ebpf) => ebpf,
        Err(err) => {
            if current.as_ref() != Some(&maps) {
                let _ = fs::remove_dir_all(&maps);
            }
            return Err(err.into());
        }
    };
    let replaces = current.filter(|dir| *dir != maps);
    let first = replaces.is_none();
    let names = wanted.into_keys().collect();
    let loaded = Loaded { ebpf, maps, remade, replaces, pins: pins.clone(), names };
    if first {
        loaded.point().map_err(&fail)?;
    }
    Ok(loaded)
}

impl Loaded {
    /// Declares the maps to be those in force, and removes the ones before.
    pub fn take_over(&mut self) -> Result<(), ObjectError> {
        let fail = self.pins.pin_error();
        if let Some(old) = self.replaces.take() {
            self.point().map_err(&fail)?;
            fs::remove_dir_all(&old).map_err(&fail)?;
        }
        Ok(())
    }

    /// Pins again the maps that somebody else unpinned meanwhile; gives their names.
    pub fn restore(&self) -> Result<Vec<&str>, ObjectError> {
        let is_missing = |name: &&String| self.maps.join(name).symlink_metadata().is_err();
        let missing: Vec<&String> = self.names.iter().filter(is_missing).collect();
        if !missing.is_empty() {
            fs::create_dir_all(&self.maps).map_err(self.pins.pin_error())?;
        }
        let mut restored = Vec::new();
        for name in missing {
            let Some(map) = self.ebpf.map(name) else { continue };
            let path = self.maps.join(name);
            map.pin(&path).map_err(|err| ObjectError::Pin {
                path: path.clone(),
                source: io::Error::other(chain(&err)),
            })?;
            restored.push(name.as_str());
        }
        if self.replaces.is_none() {
            self.point().map_err(self.pins.pin_error())?;
        }
        Ok(restored)
    }

    /// Removes what was made beside the maps in force, if the programs are not to run.
    pub fn discard(self) {
        if self.replaces.is_some() {
            let _ = fs::remove_dir_all(&self.maps);
        }
    }

    fn point(&self) -> io::Result<()> {
        let name = self.maps.file_name().unwrap_or_default();
        if fs::read_link(self.pins.maps()).is_ok_and(|target| target == Path::new(name)) {
            return Ok(());
        }
        let fresh = self.pins.root.join("next");
        let _ = fs::remove_file(&fresh);
        symlink(name, &fresh)?;
        fs::rename(&fresh, self.pins.maps())
    }
}

/// Rows of maps that only programs on trial use.
const FEW_ROWS: u32 = 64;

/// Loads an object whose maps are small, pinned nowhere, and go with the value returned.
pub fn load_private(object: &[u8]) -> Result<Ebpf, ObjectError> {
    let parsed = Object::parse(object)?;
    let large: Vec<&String> = parsed
        .maps
        .iter()
        .filter(|(_, map)| map.max_entries() > FEW_ROWS)
        .map(|(name, _)| name)
        .collect();
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    for name in large {
        loader.map_max_entries(name, FEW_ROWS);
    }
    Ok(loader.load(object)?)
}

/// What the object's maps are made of.
fn layouts(request: &Request<'_>) -> Result<BTreeMap<String, MapLayout>, ObjectError> {
    let object = Object::parse(request.object)?;
    let maps = object.maps.iter().filter(|(_, map)| {
        // Sections of variables are maps too, and belong to one load.
        matches!(map.section_kind(), EbpfSectionKind::BtfMaps | EbpfSectionKind::Maps)
    });
    // One row for each processor that there may be, which the loader makes of none.
    let rows = |rows: u32| if rows == 0 { nr_cpus().map_or(0, |count| count as u32) } else { rows };
    let layouts = maps.map(|(name, map)| {
        let layout = MapLayout {
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: request.capacities.get(name).copied().unwrap_or(rows(map.max_entries())),
            flags: map.map_flags(),
        };
        (name.clone(), layout)
    });
    Ok(layouts.collect())
}

/// Names of the maps that cannot be used as they are pinned.
fn mismatches(
    dir: &Path,
    request: &Request<'_>,
    wanted: &BTreeMap<String, MapLayout>,
) -> Vec<String> {
    let same_layout = dir
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("maps-"))
        .and_then(|name| name.split_once('-'))
        .is_some_and(|(layout, _)| layout == request.layout.to_string());
    if !same_layout {
        return wanted.keys().cloned().collect();
    }
    let differs = |name: &str| {
        let pinned = bpf::obj_get(&dir.join(name)).and_then(|map| bpf::map_layout(map.as_fd()));
        match (pinned, wanted.get(name)) {
            (Ok(pinned), Some(wanted)) => pinned != *wanted,
            // A map that is not there is made, and one that is no longer used does no harm.
            (Err(err), _) => err.kind() != io::ErrorKind::NotFound,
            (Ok(_), None) => false,
        }
    };
    let group = |name: &str| request.groups.iter().find(|group| group.contains(&name));
    wanted
        .keys()
        .filter(|name| match group(name) {
            Some(group) => group.iter().any(|member| differs(member)),
            None => differs(name),
        })
        .cloned()
        .collect()
}

/// A directory of a name not used yet.
fn beside(pins: &Pins, current: Option<&Path>, layout: u32) -> io::Result<PathBuf> {
    let mut serial = 0;
    loop {
        let dir = pins.root.join(format!("maps-{layout}-{serial}"));
        if current != Some(&dir) && !dir.exists() {
            fs::create_dir(&dir)?;
            return Ok(dir);
        }
        serial += 1;
    }
}
