//! A cluster in network namespaces: nodes, pods and an outside client on one machine.
//!
//! [`Lab::up`] raises it, dropping the [`Lab`] takes it down. Nothing touches the host's own
//! network: every device lives in a namespace named `mr-<lab>-<place>`, every process in a
//! cgroup below `millrace-lab-<lab>`. What a killed owner left behind is removed by the next
//! lab, or by `cargo xtask lab down`. Nodes that shall have a kubelet are made machines of their own
//! ([`machine`]), whose mounts nobody else sees and which keep what they write in memory.

pub mod address;
pub mod agent;
pub mod api_server;
pub mod bench;
mod bpffs;
mod cgroup;
pub mod container;
pub mod containerd;
pub mod control_plane;
mod error;
pub mod etcd;
pub mod flanneld;
pub mod kube_proxy;
pub mod kubelet;
pub mod kubernetes;
mod lab;
pub mod machine;
pub mod manifests;
mod namespace;
mod network;
mod old_kernel;
pub mod overlay;
pub mod peer;
mod place;
mod process;
mod record;
mod spec;
pub mod survey;

pub use crate::{
    error::{Error, Result},
    lab::Lab,
    place::Place,
    process::Process,
    record::{Lifetime, remove_all, remove_leftovers},
    spec::{LabSpec, NodeSpec, PodLinks},
};

use std::path::PathBuf;

/// Where `cargo xtask` puts the binaries that labs run.
pub fn dist() -> PathBuf {
    if let Some(dist) = std::env::var_os("MILLRACE_DIST") {
        return dist.into();
    }
    // Of the package that cargo runs; when run by hand, of this one where it was built.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().unwrap_or(&package).join("target/dist")
}

/// Where `cargo xtask build --peers` puts the programs of other projects: beside [`dist`].
pub fn peers() -> PathBuf {
    dist().with_file_name("peers")
}
