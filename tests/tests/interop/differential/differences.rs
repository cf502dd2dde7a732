//! All that proxy-agent does otherwise than kube-proxy, each with its reason. Told to users in
//! docs/differences.md.

use lab::agent::SocketLb;

use crate::differential::{
    compare::Seen,
    matrix::{Case, Cell, Frontend, node_of},
    outcome::{Outcome, Outcomes},
};

/// Cells in which the two differ, and how.
pub(crate) struct Difference {
    /// Which requests.
    pub(crate) cells: &'static str,
    pub(crate) kube_proxy: &'static str,
    pub(crate) proxy_agent: &'static str,
    pub(crate) why: &'static str,
    /// What proxy-agent makes of a cell, from what kube-proxy and the rows before made of it; the
    /// same where this row has nothing to say.
    pub(crate) change: fn(&Request<'_>, Outcomes) -> Outcomes,
}

/// A cell with all that is known of it.
pub(crate) struct Request<'a> {
    pub(crate) cell: &'a Cell,
    pub(crate) case: &'a Case,
    pub(crate) socket_lb: SocketLb,
    pub(crate) kube_proxy: &'a Seen,
}

/// Applied one after the other.
pub(crate) const KNOWN: [Difference; 5] = [
    Difference {
        cells: "a pod asks the NodePort of another node, whose policy is Local",
        kube_proxy: "any backend, and answers of those elsewhere never arrive; its own are found",
        proxy_agent: "backends on that node alone, as for every client outside",
        why: "kube-proxy takes each pod of the cluster's network for one of this node, and sends \
              it on under its own address, past which the answer goes home",
        change: stranger,
    },
    Difference {
        cells: "a pod asks an external address or NodePort by its own node",
        kube_proxy: "the backend sees the node",
        proxy_agent: "the backend sees the pod",
        why: "what a backend answers to the pod comes by here anyhow, or was translated in the \
              pod's socket",
        change: own_pod,
    },
    Difference {
        cells: "somebody elsewhere asks a node that has the backend",
        kube_proxy: "the backend sees the node's bridge",
        proxy_agent: "the backend sees who asked",
        why: "the answer passes this node by itself, so nothing is gained by hiding the client",
        change: local_backend,
    },
    Difference {
        cells: "a pod is its own backend, TCP, --socket-lb on",
        kube_proxy: "it sees the node's bridge",
        proxy_agent: "it sees itself",
        why: "the connection was translated in the socket, and never leaves the pod",
        change: own_backend,
    },
    Difference {
        cells: "a process of the node sends a datagram that is refused or dropped",
        kube_proxy: "EPERM",
        proxy_agent: "ECONNREFUSED, or silence, as everybody else is told",
        why: "netfilter tells the sender of a verdict on its own packet; the socket path and the \
              programs on devices do not",
        change: not_permitted,
    },
];

impl Request<'_> {
    fn is_of_a_pod(&self) -> bool {
        self.cell.source.starts_with("pod")
    }

    /// Whether the asker is on the node that translates.
    fn is_at_home(&self) -> bool {
        node_of(self.cell.source) == Some(self.cell.entry())
    }

    fn is_node_port(&self) -> bool {
        matches!(self.cell.frontend, Frontend::NodePort1 | Frontend::NodePort2)
    }

    /// What kube-proxy made of the same request by another asker or protocol.
    fn like(&self, change: impl FnOnce(&mut Cell)) -> Outcomes {
        let mut cell = self.cell.clone();
        change(&mut cell);
        self.kube_proxy[&cell].clone()
    }
}

/// Has every server that fits see the asker itself.
fn seen_as_itself(
    request: &Request<'_>,
    outcomes: Outcomes,
    fits: impl Fn(&str) -> bool,
) -> Outcomes {
    let change = |outcome| match outcome {
        Outcome::Answer { backend, .. } if fits(&backend) => {
            Outcome::Answer { backend, source: request.cell.source.into() }
        }
        other => other,
    };
    outcomes.into_iter().map(change).collect()
}

fn stranger(request: &Request<'_>, outcomes: Outcomes) -> Outcomes {
    let is_stranger = request.is_of_a_pod() && !request.is_at_home();
    if !is_stranger || !request.is_node_port() || !request.case.is_external_local() {
        return outcomes;
    }
    // A client outside is served by this node's backends, under its own address.
    let outside = request.like(|cell| cell.source = "client");
    seen_as_itself(request, outside, |_| true)
}

fn own_pod(request: &Request<'_>, outcomes: Outcomes) -> Outcomes {
    if !request.is_of_a_pod() || !request.is_at_home() {
        return outcomes;
    }
    seen_as_itself(request, outcomes, |backend| {
        backend != request.cell.source && node_of(backend).is_some()
    })
}

fn local_backend(request: &Request<'_>, outcomes: Outcomes) -> Outcomes {
    if request.is_at_home() {
        return outcomes;
    }
    seen_as_itself(request, outcomes, |backend| node_of(backend) == Some(request.cell.entry()))
}

fn own_backend(request: &Request<'_>, outcomes: Outcomes) -> Outcomes {
    let is_ranged = request.case.has_ranges() && request.cell.frontend == Frontend::Balancer1;
    let is_by_socket = request.socket_lb == SocketLb::On && !request.cell.is_udp && !is_ranged;
    if !is_by_socket || !request.is_at_home() {
        return outcomes;
    }
    seen_as_itself(request, outcomes, |backend| backend == request.cell.source)
}

fn not_permitted(request: &Request<'_>, outcomes: Outcomes) -> Outcomes {
    if outcomes != [Outcome::Failed("EPERM".into())].into() {
        return outcomes;
    }
    // A connection waits for an answer and is told what became of it. Where connections are
    // answered, the port is theirs alone, and refused to datagrams.
    let connection = request.like(|cell| cell.is_udp = false);
    let is_answered = connection.iter().any(|it| matches!(it, Outcome::Answer { .. }));
    if is_answered { [Outcome::Failed("ECONNREFUSED".into())].into() } else { connection }
}
