//! NodePorts from outside, and from the node's own pods and processes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lab::{
    agent::SocketLb,
    manifests,
    peer::{self, Protocol, Question},
};
use serde_json::json;

use crate::{
    cluster::{AT_ONCE, Cluster, Plan, eventually, ok},
    service::{FAMILIES, Family, TARGET, Target, expose, node_port},
};

both! {
    client_reaches_node_port_with_local_backend_and_keeps_its_address,
    client_reaches_node_port_with_remote_backend_masqueraded,
    client_reaches_cluster_ip_through_a_node,
    pod_and_node_reach_own_node_port,
    pod_and_node_reach_node_port_of_other_node,
    a_node_port_is_held_by_no_socket,
    a_process_on_the_port_is_shadowed,
    host_ports_of_a_plugin_are_not_shadowed,
    node_ports_answer_where_cidrs_say,
    node_ports_answer_at_the_primary_addresses_and_at_localhost,
    node_ports_follow_the_nodes_address,
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

fn a_node_port_is_held_by_no_socket(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"])]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1a"]);
    let listening = |port: u16| {
        ok(cluster.lab.shell("node1", &format!("ss -Hlntu sport = :{port}"))).trim().to_owned()
    };
    assert_eq!(listening(node_port(10)), "");
    // The question is one that finds something: the agent's own.
    assert_ne!(listening(10_256), "");
}

/// As with kube-proxy, whose rules go before the node's own sockets; also where there is nobody to
/// answer (kubernetes/kubernetes#97360).
fn a_process_on_the_port_is_shadowed(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a"])]);
    let port = node_port(10);
    let arguments = [format!("--tcp={port}"), format!("--udp={port}")];
    let arguments = arguments.each_ref().map(String::as_str);
    let _server = ok(peer::serve(&cluster.place("node1"), &arguments));
    let target = Target::NodePort("node1", 10);
    for from in ["client", "pod1b", "node1", "pod2a"] {
        cluster.answers(from, target, &["pod1a"]);
    }
    cluster.publish(&expose(10, &[]));
    for from in ["client", "pod1b", "node1", "pod2a"] {
        cluster.is_refused(from, target);
    }
    cluster.withdraw(&expose(10, &[]));
    for from in ["client", "node1"] {
        cluster.answers(from, target, &["node1"]);
    }
}

/// What the CNI plugin portmap does for `hostPort`, by rules of netfilter: one number of the node for
/// two pods, by TCP to one and by UDP to the other, both of which a NodePort leads to as well.
fn host_ports_of_a_plugin_are_not_shadowed(mode: SocketLb) {
    const HOST_PORT: u16 = 30_500;
    let cluster = Cluster::up(mode, &[expose(10, &["pod1a", "pod1b"])]);
    for family in FAMILIES {
        let tool = if family == Family::V6 { "ip6tables" } else { "iptables" };
        for (protocol, pod) in [("tcp", "pod1a"), ("udp", "pod1b")] {
            let to = SocketAddr::new(cluster.address(pod, family), TARGET);
            for chain in ["PREROUTING", "OUTPUT"] {
                let rule = format!(
                    "{tool} -t nat -A {chain} -m addrtype --dst-type LOCAL -p {protocol} \
                     --dport {HOST_PORT} -j DNAT --to-destination {to}"
                );
                ok(cluster.lab.shell("node1", &rule));
            }
        }
    }
    let node_port = Target::NodePort("node1", 10);
    let host_port = Target::NodePortAt("node1", HOST_PORT);
    // The Service leads to both pods, and then to one, which is none of the other's business.
    for pods in [&["pod1a", "pod1b"][..], &["pod1b"]] {
        cluster.publish(&expose(10, pods));
        for from in ["client", "pod2a", "node1", "node2"] {
            for family in FAMILIES {
                let to = host_port.address(&cluster.lab, family);
                for (protocol, pod) in [(Protocol::Tcp, "pod1a"), (Protocol::Udp, "pod1b")] {
                    let answer = cluster.ask(from, protocol, to);
                    assert_eq!(answer.name(), Some(pod), "{from} asks {to}: {answer:?}");
                    let source = answer.source().map(|source| source.ip());
                    let is_own = source == Some(cluster.address(from, family));
                    assert!(is_own || from == "node1", "{from} asks {to}: {answer:?}");
                }
            }
            cluster.answers(from, node_port, pods);
        }
    }
}

