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
        let etcd = Etcd::in_place(lab, "fabric")?;
        etcd.put(&format!("{PREFIX}/config"), config)?;
        let mut all = vec![format!("-etcd-endpoints={}", etcd.endpoint())];
        all.extend(arguments.iter().map(ToString::to_string));
        let nodes = lab.spec().nodes.iter();
        let agents = nodes.map(|node| Agent::prepare_overlay(lab, &node.name, &all));
        Ok(Self { agents: agents.collect::<Result<_>>()?, etcd })
    }

    /// Joins all nodes, each with the subnet that its pods have.
    pub fn join(lab: &Lab, config: &str, arguments: &[&str]) -> Result<Self> {
        let mut overlay = Self::prepare(lab, config, arguments)?;
        for (number, node) in lab.spec().nodes() {
            remember(lab, &node.name, number)?;
        }
        for agent in &mut overlay.agents {
            agent.launch()?;
        }
        for agent in &mut overlay.agents {
            agent.wait_ready()?;
        }
        Ok(overlay)
    }

    /// Leaves all of it running when this process ends (kept labs).
    pub fn let_go(self) {
        self.agents.into_iter().for_each(Agent::let_go);
        self.etcd.let_go();
    }
}

/// Leaves a `subnet.env` as an earlier start would have.
pub fn remember(lab: &Lab, node: &str, number: u8) -> Result<()> {
    let [v4, v6] = pod_cidrs(number);
    let text = format!("FLANNEL_SUBNET={v4}\nFLANNEL_IPV6_SUBNET={v6}\n");
    let file = lab.subnet_file(node);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).at("create", directory)?;
    }
    fs::write(&file, text).at("write", &file)
}
