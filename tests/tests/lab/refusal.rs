//! What is refused at once, what is dropped without a word, and that both are counted.

use lab::agent::SocketLb;
use serde_json::json;

use crate::{
    cluster::{Cluster, Plan, THE_CALL},
    service::{Target, expose},
};

both! {
    no_endpoints_is_refused_at_once,
    unknown_port_of_cluster_ip_is_refused,
    refusals_pass_a_strict_reverse_path_filter,
    internal_traffic_policy_without_local_endpoints_times_out,
    internal_traffic_policy_keeps_to_the_node,
    external_traffic_policy_local_drops_without_local_endpoints,
    external_traffic_policy_local_keeps_the_source,
    drops_are_counted_by_reason_and_hook,
}

fn no_endpoints_is_refused_at_once(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &[])]);
    cluster.is_refused("pod1a", Target::ClusterIp(10));
    cluster.is_refused("pod1a", Target::NodePort("node1", 10));
    cluster.is_refused("pod1a", Target::NodePort("node2", 10));
    for target in [Target::ClusterIp(10), Target::NodePort("node1", 10)] {
        cluster.is_refused_within("node1", target, THE_CALL);
        if mode == SocketLb::On {
            cluster.is_refused_within("pod1a", target, THE_CALL);
        }
    }
    cluster.is_refused("client", Target::NodePort("node1", 10));
    cluster.is_refused("client", Target::ClusterIp(10));
}

fn unknown_port_of_cluster_ip_is_refused(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    cluster.is_refused("pod1a", Target::Port(10, 81));
    cluster.is_refused("client", Target::Port(10, 81));
    // The socket path leaves the address as it is, and the packet is refused on its way out.
    cluster.is_refused("node1", Target::Port(10, 81));
}

/// The answer to the node's own packet comes in by the device that the packet would have left
/// by, from the cluster IP.
fn refusals_pass_a_strict_reverse_path_filter(mode: SocketLb) {
    let mut plan = Plan::new(mode);
    plan.spec.rp_filter = 1;
    let cluster = plan.up(&[expose(10, &["pod2a"])]);
    for from in ["node1", "node2", "pod1a", "client"] {
        cluster.is_refused(from, Target::Port(10, 81));
    }
}

fn internal_traffic_policy_without_local_endpoints_times_out(mode: SocketLb) {
    let local = expose(10, &["pod2a"]).with(lab::manifests::Service::internal_local);
    let cluster = Cluster::up(mode, &[local]);
    cluster.is_silent("pod1a", Target::ClusterIp(10));
    cluster.is_silent("node1", Target::ClusterIp(10));
    cluster.reaches("pod2b", Target::ClusterIp(10), &["pod2a"], "pod2b");
}

fn internal_traffic_policy_keeps_to_the_node(mode: SocketLb) {
    let local = expose(10, &["pod1b", "pod2a"]).with(lab::manifests::Service::internal_local);
    let cluster = Cluster::up(mode, &[local]);
    for _ in 0..8 {
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
        cluster.reaches("pod2b", Target::ClusterIp(10), &["pod2a"], "pod2b");
    }
}

fn external_traffic_policy_local_drops_without_local_endpoints(mode: SocketLb) {
    let local = expose(10, &["pod2a"]).with(lab::manifests::Service::external_local);
    let cluster = Cluster::up(mode, &[local]);
    cluster.is_silent("client", Target::NodePort("node1", 10));
    // What is inside the cluster already is not bound by it.
    cluster.reaches("pod1a", Target::NodePort("node1", 10), &["pod2a"], "pod1a");
    cluster.reaches("node1", Target::NodePort("node1", 10), &["pod2a"], "node1");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
}

fn external_traffic_policy_local_keeps_the_source(mode: SocketLb) {
    let local = expose(10, &["pod1a", "pod2a"]).with(lab::manifests::Service::external_local);
    let cluster = Cluster::up(mode, &[local]);
    for _ in 0..8 {
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
        cluster.reaches("client", Target::NodePort("node2", 10), &["pod2a"], "client");
    }
}

fn drops_are_counted_by_reason_and_hook(mode: SocketLb) {
    let silent = expose(11, &["pod2a"]).with(|service| {
        service.internal_local().set("/spec/externalTrafficPolicy", json!("Local"))
    });
    let cluster = Cluster::up(mode, &[expose(10, &[]), silent]);
    let drops = |reason, hook| {
        cluster.metric("millrace_drops_total", &[("reason", reason), ("hook", hook)])
    };
    // Each asks by TCP and UDP, v4 and v6.
    cluster.is_refused("client", Target::NodePort("node1", 10));
    assert!(drops("no_endpoints", "uplink_ingress") >= 4.0);
    let at = if mode == SocketLb::On { "socket" } else { "pod_ingress" };
    cluster.is_refused("pod1a", Target::ClusterIp(10));
    assert!(drops("no_endpoints", at) >= 4.0);
    cluster.is_refused("pod1a", Target::Port(10, 81));
    assert!(drops("unknown_port", "pod_ingress") >= 4.0);
    cluster.is_refused("node1", Target::Port(10, 81));
    assert!(drops("unknown_port", "uplink_egress") >= 4.0);
    cluster.is_silent("node1", Target::ClusterIp(11));
    assert!(drops("traffic_policy", "uplink_egress") >= 4.0);
    cluster.is_silent("client", Target::NodePort("node1", 11));
    assert!(drops("traffic_policy", "uplink_ingress") >= 4.0);
    cluster.is_silent("pod1a", Target::ClusterIp(11));
    assert!(drops("traffic_policy", "pod_ingress") >= 4.0);
    // What has its program and is not counted: nothing else was dropped.
    for reason in ["backend_set_torn", "rewrite_failed", "malformed", "flow_table_full"] {
        let count = cluster.metric("millrace_drops_total", &[("reason", reason)]);
        assert!(count.abs() < 0.5, "{reason}: {count}");
    }
}