/// Of the other family nothing is said.
fn node_ports_answer_where_cidrs_say(mode: SocketLb) {
    let cluster = Plan::single(mode)
        .extra(&["--nodeport-addresses=10.244.1.0/24"])
        .up(&[expose(10, &["pod1b"])]);
    let bridge = SocketAddr::from(([10, 244, 1, 1], node_port(10)));
    let primary = |family| Target::NodePort("node1", 10).address(&cluster.lab, family);
    for (from, to) in [
        ("pod1a", bridge),
        ("node1", bridge),
        ("pod1a", primary(Family::V6)),
        ("node1", primary(Family::V6)),
        ("client", primary(Family::V6)),
    ] {
        let answer = cluster.ask(from, Protocol::Tcp, to);
        assert_eq!(answer.name(), Some("pod1b"), "{from} asks {to}: {answer:?}");
    }
    for from in ["client", "pod1a", "node1"] {
        let answer = cluster.ask(from, Protocol::Tcp, primary(Family::V4));
        assert!(answer.is_refused(), "{from}: {answer:?}");
    }
}

fn node_ports_answer_at_the_primary_addresses_and_at_localhost(mode: SocketLb) {
    let cluster = Plan::single(mode)
        .extra(&["--nodeport-addresses=primary,localhost"])
        .up(&[expose(10, &["pod1b"])]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);
    cluster.answers("node1", Target::NodePort("node1", 10), &["pod1b"]);
    let at = |address: IpAddr| SocketAddr::from((address, node_port(10)));
    for localhost in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let answer = cluster.ask("node1", Protocol::Tcp, at(localhost));
        assert_eq!(answer.name(), Some("pod1b"), "{localhost}: {answer:?}");
    }
    let answer = cluster.ask("node1", Protocol::Tcp, at(Ipv4Addr::new(10, 244, 1, 1).into()));
    assert!(answer.is_refused(), "{answer:?}");
}

/// The Node object says by which address the node is known; what began at the one before goes on.
fn node_ports_follow_the_nodes_address(mode: SocketLb) {
    const NEW: [&str; 2] = ["192.168.78.61", "fd00:78::61"];
    let mut plan = Plan::single(mode);
    plan.is_told_node_ip = false;
    let cluster = plan.up(&[expose(10, &["pod1b"])]);
    let old = |family: Family| Target::NodePort("node1", 10).address(&cluster.lab, family);
    let new = |family: Family| {
        let address = family.of(NEW.map(|address| ok(address.parse())));
        SocketAddr::new(address, old(family).port())
    };
    let asked = |from: &str, protocol, to| {
        let question = Question { timeout: Some(AT_ONCE), ..Question::default() };
        let answer = cluster.ask_with(from, protocol, to, &question).remove(0);
        answer.name().map(ToOwned::to_owned)
    };
    // Whether both families answer there, by TCP and UDP, to those outside and on the node.
    let are_at = |at: &dyn Fn(Family) -> SocketAddr, wanted: Option<&str>| {
        for from in ["client", "pod1a", "node1"] {
            for to in FAMILIES.map(at) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    eventually(&format!("{from} hears {wanted:?} at {to}"), || {
                        (asked(from, protocol, to).as_deref() == wanted).then_some(())
                    });
                }
            }
        }
    };
    are_at(&old, Some("pod1b"));
    let node1 = |line: &str| drop(ok(cluster.lab.shell("node1", line)));
    node1("ip addr add 192.168.78.61/24 dev eth0; ip addr add fd00:78::61/64 dev eth0 nodad");
    are_at(&new, None);
    let to = old(Family::V4);
    let held = ["--rate=1", "--lasting=2", "--requests=20"];
    let arguments = [format!("--tcp={to}")];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(held).collect();
    let load = ok(peer::load(&cluster.place("client"), &arguments));
    eventually("the load is under way", || {
        let sockets = ok(cluster.lab.shell("client", "ss -Htn state established | wc -l"));
        (sockets.trim().parse::<u32>().ok()? >= 2).then_some(())
    });
    let mut nodes = manifests::nodes(&cluster.lab);
    let internal = |address| json!({"type": "InternalIP", "address": address});
    nodes[0]["status"]["addresses"] = json!(NEW.map(internal));
    ok(cluster.lab.publish("nodes.yaml", &nodes));
    are_at(&new, Some("pod1b"));
    are_at(&old, None);
    let addresses = cluster.show(&["status"])["node_addresses"].clone();
    assert_eq!(addresses, json!(NEW));
    // New connections find nobody at the old address; those that were there lose nothing.
    let load = ok(load.stop());
    let refused = load.errors.get("ECONNREFUSED").copied().unwrap_or_default();
    assert!(load.requests > 0 && load.resets == 0 && load.failed == refused, "{load:?}");
}
