//! The Services of the cases: each is known by a number, from which its addresses and ports
//! follow, and has a TCP and a UDP port.

use std::net::{IpAddr, SocketAddr};

use lab::{
    Lab,
    manifests::{self, Port, Service},
};
use serde_json::{Value, json};

use crate::cluster::ok;

/// The port of every cluster IP.
pub(crate) const PORT: u16 = 80;
/// What the servers in pods listen on.
pub(crate) const TARGET: u16 = 8080;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// Of a pair of addresses, that of this family.
    pub(crate) fn of(self, both: [IpAddr; 2]) -> IpAddr {
        both[usize::from(self == Self::V6)]
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    ClusterIp(u8),
    /// A cluster IP on a port of one's own choice.
    Port(u8, u16),
    NodePort(&'static str, u8),
    /// A node on a port of one's own choice.
    NodePortAt(&'static str, u16),
    /// For a Service that [`Exposed::balanced`] has made one of a load balancer.
    LoadBalancer(u8),
}

impl Target {
    pub(crate) fn address(self, lab: &Lab, family: Family) -> SocketAddr {
        match self {
            Self::ClusterIp(number) => SocketAddr::new(family.of(cluster_ips(number)), PORT),
            Self::Port(number, port) => SocketAddr::new(family.of(cluster_ips(number)), port),
            Self::LoadBalancer(number) => SocketAddr::new(family.of(balancers(number)), PORT),
            Self::NodePort(node, number) => {
                Self::NodePortAt(node, node_port(number)).address(lab, family)
            }
            Self::NodePortAt(node, port) => {
                let node = ok(lab.addresses(node)).both();
                SocketAddr::new(family.of(node), port)
            }
        }
    }
}

/// Service 10 is 10.96.0.10 and fd00:10:96::10.
pub(crate) fn cluster_ips(number: u8) -> [IpAddr; 2] {
    let v6 = format!("fd00:10:96::{number}").parse().expect("decimal digits are hexadecimal ones");
    [IpAddr::from([10, 96, 0, number]), v6]
}

/// The load balancer of Service 10 is 10.96.1.10 and fd00:10:96::100a: the client knows the way.
pub(crate) fn balancers(number: u8) -> [IpAddr; 2] {
    let v6 = format!("fd00:10:96::10{number:02x}").parse().expect("hexadecimal digits");
    [IpAddr::from([10, 96, 1, number]), v6]
}

pub(crate) fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

pub(crate) fn name(number: u8) -> String {
    format!("web{number}")
}

/// A Service with its endpoints, as one file of manifests.
#[derive(Clone, Debug)]
pub(crate) struct Exposed {
    pub(crate) number: u8,
    service: Service,
    ports: [Port; 2],
    pods: Vec<String>,
}

/// The Service of a number, served by these pods (or processes of nodes).
pub(crate) fn expose(number: u8, pods: &[&str]) -> Exposed {
    expose_at(number, TARGET, pods)
}

/// The same with servers on another port than all others.
pub(crate) fn expose_at(number: u8, target: u16, pods: &[&str]) -> Exposed {
    let ports = [Port::tcp("tcp", PORT, target), Port::udp("udp", PORT, target)];
    let [v4, v6] = cluster_ips(number);
    let mut service = Service::new(&name(number)).cluster_ip(v4).cluster_ip(v6);
    for port in ports {
        service = service.port(port).node_port(node_port(number));
    }
    let pods = pods.iter().map(ToString::to_string).collect();
    Exposed { number, service, ports, pods }
}

impl Exposed {
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(Service) -> Service) -> Self {
        self.service = change(self.service);
        self
    }

    /// Has a load balancer that admits these sources.
    #[must_use]
    pub(crate) fn balanced(self, ranges: &[String]) -> Self {
        let ingress = balancers(self.number).map(|ip| json!({"ip": ip}));
        self.with(|service| {
            service
                .set("/spec/type", json!("LoadBalancer"))
                .set("/spec/loadBalancerSourceRanges", json!(ranges))
                .set("/status/loadBalancer/ingress", json!(ingress))
        })
    }

    pub(crate) fn file(&self) -> String {
        format!("{}.yaml", name(self.number))
    }

    pub(crate) fn documents(&self, lab: &Lab) -> Vec<Value> {
        let pods: Vec<&str> = self.pods.iter().map(String::as_str).collect();
        let mut documents = vec![self.service.clone().build()];
        documents.extend(ok(manifests::slices(lab, &name(self.number), &self.ports, &pods)));
        documents
    }

    /// The backends that must be programmed, as `services` shows them.
    pub(crate) fn backends(&self, lab: &Lab) -> Vec<SocketAddr> {
        let both = |pod: &String| ok(lab.addresses(pod)).both();
        let target = self.ports[0].target;
        let mut all: Vec<SocketAddr> =
            self.pods.iter().flat_map(both).map(|ip| SocketAddr::new(ip, target)).collect();
        all.sort();
        all
    }
}
