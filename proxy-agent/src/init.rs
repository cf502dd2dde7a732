//! `--init-only`: what takes more rights of a node than running there does, so that the agent can be
//! started with fewer afterwards, as kube-proxy has it.

use std::path::PathBuf;

use agent_kit::{
    mount::{self, MountError},
    ports::{self, PortRange, ReserveError},
};
use serde::Serialize;

use crate::{
    config::RunArgs,
    conntrack::{Conntrack, SetError},
};

/// Why a node is not ready.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Ports(#[from] ReserveError),
    #[error(transparent)]
    Conntrack(#[from] SetError),
}

/// What is there now.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    pub bpffs: PathBuf,
    pub reserved_ports: PortRange,
}

/// Mounts the bpf file system, which takes CAP_SYS_ADMIN, sets the ports for masquerading aside, and
/// the times of netfilter's tracking if that is there, which both take a writable /proc/sys.
pub fn init(args: &RunArgs) -> Result<Ready, InitError> {
    mount::provide_bpffs(&args.pins.bpffs)?;
    ports::reserve(&args.reserved_ports.reserved_ports_file, args.nat_ports)?;
    Conntrack::new(&args.netfilter.netfilter_sysctls, &args.conntrack).set()?;
    Ok(Ready { bpffs: args.pins.bpffs.clone(), reserved_ports: args.nat_ports })
}

/// For people.
pub fn print(ready: &Ready) -> String {
    let Ready { bpffs, reserved_ports } = ready;
    format!("a bpf file system is at {}\nports {reserved_ports} are set aside\n", bpffs.display())
}
