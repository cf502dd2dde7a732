//! The matrix as data: Services of every policy and placement, and from where each of their
//! frontends is asked.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    slice,
};

use lab::{
    Lab, address,
    manifests::{Port, Service, Slice},
    peer::Protocol,
};
use serde_json::{Value, json};

use crate::bed::ok;

/// The port of every address that a Service has.
const PORT: u16 = 80;
/// One that no Service has.
const NO_PORT: u16 = 81;
/// What the servers in pods and on nodes listen on.
pub(crate) const TARGET: u16 = 8080;
/// What the outside answers on, for whatever address a proxy leaves alone.
pub(crate) const OUTSIDE: [u16; 2] = [PORT, NO_PORT];

/// A Service, or the lack of one, with its endpoints.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What it has beside addresses and ports, by path.
    fields: Vec<(&'static str, Value)>,
    endpoints: Vec<(&'static str, State)>,
    frontends: &'static [Frontend],
}

/// What a slice says of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    /// Neither ready nor serving.
    Starting,
    /// Serves, is not ready and does not end: nobody sends it anything.
    Unready,
    /// Ends and serves.
    Ending,
    /// Ends and serves no more.
    Ended,
    /// Ready, with a hint for the zone of its own node.
    Hinted,
    /// The same, and one for its own node (trafficDistribution: PreferSameNode).
    NodeHinted,
    /// Ready, with hints for the second node and for both zones.
    FarHinted,
    /// Ready although it ends, as where addresses that are not ready are published.
    Published,
}

use State::{Ended, Ending, FarHinted, Hinted, NodeHinted, Published, Ready, Starting, Unready};

impl State {
    /// Those of an endpoint at a place.
    fn hints(self, place: &str) -> Value {
        let number = if place.contains('1') { 1 } else { 2 };
        let named = |kind: &str, numbers: &[u8]| -> Value {
            numbers.iter().map(|number| json!({"name": format!("{kind}{number}")})).collect()
        };
        match self {
            NodeHinted => {
                json!({"forNodes": named("node", &[number]), "forZones": named("zone", &[number])})
            }
            FarHinted => {
                json!({"forNodes": named("node", &[2]), "forZones": named("zone", &[1, 2])})
            }
            _ => json!({"forZones": named("zone", &[number])}),
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Frontend {
    ClusterIp,
    /// The NodePort at the first node's address, and at the second's.
    NodePort1,
    NodePort2,
    /// The NodePort at the first node's bridge of pods, which is no address of the Node.
    Bridge1,
    /// The NodePort at the node's loopback address.
    Loopback,
    /// A load balancer's address that leads to the first node, and one that leads to the second.
    Balancer1,
    Balancer2,
    /// The same of external addresses.
    External1,
    External2,
    /// Ports that the Service does not have.
    ClusterPort,
    BalancerPort,
    ExternalPort,
}

use Frontend::{
    Balancer1, Balancer2, BalancerPort, Bridge1, ClusterIp, ClusterPort, External1, External2,
    ExternalPort, Loopback, NodePort1, NodePort2,
};

/// Those that a Service of type LoadBalancer has, and addresses of nodes beside them.
const ALL: &[Frontend] = &[
    ClusterIp, NodePort1, NodePort2, Bridge1, Loopback, Balancer1, Balancer2, External1, External2,
];

impl Frontend {
    /// Who asks. `pod1b` is a backend of many Services: it asks itself.
    fn sources(self) -> &'static [&'static str] {
        match self {
            Loopback => &["node1", "node2"],
            Bridge1 => &["pod1a", "pod2a", "node1", "node2"],
            // For everybody else the way is that of the first.
            Balancer2 | External2 => &["client"],
            _ => &["pod1a", "pod1b", "pod2a", "node1", "node2", "client"],
        }
    }

    /// The node whose proxy translates what a source sends there: its own, where it has one.
    fn entry(self, source: &str) -> &'static str {
        match (self, node_of(source)) {
            (NodePort2, _) | (Balancer2 | External2, None) => "node2",
            (NodePort1 | Bridge1, _) | (_, None) => "node1",
            (_, Some(node)) => node,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ClusterIp => "ClusterIP",
            NodePort1 => "NodePort node1",
            NodePort2 => "NodePort node2",
            Bridge1 => "NodePort bridge",
            Loopback => "NodePort loopback",
            Balancer1 => "balancer node1",
            Balancer2 => "balancer node2",
            External1 => "externalIP node1",
            External2 => "externalIP node2",
            ClusterPort => "ClusterIP :81",
            BalancerPort => "balancer :81",
            ExternalPort => "externalIP :81",
        }
    }
}

/// One request of the matrix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Cell {
    pub(crate) case: &'static str,
    pub(crate) frontend: Frontend,
    pub(crate) source: &'static str,
    pub(crate) is_v6: bool,
    pub(crate) is_udp: bool,
}

