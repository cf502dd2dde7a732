//! A real kube-proxy on a node of the lab, in nftables mode unless another is asked for: to be
//! measured beside proxy-agent, and to leave things behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    address::{CLUSTER_CIDR4, CLUSTER_CIDR6},
    error::{At, Error, Result},
    lab::Lab,
    place::Place,
    process::{self, Process},
};

/// Whether the packets of a bridge pass netfilter, in the namespace that reads it.
const BRIDGED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// kube-proxy of one node. Dropping it kills it, and what it programmed stays.
#[derive(Debug)]
pub struct KubeProxy {
    place: Place,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl KubeProxy {
    /// One that is not started yet.
    pub fn prepare(lab: &Lab, node: &str, binary: &Path, kubeconfig: &Path) -> Result<Self> {
        let flags = [
            ("--proxy-mode", "nftables".into()),
            ("--kubeconfig", kubeconfig.display().to_string()),
            ("--hostname-override", node.into()),
            ("--cluster-cidr", format!("{CLUSTER_CIDR4},{CLUSTER_CIDR6}")),
            // The size of the connection table is the machine's and no namespace's.
            ("--conntrack-max-per-core", "0".into()),
            ("--metrics-bind-address", "127.0.0.1:10249".into()),
            ("--healthz-bind-address", "127.0.0.1:10256".into()),
        ];
        Ok(Self {
            place: lab.place(node)?,
            binary: binary.into(),
            arguments: flags.map(|(flag, value)| format!("{flag}={value}")).into(),
            log: lab.directory(node).join("kube-proxy.log"),
            process: None,
        })
    }

    /// In another of its modes.
    #[must_use]
    pub fn mode(mut self, mode: &str) -> Self {
        self.arguments.push(format!("--proxy-mode={mode}"));
        self
    }

    /// Ends the process and leaves all that it programmed.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().map(drop).at("kill", &self.binary),
            None => Ok(()),
        }
    }

    /// Starts the process without waiting for anything. Its log is appended to.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments);
        process::log_to(&mut command, &self.log)?;
        self.process = Some(self.place.spawn(command)?);
        Ok(())
    }

    /// Ends the process and removes its rules and what they had the kernel track. The node's
    /// namespace holds no others, so all there are go; tracking, which only rules ask for, ends
    /// with them.
    pub fn remove(&mut self) -> Result<()> {
        self.kill()?;
        self.place.shell("nft flush ruleset")?;
        self.forget()
    }

    /// Has the kernel forget the connections that it tracks on the node.
    pub fn forget(&self) -> Result<()> {
        self.place.shell("conntrack --flush").map(drop)
    }

    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The last lines of the log, for a failure's report.
    pub fn log_tail(&self) -> String {
        process::log_tail(&self.log)
    }
}

/// Has packets between pods of one bridge pass netfilter on a node. kube-proxy needs that: the
/// answer of a backend on the client's own bridge is not routed, and were it not translated
/// back there, the client would refuse it.
pub fn pass_bridged(place: &Place) -> Result<()> {
    let written = place.enter(|| fs::write(BRIDGED, "1"))?;
    written.map_err(|_| Error::NoBridgeNetfilter { path: BRIDGED, who: "kube-proxy" })
}

/// Connections that the kernel tracks in a place.
pub fn tracked(place: &Place) -> Result<u64> {
    const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = place.enter(|| fs::read_to_string(COUNT))?.at("read", COUNT)?;
    Ok(text.trim().parse().unwrap_or(0))
}
