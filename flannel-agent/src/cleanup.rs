//! `flannel-agent cleanup`: takes away what was programmed. Not the lease: it is what another
//! agent, or flanneld, finds this node's subnet by.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    device,
    entries::Op,
    kernel::{Kernel, KernelError},
};

/// What was there.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    pub devices: Vec<String>,
    pub routes: Vec<String>,
    pub subnet_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot remove {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Removes all there is. Needs a tokio runtime.
pub async fn cleanup(subnet_file: &Path) -> Result<Removed, CleanupError> {
    let kernel = Kernel::open().map_err(CleanupError::Netlink)?;
    let mut removed = Removed::default();
    // Routes over the uplink are known by their protocol, those over tunnels go with them.
    for (network, hop) in kernel.entries(&[], &[]).await?.routes {
        kernel.apply(&Op::RemoveRoute { network, hop }).await?;
        removed.routes.push(network.to_string());
    }
    for found in kernel.listing().await?.interfaces {
        if device::is_name(&found.name) && found.vxlan.is_some() {
            kernel.remove_link(found.index, &found.name).await?;
            removed.devices.push(found.name);
        }
    }
    match fs::remove_file(subnet_file) {
        Ok(()) => removed.subnet_file = Some(subnet_file.into()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(CleanupError::File { path: subnet_file.into(), source }),
    }
    Ok(removed)
}

/// For people.
pub fn print(removed: &Removed) -> String {
    let mut lines = Vec::new();
    lines.extend(removed.devices.iter().map(|name| format!("removed device {name}")));
    lines.extend(removed.routes.iter().map(|network| format!("removed route to {network}")));
    lines.extend(removed.subnet_file.iter().map(|path| format!("removed {}", path.display())));
    if lines.is_empty() {
        lines.push("nothing to remove".into());
    }
    lines.join("\n") + "\n"
}
