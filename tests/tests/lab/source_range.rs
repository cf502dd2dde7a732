//! Source ranges of a load balancer's addresses, with real sockets.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, TcpStream},
};

use lab::agent::SocketLb;

use crate::{
    cluster::{AT_ONCE, Cluster, eventually, ok, show},
    service::{Exposed, FAMILIES, Target, expose},
};

both! {
    only_sources_in_a_range_reach_the_load_balancer,
    a_node_in_a_range_reaches_it,
    without_endpoints_a_stranger_is_told_nothing,
    established_connections_stay_when_ranges_change,
}

const LOAD_BALANCER: Target = Target::LoadBalancer(10);

/// A Service, served by these pods, whose load balancer admits these places.
fn guarded(cluster: &Cluster, pods: &[&str], admitted: &[&str]) -> Exposed {
    let both = |place: &&str| {
        FAMILIES.map(|family| match cluster.address(place, family) {
            IpAddr::V4(address) => format!("{address}/32"),
            IpAddr::V6(address) => format!("{address}/128"),
        })
    };
    let ranges: Vec<String> = admitted.iter().flat_map(both).collect();
    expose(10, pods).balanced(&ranges)
}

/// Publishes it, and waits until all nodes have the ranges.
fn publish(cluster: &Cluster, pods: &[&str], admitted: &[&str]) {
    cluster.publish(&guarded(cluster, pods, admitted));
    for agent in &cluster.agents {
        eventually("the ranges are as published", || {
            let shown = show(agent, &["services", "web10"]);
            let rows = shown.as_array()?;
            let is_told = |place: &&str| {
                let all: String = rows.iter().map(|row| row["source_ranges"].to_string()).collect();
                FAMILIES
                    .iter()
                    .all(|family| all.contains(&format!("\"{}/", cluster.address(place, *family))))
            };
            let count: usize =
                rows.iter().filter_map(|row| Some(row["source_ranges"].as_array()?.len())).sum();
            let least = 2 * 2 * admitted.len();
            (count >= least && admitted.iter().all(is_told)).then_some(())
        });
    }
}

fn up(mode: SocketLb) -> Cluster {
    Cluster::up(mode, &[])
}

fn dropped(cluster: &Cluster, hook: &str) -> f64 {
    cluster.metric("millrace_drops_total", &[("reason", "source_range"), ("hook", hook)])
}

fn only_sources_in_a_range_reach_the_load_balancer(mode: SocketLb) {
    let cluster = up(mode);
    publish(&cluster, &["pod1b", "pod2a"], &["client", "pod1a"]);
    for from in ["client", "pod1a"] {
        cluster.answers(from, LOAD_BALANCER, &["pod1b", "pod2a"]);
    }
    for (from, hook) in [("pod1b", "pod_ingress"), ("node1", "uplink_egress")] {
        let before = dropped(&cluster, hook);
        cluster.is_silent(from, LOAD_BALANCER);
        let counted = dropped(&cluster, hook) - before;
        assert!(counted >= 4.0, "{from}: {counted} for two families and protocols");
        // The ranges are the load balancer's alone.
        cluster.answers(from, Target::NodePort("node1", 10), &["pod1b", "pod2a"]);
        cluster.answers(from, Target::ClusterIp(10), &["pod1b", "pod2a"]);
    }
    cluster.is_silent("pod2b", LOAD_BALANCER);
    publish(&cluster, &["pod1b", "pod2a"], &["pod1b"]);
    cluster.is_silent("client", LOAD_BALANCER);
    cluster.is_silent("pod1a", LOAD_BALANCER);
    cluster.answers("pod1b", LOAD_BALANCER, &["pod1b", "pod2a"]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b", "pod2a"]);
}

fn a_node_in_a_range_reaches_it(mode: SocketLb) {
    let cluster = up(mode);
    publish(&cluster, &["pod1b", "pod2a"], &["node1"]);
    cluster.answers("node1", LOAD_BALANCER, &["pod1b", "pod2a"]);
    cluster.is_silent("client", LOAD_BALANCER);
    cluster.is_silent("pod1a", LOAD_BALANCER);
    cluster.is_silent("node2", LOAD_BALANCER);
}

fn without_endpoints_a_stranger_is_told_nothing(mode: SocketLb) {
    let cluster = up(mode);
    publish(&cluster, &[], &["client", "node1"]);
    cluster.is_refused("client", LOAD_BALANCER);
    cluster.is_refused("node1", LOAD_BALANCER);
    cluster.is_silent("pod1a", LOAD_BALANCER);
    cluster.is_silent("node2", LOAD_BALANCER);
}

fn established_connections_stay_when_ranges_change(mode: SocketLb) {
    let cluster = up(mode);
    publish(&cluster, &["pod1b"], &["client", "pod1a"]);
    let connections: Vec<_> = ["client", "pod1a"]
        .into_iter()
        .flat_map(|from| FAMILIES.map(|family| (from, family)))
        .map(|(from, family)| {
            let to = LOAD_BALANCER.address(&cluster.lab, family);
            let place = cluster.place(from);
            let stream = ok(place.enter(|| TcpStream::connect_timeout(&to, AT_ONCE)));
            let stream = stream.unwrap_or_else(|err| panic!("{from} to {to}: {err}"));
            stream.set_read_timeout(Some(AT_ONCE)).expect("a timeout");
            let mut lines = BufReader::new(stream);
            let mut greeting = String::new();
            lines.read_line(&mut greeting).expect("a greeting");
            (from, lines)
        })
        .collect();
    publish(&cluster, &["pod1b"], &["pod2b"]);
    for (from, mut lines) in connections {
        cluster.is_silent(from, LOAD_BALANCER);
        lines.get_mut().write_all(b"still there\n").expect("a connection");
        let mut echo = String::new();
        lines.read_line(&mut echo).unwrap_or_else(|err| panic!("{from}: {err}"));
        assert!(echo.contains("still there"), "{from}: {echo:?}");
    }
}
