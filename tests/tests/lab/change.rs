//! A Service's backends change: what is established stays, what is new follows.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lab::{
    agent::SocketLb,
    manifests::{Service, Slice},
    peer::{self, Load, Loading, Protocol, Question},
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Plan, SILENCE, eventually, ok, show},
    service::{Exposed, FAMILIES, Family, Target, cluster_ips, expose, name},
};

both! {
    established_stays_with_its_backend_when_the_set_changes,
    new_connections_use_the_new_set,
    deleted_service_stops,
    a_service_that_is_made_again_serves_as_before,
    ports_of_a_service_change,
    a_protocol_comes_to_a_node_port_and_goes,
    a_rolling_update_loses_nothing,
    pods_that_end_serve_where_no_other_does,
    endpoints_come_and_go,
    udp_follows_when_its_backend_goes,
    udp_that_began_without_endpoints_finds_them,
    udp_stays_while_a_change_cannot_be_programmed,
    connections_are_reset_by_option_when_their_endpoint_goes,
    the_external_policy_changes_under_traffic,
    one_port_finds_the_pod_of_its_node_again,
}

/// Where a load goes: both families, TCP and UDP.
pub(crate) fn load_arguments(cluster: &Cluster, target: Target) -> Vec<String> {
    peer::targets(FAMILIES.map(|family| target.address(&cluster.lab, family)))
}

/// Begins a load of TCP, with three flags that say how much.
pub(crate) fn load_of_tcp(
    cluster: &Cluster,
    from: &str,
    target: Target,
    flags: [&str; 3],
) -> Loading {
    let arguments = load_arguments(cluster, target);
    let tcp = arguments.iter().map(String::as_str).filter(|to| to.starts_with("--tcp"));
    let arguments: Vec<&str> = tcp.chain(flags).collect();
    ok(peer::load(&cluster.place(from), &arguments))
}

pub(crate) fn assert_nothing_lost(load: &Load) {
    assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{load:?}");
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
}

