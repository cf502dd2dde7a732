//! The directories in bpffs where the agents of a lab pin their maps and links.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::error::{At, Error, Result};

const MOUNT: &str = "/sys/fs/bpf";

/// The directory of a lab; it exists only while the lab does.
pub(crate) fn of_lab(lab: &str) -> PathBuf {
    Path::new(MOUNT).join(format!("millrace-lab-{lab}"))
}

/// Mounts bpffs if nothing has, and makes the directory.
pub(crate) fn create(path: &Path) -> Result<()> {
    let mounted = statfs(MOUNT).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        mount(Some("bpf"), MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(|source| Error::MountBpf { path: MOUNT.into(), source })?;
    }
    fs::create_dir_all(path).at("create", path)
}

/// Removes all pins, which detaches the links they hold.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}
