//! Session affinity, with real sockets.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use lab::{
    agent::SocketLb,
    peer::{Protocol, Question},
};
use serde_json::json;

use crate::{
    cluster::{Cluster, PATIENCE, eventually},
    service::{Exposed, FAMILIES, Family, Target, expose},
};

both! {
    a_client_keeps_its_backend_by_cluster_ip_and_node_port,
    after_the_timeout_it_may_have_another,
    affinity_is_switched_on_and_off_at_once,
    a_backend_that_leaves_is_replaced,
    an_endpoint_is_asked_from_the_port_that_asked_its_service,
}

const PODS: [&str; 3] = ["pod1b", "pod2a", "pod2b"];
/// New connections by which affinity is told from chance: three pods answer all of them alike
/// once in 3^14 times.
const ASKS: u32 = 15;

fn web(pods: &[&str]) -> Exposed {
    expose(10, pods)
}

/// The same with affinity.
fn sticky(pods: &[&str], timeout_sec: u32) -> Exposed {
    let config = json!({"clientIP": {"timeoutSeconds": timeout_sec}});
    web(pods).with(|service| {
        service
            .set("/spec/sessionAffinity", json!("ClientIP"))
            .set("/spec/sessionAffinityConfig", config)
    })
}

/// Who answers so many new connections.
#[track_caller]
fn names(
    cluster: &Cluster,
    from: &str,
    target: Target,
    family: Family,
    protocol: Protocol,
    count: u32,
) -> BTreeSet<String> {
    let to = target.address(&cluster.lab, family);
    cluster.answerers(from, protocol, to, count).into_iter().collect()
}

/// Waits until the first node's agent has affinity programmed, or has it not.
fn wait_affinity(cluster: &Cluster, is_on: bool) {
    eventually("affinity is as published", || {
        let shown = cluster.show(&["services", "web10"]);
        let all = shown.as_array()?;
        all.iter().all(|row| row["affinity_timeout_seconds"].is_u64() == is_on).then_some(())
    });
}

fn a_client_keeps_its_backend_by_cluster_ip_and_node_port(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[sticky(&PODS, 10_800)]);
    for from in ["pod1a", "node1", "client"] {
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let names = |target| names(&cluster, from, target, family, protocol, ASKS);
                let node_port = names(Target::NodePort("node1", 10));
                assert_eq!(node_port.len(), 1, "{from} has {node_port:?}");
                if from != "client" {
                    assert_eq!(names(Target::ClusterIp(10)), node_port, "{from}");
                }
            }
        }
    }
    // A name that the socket path translates, beside one that is left to the packets.
    cluster.publish(&expose(11, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
}

fn after_the_timeout_it_may_have_another(mode: SocketLb) {
    /// A tick of the programs' clock is longer than this, and what is one tick old still holds.
    const TIMEOUT_SEC: u32 = 1;
    let cluster = Cluster::up(mode, &[sticky(&PODS, TIMEOUT_SEC)]);
    for from in ["pod1a", "node1", "client"] {
        let one = |(family, protocol)| {
            let target = Target::NodePort("node1", 10);
            let began = Instant::now();
            let names = names(&cluster, from, target, family, protocol, ASKS);
            // A port of UDP that was used before has its flow, which stays where it is.
            let may_differ = protocol == Protocol::Udp || began.elapsed() > Duration::from_secs(1);
            assert!(names.len() == 1 || may_differ, "{names:?}");
            names
        };
        let ways = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| FAMILIES.map(|family| (family, protocol)))
            .concat();
        let first: Vec<_> = ways.iter().copied().map(one).collect();
        let mut moved = vec![false; ways.len()];
        let give_up = Instant::now() + 3 * PATIENCE;
        while moved.contains(&false) {
            assert!(Instant::now() < give_up, "{from} stays with {first:?}");
            sleep(Duration::from_millis(2_300));
            for ((moved, first), way) in moved.iter_mut().zip(&first).zip(&ways) {
                *moved |= one(*way) != *first;
            }
        }
    }
}

fn affinity_is_switched_on_and_off_at_once(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[web(&PODS)]);
    for is_on in [true, false, true, false] {
        cluster.write(&if is_on { sticky(&PODS, 10_800) } else { web(&PODS) });
        wait_affinity(&cluster, is_on);
        for from in ["pod1a", "node1", "client"] {
            for family in FAMILIES {
                let target = Target::NodePort("node1", 10);
                let names = names(&cluster, from, target, family, Protocol::Tcp, 2 * ASKS);
                assert_eq!(names.len() == 1, is_on, "{from} has {names:?}");
            }
        }
    }
}

/// Affinity has pods' packets carry the Service's address, whatever the mode.
fn an_endpoint_is_asked_from_the_port_that_asked_its_service(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[sticky(&["pod1b", "pod2a"], 10_800)]);
    for (port, family) in (41_000..).zip(FAMILIES) {
        let question = Question { source_port: Some(port), ..Question::default() };
        let ask = |to| {
            let answer = cluster.ask_with("pod1a", Protocol::Tcp, to, &question).remove(0);
            answer.name().unwrap_or_else(|| panic!("{to}: {answer:?}")).to_owned()
        };
        let name = ask(Target::ClusterIp(10).address(&cluster.lab, family));
        let endpoint = SocketAddr::new(cluster.address(&name, family), 8080);
        assert_eq!(ask(endpoint), name);
    }
}

fn a_backend_that_leaves_is_replaced(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[sticky(&PODS, 10_800)]);
    for from in ["pod1a", "node1"] {
        let one =
            |family| names(&cluster, from, Target::ClusterIp(10), family, Protocol::Tcp, ASKS);
        for family in FAMILIES {
            let first = one(family);
            let rest: Vec<&str> = PODS.into_iter().filter(|pod| !first.contains(*pod)).collect();
            assert_eq!(rest.len(), 2, "{first:?}");
            cluster.publish(&sticky(&rest, 10_800));
            let second = one(family);
            assert!(second.len() == 1 && second.is_disjoint(&first), "{second:?}");
            cluster.publish(&sticky(&PODS, 10_800));
            assert_eq!(one(family), second, "one that came back takes nobody away");
        }
    }
}
