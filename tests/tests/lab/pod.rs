//! Pods that are left out of the socket path. A lab names the cgroup of a pod as a kubelet does, with
//! what follows `pod` in its name for UID.

use std::fs;

use lab::{
    agent::SocketLb,
    peer::{Protocol, Question},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, eventually, ok},
    service::{FAMILIES, Target, expose},
};

both! {
    a_pod_is_left_out_of_the_socket_path,
    a_pods_cgroup_is_found_when_it_comes,
}

/// Datagrams and connections, by each way to send them.
const ASKED: u64 = 3 * FAMILIES.len() as u64;

fn pod(name: &str, node: &str, uid: &str, socket_lb: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "annotations": {"millrace.io/socket-lb": socket_lb},
        },
        "spec": {"nodeName": node},
    })
}

/// What each path of the first node has begun when a place asks a Service in all ways.
fn asked(cluster: &Cluster, from: &str) -> [u64; 2] {
    let before = cluster.connections(10);
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        for (protocol, unconnected) in
            [(Protocol::Tcp, false), (Protocol::Udp, false), (Protocol::Udp, true)]
        {
            let question = Question { unconnected, ..Question::default() };
            let answer = cluster.ask_with(from, protocol, to, &question).remove(0);
            assert_eq!(answer.name(), Some("pod1b"), "{from}: {answer:?}");
            assert_eq!(answer.from.or(answer.peer), Some(to), "{from}: {answer:?}");
        }
    }
    let after = cluster.connections(10);
    [after[0] - before[0], after[1] - before[1]]
}

fn left_out(cluster: &Cluster) -> Value {
    cluster.show(&["status"])["pods_without_socket_lb"].take()
}

fn a_pod_is_left_out_of_the_socket_path(mode: SocketLb) {
    let mut cluster = Cluster::up(mode, &[expose(10, &["pod1b"])]);
    let packets = [0, ASKED];
    let by_default = asked(&cluster, "pod1a");
    assert_eq!(by_default == packets, mode == SocketLb::Host, "{by_default:?}");
    let wait = |cluster: &Cluster, pods: &[&str]| {
        eventually("the pods left out", || (left_out(cluster) == json!(pods)).then_some(()));
    };

    let published = [
        pod("a", "node1", "1a", "off"),
        pod("b", "node1", "1b", "on"),
        pod("elsewhere", "node2", "2a", "off"),
    ];
    ok(cluster.lab.publish("pods.yaml", &published));
    wait(&cluster, &["default/a"]);
    assert_eq!(asked(&cluster, "pod1a"), packets);
    assert_eq!(asked(&cluster, "pod1b"), by_default, "a neighbour");
    assert_eq!(asked(&cluster, "node1"), [ASKED, 0]);

    // Nobody is let in again while there is no agent, nor while one begins.
    ok(cluster.agents[0].kill());
    ok(cluster.agents[0].launch());
    ok(cluster.agents[0].wait_ready());
    assert_eq!(asked(&cluster, "pod1a"), packets);

    ok(cluster.lab.publish("pods.yaml", &[pod("a", "node1", "1a", "on")]));
    wait(&cluster, &[]);
    assert_eq!(asked(&cluster, "pod1a"), by_default);
    assert_eq!(cluster.show(&["status"])["problems"], json!([]));
}

fn a_pods_cgroup_is_found_when_it_comes(mode: SocketLb) {
    const UID: &str = "5c1f7e0a-9a53-4f0c-8a63-2f6f3f2f8c11";
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b"])]);
    ok(cluster.lab.publish("pods.yaml", &[pod("late", "node1", UID, "off")]));
    let problems = || cluster.show(&["status"])["problems"].to_string();
    eventually("what is missing is told", || {
        let told = problems();
        (told.contains("Pod default/late") && told.contains(UID)).then_some(())
    });
    let slices = ok(cluster.lab.node_cgroup("node1")).join("kubepods.slice");
    let name = format!("kubepods-besteffort-pod{}.slice", UID.replace('-', "_"));
    ok(fs::create_dir_all(slices.join("kubepods-besteffort.slice").join(name)));
    eventually("the cgroup is found", || (problems() == "[]").then_some(()));
}
