//! Which endpoints a flow of UDP may stay with. Whoever sends datagrams is not told that nobody
//! takes them, so a flow whose endpoint no longer serves has to be ended, as kube-proxy does
//! (pkg/proxy/conntrack/cleanup.go). What matters is whether the endpoint serves, and neither
//! traffic policies nor topology nor that it terminates: it may finish what it began.

use std::{collections::HashMap, net::IpAddr};

use datapath::address::protocol;

use crate::{
    compile::{candidates, key},
    desired::{DesiredService, DesiredSet, IpFamily, ServicePortKey},
    model::{EndpointSet, Service},
};

/// Address and port.
pub type Place = (IpAddr, u16);

/// The endpoints that serve, sorted, of each port and family in which a Service speaks UDP.
pub fn of_service(
    service: &Service,
    sets: &[&EndpointSet],
    node: &str,
) -> Vec<(ServicePortKey, Vec<Place>)> {
    let mut found = Vec::new();
    for family in service.cluster_ips.iter().map(IpFamily::of) {
        for port in service.ports.iter().filter(|port| port.proto == protocol::UDP) {
            let endpoints = candidates(port, family, sets, node);
            let serving = endpoints.iter().filter(|candidate| candidate.endpoint.serving);
            let places = serving.map(|found| (found.backend.address, found.backend.port));
            found.push((key(service, port, family), places.collect()));
        }
    }
    found
}

/// Those of a row that the last agent left, sorted: all are believed to serve.
pub fn of_row(row: &DesiredService) -> Vec<Place> {
    let sets = [&row.cluster, &row.local].into_iter().filter_map(|set| match set {
        DesiredSet::Backends(backends) => Some(backends),
        DesiredSet::Reject | DesiredSet::Drop => None,
    });
    let mut places: Vec<Place> =
        sets.flatten().map(|backend| (backend.address, backend.port)).collect();
    places.sort_unstable();
    places
}

/// The endpoints that serve, by what clients address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Serving {
    /// Each sorted.
    endpoints: HashMap<Place, Vec<Place>>,
    /// Nothing but these frontends is left.
    is_whole: bool,
}

impl Serving {
    /// Of some frontends, or of all there are. One without endpoints may be gone.
    pub fn new(endpoints: HashMap<Place, Vec<Place>>, is_whole: bool) -> Self {
        Self { endpoints, is_whole }
    }

    /// True if there is nothing to end.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && !self.is_whole
    }

    /// Whether a flow of UDP to a frontend may stay with an endpoint.
    pub fn keeps(&self, frontend: Place, endpoint: Place) -> bool {
        match self.endpoints.get(&frontend) {
            Some(serving) => serving.binary_search(&endpoint).is_ok(),
            None => !self.is_whole,
        }
    }
}
