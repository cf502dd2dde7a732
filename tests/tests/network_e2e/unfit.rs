//! Tests that were selected, and cannot pass on three nodes that tunnels join, on a machine like this
//! one, whoever carries the traffic.

/// A test, how it ends there, and why.
pub(crate) struct Unfit {
    pub(crate) name: &'static str,
    pub(crate) ends: End,
    pub(crate) why: &'static str,
    /// Whether it passes on six nodes in three zones, which routes join.
    pub(crate) passes_elsewhere: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Failed,
    /// It finds that it cannot be run, and says so.
    Skipped,
}

/// Whoever makes one of them pass takes it out of the list.
pub(crate) const UNFIT: &[Unfit] = &[
    Unfit {
        name: "[sig-network] Networking IPerf2 [Feature:Networking-Performance] should run iperf2",
        ends: End::Failed,
        why: "it reads the 17 fields of a line of iperf 2.2, and iperf 2.1.8 of Debian 12 writes 9",
        passes_elsewhere: false,
    },
    Unfit {
        name: "[sig-network] Services should implement NodePort and HealthCheckNodePort correctly \
               when ExternalTrafficPolicy changes",
        ends: End::Failed,
        why: "a node's process that is bound to the node's address asks the node for a pod of \
              another, and shall be seen by that address; flannel's --ip-masq hides it behind the \
              tunnel's, lest the answer come outside of the tunnel",
        passes_elsewhere: true,
    },
    needs_six_nodes(
        "[sig-network] Traffic Distribution should route traffic correctly between pods on multiple \
         nodes when using PreferClose",
    ),
    needs_six_nodes(
        "[sig-network] Traffic Distribution should route traffic correctly between pods on multiple \
         nodes when using PreferSameZone",
    ),
    needs_six_nodes(
        "[sig-network] Traffic Distribution should route traffic to an endpoint on the same node or \
         fall back to same zone when using PreferSameNode",
    ),
];

const fn needs_six_nodes(name: &'static str) -> Unfit {
    let why = "it wants three zones of two nodes each";
    Unfit { name, ends: End::Skipped, why, passes_elsewhere: true }
}
