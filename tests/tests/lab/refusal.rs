//! What is refused at once, what is dropped without a word, and that both are counted.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use agent_kit::table::{MapTable, Table};
use aya::Pod;
use datapath::{
    address::{Address, Ipv4, Ipv6},
    flow::{Flow, FlowKey},
};
use lab::{
    agent::SocketLb,
    manifests,
    peer::{Protocol, Question},
};
use serde_json::json;

use crate::{
    cluster::{AT_ONCE, Cluster, Plan, SILENCE, THE_CALL, eventually, ok},
    mark,
    service::{FAMILIES, Target, expose},
};

both! {
    no_endpoints_is_refused_at_once,
    unknown_port_of_cluster_ip_is_refused,
    refusals_pass_a_strict_reverse_path_filter,
    answers_are_right_where_a_device_does_not_sum_up,
    internal_traffic_policy_without_local_endpoints_times_out,
    internal_traffic_policy_keeps_to_the_node,
    external_traffic_policy_local_drops_without_local_endpoints,
    external_traffic_policy_local_keeps_the_source,
    an_address_that_no_service_has_is_dropped,
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

/// Pods leave their checksums to their device, and the answers made of their packets go back by
/// a device that leaves none to anybody: what would be completed would be spoiled.
fn answers_are_right_where_a_device_does_not_sum_up(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b"]), expose(11, &[])]);
    ok(cluster.lab.shell("node1", "ethtool -K vethpod1a tx off"));
    cluster.is_refused("pod1a", Target::ClusterIp(11));
    cluster.is_refused("pod1a", Target::Port(10, 81));
    // Sockets made here belong to no pod's cgroup, so they go the packet path.
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let pod = cluster.place("pod1a");
        let mut stream = ok(pod.enter(|| {
            let stream = TcpStream::connect_timeout(&to, AT_ONCE).expect("connected");
            mark::with_options(&stream, to.is_ipv6()).expect("IP_OPTIONS");
            stream
        }));
        forget_flows(&cluster, "node1");
        stream.write_all(b"lost\n").expect("the kernel takes it");
        stream.set_read_timeout(Some(AT_ONCE)).expect("a timeout");
        // The server's greeting may have come before.
        let reset = stream.read_to_end(&mut Vec::new()).expect_err("nobody knows the connection");
        assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset, "{to}: {reset}");
    }
    let strays = cluster.metric("millrace_drops_total", &[("reason", "not_syn")]);
    assert!(strays >= 2.0, "{strays}");
}

/// Empties a node's tables of flows.
fn forget_flows(cluster: &Cluster, node: &str) {
    let maps = cluster.lab.bpffs(node).join("proxy/maps");
    forget::<Ipv4>(&maps, "4");
    forget::<Ipv6>(&maps, "6");
}

fn forget<A: Address>(maps: &Path, family: &str)
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    for name in ["FLOWS", "PENDING"] {
        let mut table: MapTable<FlowKey<A>, Flow<A>> =
            ok(MapTable::open(maps, &format!("{name}{family}")));
        for (key, _) in ok(table.rows()) {
            ok(table.remove(&key));
        }
    }
}

fn internal_traffic_policy_without_local_endpoints_times_out(mode: SocketLb) {
    let local = expose(10, &["pod2a"]).with(manifests::Service::internal_local);
    let cluster = Cluster::up(mode, &[local]);
    cluster.is_silent("pod1a", Target::ClusterIp(10));
    cluster.is_silent("node1", Target::ClusterIp(10));
    cluster.reaches("pod2b", Target::ClusterIp(10), &["pod2a"], "pod2b");
}

fn internal_traffic_policy_keeps_to_the_node(mode: SocketLb) {
    let local = expose(10, &["pod1b", "pod2a"]).with(manifests::Service::internal_local);
    let cluster = Cluster::up(mode, &[local]);
    for _ in 0..8 {
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
        cluster.reaches("pod2b", Target::ClusterIp(10), &["pod2a"], "pod2b");
    }
}

fn external_traffic_policy_local_drops_without_local_endpoints(mode: SocketLb) {
    let local = expose(10, &["pod2a"]).with(manifests::Service::external_local);
    let cluster = Cluster::up(mode, &[local]);
    cluster.is_silent("client", Target::NodePort("node1", 10));
    // What is inside the cluster already is not bound by it.
    cluster.reaches("pod1a", Target::NodePort("node1", 10), &["pod2a"], "pod1a");
    cluster.reaches("node1", Target::NodePort("node1", 10), &["pod2a"], "node1");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
}

fn external_traffic_policy_local_keeps_the_source(mode: SocketLb) {
    let local = expose(10, &["pod1a", "pod2a"]).with(manifests::Service::external_local);
    let cluster = Cluster::up(mode, &[local]);
    for _ in 0..8 {
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
        cluster.reaches("client", Target::NodePort("node2", 10), &["pod2a"], "client");
    }
}

/// Only where it is known that cluster IPs are given out of its network.
fn an_address_that_no_service_has_is_dropped(mode: SocketLb) {
    const FILE: &str = "cidr.yaml";
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b", "pod2a"])]);
    let nobodys = Target::ClusterIp(200);
    let dropped = || {
        let labels = [("reason", "unallocated_address"), ("hook", "uplink_egress")];
        cluster.metric("millrace_drops_total", &labels)
    };
    let ask = |from: &str| {
        for family in FAMILIES {
            let question = Question { timeout: Some(SILENCE), ..Question::default() };
            let to = nobodys.address(&cluster.lab, family);
            let answers = cluster.ask_with(from, Protocol::Tcp, to, &question);
            assert!(answers.iter().all(|answer| answer.answer.is_none()), "{answers:?}");
        }
    };
    ask("pod1a");
    assert!(dropped() < 0.5);
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]},
    });
    ok(cluster.lab.publish(FILE, &[cidr]));
    eventually("the networks are known", || {
        ask("pod1a");
        (dropped() > 0.5).then_some(())
    });
    for from in ["pod1a", "node1"] {
        let before = dropped();
        cluster.is_silent(from, nobodys);
        assert!(dropped() >= before + 4.0, "{from}");
        cluster.answers(from, Target::ClusterIp(10), &["pod1b", "pod2a"]);
    }
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b", "pod2a"]);
    ok(cluster.lab.withdraw(FILE));
    eventually("the networks are forgotten", || {
        let before = dropped();
        ask("node1");
        (dropped() < before + 0.5).then_some(())
    });
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
    // Pods' datagram sockets with a peer are the packet path's in both modes.
    let (at_calls, at_packets) = if mode == SocketLb::On { (2.0, 2.0) } else { (0.0, 4.0) };
    cluster.is_refused("pod1a", Target::ClusterIp(10));
    assert!(drops("no_endpoints", "socket") >= at_calls);
    assert!(drops("no_endpoints", "pod_ingress") >= at_packets);
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