fn established_stays_with_its_backend_when_the_set_changes(mode: SocketLb) {
    const GENTLE: [&str; 4] = ["--rate=20", "--lasting=4", "--requests=50", "--datagrams=50"];
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let load = |from, target, protocols: &str, more: &[&'static str]| {
        let all = load_arguments(&cluster, target);
        let chosen = all.iter().filter(|argument| argument.starts_with(protocols));
        let flags = GENTLE.into_iter().chain(more.iter().copied());
        let arguments: Vec<&str> = chosen.map(String::as_str).chain(flags).collect();
        ok(peer::load(&cluster.place(from), &arguments))
    };
    let both = |protocols| {
        let pod = load("pod1a", Target::ClusterIp(10), protocols, &[]);
        [pod, load("client", Target::NodePort("node1", 10), protocols, &[])]
    };
    // The loads have their connections when the backend counts them.
    let under_way = || {
        eventually("the load is under way", || {
            let sockets = ok(cluster.lab.shell("pod2a", "ss -Htn state established | wc -l"));
            (sockets.trim().parse::<u32>().ok()? >= 16).then_some(())
        });
    };
    let loads = both("--");
    let unconnected = load("pod1a", Target::ClusterIp(10), "--udp", &["--unconnected"]);
    under_way();
    for pods in [&["pod2a", "pod2b"][..], &["pod1b", "pod2a", "pod2b"], &["pod1b", "pod2a"]] {
        cluster.publish(&expose(10, pods));
    }
    cluster.publish(&expose(10, &["pod2a"]));
    for load in loads {
        let load = ok(load.stop());
        assert_nothing_lost(&load);
        assert_eq!(load.udp_moved, 0, "a datagram of an answered flow went elsewhere: {load:?}");
    }
    let load = ok(unconnected.stop());
    assert!(load.udp_sent > 0, "{load:?}");
    assert_eq!((load.failed, load.udp_missing, load.udp_moved), (0, 0, 0), "{load:?}");
    // A connection also outlives its backend's place in the set: the pod may be terminating.
    let loads = both("--tcp");
    under_way();
    cluster.publish(&expose(10, &["pod1b"]));
    cluster.publish(&expose(10, &[]));
    cluster.publish(&expose(10, &["pod2b"]));
    for load in loads {
        let load = ok(load.stop());
        assert_eq!(load.resets, 0, "{load:?}");
        // While the set was empty, new connections were refused.
        let refused = load.errors.get("ECONNREFUSED").copied().unwrap_or(0);
        assert!(load.requests > 0 && load.failed == refused, "{load:?}");
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

/// Refusals are of the kernel where there is no Service, and it limits how many it tells a client.
fn refuse_without_limit(cluster: &Cluster, node: &str) {
    let limits = "net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 \
                  net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=10000";
    ok(cluster.lab.shell(node, &format!("sysctl -eqw {limits}")));
}

/// Under the same name, with the same addresses and ports, by other pods.
fn a_service_that_is_made_again_serves_as_before(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod2a"])]);
    refuse_without_limit(&cluster, "node1");
    for pods in [&["pod2a"], &["pod1b"], &["pod2a"]] {
        let service = expose(10, pods);
        cluster.publish(&service);
        cluster.reaches("pod1a", Target::ClusterIp(10), pods, "pod1a");
        cluster.answers("node1", Target::ClusterIp(10), pods);
        cluster.answers("client", Target::NodePort("node1", 10), pods);
        cluster.withdraw(&service);
        cluster.is_refused("client", Target::NodePort("node1", 10));
        cluster.is_refused("pod1a", Target::NodePort("node1", 10));
    }
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod2a"], "pod1a");
}

/// Of TCP; UDP, by the same numbers, stays as it is.
fn ports_of_a_service_change(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let node_port = |port: u16| Target::NodePortAt("node1", port);
    let answers = |from: &str, target: Target, protocol| {
        FAMILIES.into_iter().all(|family| {
            let to = target.address(&cluster.lab, family);
            cluster.ask(from, protocol, to).name() == Some("pod2a")
        })
    };
    let change = |path: &'static str, value: serde_json::Value| {
        cluster.write(&expose(10, &["pod2a"]).with(|service| service.set(path, value)));
    };
    change("/spec/ports/0/nodePort", 30_099.into());
    eventually("the new node port answers", || {
        answers("client", node_port(30_099), Protocol::Tcp).then_some(())
    });
    assert!(!answers("client", node_port(30_010), Protocol::Tcp));
    assert!(answers("client", node_port(30_010), Protocol::Udp));
    change("/spec/ports/0/port", 81.into());
    eventually("the new port answers", || {
        answers("pod1a", Target::Port(10, 81), Protocol::Tcp).then_some(())
    });
    assert!(answers("client", node_port(30_010), Protocol::Tcp), "it is the old one again");
    assert!(!answers("client", node_port(30_099), Protocol::Tcp));
    assert!(!answers("pod1a", Target::ClusterIp(10), Protocol::Tcp));
    assert!(answers("pod1a", Target::ClusterIp(10), Protocol::Udp));
}

/// The other protocol's connections, at the same number, notice nothing.
fn a_protocol_comes_to_a_node_port_and_goes(mode: SocketLb) {
    let both = expose(10, &["pod2a"]);
    let one = both.clone().with(|service| {
        let tcp = json!({"name": "tcp", "protocol": "TCP", "port": 80, "nodePort": 30_010});
        service.set("/spec/ports", json!([tcp]))
    });
    let cluster = Cluster::up(mode, std::slice::from_ref(&one));
    refuse_without_limit(&cluster, "node1");
    let target = Target::NodePort("node1", 10);
    let gentle = ["--rate=50", "--lasting=4", "--requests=50"];
    let load = load_of_tcp(&cluster, "client", target, gentle);
    for (service, is_there) in [(&one, false), (&both, true), (&one, false), (&both, true)] {
        cluster.write(service);
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            for from in ["client", "pod1a", "node1"] {
                let what = format!("{from} reaches {to} by UDP: {is_there}");
                eventually(&what, || {
                    let answer = cluster.ask(from, Protocol::Udp, to);
                    let is_right =
                        if is_there { answer.name() == Some("pod2a") } else { answer.is_refused() };
                    is_right.then_some(())
                });
            }
        }
    }
    let load = ok(load.stop());
    assert!(load.connections > 0 && load.requests > 0, "{load:?}");
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
}

