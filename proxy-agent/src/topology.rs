//! Which endpoints serve: the rule of CategorizeEndpoints in kube-proxy's
//! pkg/proxy/topology.go, whole and in one pure function.

use std::sync::Arc;

use crate::{
    desired::{DesiredBackend, IpFamily},
    model::{Endpoint, Service},
};

/// An endpoint with the place that its Service port has there. `backend.local` tells whether
/// the endpoint's `nodeName` is this node's name.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub backend: DesiredBackend,
    pub endpoint: &'a Endpoint,
}

/// What of a Service bears on the choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policies {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Has a node port, an external IP or a load balancer's.
    pub externally_accessible: bool,
}

impl Policies {
    #[must_use]
    pub fn of(service: &Service, node_port: u16, family: IpFamily) -> Self {
        let mut external = service.external_ips.iter().chain(&service.load_balancer_ips);
        Self {
            internal_local: service.internal_local,
            external_local: service.external_local,
            externally_accessible: node_port != 0
                || external.any(|address| IpFamily::of(address) == family),
        }
    }

    /// Whether any traffic goes to the cluster-wide list.
    #[must_use]
    pub const fn use_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    /// Whether any traffic goes to the list of this node.
    #[must_use]
    pub const fn use_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// The endpoints that serve.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Empty too if no traffic goes by it.
    pub cluster: Vec<DesiredBackend>,
    /// Empty too if no traffic goes by it.
    pub local: Vec<DesiredBackend>,
    /// Some endpoint somewhere could serve: nothing to send to means drop, not reject.
    pub any: bool,
}

/// Selects from `endpoints`, which hold no address and port twice, in their order.
///
/// Ready endpoints serve, for cluster-wide traffic only those that topology hints prefer. If
/// none is ready, those that are terminating and still serve do (KEP-1669), hints or not. The
/// list of this node falls back on its own, and never follows hints.
#[must_use]
pub fn select(
    endpoints: &[Candidate],
    policies: Policies,
    node: &str,
    zone: Option<&str>,
) -> Selection {
    let topology = topology(endpoints, node, zone);
    let mut selection = Selection {
        any: endpoints.iter().any(|c| c.is_ready() || c.is_fallback()),
        ..Selection::default()
    };
    if policies.use_cluster() {
        selection.cluster =
            ready_or_fallback(endpoints, |c| c.is_ready() && topology.allows(c), |_| true);
    }
    if policies.use_local() {
        let local = |c: &Candidate| c.backend.local;
        selection.local = ready_or_fallback(endpoints, |c| local(c) && c.is_ready(), local);
    }
    selection
}

/// Those of this node that are ready: what is left to choose from where another node has sent a client
/// here that this one is to answer.
pub fn ready_here(endpoints: &[Candidate]) -> Vec<DesiredBackend> {
    let here = endpoints.iter().filter(|c| c.backend.local && c.is_ready());
    here.map(|c| c.backend).collect()
}

fn ready_or_fallback(
    endpoints: &[Candidate],
    ready: impl Fn(&Candidate) -> bool,
    eligible: impl Fn(&Candidate) -> bool,
) -> Vec<DesiredBackend> {
    let backends = |wanted: &dyn Fn(&Candidate) -> bool| -> Vec<DesiredBackend> {
        endpoints.iter().filter(|c| wanted(c)).map(|c| c.backend).collect()
    };
    let chosen = backends(&ready);
    if chosen.is_empty() { backends(&|c| eligible(c) && c.is_fallback()) } else { chosen }
}

impl Candidate<'_> {
    fn is_ready(&self) -> bool {
        self.endpoint.ready
    }

    /// Not ready, serving and not terminating is never used; nor is terminating and no longer
    /// serving.
    fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    fn nodes(&self) -> &[Arc<str>] {
        self.endpoint.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }

    fn zones(&self) -> &[Arc<str>] {
        self.endpoint.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }
}

/// How far cluster-wide traffic keeps to its neighbourhood.
#[derive(Clone, Copy, Debug)]
enum Topology<'a> {
    Anywhere,
    SameZone(&'a str),
    SameNode(&'a str),
}

impl Topology<'_> {
    fn allows(self, candidate: &Candidate) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameZone(zone) => names(candidate.zones(), zone),
            Self::SameNode(node) => names(candidate.nodes(), node),
        }
    }
}

fn names(hints: &[Arc<str>], place: &str) -> bool {
    hints.iter().any(|hint| **hint == *place)
}

/// Hints count only if every ready endpoint has one of the kind, and one names us: otherwise
/// the controller is halfway through writing them, or has none for this place.
fn topology<'a>(endpoints: &[Candidate], node: &'a str, zone: Option<&'a str>) -> Topology<'a> {
    let ready = || endpoints.iter().filter(|c| c.is_ready());
    if ready().all(|c| !c.nodes().is_empty()) && ready().any(|c| names(c.nodes(), node)) {
        return Topology::SameNode(node);
    }
    match zone.filter(|zone| !zone.is_empty()) {
        Some(zone)
            if ready().all(|c| !c.zones().is_empty())
                && ready().any(|c| names(c.zones(), zone)) =>
        {
            Topology::SameZone(zone)
        }
        _ => Topology::Anywhere,
    }
}

#[cfg(test)]
mod tests;
