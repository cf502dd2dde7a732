//! Nodes joined by the overlay, with both agents on each: the demo, and a lab to explore.

use anyhow::{Context, Result};
use lab::{
    Lab, LabSpec,
    agent::{Agent, AgentOptions, SocketLb},
    overlay::{DUAL_STACK, Overlay, POD_MTU},
};

/// Two nodes whose pods reach no other node until agents run.
pub(crate) fn spec() -> LabSpec {
    LabSpec { overlay: true, pod_mtu: POD_MTU, ..LabSpec::default() }
}

/// Both agents of all nodes, and the etcd that keeps the leases. Dropping it ends them.
pub(crate) struct Joined {
    // Dropped first: their Services go by the network beneath.
    proxies: Vec<Agent>,
    overlay: Overlay,
}

impl Joined {
    /// Starts them, and waits until each is ready.
    pub(crate) fn start(lab: &Lab, socket_lb: SocketLb) -> Result<Self> {
        let overlay = Overlay::join(lab, DUAL_STACK, &["--ip-masq"])?;
        let mut proxies = Vec::new();
        for node in &lab.spec().nodes {
            let options = AgentOptions { socket_lb, ..AgentOptions::default() };
            proxies.push(Agent::start(lab, &node.name, options)?);
        }
        Ok(Self { proxies, overlay })
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.proxies.iter().chain(&self.overlay.agents)
    }

    /// The proxy of the first node.
    pub(crate) fn first_proxy(&mut self) -> Result<&mut Agent> {
        self.proxies.first_mut().context("a lab has a node")
    }

    /// Leaves all of it running when this process ends.
    pub(crate) fn let_go(self) {
        self.proxies.into_iter().for_each(Agent::let_go);
        self.overlay.let_go();
    }
}

/// What to ask the agents of a lab's first node, for whoever explores it.
pub(crate) fn suggest(lab: &Lab) {
    let exec = "cargo xtask lab exec node1 --";
    println!("  {exec} proxy-agent services --bpffs {}", lab.bpffs("node1").display());
    println!("  {exec} flannel-agent peers");
    println!("  {exec} ip -d link show flannel.1");
}