/// As a Deployment replaces its pods: the new one is ready before the old one ends, which still
/// serves for a while and is gone then.
fn a_rolling_update_loses_nothing(mode: SocketLb) {
    let anywhere = |pods: &[&str]| expose(10, pods).balanced(&[]);
    let here = |pods: &[&str]| expose(11, pods).balanced(&[]).with(Service::external_local);
    let cluster = Cluster::up(mode, &[anywhere(&["pod1a"]), here(&["pod1a"])]);
    let gentle = ["--rate=50", "--lasting=4", "--requests=50"];
    let load = |from, target| (from, load_of_tcp(&cluster, from, target, gentle));
    let loads = [
        load("client", Target::LoadBalancer(10)),
        load("client", Target::LoadBalancer(11)),
        load("client", Target::NodePort("node1", 11)),
        load("pod2b", Target::ClusterIp(10)),
    ];
    let replace = |service: &dyn Fn(&[&str]) -> Exposed, old: &str, new: &str| {
        cluster.publish(&service(&[old, new]));
        let ending = cluster.draining(&service(&[old, new]), old);
        ok(cluster.lab.publish(&service(&[]).file(), &ending));
        cluster.wait_programmed(&service(&[new]));
        cluster.publish(&service(&[new]));
    };
    for _ in 0..3 {
        replace(&anywhere, "pod1a", "pod2a");
        replace(&here, "pod1a", "pod1b");
        replace(&anywhere, "pod2a", "pod1a");
        replace(&here, "pod1b", "pod1a");
    }
    for (from, load) in loads {
        let load = ok(load.stop());
        assert!(load.connections > 0 && load.requests > 0, "{from}: {load:?}");
        assert_eq!((load.failed, load.resets), (0, 0), "{from}: {load:?}");
    }
}

/// For each traffic policy among the endpoints that it allows (KEP-1669).
fn pods_that_end_serve_where_no_other_does(mode: SocketLb) {
    let anywhere = |pods: &[&str]| expose(10, pods);
    let inside = |pods: &[&str]| expose(11, pods).with(Service::internal_local);
    let outside = |pods: &[&str]| expose(12, pods).with(Service::external_local);
    let cluster = Cluster::up(mode, &[anywhere(&[]), inside(&[]), outside(&[])]);
    let ending = |service: &Exposed| {
        ok(cluster.lab.publish(&service.file(), &cluster.draining(service, "pod1b")));
    };
    for service in [anywhere(&["pod1b"]), inside(&["pod1b"]), outside(&["pod1b"])] {
        ending(&service);
        cluster.wait_programmed(&service);
    }
    for number in [10, 11, 12] {
        cluster.reaches("pod1a", Target::ClusterIp(number), &["pod1b"], "pod1a");
        cluster.reaches("client", Target::NodePort("node1", number), &["pod1b"], "client");
    }
    cluster.is_silent("pod2b", Target::ClusterIp(11));
    cluster.is_silent("client", Target::NodePort("node2", 12));

    // One that is ready goes before, where the policy allows it.
    let both = ["pod1b", "pod2a"];
    for service in [anywhere(&both), inside(&both), outside(&both)] {
        ending(&service);
    }
    let is_ready_ones = |from: &str, target: Target| {
        eventually("the ready pod answers", || {
            let to = target.address(&cluster.lab, FAMILIES[0]);
            (cluster.ask(from, Protocol::Tcp, to).name() == Some("pod2a")).then_some(())
        });
        for _ in 0..8 {
            cluster.answers(from, target, &["pod2a"]);
        }
    };
    is_ready_ones("pod1a", Target::ClusterIp(10));
    is_ready_ones("client", Target::NodePort("node1", 11));
    is_ready_ones("pod1a", Target::ClusterIp(12));
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 12), &["pod1b"], "client");
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

