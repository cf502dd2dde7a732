//! The proxy's eBPF object, embedded, and how it is loaded.

use std::{collections::BTreeMap, fs::File, path::Path};

use agent_kit::{
    attach::{self, AttachError},
    mount::{self, MountError},
    object::{self, Loaded, ObjectError, Pins, Request},
};

use aya::Ebpf;

#[cfg(has_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BPF_OBJECT"));
#[cfg(not(has_object))]
static OBJECT: &[u8] = &[];

/// Tables whose rows name rows of each other, or that tell of each other's rows: marks without
/// their rows cost a look, but rows without their marks are never looked for.
const GROUPS: &[&[&str]] = &[
    &[
        "SERVICES",
        "STATS",
        "NAMES",
        "BACKENDS4",
        "BACKENDS6",
        "FRONTENDS4",
        "FRONTENDS6",
        "ADDRESSES4",
        "ADDRESSES6",
        "ADDRESSMARKS",
    ],
    &["FLOWS4", "FLOWS6", "PENDING4", "PENDING6", "MARKS"],
    &["SOCKETS4", "SOCKETS6", "PEERS4", "PEERS6", "PEERMARKS"],
];

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("built without the eBPF programs: use `cargo xtask build`")]
    NotEmbedded,
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Program(#[from] AttachError),
}

/// The object, if this binary holds it.
pub fn embedded() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}

/// Pins of the proxy below the path of `--bpffs`.
pub fn pins(bpffs: &Path) -> Pins {
    Pins::new(bpffs.join("proxy"))
}

/// Loads the object with its maps pinned, and has the kernel verify its programs. Nobody else
/// may do so while the file lives.
pub fn load(bpffs: &Path, capacities: &BTreeMap<String, u32>) -> Result<(Loaded, File), LoadError> {
    let object = embedded().ok_or(LoadError::NotEmbedded)?;
    mount::provide_bpffs(bpffs)?;
    let pins = pins(bpffs);
    let claim = pins.claim()?;
    let request = Request {
        object,
        pins: &pins,
        layout: datapath::maps::LAYOUT,
        capacities,
        groups: GROUPS,
        shared: &[],
    };
    let mut loaded = object::load(&request)?;
    if let Err(err) = attach::load_programs(&mut loaded.ebpf) {
        loaded.discard();
        return Err(err.into());
    }
    Ok((loaded, claim))
}

/// Has the kernel verify the programs with small tables that are pinned nowhere.
pub fn verify() -> Result<Ebpf, LoadError> {
    let object = embedded().ok_or(LoadError::NotEmbedded)?;
    let mut ebpf = object::load_private(object)?;
    attach::load_programs(&mut ebpf)?;
    Ok(ebpf)
}
