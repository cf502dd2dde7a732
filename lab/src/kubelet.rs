//! A real kubelet on a node of the lab that is a machine.

use std::{fs, process::Command};

use crate::{
    address::Families,
    api_server::ApiServer,
    containerd::SOCKET,
    error::{At, Error, Result},
    machine::Machine,
    peers,
    process::Process,
};

/// The address of the cluster's DNS, by kubeadm's custom the tenth of the Services'.
pub const DNS: &str = "10.96.0.10";

/// kubelet of one node, which registers it. It goes with the machine.
#[derive(Debug)]
pub struct Kubelet {
    _process: Process,
}

impl Kubelet {
    /// Starts it without waiting for anything: a node is ready only when it has a network.
    pub fn start(machine: &Machine, api: &ApiServer, families: Families) -> Result<Self> {
        let binary = peers().join("kubelet");
        if !binary.exists() {
            return Err(Error::NoPeer { path: binary });
        }
        let config = machine.directory().join("kubelet.yaml");
        fs::write(&config, configuration()).at("write", &config)?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(&config);
        command.arg("--kubeconfig").arg(api.node_kubeconfig(machine.name()));
        command.args(["--hostname-override", machine.name()]);
        let addresses = machine.place().addresses;
        let own = match families {
            Families::Ipv4 => addresses.v4.to_string(),
            Families::Both => format!("{},{}", addresses.v4, addresses.v6),
        };
        command.args(["--node-ip", &own]);
        Ok(Self { _process: machine.start("kubelet", &command)? })
    }
}

/// Whoever asks may ask all: nothing but the lab reaches it. There are no controllers in the node's
/// cgroup, so none for pods and their classes either.
fn configuration() -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
clusterDNS: [{DNS}]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://{SOCKET}
resolvConf: \"\"
failSwapOn: false
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}
"
    )
}