/// A gentle load of datagrams in both families.
pub(crate) fn datagrams(
    cluster: &Cluster,
    (from, target, flags): (&'static str, Target, &'static [&'static str]),
) -> (&'static str, Loading) {
    let arguments = load_arguments(cluster, target);
    let udp = arguments.iter().map(String::as_str).filter(|argument| argument.starts_with("--udp"));
    let flags = flags.iter().copied().chain(["--datagrams=100"]);
    let arguments: Vec<&str> = udp.chain(flags).collect();
    (from, ok(peer::load(&cluster.place(from), &arguments)))
}

/// Who keeps a socket and a port to a Service is answered by another pod within a second after the
/// one before has gone.
fn udp_follows_when_its_backend_goes(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let loads = [
        ("pod1a", Target::ClusterIp(10), &[][..]),
        ("pod1b", Target::ClusterIp(10), &["--unconnected"]),
        ("client", Target::NodePort("node1", 10), &[]),
        ("client", Target::ClusterIp(10), &[]),
    ]
    .map(|load| datagrams(&cluster, load));
    sleep(Duration::from_millis(500));
    cluster.publish(&expose(10, &["pod2b"]));
    sleep(Duration::from_secs(1));
    for (from, load) in loads {
        let load = ok(load.stop());
        // The pod before still answers; only what is under way in the moment of the change is lost.
        assert!(load.failed == 0 && load.udp_missing <= 4, "{from}: {load:?}");
        assert!(load.udp_moved > 0, "{from}: {load:?}");
    }
    // A process of the node has a socket that leads to the pod itself, and is told.
    let (_, load) = datagrams(&cluster, ("node1", Target::ClusterIp(10), &[]));
    sleep(Duration::from_millis(500));
    cluster.publish(&expose(10, &["pod1b"]));
    sleep(Duration::from_secs(1));
    let load = ok(load.stop());
    assert!(load.errors.contains_key("ECONNABORTED"), "{load:?}");
    cluster.answers("node1", Target::ClusterIp(10), &["pod1b"]);
}

/// A client that began too early is refused and asks on; it need not open another socket.
fn udp_that_began_without_endpoints_finds_them(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &[])]);
    let loads = [
        ("pod1a", Target::ClusterIp(10), &[][..]),
        ("pod1b", Target::ClusterIp(10), &["--unconnected"]),
        ("client", Target::NodePort("node1", 10), &[]),
    ]
    .map(|load| datagrams(&cluster, load));
    sleep(Duration::from_millis(500));
    cluster.publish(&expose(10, &["pod2a"]));
    sleep(Duration::from_secs(1));
    for (from, load) in loads {
        let load = ok(load.stop());
        // Only a socket with a peer is told of an ICMP error.
        let is_told = from != "pod1b" || mode == SocketLb::On;
        assert_eq!(load.errors.contains_key("ECONNREFUSED"), is_told, "{from}: {load:?}");
        assert!(load.udp_missing < load.udp_sent, "{from} is never answered: {load:?}");
    }
}

/// Rows in use and rows that fit, of a table of the first node.
fn fill(cluster: &Cluster, table: &str) -> (u64, u64) {
    let status = cluster.show(&["status"]);
    let mut tables = status["tables"].as_array().into_iter().flatten();
    let row = tables.find(|row| row["table"] == table);
    row.and_then(|row| Some((row["entries"].as_u64()?, row["capacity"].as_u64()?)))
        .unwrap_or_else(|| panic!("{table} is not shown: {status}"))
}

