//! One Service to the rows that carry it: pure, and blind to all other Services but for the
//! frontends that they hold.

use std::{collections::BTreeSet, net::IpAddr};

use datapath::{affinity, algorithm::Algorithm, frontend::kind, service::service_flags};
use ipnetwork::IpNetwork;

use crate::{
    desired::{
        DesiredBackend, DesiredFrontend, DesiredService, DesiredSet, IpFamily, ServicePortKey,
    },
    model::{EndpointSet, Service, ServicePort, Weight},
    serving::Ending,
    slots::slots,
    topology::{Candidate, Policies, ready_here, select},
};

/// What this node is called, where its NodePorts answer, and by which addresses it is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// The node's own, wherever NodePorts answer.
    pub own: Vec<IpAddr>,
    /// How backends are chosen of Services that do not say.
    pub algorithm: Algorithm,
    /// The same of Services that are reached from outside.
    pub algorithm_outside: Algorithm,
    /// This node answers clients of backends here that came by another node.
    pub answers: bool,
    /// What ends with its endpoint.
    pub ending: Ending,
}

/// What a Service's port would have clients address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Claim {
    pub frontend: DesiredFrontend,
    pub proto: u8,
    /// Index into the Service's ports.
    pub port: u16,
}

/// All that a Service claims, each address, port and protocol once.
#[must_use]
pub fn claims(service: &Service, node: &NodeFacts) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (index, port) in service.ports.iter().enumerate() {
        let mut claim = |addresses: &[IpAddr], number: u16, kind: u8| {
            claims.extend(addresses.iter().map(|&address| Claim {
                frontend: DesiredFrontend { address, port: number, kind },
                proto: port.proto,
                port: index as u16,
            }));
        };
        claim(&service.cluster_ips, port.port, kind::CLUSTER_IP);
        claim(&service.load_balancer_ips, port.port, kind::LOAD_BALANCER);
        claim(&service.external_ips, port.port, kind::EXTERNAL_IP);
        if port.node_port != 0 {
            claim(&node_addresses(service, node), port.node_port, kind::NODE_PORT);
        }
    }
    first_of_each(&mut claims);
    claims
}

fn node_addresses(service: &Service, node: &NodeFacts) -> Vec<IpAddr> {
    let has_family = |address: &&IpAddr| {
        service.cluster_ips.iter().any(|own| IpFamily::of(own) == IpFamily::of(address))
    };
    node.addresses.iter().filter(has_family).copied().collect()
}

/// One address can stand in a Service twice, as an external IP and a load balancer's say. A
/// node port never takes precedence over a Service's own address.
fn first_of_each(claims: &mut Vec<Claim>) {
    let precedence = |claim: &Claim| (claim.frontend.kind == kind::NODE_PORT, claim.port);
    let place = |claim: &Claim| (claim.frontend.address, claim.frontend.port, claim.proto);
    claims.sort_by_key(|claim| (place(claim), precedence(claim)));
    claims.dedup_by_key(|claim| place(claim));
}

/// The rows of a Service, of which `held` are the frontends that are its own.
#[must_use]
pub fn compile(
    service: &Service,
    sets: &[&EndpointSet],
    held: &[Claim],
    node: &NodeFacts,
    zone: Option<&str>,
) -> Vec<(ServicePortKey, DesiredService)> {
    let mut rows = Vec::new();
    for address in &service.cluster_ips {
        let family = IpFamily::of(address);
        for (index, port) in service.ports.iter().enumerate() {
            let frontends = frontends(held, index, family);
            let row = row(service, port, family, sets, node, zone);
            let (guard, ranges) = guard(service, &frontends, family, &node.own);
            let flags = row.flags | guard;
            let row = DesiredService { frontends, flags, ranges, ..row };
            rows.push((key(service, port, family), row));
        }
    }
    rows
}

/// The name of the row for a Service's port in a family.
#[must_use]
pub fn key(service: &Service, port: &ServicePort, family: IpFamily) -> ServicePortKey {
    ServicePortKey {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        port: port.name.to_string(),
        proto: port.proto,
        family,
    }
}

fn frontends(held: &[Claim], port: usize, family: IpFamily) -> Vec<DesiredFrontend> {
    let mut frontends: Vec<DesiredFrontend> = held
        .iter()
        .filter(|claim| {
            usize::from(claim.port) == port && IpFamily::of(&claim.frontend.address) == family
        })
        .map(|claim| claim.frontend)
        .collect();
    frontends.sort_unstable();
    frontends.shrink_to_fit();
    frontends
}

