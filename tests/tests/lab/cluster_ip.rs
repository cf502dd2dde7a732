//! Cluster IPs from pods, nodes and their own backends.

use lab::address;
use lab::{
    agent::SocketLb,
    peer::{Protocol, Question},
};

use crate::{
    cluster::{Cluster, ok},
    service::{FAMILIES, Family, Target, expose},
};

both! {
    one_port_asks_two_services_of_one_pod,
    pod_reaches_cluster_ip_on_other_node,
    pod_reaches_cluster_ip_on_same_node_and_bridge,
    pod_reaches_itself_through_its_service,
    node_reaches_cluster_ip,
    pod_reaches_host_network_backend,
    an_endpoint_outside_of_the_cluster_is_reached,
    every_backend_gets_its_share,
}

fn pod_reaches_cluster_ip_on_other_node(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
}

fn pod_reaches_cluster_ip_on_same_node_and_bridge(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b"])]);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
}

fn pod_reaches_itself_through_its_service(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"])]);
    for family in FAMILIES {
        // The socket path has no packet to masquerade; the packet path takes the bridge's address.
        let sources = [cluster.address("pod1a", family), gateway(1, family)];
        cluster.reaches_from("pod1a", Target::ClusterIp(10), family, &["pod1a"], &sources);
    }
}

fn gateway(node: u8, family: Family) -> std::net::IpAddr {
    family.of([address::gateway4(node).into(), address::gateway6(node).into()])
}

fn node_reaches_cluster_ip(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b"]), expose(11, &["pod2a"])]);
    cluster.reaches("node1", Target::ClusterIp(11), &["pod2a"], "node1");
    for family in FAMILIES {
        let source = gateway(1, family);
        cluster.reaches_from("node1", Target::ClusterIp(10), family, &["pod1b"], &[source]);
    }
}

fn pod_reaches_host_network_backend(mode: SocketLb) {
    let services = [expose(10, &["node1"]), expose(11, &["node2"])];
    let mut cluster = Cluster::up(mode, &services);
    cluster.serve("node1");
    cluster.serve("node2");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["node1"], "pod1a");
    cluster.reaches("pod1a", Target::ClusterIp(11), &["node2"], "pod1a");
    cluster.reaches("node1", Target::ClusterIp(11), &["node2"], "node1");
    cluster.reaches("node1", Target::ClusterIp(10), &["node1"], "node1");
    cluster.reaches("client", Target::NodePort("node1", 10), &["node1"], "client");
    cluster.reaches("client", Target::NodePort("node1", 11), &["node2"], "node1");
}

/// As who writes EndpointSlices by hand does, of a Service without selector: no node is named. Who
/// serves there knows the way to pods, which keep their addresses.
fn an_endpoint_outside_of_the_cluster_is_reached(mode: SocketLb) {
    let mut cluster = Cluster::up(mode, &[]);
    cluster.serve("client");
    for (number, node) in [(1, "node1"), (2, "node2")] {
        for (family, cidr) in FAMILIES.into_iter().zip(address::pod_cidrs(number)) {
            let node = cluster.address(node, family);
            ok(cluster.lab.shell("client", &format!("ip route add {cidr} via {node}")));
        }
    }
    let service = expose(10, &["client"]);
    let mut documents = service.documents(&cluster.lab);
    for slice in &mut documents[1..] {
        let endpoint = slice["endpoints"][0].as_object_mut().expect("an endpoint");
        assert!(endpoint.remove("nodeName").is_some());
        endpoint.remove("conditions");
    }
    ok(cluster.lab.publish(&service.file(), &documents));
    cluster.wait_programmed(&service);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["client"], "pod1a");
    cluster.reaches("node1", Target::ClusterIp(10), &["client"], "node1");
    cluster.reaches("pod2a", Target::NodePort("node1", 10), &["client"], "node1");
    // Who asks is the endpoint itself.
    cluster.reaches("client", Target::NodePort("node1", 10), &["client"], "node1");
}

fn every_backend_gets_its_share(mode: SocketLb) {
    use std::collections::BTreeMap;

    use lab::peer::{Protocol, Question};

    let pods = ["pod1b", "pod2a", "pod2b"];
    let cluster = Cluster::up(mode, &[expose(10, &pods)]);
    let question = Question { count: Some(300), ..Question::default() };
    for (from, target) in
        [("pod1a", Target::ClusterIp(10)), ("client", Target::NodePort("node1", 10))]
    {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            let mut shares: BTreeMap<String, u32> = BTreeMap::new();
            for answer in cluster.ask_with(from, Protocol::Tcp, to, &question) {
                let name = answer.name().unwrap_or_else(|| panic!("{answer:?}"));
                *shares.entry(name.into()).or_default() += 1;
            }
            // A third each is 100; with fair choice one case in a hundred million misses 55.
            assert!(pods.iter().all(|pod| shares.get(*pod) > Some(&55)), "{from}: {shares:?}");
        }
    }
}

/// The flows of UDP live at the same time, since neither is over before its timeout. From the second
/// on, the pod sees another port of the same client.
fn one_port_asks_two_services_of_one_pod(mode: SocketLb) {
    const PORT: u16 = 40_123;
    let services = [expose(10, &["pod2a"]), expose(11, &["pod2a"])];
    let cluster = Cluster::up(mode, &services);
    let question = Question { source_port: Some(PORT), ..Question::default() };
    for (from, targets) in [
        ("pod1a", [Target::ClusterIp(10), Target::ClusterIp(11)]),
        ("client", [Target::NodePort("node2", 10), Target::NodePort("node2", 11)]),
    ] {
        for family in FAMILIES {
            let source = cluster.address(from, family);
            let mut seen = Vec::new();
            for target in [targets, targets].concat() {
                let to = target.address(&cluster.lab, family);
                let answer = cluster.ask_with(from, Protocol::Udp, to, &question).remove(0);
                let what = format!("{from} asks {to}: {answer:?}");
                assert_eq!(answer.name(), Some("pod2a"), "{what}");
                assert_eq!(answer.from.or(answer.peer), Some(to), "{what}");
                let client = answer.source().unwrap_or_else(|| panic!("{what}"));
                assert_eq!(client.ip(), source, "{what}");
                seen.push(client.port());
            }
            assert_eq!((seen[0], seen[0]), (PORT, seen[2]), "{from}: {seen:?}");
            assert!(seen[1] >= 61_000 && seen[1] == seen[3], "{from}: {seen:?}");
        }
    }
    assert_eq!(cluster.metric("millrace_drops_total", &[("reason", "tuple_in_use")]).to_bits(), 0);
}
