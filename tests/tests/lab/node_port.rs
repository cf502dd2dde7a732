//! NodePorts from outside, and from the node's own pods and processes.

use lab::agent::SocketLb;

use crate::{
    cluster::Cluster,
    service::{Target, expose},
};

both! {
    client_reaches_node_port_with_local_backend_and_keeps_its_address,
    client_reaches_node_port_with_remote_backend_masqueraded,
    client_reaches_cluster_ip_through_a_node,
    pod_and_node_reach_own_node_port,
    pod_and_node_reach_node_port_of_other_node,
}

fn client_reaches_node_port_with_local_backend_and_keeps_its_address(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"])]);
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
}

fn client_reaches_node_port_with_remote_backend_masqueraded(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod2a"], "node1");
}

fn client_reaches_cluster_ip_through_a_node(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"]), expose(11, &["pod2a"])]);
    cluster.reaches("client", Target::ClusterIp(10), &["pod1a"], "client");
    cluster.reaches("client", Target::ClusterIp(11), &["pod2a"], "node1");
}

fn pod_and_node_reach_own_node_port(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    cluster.reaches("pod1a", Target::NodePort("node1", 10), &["pod2a"], "pod1a");
    cluster.reaches("node1", Target::NodePort("node1", 10), &["pod2a"], "node1");
    cluster.reaches("pod1a", Target::NodePort("node1", 11), &["pod1b"], "pod1a");
    cluster.answers("pod1b", Target::NodePort("node1", 11), &["pod1b"]);
    cluster.answers("node1", Target::NodePort("node1", 11), &["pod1b"]);
}

fn pod_and_node_reach_node_port_of_other_node(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    cluster.reaches("pod1a", Target::NodePort("node2", 10), &["pod2a"], "pod1a");
    cluster.reaches("node1", Target::NodePort("node2", 10), &["pod2a"], "node1");
    // From the other node back to where the request came from.
    cluster.reaches("pod1a", Target::NodePort("node2", 11), &["pod1b"], "node2");
}