impl Cell {
    /// The node whose proxy translates it.
    pub(crate) fn entry(&self) -> &'static str {
        self.frontend.entry(self.source)
    }

    pub(crate) fn protocol(&self) -> Protocol {
        if self.is_udp { Protocol::Udp } else { Protocol::Tcp }
    }
}

/// The node that a pod or a process of a node is on.
pub(crate) fn node_of(place: &str) -> Option<&'static str> {
    match place {
        "node1" | "pod1a" | "pod1b" => Some("node1"),
        "node2" | "pod2a" | "pod2b" => Some("node2"),
        _ => None,
    }
}

/// All Services.
pub(crate) fn cases() -> Vec<Case> {
    let external = ("/spec/externalTrafficPolicy", json!("Local"));
    let internal = ("/spec/internalTrafficPolicy", json!("Local"));
    let affinity = ("/spec/sessionAffinity", json!("ClientIP"));
    let admits = |ranges: [&str; 2]| ("/spec/loadBalancerSourceRanges", json!(ranges));
    let label = |name: &str| ("/metadata/labels", json!({ name: "other" }));
    let modes = ("mode", json!("Proxy"));
    let clients = ["192.168.78.50/32", "fd00:78::50/128"];
    let pods = [address::CLUSTER_CIDR4, address::CLUSTER_CIDR6];
    let node = ["192.168.78.11/32", "fd00:78::11/128"];
    let both = || vec![("pod1b", Ready), ("pod2b", Ready)];
    let cluster_only = ("/spec/type", json!("ClusterIP"));
    let all = |name, fields: &[(&'static str, Value)], endpoints| Case {
        name,
        fields: fields.to_vec(),
        endpoints,
        frontends: ALL,
    };
    let policies: [([&str; 5], &[_]); 4] = [
        (["cluster-same", "cluster-other", "cluster-both", "cluster-host1", "cluster-host2"], &[]),
        (
            [
                "external-same",
                "external-other",
                "external-both",
                "external-host1",
                "external-host2",
            ],
            slice::from_ref(&external),
        ),
        (
            [
                "internal-same",
                "internal-other",
                "internal-both",
                "internal-host1",
                "internal-host2",
            ],
            slice::from_ref(&internal),
        ),
        (
            ["local-same", "local-other", "local-both", "local-host1", "local-host2"],
            &[external.clone(), internal.clone()],
        ),
    ];
    let placements: [&[&str]; 5] =
        [&["pod1b"], &["pod2b"], &["pod1b", "pod2b"], &["node1"], &["node2"]];
    let mut cases = Vec::new();
    for (names, fields) in policies {
        for (name, places) in names.into_iter().zip(placements) {
            cases.push(all(name, fields, places.iter().map(|place| (*place, Ready)).collect()));
        }
    }
    let local = [external.clone(), internal.clone()];
    cases.extend([
        all("affinity", slice::from_ref(&affinity), both()),
        all("admits-client", &[admits(clients)], both()),
        all("admits-pods", &[admits(pods)], both()),
        all("admits-node1", &[admits(node)], both()),
        all("admits-client-local", &[admits(clients), external.clone()], both()),
        all("admits-client-empty", &[admits(clients)], vec![]),
        all("empty", &[], vec![]),
        all("empty-local", &local, vec![]),
        all("starting", &[], vec![("pod1b", Starting)]),
        all("unready", &[], vec![("pod1b", Unready)]),
        all("ending", &[], vec![("pod1b", Ending), ("pod2b", Ending)]),
        all("ending-local", &local, vec![("pod1b", Ending)]),
        all("ended", &[], vec![("pod1b", Ended)]),
        all("some-ending", &[], vec![("pod1b", Ending), ("pod2b", Ready)]),
        all("some-ending-local", &local, vec![("pod1b", Ending), ("pod2b", Ready)]),
        all("hinted", &[], vec![("pod1b", Hinted), ("pod2b", Hinted)]),
        all("node-hinted", &[], vec![("pod1b", NodeHinted), ("pod2b", NodeHinted)]),
        all("node-hinted-local", &local, vec![("pod1b", NodeHinted), ("pod2b", NodeHinted)]),
        all("far-hinted", &[], vec![("pod1b", FarHinted), ("pod2b", FarHinted)]),
        all("some-hinted", &[], vec![("pod1b", NodeHinted), ("pod2b", Ready)]),
        all("published", slice::from_ref(&external), vec![("pod1b", Published), ("pod2b", Ending)]),
        all("balancers-own", &[modes], both()),
        all("other-proxy", &[label("service.kubernetes.io/service-proxy-name")], both()),
        all("labelled-headless", &[label("service.kubernetes.io/headless")], both()),
        all(ABSENT, &[], vec![]),
        all("tcp-alone", &[("tcp", json!(true))], both()),
    ]);
    cases.extend([
        // A ClusterIP would have clients stay with backends that are none of its other addresses'.
        Case {
            name: "affinity-local",
            fields: vec![affinity, external],
            endpoints: both(),
            frontends: &[NodePort1, NodePort2, Balancer1, Balancer2, External1, External2],
        },
        Case {
            name: "other-port",
            fields: vec![],
            endpoints: both(),
            frontends: &[ClusterPort, BalancerPort, ExternalPort],
        },
        Case {
            name: "headless",
            fields: vec![
                cluster_only,
                ("/spec/clusterIP", json!("None")),
                ("/spec/clusterIPs", json!(["None"])),
            ],
            endpoints: both(),
            frontends: &[External1],
        },
        Case {
            name: "external-name",
            fields: vec![
                ("/spec/type", json!("ExternalName")),
                ("/spec/externalName", json!("elsewhere.example")),
                ("/spec/clusterIP", Value::Null),
                ("/spec/clusterIPs", Value::Null),
                ("/spec/ipFamilies", Value::Null),
                ("/spec/ipFamilyPolicy", Value::Null),
            ],
            endpoints: both(),
            frontends: &[External1],
        },
    ]);
    cases
}

/// The case of addresses that no Service has.
const ABSENT: &str = "absent";

impl Case {
    /// Whether a client shall stay with its backend.
    pub(crate) fn has_affinity(&self) -> bool {
        self.has("/spec/sessionAffinity")
    }

    /// Whether traffic from outside stays on the node that it reaches.
    pub(crate) fn is_external_local(&self) -> bool {
        self.has("/spec/externalTrafficPolicy")
    }

    /// Whether only some may ask its load balancer.
    pub(crate) fn has_ranges(&self) -> bool {
        self.has("/spec/loadBalancerSourceRanges")
    }

    /// The Service and its slices, for the API server; the status is sent by itself.
    pub(crate) fn objects(&self, number: u8, lab: &Lab) -> Vec<Value> {
        if self.name == ABSENT {
            return vec![];
        }
        let ports = self.ports();
        let [v4, v6] = [false, true].map(|is_v6| address_of(ClusterIp, number, is_v6));
        let mut service = Service::new(self.name).cluster_ip(v4).cluster_ip(v6);
        let is_balanced = self.frontends != [External1];
        for port in &ports {
            service = service.port(*port);
            if is_balanced {
                service = service.node_port(node_port(number));
            }
        }
        let outside = [External1, External2].map(|it| both_of(it, number)).concat();
        service = service
            .set("/spec/type", json!("LoadBalancer"))
            .set("/spec/externalIPs", json!(outside));
        for (path, value) in self.fields.iter().filter(|(path, _)| path.starts_with('/')) {
            service = service.set(path, value.clone());
        }
        let slices = [false, true].map(|is_v6| self.slice(lab, &ports, is_v6));
        [vec![service.build()], slices.into()].concat()
    }

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![Port::tcp("tcp", PORT, TARGET), Port::udp("udp", PORT, TARGET)];
        if self.has("tcp") {
            ports.pop();
        }
        ports
    }

    fn has(&self, field: &str) -> bool {
        self.fields.iter().any(|(path, _)| *path == field)
    }

    fn slice(&self, lab: &Lab, ports: &[Port], is_v6: bool) -> Value {
        let mut slice = Slice::new(self.name, is_v6, ports);
        for (at, (place, state)) in self.endpoints.iter().enumerate() {
            let ip = ok(lab.addresses(place)).both()[usize::from(is_v6)];
            slice = slice.endpoint(ip, node_of(place).expect("endpoints are on nodes"));
            slice = match state {
                Ready => slice,
                Starting => slice.conditions(false, false, false),
                Unready => slice.conditions(false, true, false),
                Ending => slice.conditions(false, true, true),
                Ended => slice.conditions(false, false, true),
                Published => slice.conditions(true, false, true),
                Hinted | NodeHinted | FarHinted => {
                    let path = format!("/endpoints/{at}/hints");
                    slice.set(&path, state.hints(place))
                }
            };
        }
        slice.build()
    }

    /// What a cloud would write into its status; none where it has no load balancer.
    pub(crate) fn status(&self, number: u8) -> Option<Value> {
        if self.name == ABSENT || self.frontends == [External1] {
            return None;
        }
        let mode = if self.has("mode") { "Proxy" } else { "VIP" };
        let ips = [Balancer1, Balancer2].map(|it| both_of(it, number)).concat();
        let ingress: Vec<_> = ips.into_iter().map(|ip| json!({"ip": ip, "ipMode": mode})).collect();
        Some(json!({"status": {"loadBalancer": {"ingress": ingress}}}))
    }

    /// How many may answer one question.
    pub(crate) fn backends(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &frontend in self.frontends {
            for &source in frontend.sources() {
                for (is_v6, is_udp) in [(false, false), (false, true), (true, false), (true, true)]
                {
                    cells.push(Cell { case: self.name, frontend, source, is_v6, is_udp });
                }
            }
        }
        cells
    }
}

