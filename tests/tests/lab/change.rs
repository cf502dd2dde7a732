//! A Service's backends change: what is established stays, what is new follows.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lab::{
    agent::SocketLb,
    manifests::Service,
    peer::{self, Load, Loading, Protocol, Question},
};

use crate::{
    cluster::{Cluster, Plan, SILENCE, eventually, ok, show},
    service::{FAMILIES, Family, Target, expose, name},
};

both! {
    established_stays_with_its_backend_when_the_set_changes,
    new_connections_use_the_new_set,
    deleted_service_stops,
    ports_of_a_service_change,
    endpoints_come_and_go,
    udp_follows_when_its_backend_goes,
    udp_that_began_without_endpoints_finds_them,
    connections_are_reset_by_option_when_their_endpoint_goes,
    the_external_policy_changes_under_traffic,
    one_port_finds_the_pod_of_its_node_again,
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
fn datagrams(
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
    let load = |from, target| {
        let arguments = load_arguments(&cluster, target);
        let tcp = arguments.iter().map(String::as_str).filter(|to| to.starts_with("--tcp"));
        let flags = ["--rate=1", "--lasting=8", "--requests=20"];
        let arguments: Vec<&str> = tcp.chain(flags).collect();
        (from, ok(peer::load(&cluster.place(from), &arguments)))
    };
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