/// Who may reach the load balancer's addresses: flags and ranges. All of a family is no limit, and
/// so are ranges of the other family alone. A node that is admitted may have one of the addresses
/// itself as its source, which then is admitted too, as with kube-proxy.
fn guard(
    service: &Service,
    frontends: &[DesiredFrontend],
    family: IpFamily,
    own: &[IpAddr],
) -> (u32, Vec<IpNetwork>) {
    let of_family =
        service.source_ranges.iter().filter(|range| IpFamily::of(&range.ip()) == family);
    let mut ranges: BTreeSet<IpNetwork> = of_family.map(without_host_bits).collect();
    let mut balancers = frontends.iter().filter(|f| f.kind == kind::LOAD_BALANCER).peekable();
    let admits_all = ranges.iter().any(|range| range.prefix() == 0);
    if ranges.is_empty() || admits_all || balancers.peek().is_none() {
        return (0, Vec::new());
    }
    let mut flags = service_flags::SOURCE_RANGES;
    if own.iter().any(|address| ranges.iter().any(|range| range.contains(*address))) {
        flags |= service_flags::NODE_ADMITTED;
        ranges.extend(balancers.map(|frontend| IpNetwork::from(frontend.address)));
    }
    (flags, ranges.into_iter().collect())
}

/// The same network, by its own address.
#[must_use]
pub fn without_host_bits(range: &IpNetwork) -> IpNetwork {
    // A length that was valid is.
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(*range)
}

/// A set that no policy uses has the verdict that an empty one would: nobody reads it, and so
/// it costs no backends.
fn row(
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
    sets: &[&EndpointSet],
    node: &NodeFacts,
    zone: Option<&str>,
) -> DesiredService {
    let policies = Policies::of(service, port.node_port, family);
    let default =
        if policies.externally_accessible { node.algorithm_outside } else { node.algorithm };
    let algorithm = service.algorithm.unwrap_or(default);
    let mut candidates = candidates(port, family, sets, &node.name);
    // Of weight zero are those that shall have no new connections.
    candidates.retain(|candidate| weight(service, candidate) != 0);
    let mut selection = select(&candidates, policies, &node.name, zone);
    if node.answers && policies.externally_accessible && !policies.use_local() {
        selection.local = ready_here(&candidates);
    }
    let mut flags = algorithm.flags();
    if policies.internal_local {
        flags |= service_flags::INTERNAL_LOCAL;
    }
    if policies.external_local && policies.externally_accessible {
        flags |= service_flags::EXTERNAL_LOCAL;
    }
    if service.without_sockets {
        flags |= service_flags::PACKETS;
    }
    let weight_of = |backend: &DesiredBackend| {
        let found = candidates.binary_search_by_key(&backend.place(), |c| c.backend.place());
        found.map_or(1, |at| weight(service, &candidates[at]))
    };
    let set = |backends| verdict(slots(backends, weight_of, algorithm), selection.any);
    DesiredService {
        frontends: Vec::new(),
        cluster: set(selection.cluster),
        local: set(selection.local),
        flags,
        ranges: Vec::new(),
        affinity: service.affinity_timeout_sec.map_or(0, affinity::ticks),
    }
}

/// What the endpoint's own object says of it goes before what its Service says.
fn weight(service: &Service, candidate: &Candidate) -> u16 {
    let endpoint = candidate.endpoint;
    let said = || Weight::of(&service.weights, endpoint.address, endpoint.node.as_deref());
    endpoint.weight.or_else(said).unwrap_or(1)
}

fn verdict(mut slots: Vec<DesiredBackend>, any: bool) -> DesiredSet {
    slots.shrink_to_fit();
    match (slots.is_empty(), any) {
        (false, _) => DesiredSet::Backends(slots),
        (true, true) => DesiredSet::Drop,
        (true, false) => DesiredSet::Reject,
    }
}

/// The endpoints of a port, sorted, each address and port once; of two the local one counts,
/// else the first by the name of its EndpointSlice (addEndpoints of pkg/proxy/
/// endpointslicecache.go).
#[must_use]
pub fn candidates<'a>(
    port: &ServicePort,
    family: IpFamily,
    sets: &[&'a EndpointSet],
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in EndpointSet::slices(sets, family) {
        let ports = slice.ports.iter();
        for target in ports.filter(|target| target.name == port.name && target.proto == port.proto)
        {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                backend: DesiredBackend {
                    address: endpoint.address,
                    port: target.port,
                    local: endpoint.node.as_deref() == Some(node),
                },
                endpoint,
            }));
        }
    }
    candidates.sort_by_key(|c| (c.backend.place(), !c.backend.local));
    candidates.dedup_by_key(|c| c.backend.place());
    candidates
}
