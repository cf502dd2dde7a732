//! Nodes with an agent each and a real store of leases, and the questions that cases ask of them.

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use agent_kit::{
    Pod,
    table::{MapTable, Table},
};
use datapath::{
    address::{Ipv4, Ipv6},
    tunnel::{NetworkKey, Vtep},
};
pub(crate) use lab::overlay::{DUAL_STACK as DUAL, PREFIX};
use lab::{
    Lab, LabSpec, NodeSpec, Process,
    agent::Agent,
    etcd::Etcd,
    overlay::{self, Overlay, POD_MTU},
    peer::{self, Protocol},
};
use serde_json::Value;

/// IPv4 alone.
pub(crate) const SINGLE: &str =
    r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;
/// The classic devices, with entries for each peer.
pub(crate) const KERNEL: &str = "--datapath=kernel";

/// Datagrams that a load sends in a second.
pub(crate) const DATAGRAMS: u64 = 500;

pub(crate) struct Bed<S = Etcd> {
    // Dropped first: agents, then what they talk to, then the places.
    pub(crate) agents: Vec<Agent>,
    pub(crate) servers: Vec<Process>,
    pub(crate) store: S,
    pub(crate) lab: Lab,
}

pub(crate) fn ok<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|err| panic!("{err}"))
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(answer) = ask() {
            return answer;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("not within 20 s: {what}");
}

impl Bed {
    /// Two nodes with two pods each, joined, each with the subnet that its pods have.
    pub(crate) fn up(config: &str, arguments: &[&str]) -> Self {
        let mut bed = Self::furnished(config, arguments);
        bed.launch();
        bed
    }

    /// The same before anything is started but the servers in the pods.
    pub(crate) fn furnished(config: &str, arguments: &[&str]) -> Self {
        let mut bed = Self::prepare(config, LabSpec::default().nodes, arguments);
        for (number, node) in bed.lab.spec().clone().nodes() {
            ok(overlay::remember(&bed.lab, &node.name, number, 2));
        }
        bed.servers = serve(&bed.lab);
        bed
    }

    /// Nodes whose agents are not started.
    pub(crate) fn prepare(config: &str, nodes: Vec<NodeSpec>, arguments: &[&str]) -> Self {
        let lab = places(nodes);
        let Overlay { agents, etcd } = ok(Overlay::prepare(&lab, config, arguments));
        Self { agents, servers: Vec::new(), store: etcd, lab }
    }
}

/// Nodes whose pods reach no other node yet.
pub(crate) fn places(nodes: Vec<NodeSpec>) -> Lab {
    ok(Lab::up(LabSpec { overlay: true, pod_mtu: POD_MTU, nodes, ..LabSpec::default() }))
}

/// A server in each pod of two nodes.
pub(crate) fn serve(lab: &Lab) -> Vec<Process> {
    let serve = |pod| ok(peer::serve(&ok(lab.place(pod)), &["--tcp=80", "--udp=53"]));
    ["pod1a", "pod1b", "pod2a", "pod2b"].map(serve).into()
}

impl<S> Bed<S> {
    /// Starts all agents at once and waits until each is ready and knows all others.
    pub(crate) fn launch(&mut self) {
        for agent in &mut self.agents {
            ok(agent.launch());
        }
        for agent in &mut self.agents {
            ok(agent.wait_ready());
        }
        let others = self.agents.len() - 1;
        for nth in 0..self.agents.len() {
            eventually("all peers are known", || (self.nodes(nth).len() == others).then_some(()));
        }
    }

    /// Names of the leases of other nodes, as an agent shows them.
    pub(crate) fn nodes(&self, nth: usize) -> Vec<String> {
        let peers = self.show(nth, "peers");
        let names = peers.as_array().into_iter().flatten();
        let mut names: Vec<String> =
            names.map(|peer| peer["name"].as_str().unwrap_or_default().to_owned()).collect();
        names.dedup();
        names
    }

