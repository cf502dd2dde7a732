//! The overlay's eBPF object, embedded, and how it is loaded.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use agent_kit::{
    embedded::{Embedded, LoadError},
    object::{Loaded, Pins},
};

#[cfg(has_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BPF_OBJECT"));
#[cfg(not(has_object))]
static OBJECT: &[u8] = &[];

/// The object, if this binary holds it.
pub const EMBEDDED: Embedded = Embedded { bytes: OBJECT, groups: &[] };

/// Pins of the overlay below the path of `--bpffs`.
pub fn pins(bpffs: &Path) -> Pins {
    Pins::new(bpffs.join("overlay"))
}

/// The directory of the proxy's tables, where there is a proxy.
pub fn proxy_maps(bpffs: &Path) -> PathBuf {
    bpffs.join("proxy/maps")
}

/// The proxy's table of addresses between which it translates, where there is a proxy.
pub fn proxy_marks(bpffs: &Path) -> PathBuf {
    proxy_maps(bpffs).join("MARKS")
}

/// Makes the pins again that another hand removed; gives the names of the tables.
pub fn restore<'a>(
    bpffs: &Path,
    loaded: &'a Loaded,
    claim: &mut File,
) -> Result<Vec<&'a str>, LoadError> {
    EMBEDDED.restore(bpffs, &pins(bpffs), loaded, claim)
}

/// Loads the object, with tables that nobody else may write while the file lives.
pub fn load(bpffs: &Path) -> Result<(Loaded, File), LoadError> {
    let claim = EMBEDDED.claim(bpffs, &pins(bpffs))?;
    Ok((reload(bpffs)?, claim))
}

/// The same by the process that loaded it before.
pub fn reload(bpffs: &Path) -> Result<Loaded, LoadError> {
    let shared = [("PROXYMARKS", proxy_marks(bpffs))];
    EMBEDDED.load(&pins(bpffs), &BTreeMap::new(), &shared, &[])
}