/// What follows nothing but what stands in the tables cannot be led anywhere else.
fn udp_stays_while_a_change_cannot_be_programmed(mode: SocketLb) {
    const OTHERS: &str = "others.yaml";
    let plan = Plan::new(mode).extra(&["--capacity", "backends=64"]);
    let cluster = plan.up(&[expose(10, &["pod2a"])]);
    let (entries, capacity) = fill(&cluster, "BACKENDS4");
    assert!(capacity < 200, "a Service has no more ports: {capacity}");
    // Each port takes one of the rows that are left.
    let ports = |named: &str| -> serde_json::Value {
        let all = 0..capacity - entries;
        all.map(|nth| json!({"name": format!("p{nth}"), named: 1_000 + nth})).collect()
    };
    let [address, _] = cluster_ips(99);
    let others = Service::new("others").cluster_ip(address).set("/spec/ports", ports("port"));
    let endpoint = cluster.address("pod1b", FAMILIES[0]);
    let slice = Slice::new("others", false, &[]).endpoint(endpoint, "node1");
    let slice = slice.set("/ports", ports("port"));
    ok(cluster.lab.publish(OTHERS, &[others.build(), slice.build()]));
    eventually("the table is full", || {
        (fill(&cluster, "BACKENDS4") == (capacity, capacity)).then_some(())
    });
    let load = || {
        [("pod1a", Target::ClusterIp(10)), ("client", Target::NodePort("node1", 10))].map(
            |(from, target)| {
                let to = format!("--udp={}", target.address(&cluster.lab, FAMILIES[0]));
                (from, ok(peer::load(&cluster.place(from), &[&to, "--datagrams=100"])))
            },
        )
    };
    let loads = load();
    sleep(Duration::from_millis(500));
    cluster.write(&expose(10, &["pod2b"]));
    eventually("what does not fit is told", || {
        let problems = cluster.show(&["status"])["problems"].to_string();
        problems.contains("BACKENDS4").then_some(())
    });
    sleep(Duration::from_secs(1));
    for (from, load) in loads {
        let load = ok(load.stop());
        assert!(load.udp_sent > 0, "{from}: {load:?}");
        assert_eq!((load.udp_missing, load.udp_moved), (0, 0), "{from}: {load:?}");
    }
    let loads = load();
    sleep(Duration::from_millis(500));
    ok(cluster.lab.withdraw(OTHERS));
    cluster.wait_programmed(&expose(10, &["pod2b"]));
    sleep(Duration::from_secs(1));
    for (from, load) in loads {
        let load = ok(load.stop());
        assert!(load.udp_moved > 0, "{from}: {load:?}");
    }
}

/// Connections that stay open for each address; both families have some.
const LASTING: u64 = 8;

/// By option a connection ends with its endpoint: the packet path resets it when somebody next says
/// something, and sockets of the node's own processes end at once. Who terminates is let finish, and
/// what leads to the same pod by another Service goes on.
fn connections_are_reset_by_option_when_their_endpoint_goes(mode: SocketLb) {
    let pods = ["pod2a", "pod2b"];
    let cluster = Plan::new(mode)
        .extra(&["--tcp-on-removed-endpoint=reset"])
        .up(&[expose(10, &pods), expose(11, &["pod2a"])]);
    let flags = ["--rate=1", "--lasting=8", "--requests=20"];
    let load = |from, target| (from, load_of_tcp(&cluster, from, target, flags));
    let loads = [
        load("pod1a", Target::ClusterIp(10)),
        load("client", Target::NodePort("node1", 10)),
        load("node1", Target::ClusterIp(10)),
    ];
    let others = [load("pod1a", Target::ClusterIp(11)), load("node1", Target::ClusterIp(11))];
    let connected = |pod: &str| {
        let count = ok(cluster.lab.shell(pod, "ss -Htn state established | wc -l"));
        count.trim().parse::<u64>().unwrap_or_default()
    };
    eventually("the load is under way", || {
        (connected("pod2a") + connected("pod2b") >= 5 * 2 * LASTING).then_some(())
    });
    let draining = cluster.draining(&expose(10, &pods), "pod2a");
    ok(cluster.lab.publish(&expose(10, &pods).file(), &draining));
    cluster.wait_programmed(&expose(10, &["pod2b"]));
    sleep(Duration::from_secs(1));
    // Its connections are counted where they end: at the clients.
    let flows = |state: &str| {
        let shown = cluster.show(&["flows"]);
        let service = format!("{}:tcp", name(10));
        let of_pod = |flow: &&serde_json::Value| {
            let pod = ok(cluster.lab.addresses("pod2a")).both();
            let backend = flow["backend"].as_str().and_then(|text| text.parse().ok());
            flow["service"].as_str().is_some_and(|name| name.ends_with(&service))
                && flow["state"] == state
                && backend.is_some_and(|backend: SocketAddr| pod.contains(&backend.ip()))
        };
        shown.as_array().into_iter().flatten().filter(of_pod).count()
    };
    assert!(flows("established") > 0, "{:?}", cluster.show(&["flows"]));
    assert_eq!(flows("reset"), 0, "who terminates drains");
    cluster.publish(&expose(10, &["pod2b"]));
    sleep(Duration::from_secs(2));
    assert_eq!(flows("established"), 0, "{:?}", cluster.show(&["flows"]));
    for (from, load) in loads {
        let load = ok(load.stop());
        // The other half stays with the other pod.
        let name = if from == "node1" { "ECONNABORTED" } else { "ECONNRESET" };
        let ended = load.errors.get(name).copied().unwrap_or_default();
        assert!(ended > 0 && ended < 2 * LASTING, "{from}: {load:?}");
        assert_eq!(load.failed, ended, "{from}: {load:?}");
    }
    for (from, load) in others {
        let load = ok(load.stop());
        assert!(load.requests > 0, "{from}: {load:?}");
        assert_eq!(load.failed, 0, "{from}: {load:?}");
    }
    assert!(cluster.metric("millrace_drops_total", &[("reason", "endpoint_gone")]) > 0.0);
}