    pub(crate) fn show(&self, nth: usize, command: &str) -> Value {
        let output = ok(self.agents[nth].ask(&[command, "-o", "json"]));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// What the programs of a node hold of peers: pod network, node, and MAC.
    pub(crate) fn vteps(&self, node: &str) -> Vec<String> {
        let maps = self.lab.bpffs(node).join("overlay/maps");
        let mut rows = vteps::<Ipv4>(&maps, "VTEPS4");
        rows.extend(vteps::<Ipv6>(&maps, "VTEPS6"));
        rows
    }

    pub(crate) fn shell(&self, place: &str, line: &str) -> String {
        ok(self.lab.shell(place, line))
    }

    /// Each pod of one node reaches one of the other, by TCP and UDP, IPv4 and IPv6, and is seen
    /// there by its own address.
    pub(crate) fn assert_joined(&self) {
        self.assert_reached(2);
    }

    /// The same by IPv4 alone.
    pub(crate) fn assert_joined_v4(&self) {
        self.assert_reached(1);
    }

    fn assert_reached(&self, families: usize) {
        for (from, to) in [("pod1a", "pod2a"), ("pod2b", "pod1b")] {
            let place = ok(self.lab.place(from));
            let own = ok(self.lab.addresses(from)).both();
            for (family, address) in
                ok(self.lab.addresses(to)).both().into_iter().take(families).enumerate()
            {
                for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
                    let target = SocketAddr::new(address, port);
                    let answer = ok(peer::ask(&place, protocol, target));
                    assert_eq!(answer.name(), Some(to), "{from} {protocol:?} {target}: {answer:?}");
                    let source = answer.source().expect("it answered").ip();
                    assert_eq!(source, own[family], "{from} {protocol:?} {target}");
                }
            }
        }
    }

    /// Both nodes' logs, for a failure.
    pub(crate) fn logs(&self) -> String {
        let logs = self.agents.iter().flat_map(|agent| [agent.node().to_owned(), agent.log()]);
        logs.collect::<Vec<_>>().join("\n")
    }
}

fn vteps<A>(maps: &Path, name: &str) -> Vec<String>
where
    A: Into<IpAddr>,
    NetworkKey<A>: Pod,
    Vtep<A>: Pod,
{
    let table: MapTable<NetworkKey<A>, Vtep<A>> = ok(MapTable::open(maps, name));
    let rows = ok(table.rows()).into_iter().map(|(key, vtep)| {
        let (network, node): (IpAddr, IpAddr) = (key.network.into(), vtep.underlay.into());
        let mac = vtep.mac.0.map(|byte| format!("{byte:02x}")).join(":");
        format!("{network}/{} to {node} {mac}", key.prefix_len)
    });
    let mut rows: Vec<String> = rows.collect();
    rows.sort();
    rows
}

/// A load between pods of two nodes, by IPv4, that a case lets run while it does something.
pub(crate) fn load<S>(bed: &Bed<S>) -> peer::Loading {
    load_on(bed, ok(bed.lab.addresses("pod2a")).v4.into())
}

/// The same from the first pod of the first node to any address. A second has
/// [`DATAGRAMS`] datagrams.
pub(crate) fn load_on<S>(bed: &Bed<S>, target: IpAddr) -> peer::Loading {
    let to = |port| SocketAddr::new(target, port);
    let (tcp, udp) = (format!("--tcp={}", to(80)), format!("--udp={}", to(53)));
    let datagrams = format!("--datagrams={DATAGRAMS}");
    let arguments = [&*tcp, &udp, &datagrams, "--rate=50", "--lasting=2"];
    ok(peer::load(&ok(bed.lab.place("pod1a")), &arguments))
}

/// Source ports of the first packets in tunnels that leave the first node or come to it, until there are so
/// many.
pub(crate) fn source_ports<S>(bed: &Bed<S>, packets: u32, traffic: impl FnOnce()) -> BTreeSet<u16> {
    let mut capture = Command::new("tcpdump");
    capture.args(["-i", "ul0", "-nn", "-l", "-c", &packets.to_string(), "udp dst port 8472"]);
    capture.stdout(Stdio::piped()).stderr(Stdio::piped());
    let capture = ok(bed.lab.spawn("fabric", capture));
    sleep(Duration::from_millis(700));
    traffic();
    let output = ok(capture.output());
    // "… IP 192.168.78.11.5002 > 192.168.78.12.8472: …"; IPv6's likewise.
    let text = String::from_utf8_lossy(&output.stdout);
    let ends = text.lines().filter_map(|line| line.split_once(" > "));
    let outer =
        ends.filter(|(_, to)| to.split(' ').next().is_some_and(|to| to.ends_with(".8472:")));
    let senders = outer.filter_map(|(from, _)| from.rsplit_once('.'));
    senders.filter_map(|(_, port)| port.parse().ok()).collect()
}
