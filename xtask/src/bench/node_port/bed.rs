//! Two nodes with a pod each and a client outside. With agents, with kube-proxy, or with neither.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Lab, LabSpec, NodeSpec, Process,
    agent::{Agent, AgentOptions, SocketLb},
    bench::{self, Driver, Order, Round, Seen, port},
    kube_proxy, manifests,
};
use serde_json::Value;

use super::{SERVICES, Target, Way};
use crate::bench::{
    fleet,
    kind::Kind,
    peer::{self, Peer},
    proxy::{Mode, Proxy},
    service::CPUS,
    stage,
};

/// The node whose ports are asked, and the one that the other pod is on.
const NODES: [&str; 2] = ["node1", "node2"];
const PODS: [&str; 2] = ["pod1a", "pod2a"];
const CLIENT: &str = "client";

/// Another address of the client. What is sent to it goes by the node that is asked, also from the
/// other node, which would know a shorter way.
const DETOUR_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 51);
/// Another address of the pod on the other node: the client asks it from that address of its own,
/// by the node that is asked.
const DETOUR_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 200);

/// Further addresses of the pod on the other node, each an endpoint of its Service. Connections to
/// it get a source of the node's, and of ports for these there are 10,000 for each endpoint
/// (`--nat-ports`), each kept for two seconds after its connection: fewer than are opened here.
const ENDPOINTS: [Ipv4Addr; 8] = {
    let mut addresses = [Ipv4Addr::UNSPECIFIED; 8];
    let mut number = 0;
    while number < addresses.len() {
        addresses[number] = Ipv4Addr::new(10, 244, 2, 210 + number as u8);
        number += 1;
    }
    addresses
};

/// How long NodePorts may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Fields are dropped in this order: the lab goes last.
pub(super) struct Bed {
    driver: Driver,
    _servers: Vec<Process>,
    agents: Vec<Agent>,
    peer: Option<Peer>,
    peers: Option<PathBuf>,
    lab: Lab,
}

impl Target {
    fn service(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }

    /// The NodePort of a port.
    const fn node_port(self, port: u16) -> u16 {
        30_000 + port % 1_000 + self as u16 * 100
    }

    fn pod(self) -> &'static str {
        PODS[self as usize]
    }

    fn cluster_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, 11 + self as u8)
    }
}

impl Bed {
    pub(super) fn raise(peers: Option<&Path>) -> Result<Self> {
        let nodes = [0, 1].map(|number| NodeSpec::new(NODES[number], &PODS[number..=number]));
        let lab = Lab::up(LabSpec { nodes: nodes.into(), ..LabSpec::default() })?;
        bench::prepare(&lab.place(CLIENT)?)?;
        route(&lab)?;
        let mut servers = Vec::new();
        for pod in PODS {
            let place = lab.place(pod)?;
            bench::prepare(&place)?;
            servers.push(bench::serve(&place, CPUS[1])?);
        }
        let driver = Driver::start(&lab.place(CLIENT)?, CPUS[0])?;
        if peers.is_some() {
            // For whoever serves the nodes, and for nobody, as between pods.
            for node in NODES {
                kube_proxy::pass_bridged(&lab.place(node)?)?;
            }
        }
        publish(&lab)?;
        let peers = peers.map(Path::to_path_buf);
        Ok(Self { driver, _servers: servers, agents: Vec::new(), peer: None, peers, lab })
    }

    /// Has Services served on both nodes, and waits until the measured ones are.
    pub(super) fn start(&mut self, proxy: Proxy) -> Result<()> {
        match proxy {
            Proxy::Agent(socket_lb) => self.start_agents(socket_lb)?,
            Proxy::KubeProxy(mode) => self.start_peer(mode)?,
        }
        for target in Target::ALL {
            let seen: Seen = self.driver.see(&Order::Follow {
                to: self.node_port(target, port::ECHO)?,
                until: endpoints(&self.lab, target)?[0],
                pause_micros: 5_000,
                patience_millis: PATIENCE.as_millis() as u64,
            })?;
            let log = || self.peer.as_ref().map(Peer::log_tail).unwrap_or_default();
            ensure!(
                seen.complete,
                "the NodePort to the {} pod does not answer within {} s\n{}",
                target.service(),
                PATIENCE.as_secs(),
                log()
            );
        }
        Ok(())
    }

    fn start_agents(&mut self, socket_lb: SocketLb) -> Result<()> {
        for node in NODES {
            let options = AgentOptions { socket_lb, ..AgentOptions::default() };
            self.agents.push(Agent::start(&self.lab, node, options)?);
        }
        Ok(())
    }

    fn start_peer(&mut self, mode: Mode) -> Result<()> {
        if self.peer.is_none() {
            let binaries = self.peers.as_ref().context("no peers have been built")?;
            self.peer = Some(Peer::raise(&self.lab, binaries)?);
        }
        let peer = self.peer.as_mut().context("it has just been raised")?;
        peer.tell(&self.lab.manifests(NODES[0]))?;
        peer.launch(mode)
    }

    /// Ends whatever serves Services, and removes what it left on the nodes.
    pub(super) fn remove(&mut self) -> Result<()> {
        for agent in self.agents.drain(..) {
            let bpffs = self.lab.bpffs(agent.node());
            stage::remove_agent(agent, &bpffs)?;
        }
        self.peer.as_mut().map_or(Ok(()), Peer::remove)
    }