/// From any node's endpoints to those of the node that is asked, and back. What began goes on with
/// its pod; what begins has one that the policy of the moment allows, and with `Local` the client's
/// own address.
fn the_external_policy_changes_under_traffic(mode: SocketLb) {
    let pods = ["pod1b", "pod2a"];
    let cluster = Cluster::up(mode, &[expose(10, &pods)]);
    let load = |from, target| {
        let arguments = load_arguments(&cluster, target);
        let gentle = ["--rate=50", "--lasting=4", "--requests=50", "--datagrams=50"];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(gentle).collect();
        ok(peer::load(&cluster.place(from), &arguments))
    };
    let loads = [
        load("client", Target::NodePort("node1", 10)),
        load("client", Target::NodePort("node2", 10)),
        load("pod1a", Target::ClusterIp(10)),
    ];
    let policy = |wanted: &str| {
        eventually(&format!("the policy is {wanted}"), || {
            let all = cluster.agents.iter().map(|agent| show(agent, &["services", &name(10)]));
            let is_wanted = |row: &serde_json::Value| row["external_traffic_policy"] == wanted;
            all.into_iter()
                .all(|rows| rows.as_array().is_some_and(|rows| rows.iter().all(is_wanted)))
                .then_some(())
        });
    };
    let seen = |node: &'static str| {
        let to = Target::NodePort(node, 10).address(&cluster.lab, Family::V4);
        let mut names = cluster.answerers("client", Protocol::Tcp, to, 20);
        names.sort();
        names.dedup();
        names
    };
    for _ in 0..3 {
        cluster.write(&expose(10, &pods).with(Service::external_local));
        policy("Local");
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
        cluster.reaches("client", Target::NodePort("node2", 10), &["pod2a"], "client");
        assert_eq!([seen("node1"), seen("node2")], [["pod1b"], ["pod2a"]]);
        cluster.write(&expose(10, &pods));
        policy("Cluster");
        assert_eq!([seen("node1"), seen("node2")], [pods, pods]);
    }
    for load in loads {
        assert_nothing_lost(&ok(load.stop()));
    }
}

/// A client that keeps one port, as name servers' clients do, and whose Service stays on its node: it
/// hears nothing while the node has no pod of it, and the new one once that is there.
fn one_port_finds_the_pod_of_its_node_again(mode: SocketLb) {
    const PORT: u16 = 40_053;
    let local = |pods: &[&str]| expose(10, pods).with(Service::internal_local);
    let cluster = Plan::new(mode).up(&[local(&["pod1b", "pod2a"])]);
    let ask = |from: &str, family: Family, unconnected: bool| {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let question = Question {
            source_port: Some(PORT),
            timeout: Some(SILENCE),
            unconnected,
            ..Question::default()
        };
        let answer = cluster.ask_with(from, Protocol::Udp, to, &question).remove(0);
        answer.name().map(ToOwned::to_owned)
    };
    let all = |wanted: Option<&str>| {
        for from in ["pod1a", "node1"] {
            for family in FAMILIES {
                for unconnected in [false, true] {
                    eventually(&format!("{from} hears {wanted:?}"), || {
                        (ask(from, family, unconnected).as_deref() == wanted).then_some(())
                    });
                }
            }
        }
    };
    for _ in 0..3 {
        all(Some("pod1b"));
        cluster.publish(&local(&["pod2a"]));
        all(None);
        cluster.publish(&local(&["pod1b", "pod2a"]));
    }
    all(Some("pod1b"));
}
