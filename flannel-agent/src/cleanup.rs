//! `flannel-agent cleanup`: takes away what was programmed. Not the lease: it is what another
//! agent, or flanneld, finds this node's subnet by.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use agent_kit::{
    attach::detach_clsact,
    ports::{self, PortRange, ReservedPortsArgs},
    reason::hint,
};
use serde::Serialize;

use crate::{
    device,
    entries::Op,
    kernel::{Kernel, KernelError},
    object,
    overlay::HOOKS,
};

/// What was there.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    pub devices: Vec<String>,
    pub routes: Vec<String>,
    /// Where programs and tables were pinned.
    pub pins: Option<PathBuf>,
    pub reserved_ports: Option<PortRange>,
    pub subnet_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot remove pins below {path}: {source}{}", hint(source))]
    Pins { path: PathBuf, source: io::Error },
    #[error(
        "cannot take {range} out of net.ipv4.ip_local_reserved_ports: {source}{}",
        hint(source)
    )]
    Ports { range: PortRange, source: io::Error },
    #[error("cannot remove {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Removes all there is. Needs a tokio runtime.
pub async fn cleanup(
    subnet_file: &Path,
    bpffs: &Path,
    nat_ports: PortRange,
    reserved: &ReservedPortsArgs,
) -> Result<Removed, CleanupError> {
    let kernel = Kernel::open().map_err(CleanupError::Netlink)?;
    let mut removed = Removed::default();
    // Routes over the uplink are known by their protocol, those over tunnels go with them.
    let entries = kernel.entries(&[], &[]).await?;
    for (network, hop) in entries.routes {
        kernel.apply(&Op::RemoveRoute { network, hop }).await?;
        removed.routes.push(network.to_string());
    }
    for network in entries.blackholes {
        kernel.apply(&Op::RemoveBlackhole { network }).await?;
        removed.routes.push(network.to_string());
    }
    let pins = object::pins(bpffs);
    for found in kernel.listing().await?.interfaces {
        // Filters of kernels without tcx stay on a device until they are taken off.
        detach_clsact(&HOOKS, &found.name);
        if device::is_name(&found.name) && found.vxlan.is_some() {
            kernel.remove_link(found.index, &found.name).await?;
            removed.devices.push(found.name);
        }
    }
    if pins.root().exists() {
        let failed = |source| CleanupError::Pins { path: pins.root().into(), source };
        pins.remove().map_err(failed)?;
        removed.pins = Some(pins.root().into());
    }
    if ports::release(&reserved.reserved_ports_file, nat_ports)
        .map_err(|source| CleanupError::Ports { range: nat_ports, source })?
    {
        removed.reserved_ports = Some(nat_ports);
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
    lines.extend(removed.pins.iter().map(|path| format!("removed pins below {}", path.display())));
    lines.extend(removed.reserved_ports.iter().map(|ports| format!("gave back ports {ports}")));
    lines.extend(removed.subnet_file.iter().map(|path| format!("removed {}", path.display())));
    if lines.is_empty() {
        lines.push("nothing to remove".into());
    }
    lines.join("\n") + "\n"
}