    /// Fails unless whoever serves counts the connections by a NodePort: or the figures would not
    /// be its.
    pub(super) fn prove(&mut self, proxy: Proxy, target: Target) -> Result<()> {
        let opened = Kind::Connections.connections();
        let before = self.counted(proxy, target)?;
        self.round(Kind::Connections, Way::NodePort, target)?;
        let found = self.counted(proxy, target)?.saturating_sub(before);
        // Of those that the kernel tracks, some come to their end meanwhile.
        let wanted = if proxy.is_agent() { opened } else { opened / 2 };
        ensure!(
            found >= wanted,
            "{found} of {opened} connections by the NodePort to the {} pod were counted for {}: \
             the figures are not its",
            target.service(),
            proxy.name()
        );
        Ok(())
    }

    /// Connections by the NodePort as the agent counts them; those that the kernel tracks on the
    /// node with kube-proxy, which counts none.
    fn counted(&self, proxy: Proxy, target: Target) -> Result<u64> {
        if !proxy.is_agent() {
            return peer::tracked(&self.lab, NODES[0]);
        }
        let agent = self.agents.first().context("no agent runs")?;
        let name = format!("default/{}", target.service());
        let output = agent.ask(&["services", &name, "-o", "json"])?;
        let ports: Value =
            serde_json::from_slice(&output.stdout).context("proxy-agent services: no JSON")?;
        let ports = ports.as_array().context("services are a list")?;
        Ok(ports.iter().filter_map(|port| port["packet_connections"].as_u64()).sum())
    }

    pub(super) fn round(&mut self, kind: Kind, way: Way, target: Target) -> Result<Round> {
        let to = match (way, target) {
            (Way::NodePort, _) => self.node_port(target, kind.port())?,
            (Way::Beside | Way::Alone, Target::Remote) => {
                SocketAddrV4::new(DETOUR_POD, kind.port())
            }
            _ => SocketAddrV4::new(self.lab.addresses(target.pod())?.v4, kind.port()),
        };
        Ok(self.driver.round(&kind.order_to(to))?)
    }

    fn node_port(&self, target: Target, port: u16) -> Result<SocketAddrV4> {
        Ok(SocketAddrV4::new(self.lab.addresses(NODES[0])?.v4, target.node_port(port)))
    }
}

/// Gives the client ways to the pods that lie between no other nodes than its question needs, and
/// one to the pod on the other node that takes the way of a NodePort, there and back.
fn route(lab: &Lab) -> Result<()> {
    let [first, second] = [lab.addresses(NODES[0])?.v4, lab.addresses(NODES[1])?.v4];
    lab.shell(CLIENT, &format!("ip address add {DETOUR_CLIENT}/32 dev eth0"))?;
    lab.shell(CLIENT, &format!("ip route add {DETOUR_POD}/32 via {first} src {DETOUR_CLIENT}"))?;
    for (pod, node) in PODS.into_iter().zip([first, second]) {
        let pod = lab.addresses(pod)?.v4;
        lab.shell(CLIENT, &format!("ip route add {pod}/32 via {node}"))?;
    }
    lab.shell(NODES[1], &format!("ip route add {DETOUR_CLIENT}/32 via {first}"))?;
    for address in ENDPOINTS.into_iter().chain([DETOUR_POD]) {
        lab.shell(PODS[1], &format!("ip address add {address}/32 dev lo"))?;
    }
    // A node would tell that there is a shorter way, and the client or the other node take it.
    for place in NODES.into_iter().chain([CLIENT]) {
        lab.shell(
            place,
            "for device in all eth0; do for what in send accept; do \
             echo 0 >/proc/sys/net/ipv4/conf/$device/${what}_redirects; done; done",
        )?;
    }
    Ok(())
}

fn endpoints(lab: &Lab, target: Target) -> Result<Vec<Ipv4Addr>> {
    Ok(match target {
        Target::Local => vec![lab.addresses(target.pod())?.v4],
        Target::Remote => ENDPOINTS.into(),
    })
}

/// Puts Services and Nodes before whoever serves.
fn publish(lab: &Lab) -> Result<()> {
    lab.publish("nodes.yaml", &manifests::nodes(lab))?;
    for node in NODES {
        let directory = lab.manifests(node);
        fs::create_dir_all(&directory)?;
        fleet::write(&directory, 0, SERVICES - Target::ALL.len() as u32)?;
    }
    for target in Target::ALL {
        let mut service = manifests::Service::new(target.service())
            .cluster_ip(target.cluster_ip().into())
            .set("/spec/ipFamilyPolicy", "SingleStack".into());
        let behind = port::behind_service;
        let ports = [
            manifests::Port::tcp("connect", port::CONNECT, behind(port::CONNECT)),
            manifests::Port::tcp("latency", port::LATENCY, behind(port::LATENCY)),
            manifests::Port::tcp("bulk", port::BULK, behind(port::BULK)),
            manifests::Port::udp("echo", port::ECHO, behind(port::ECHO)),
        ];
        for port in ports {
            service = service.port(port).node_port(target.node_port(port.port));
        }
        let node = lab.node_of(target.pod())?;
        let slice = endpoints(lab, target)?
            .into_iter()
            .fold(manifests::Slice::new(target.service(), false, &ports), |slice, address| {
                slice.endpoint(address.into(), node)
            });
        lab.publish(&format!("{}.yaml", target.service()), &[service.build(), slice.build()])?;
    }
    Ok(())
}
