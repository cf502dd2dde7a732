//! `proxy-agent cleanup`: takes everything off the node that the proxy left on it. What is not
//! there needs no removing, so it can be run any number of times.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use agent_kit::{
    attach::{AttachError, detach_clsact},
    link::LinkError,
    mount,
    ports::{self, PortRange, ReservedPortsArgs},
    reason::hint,
};
use serde::Serialize;

use crate::{
    attach::{DEVICE_HOOKS, detach_sockets},
    leftovers::{self, Leftover, LeftoverError},
    object,
    status::{AttachmentsError, attachments},
};

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Attachments(#[from] AttachmentsError),
    #[error(transparent)]
    Links(#[from] LinkError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot remove pins below {path}: {source}{}", hint(source))]
    Pins { path: PathBuf, source: io::Error },
    #[error("cannot give back ports {range}: {source}{}", hint(source))]
    Ports { range: PortRange, source: io::Error },
    #[error("--kube-proxy: {0}")]
    KubeProxy(#[from] LeftoverError),
}

/// What was removed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Removed {
    pub links: Vec<String>,
    pub filters: Vec<String>,
    pub pins: Option<PathBuf>,
    pub reserved_ports: Option<PortRange>,
    pub unmounted: Option<PathBuf>,
    /// What kube-proxy had left.
    pub kube_proxy: Vec<Leftover>,
    /// An agent is running, so that only what kube-proxy left was removed.
    pub agent_runs: bool,
}

/// Removes what kube-proxy left. Millrace's own goes too unless an agent is running: then it has
/// just taken kube-proxy's place.
pub fn cleanup_kube_proxy(
    bpffs: &Path,
    ports: PortRange,
    reserved: &ReservedPortsArgs,
) -> Result<Removed, CleanupError> {
    let kube_proxy = leftovers::remove()?;
    if object::pins(bpffs).is_claimed() {
        return Ok(Removed { kube_proxy, agent_runs: true, ..Removed::default() });
    }
    Ok(Removed { kube_proxy, ..cleanup(bpffs, ports, reserved)? })
}

/// Removes programs first, then what they used.
pub fn cleanup(
    bpffs: &Path,
    ports: PortRange,
    reserved: &ReservedPortsArgs,
) -> Result<Removed, CleanupError> {
    let mut removed = Removed::default();
    let pins = object::pins(bpffs);
    let links = agent_kit::link::Links::new(pins.links());
    let attached = attachments(bpffs)?;
    for attachment in attached.iter().filter(|attachment| attachment.filter.is_none()) {
        removed.links.push(format!("{} on {}", attachment.program, attachment.target));
    }
    detach_sockets(&links)?;
    for link in links.list()? {
        links.detach_now(&link.name)?;
    }
    for attachment in attached.iter().filter(|attachment| attachment.filter.is_some()) {
        if detach_clsact(&DEVICE_HOOKS, &attachment.target) {
            removed.filters.push(attachment.target.clone());
        }
    }
    if pins.root().exists() {
        let failed = |source| CleanupError::Pins { path: pins.root().into(), source };
        pins.remove().map_err(failed)?;
        removed.pins = Some(pins.root().into());
    }
    if ports::release(&reserved.reserved_ports_file, ports)
        .map_err(|source| CleanupError::Ports { range: ports, source })?
    {
        removed.reserved_ports = Some(ports);
    }
    // Another agent's pins may still be there; then the directory stays.
    if mount::unmount_own(bpffs) {
        removed.unmounted = Some(bpffs.into());
    }
    let _ = fs::remove_dir(bpffs);
    Ok(removed)
}

/// For people.
pub fn print(removed: &Removed) -> String {
    let mut lines = Vec::new();
    lines.extend(
        removed.kube_proxy.iter().map(|Leftover { by, what }| format!("removed {by}: {what}")),
    );
    lines.extend(removed.links.iter().map(|link| format!("detached {link}")));
    lines.extend(removed.filters.iter().map(|device| format!("removed filters of {device}")));
    lines.extend(removed.pins.iter().map(|path| format!("removed pins in {}", path.display())));
    lines.extend(removed.reserved_ports.iter().map(|ports| format!("gave back ports {ports}")));
    lines.extend(removed.unmounted.iter().map(|path| format!("unmounted {}", path.display())));
    if lines.is_empty() {
        lines.push("nothing to remove".into());
    }
    if removed.agent_runs {
        lines.push("an agent is running, so what Millrace programmed stays".into());
    }
    lines.join("\n") + "\n"
}
