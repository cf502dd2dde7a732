//! A real flanneld on a node of the lab, to be measured beside flannel-agent.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::Result,
    lab::Lab,
    place::Place,
    process::{self, Process},
};

/// flanneld of one node. Dropping it kills it, and what it programmed stays.
#[derive(Debug)]
pub struct Flanneld {
    place: Place,
    binary: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Flanneld {
    /// One that is not started yet: with leases in etcd, and rules by iptables as it comes. It
    /// shall find the subnet that the lab's pods on this node have, by way of `subnet.env`.
    pub fn prepare(lab: &Lab, node: &str, binary: &Path, endpoint: &str) -> Result<Self> {
        let flags = [
            format!("-etcd-endpoints={endpoint}"),
            "-iface=eth0".into(),
            "-ip-masq".into(),
            format!("-subnet-file={}", lab.subnet_file(node).display()),
            "-healthz-port=0".into(),
        ];
        Ok(Self {
            place: lab.place(node)?,
            binary: binary.into(),
            arguments: flags.into(),
            log: lab.directory(node).join("flanneld.log"),
            process: None,
        })
    }

    /// Starts the process without waiting for anything. Its log is appended to.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments);
        process::log_to(&mut command, &self.log)?;
        self.process = Some(self.place.spawn(command)?);
        Ok(())
    }

    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The last lines of the log, for a failure's report.
    pub fn log_tail(&self) -> String {
        process::log_tail(&self.log)
    }
}
