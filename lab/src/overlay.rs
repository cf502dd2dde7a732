//! The overlay of a lab: an etcd where the router stands, and a flannel-agent on each node.

use std::fs;

use crate::{
    Lab,
    address::pod_cidrs,
    agent::Agent,
    error::{At, Result},
    etcd::Etcd,
};

/// What flannel's keys begin with.
pub const PREFIX: &str = "/coreos.com/network";

/// Two families, through tunnels.
pub const DUAL_STACK: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;

/// The MTU of pods behind it: an IPv6 tunnel takes 70 bytes.
pub const POD_MTU: u16 = 1430;

#[derive(Debug)]
pub struct Overlay {
    // Dropped first: agents, then what they talk to.
    pub agents: Vec<Agent>,
    pub etcd: Etcd,
}

impl Overlay {
    /// An etcd with flannel's configuration, and agents with these arguments that are not started.
    pub fn prepare(lab: &Lab, config: &str, arguments: &[&str]) -> Result<Self> {
        let etcd = etcd(lab, config)?;
        Ok(Self { agents: agents(lab, &etcd, arguments)?, etcd })
    }

    /// Joins all nodes, each with the subnet that its pods have.
    pub fn join(lab: &Lab, config: &str, arguments: &[&str]) -> Result<Self> {
        let mut overlay = Self::prepare(lab, config, arguments)?;
        for (number, node) in lab.spec().nodes() {
            remember(lab, &node.name, number, 2)?;
        }
        start(&mut overlay.agents)?;
        Ok(overlay)
    }

    /// Leaves all of it running when this process ends (kept labs).
    pub fn let_go(self) {
        self.agents.into_iter().for_each(Agent::let_go);
        self.etcd.let_go();
    }
}

/// An etcd where the router stands, with flannel's configuration.
pub fn etcd(lab: &Lab, config: &str) -> Result<Etcd> {
    let etcd = Etcd::in_place(lab, "fabric")?;
    etcd.put(&format!("{PREFIX}/config"), config)?;
    Ok(etcd)
}

/// Agents of all nodes that are not started.
pub fn agents(lab: &Lab, etcd: &Etcd, arguments: &[&str]) -> Result<Vec<Agent>> {
    let mut all = vec![format!("-etcd-endpoints={}", etcd.endpoint())];
    all.extend(arguments.iter().map(ToString::to_string));
    let nodes = lab.spec().nodes.iter();
    nodes.map(|node| Agent::prepare_overlay(lab, &node.name, &all)).collect()
}

/// Starts agents at once, and waits until each is ready.
pub fn start(agents: &mut [Agent]) -> Result<()> {
    agents.iter_mut().try_for_each(Agent::launch)?;
    agents.iter_mut().try_for_each(Agent::wait_ready)
}

/// Leaves a `subnet.env` as an earlier start would have, so that the node takes the subnet that
/// the lab's pods on it have: of IPv4, or of as many families as the network has. flanneld takes
/// none of it if it tells of a family that is not configured.
pub fn remember(lab: &Lab, node: &str, number: u8, families: usize) -> Result<()> {
    let lines = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].into_iter().zip(pod_cidrs(number));
    let lines = lines.take(families).map(|(name, subnet)| format!("{name}={subnet}\n"));
    let text: String = lines.collect();
    let file = lab.subnet_file(node);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    fs::write(&file, text).at("write", &file)
}
