//! Which endpoints a flow may stay with. Whoever sends datagrams is not told that nobody takes them,
//! so a flow of UDP whose endpoint no longer serves has to be ended, as kube-proxy does
//! (pkg/proxy/conntrack/cleanup.go). What matters is whether the endpoint serves, and neither
//! traffic policies nor topology nor that it terminates: it may finish what it began.
//!
//! A connection of TCP is left to its two ends, as by kube-proxy, or by option reset once its endpoint
//! is no longer in any EndpointSlice of its Service. One that is not ready, or terminates, is still
//! there: a probe that fails for a while shall end no connection, and who terminates drains.

use std::{collections::HashMap, net::IpAddr};

use datapath::address::protocol;

use crate::{
    compile::{candidates, key},
    desired::{DesiredService, DesiredSet, IpFamily, ServicePortKey},
    model::{EndpointSet, Service},
};

/// Address and port.
pub type Place = (IpAddr, u16);

/// What clients address: address and port, and the protocol.
pub type Front = (Place, u8);

/// Flows of which protocols end with their endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ending {
    #[default]
    Udp,
    UdpAndTcp,
}

impl Ending {
    pub fn has(self, proto: u8) -> bool {
        proto == protocol::UDP || proto == protocol::TCP && self == Self::UdpAndTcp
    }
}

/// The endpoints that flows may stay with, sorted, of each port and family of a Service whose flows
/// end with their endpoint.
pub fn of_service(
    service: &Service,
    sets: &[&EndpointSet],
    node: &str,
    ending: Ending,
) -> Vec<(ServicePortKey, Vec<Place>)> {
    let mut found = Vec::new();
    for family in service.cluster_ips.iter().map(IpFamily::of) {
        for port in service.ports.iter().filter(|port| ending.has(port.proto)) {
            let endpoints = candidates(port, family, sets, node);
            let may_stay = endpoints
                .iter()
                .filter(|found| found.endpoint.serving || port.proto == protocol::TCP);
            let places = may_stay.map(|found| (found.backend.address, found.backend.port));
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

/// The endpoints that flows may stay with, by what clients address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Serving {
    /// Each sorted.
    endpoints: HashMap<Front, Vec<Place>>,
    /// Nothing but these frontends is left.
    is_whole: bool,
    ending: Ending,
}

impl Serving {
    /// Of some frontends, or of all there are. One without endpoints may be gone.
    pub fn new(endpoints: HashMap<Front, Vec<Place>>, is_whole: bool, ending: Ending) -> Self {
        Self { endpoints, is_whole, ending }
    }

    /// True if there is nothing to end.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && !self.is_whole
    }

    /// True if flows of the protocol end with their endpoint.
    pub fn ends(&self, proto: u8) -> bool {
        self.ending.has(proto)
    }

    /// Whether a flow to a frontend may stay with an endpoint.
    pub fn keeps(&self, proto: u8, frontend: Place, endpoint: Place) -> bool {
        match self.endpoints.get(&(frontend, proto)) {
            Some(serving) => serving.binary_search(&endpoint).is_ok(),
            None => !self.is_whole || !self.ends(proto),
        }
    }
}
