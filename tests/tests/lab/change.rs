//! A Service's backends change: what is established stays, what is new follows.

use lab::{
    agent::SocketLb,
    peer::{self, Load},
};

use crate::{
    cluster::{Cluster, ok},
    service::{FAMILIES, Target, expose},
};

both! {
    established_stays_with_its_backend_when_the_set_changes,
    new_connections_use_the_new_set,
    deleted_service_stops,
    endpoints_come_and_go,
}

/// Where a load goes: both families, TCP and UDP.
pub(crate) fn load_arguments(cluster: &Cluster, target: Target) -> Vec<String> {
    FAMILIES
        .into_iter()
        .map(|family| target.address(&cluster.lab, family))
        .flat_map(|to| [format!("--tcp={to}"), format!("--udp={to}")])
        .collect()
}

pub(crate) fn assert_nothing_lost(load: &Load) {
    assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{load:?}");
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
}

fn established_stays_with_its_backend_when_the_set_changes(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let gentle = ["--rate=20", "--lasting=4", "--requests=50", "--datagrams=50"].map(String::from);
    let load = |from, target| {
        let mut arguments = load_arguments(&cluster, target);
        arguments.extend(gentle.clone());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ok(peer::load(&cluster.place(from), &arguments))
    };
    let loads =
        [load("pod1a", Target::ClusterIp(10)), load("client", Target::NodePort("node1", 10))];
    // The load has its connections when the backend counts them.
    crate::cluster::eventually("the load is under way", || {
        let sockets = ok(cluster.lab.shell("pod2a", "ss -Htn state established | wc -l"));
        (sockets.trim().parse::<u32>().ok()? >= 16).then_some(())
    });
    for pods in [&["pod2b"][..], &["pod1b", "pod2b"], &["pod1b"], &["pod2a", "pod1b"]] {
        cluster.publish(&expose(10, pods));
    }
    for load in loads {
        let load = ok(load.stop());
        assert_nothing_lost(&load);
        assert_eq!(load.udp_moved, 0, "a datagram of an answered flow went elsewhere: {load:?}");
    }
}

fn new_connections_use_the_new_set(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod2a"], "node1");
    cluster.publish(&expose(10, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
}

fn deleted_service_stops(mode: SocketLb) {
    let kept = expose(11, &["pod1b"]);
    let gone = expose(10, &["pod2a"]);
    let cluster = Cluster::up(mode, &[gone.clone(), kept]);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
    cluster.withdraw(&gone);
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let question = peer::Question {
            timeout: Some(std::time::Duration::from_millis(400)),
            ..peer::Question::default()
        };
        for from in ["pod1a", "node1", "client"] {
            let answer = cluster.ask_with(from, peer::Protocol::Tcp, to, &question).remove(0);
            assert!(answer.answer.is_none(), "{from}: {answer:?}");
        }
    }
    // The node's own stack answers for a port that is nobody's any more.
    cluster.is_refused("client", Target::NodePort("node1", 10));
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
}

fn endpoints_come_and_go(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &[])]);
    for _ in 0..3 {
        cluster.is_refused("pod1a", Target::ClusterIp(10));
        cluster.publish(&expose(10, &["pod2a"]));
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
        cluster.publish(&expose(10, &[]));
    }
}