const fn node_port(number: u8) -> u16 {
    30_000 + number as u16
}

fn both_of(frontend: Frontend, number: u8) -> Vec<IpAddr> {
    [false, true].map(|is_v6| address_of(frontend, number, is_v6)).into()
}

/// Where a cell's request goes.
pub(crate) fn target(cell: &Cell, number: u8) -> SocketAddr {
    let port = match cell.frontend {
        NodePort1 | NodePort2 | Bridge1 | Loopback => node_port(number),
        ClusterPort | BalancerPort | ExternalPort => NO_PORT,
        _ => PORT,
    };
    SocketAddr::new(address_of(cell.frontend, number, cell.is_v6), port)
}

/// What is to be routed to each node from outside: load balancers' and external addresses.
pub(crate) const ROUTED: [(&str, [&str; 4]); 2] = [
    ("node1", ["203.0.113.0/25", "198.51.100.0/25", "2001:db8:1:1::/64", "2001:db8:2:1::/64"]),
    ("node2", ["203.0.113.128/25", "198.51.100.128/25", "2001:db8:1:2::/64", "2001:db8:2:2::/64"]),
];

/// Service 7 has 10.96.1.7, 203.0.113.7 by the first node and 203.0.113.135 by the second, ...
fn address_of(frontend: Frontend, number: u8, is_v6: bool) -> IpAddr {
    assert!(number < 128, "a /25 has no more");
    let own = u16::from(number);
    let documented = |kind, node| Ipv6Addr::new(0x2001, 0xdb8, kind, node, 0, 0, 0, own).into();
    match (frontend, is_v6) {
        (ClusterIp | ClusterPort, false) => [10, 96, 1, number].into(),
        (ClusterIp | ClusterPort, true) => {
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x100 + own).into()
        }
        (NodePort1, false) => address::node4(1).into(),
        (NodePort1, true) => address::node6(1).into(),
        (NodePort2, false) => address::node4(2).into(),
        (NodePort2, true) => address::node6(2).into(),
        (Bridge1, false) => address::gateway4(1).into(),
        (Bridge1, true) => address::gateway6(1).into(),
        (Loopback, false) => Ipv4Addr::LOCALHOST.into(),
        (Loopback, true) => Ipv6Addr::LOCALHOST.into(),
        (Balancer1 | BalancerPort, false) => [203, 0, 113, number].into(),
        (Balancer1 | BalancerPort, true) => documented(1, 1),
        (Balancer2, false) => [203, 0, 113, 128 + number].into(),
        (Balancer2, true) => documented(1, 2),
        (External1 | ExternalPort, false) => [198, 51, 100, number].into(),
        (External1 | ExternalPort, true) => documented(2, 1),
        (External2, false) => [198, 51, 100, 128 + number].into(),
        (External2, true) => documented(2, 2),
    }
}
