//! Services, endpoints and Nodes with what load balancing needs of them and nothing more: ten
//! thousand Services have to fit into a few megabytes. Every value in here is valid; checking
//! is the business of [`crate::reflect`].

use std::{collections::HashSet, fmt, net::IpAddr, num::NonZeroU64, sync::Arc};

use datapath::algorithm::Algorithm;
use ipnetwork::IpNetwork;

use crate::desired::IpFamily;

/// Namespace and name of an object; the namespace is empty where its kind has none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// The kinds of object that matter here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKind {
    Service,
    EndpointSlice,
    Endpoints,
    Node,
    ServiceCIDR,
    Pod,
}

impl ObjectKind {
    /// Those of the whole cluster have no namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::ServiceCIDR)
    }
}

/// Tells one object from all others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    pub kind: ObjectKind,
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// An object, shared between the source (which keeps the last good version) and the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    Service(Arc<Service>),
    /// An EndpointSlice, or core/v1 Endpoints.
    Endpoints(Arc<EndpointSet>),
    Node(Arc<Node>),
    ServiceCIDR(Arc<ServiceCIDR>),
    Pod(Arc<Pod>),
}

/// What happened to an object in the source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// This version is in force from now on.
    Put(ObjectKey, Object),
    /// The object is no more.
    Delete(ObjectKey),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// A Service with at least one cluster IP. Those of type ExternalName, headless ones, and
/// those labelled for another proxy never get here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub name: Name,
    pub kind: ServiceType,
    /// Decimal digits of the creation time, YYYYMMDDhhmmss, if the manifest has one.
    pub created: Option<u64>,
    /// One, or one per family.
    pub cluster_ips: Box<[IpAddr]>,
    pub ports: Box<[ServicePort]>,
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` where ipMode is VIP or absent (KEP-1860).
    pub load_balancer_ips: Box<[IpAddr]>,
    pub source_ranges: Box<[IpNetwork]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `spec.healthCheckNodePort` of a load balancer with that policy; 0 if it has none.
    pub health_check_node_port: u16,
    /// Timeout of `sessionAffinity: ClientIP`.
    pub affinity_timeout_sec: Option<u32>,
    /// Annotation `millrace.io/algorithm`; the node's if it has none.
    pub algorithm: Option<Algorithm>,
    /// Annotation `millrace.io/weights`.
    pub weights: Box<[Weight]>,
    /// Annotation `millrace.io/socket-lb: off`.
    pub without_sockets: bool,
}

/// How many connections go to some endpoints while one goes to any that nothing is said of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Weight {
    pub of: Weighted,
    /// Zero: no new connections.
    pub weight: u16,
}

/// Which endpoints a weight is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Weighted {
    At(IpAddr),
    /// All those on a node.
    On(Arc<str>),
}

impl Weight {
    /// What the first that is of an endpoint says; an address goes before its node.
    #[must_use]
    pub fn of(weights: &[Self], address: IpAddr, node: Option<&str>) -> Option<u16> {
        let at = |weight: &&Self| weight.of == Weighted::At(address);
        let on = |weight: &&Self| matches!(&weight.of, Weighted::On(name) if node == Some(name));
        weights.iter().find(at).or_else(|| weights.iter().find(on)).map(|found| found.weight)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Empty if it has none.
    pub name: Arc<str>,
    /// [`datapath::address::protocol`].
    pub proto: u8,
    pub port: u16,
    /// 0 if it has none.
    pub node_port: u16,
}

/// The endpoints that one object gives to one Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSet {
    pub service: Name,
    /// From an EndpointSlice, not from core/v1 Endpoints.
    pub from_slice: bool,
    /// When the change of the pods came that it tells of, in milliseconds since 1970, if it says.
    pub triggered_ms: Option<NonZeroU64>,
    pub slices: Box<[Slice]>,
}

impl EndpointSet {
    /// What counts of a family. Where EndpointSlices tell of it, they are the word on it: the
    /// cluster mirrors Endpoints into them, and what a dump holds of both may be of two moments.
    pub fn slices<'a>(sets: &[&'a Self], family: IpFamily) -> impl Iterator<Item = &'a Slice> {
        let of = move |set: &'a Self| set.slices.iter().filter(move |slice| slice.family == family);
        let slices_only = sets.iter().any(|set| set.from_slice && of(set).next().is_some());
        sets.iter().filter(move |set| set.from_slice || !slices_only).flat_map(move |set| of(set))
    }
}

/// Endpoints of one family that share their ports. An EndpointSlice is one, an Endpoints
/// object one per subset and family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    pub family: IpFamily,
    pub endpoints: Box<[Endpoint]>,
    pub ports: Box<[SlicePort]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Matches [`ServicePort::name`].
    pub name: Arc<str>,
    pub proto: u8,
    pub port: u16,
}

/// One endpoint, its conditions with the API's defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// What its own object says of it, by annotation.
    pub weight: Option<u16>,
    pub node: Option<Arc<str>>,
    pub hints: Option<Box<Hints>>,
}

/// Where the EndpointSlice controller would like the traffic to come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    pub zones: Box<[Arc<str>]>,
    pub nodes: Box<[Arc<str>]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    pub internal_ips: Box<[IpAddr]>,
    pub external_ips: Box<[IpAddr]>,
    pub pod_cidrs: Box<[IpNetwork]>,
    /// Being deleted, or about to be by the cluster autoscaler (KEP-3836).
    pub going: bool,
}

/// Networks that cluster IPs are given out of (KEP-1880).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCIDR {
    pub cidrs: Box<[IpNetwork]>,
}

/// A pod that is left out of the socket path: annotation `millrace.io/socket-lb: off`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    pub name: Name,
    /// Where it is to run, once that is known.
    pub node: Option<Arc<str>>,
    /// As the kubelet knows it.
    pub uid: Box<str>,
    /// What the container runtime calls its containers.
    pub containers: Box<[Box<str>]>,
}

/// Makes equal strings one allocation: namespaces, port names and node names are nearly all there
/// is to share.
#[derive(Default, Debug)]
pub struct Strings {
    known: HashSet<Arc<str>>,
    /// Strings after the last look for those that nothing uses any more.
    used: usize,
}

impl Strings {
    /// Below this it is not worth to look for strings that nothing uses.
    const FEW: usize = 1024;

    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= 2 * self.used.max(Self::FEW) {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.known.shrink_to_fit();
            self.used = self.known.len();
        }
        let new: Arc<str> = text.into();
        self.known.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_nothing_uses_are_forgotten() {
        let mut strings = Strings::default();
        let kept = strings.share("kept");
        for nth in 0..10 * Strings::FEW {
            strings.share(&nth.to_string());
        }
        assert!(strings.known.len() <= 2 * Strings::FEW);
        assert!(Arc::ptr_eq(&kept, &strings.share("kept")));
    }
}
