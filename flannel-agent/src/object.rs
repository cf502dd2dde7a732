//! The overlay's eBPF object, embedded, and how it is loaded.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use agent_kit::{
    attach::{self, AttachError},
    mount::{self, MountError},
    object::{self, Loaded, ObjectError, Pins, Request},
};

#[cfg(has_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BPF_OBJECT"));
#[cfg(not(has_object))]
static OBJECT: &[u8] = &[];

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("built without the eBPF programs: use `cargo xtask build`, or --datapath kernel")]
    NotEmbedded,
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Program(#[from] AttachError),
}

/// Pins of the overlay below the path of `--bpffs`.
pub fn pins(bpffs: &Path) -> Pins {
    Pins::new(bpffs.join("overlay"))
}

/// The proxy's table of addresses between which it translates, where there is a proxy.
pub fn proxy_marks(bpffs: &Path) -> PathBuf {
    bpffs.join("proxy/maps/MARKS")
}

/// Loads the object with its maps pinned, and has the kernel verify its programs. Nobody else
/// may do so while the file lives.
pub fn load(bpffs: &Path) -> Result<(Loaded, File), LoadError> {
    mount::provide_bpffs(bpffs)?;
    let claim = pins(bpffs).claim()?;
    Ok((reload(bpffs)?, claim))
}

/// The same by the process that loaded it before.
pub fn reload(bpffs: &Path) -> Result<Loaded, LoadError> {
    let object = (!OBJECT.is_empty()).then_some(OBJECT).ok_or(LoadError::NotEmbedded)?;
    let pins = pins(bpffs);
    let capacities = BTreeMap::new();
    let request = Request {
        object,
        pins: &pins,
        layout: datapath::maps::LAYOUT,
        capacities: &capacities,
        groups: &[],
        shared: &[("PROXYMARKS", proxy_marks(bpffs))],
    };
    let mut loaded = object::load(&request)?;
    if let Err(err) = attach::load_programs(&mut loaded.ebpf) {
        loaded.discard();
        return Err(err.into());
    }
    Ok(loaded)
}

/// Has the kernel verify the programs with small tables that are pinned nowhere.
pub fn verify() -> Result<(), LoadError> {
    let object = (!OBJECT.is_empty()).then_some(OBJECT).ok_or(LoadError::NotEmbedded)?;
    let mut ebpf = object::load_private(object)?;
    Ok(attach::load_programs(&mut ebpf)?)
}
