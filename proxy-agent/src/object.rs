//! The proxy's eBPF object, embedded, and how it is loaded.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use agent_kit::{
    bpf::{self, XdpMode},
    embedded::{Embedded, LoadError},
    object::{Loaded, Pins},
};

use crate::{config::Xdp, xdp};

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
        "PORTMARKS",
        "AFFINITY4",
        "AFFINITY6",
        "RANGES4",
        "RANGES6",
        "LOADS",
    ],
    &["FLOWS4", "FLOWS6", "PENDING4", "PENDING6", "MARKS"],
    &["SOCKETS4", "SOCKETS6", "PEERS4", "PEERS6", "PEERMARKS"],
];

/// The overlay's tables that tell of nodes.
const NODES: [&str; 4] = ["TUNNELS", "VTEPS4", "VTEPS6", "SENDERS"];

/// Their numbers in the kernel, where there is an overlay.
pub type Nodes = [Option<u32>; NODES.len()];

/// The object, if this binary holds it.
pub const EMBEDDED: Embedded = Embedded { bytes: OBJECT, groups: GROUPS };

/// Pins of the proxy below the path of `--bpffs`.
pub fn pins(bpffs: &Path) -> Pins {
    Pins::new(bpffs.join("proxy"))
}

/// Makes the pins again that another hand removed; gives the names of the tables.
pub fn restore<'a>(
    bpffs: &Path,
    loaded: &'a Loaded,
    claim: &mut File,
) -> Result<Vec<&'a str>, LoadError> {
    EMBEDDED.restore(bpffs, &pins(bpffs), loaded, claim)
}

/// The overlay's tables as they are pinned now.
pub fn nodes(bpffs: &Path) -> Nodes {
    NODES.map(|name| {
        let map = bpf::obj_get(&nodes_pin(bpffs, name)).ok()?;
        bpf::map_id(map.as_fd()).ok()
    })
}

fn nodes_pin(bpffs: &Path, name: &str) -> PathBuf {
    bpffs.join("overlay/maps").join(name)
}

/// Loads the object, with tables that nobody else may write while the file lives. Of the programs that
/// see frames of uplinks first, it is the one that is asked for: they are long to verify.
pub fn load(
    bpffs: &Path,
    capacities: &BTreeMap<String, u32>,
    asked: Xdp,
) -> Result<(Loaded, File), LoadError> {
    let claim = EMBEDDED.claim(bpffs, &pins(bpffs))?;
    Ok((reload(bpffs, capacities, asked)?, claim))
}

/// The same by the process that loaded it before.
pub fn reload(
    bpffs: &Path,
    capacities: &BTreeMap<String, u32>,
    asked: Xdp,
) -> Result<Loaded, LoadError> {
    let shared = NODES.map(|name| (name, nodes_pin(bpffs, name)));
    let unused = [XdpMode::Native, XdpMode::Generic]
        .into_iter()
        .filter(|&mode| asked.mode() != Some(mode))
        .map(xdp::program);
    EMBEDDED.load(&pins(bpffs), capacities, &shared, &unused.collect::<Vec<_>>())
}
