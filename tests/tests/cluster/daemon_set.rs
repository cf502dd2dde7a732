//! Both DaemonSets on two nodes: everything reaches everything, and goes on while they are updated.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use lab::{
    Place,
    kubernetes::Kubernetes,
    peer::{self, Answer, Protocol, Question},
};
use serde_json::Value;

use crate::{
    bed::{self, AGENTS},
    manifest::ok,
};

const NAME: &str = "web";
const NODE_PORT: u16 = 30080;
/// Asks enough to meet both of two backends, but for once in a million times.
pub(crate) const ASKED: u32 = 21;

#[test]
fn they_carry_all_traffic_and_are_updated_without_loss() {
    let cluster = bed::deployed(2, &[]);
    ok(cluster.apply(&[bed::dns(), bed::servers(NAME, NODE_PORT).into()].concat()));
    ok(cluster.rolled_out("default", &format!("daemonset/{NAME}")));
    ok(cluster.rolled_out("kube-system", "deployment/coredns"));
    both_are_endpoints(&cluster, NAME);
    the_plugin_follows_the_agents_subnet(&cluster);
    pods_reach_pods_of_the_other_node(&cluster);
    services_are_balanced_for_pods_nodes_and_strangers(&cluster);
    names_are_resolved_by_way_of_their_service(&cluster);
    nobody_translates_by_netfilter(&cluster);
    updates_lose_nothing(&cluster);
}

/// `subnet.env` of each node tells its podCIDR, and pods have their addresses of it.
fn the_plugin_follows_the_agents_subnet(cluster: &Kubernetes) {
    for machine in &cluster.machines {
        let cidr = ok(cluster.pod_cidr(machine.name()));
        let gateway = cidr.replace(".0/", ".1/");
        let told = ok(machine.shell("cat /run/flannel/subnet.env"));
        assert!(told.contains(&format!("FLANNEL_SUBNET={gateway}\n")), "{cidr}: {told}");
        let written = ok(machine.shell("cat /etc/cni/net.d/10-flannel.conflist"));
        assert!(written.contains("\"flannel\""), "{written}");
        let bridge = ok(machine.shell("ip -o -4 address show dev cni0"));
        assert!(bridge.contains(&gateway), "{bridge}");
        let pod = pod(cluster, NAME, machine.name());
        let network = cidr.trim_end_matches("0/24");
        assert!(pod.address.to_string().starts_with(network), "{}: {cidr}", pod.address);
    }
}

fn pods_reach_pods_of_the_other_node(cluster: &Kubernetes) {
    for (machine, other) in cluster.machines.iter().zip(cluster.machines.iter().rev()) {
        let (from, to) = (pod(cluster, NAME, machine.name()), pod(cluster, NAME, other.name()));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = SocketAddr::new(to.address.into(), 8080);
            for answer in ask_in(cluster, &from, protocol, to, 3) {
                assert_eq!(answer.name(), Some(other.name()), "{answer:?}");
                // It is seen by its own address: nobody masquerades between pods.
                let source = answer.source().map(|source| source.ip());
                assert_eq!(source, Some(from.address.into()), "{answer:?}");
            }
        }
    }
}

fn services_are_balanced_for_pods_nodes_and_strangers(cluster: &Kubernetes) {
    let service = service(cluster);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for machine in &cluster.machines {
            let to = SocketAddr::new(service.into(), 80);
            let from = pod(cluster, NAME, machine.name());
            assert_both_answer(&ask_in(cluster, &from, protocol, to, ASKED));
            // The node's own processes, in the cgroup that the socket path is on.
            assert_both_answer(&ask_from(machine.place(), protocol, to));
            let node_port = SocketAddr::new(machine.place().addresses.v4.into(), NODE_PORT);
            assert_both_answer(&ask_from(&ok(cluster.lab.place("client")), protocol, node_port));
        }
    }
}

fn names_are_resolved_by_way_of_their_service(cluster: &Kubernetes) {
    let name = format!("{NAME}.default.svc.cluster.local");
    for machine in &cluster.machines {
        let from = pod(cluster, NAME, machine.name());
        let said = ok(cluster.kubectl(&["exec", &from.name, "--", PEER, "resolve", &name]));
        assert_eq!(said.trim(), service(cluster).to_string(), "{}", machine.name());
    }
}

/// A kubelet makes chains of its own, one of them with a rule against packets from elsewhere to the
/// loopback network. There is no other rule, and none that translates.
fn nobody_translates_by_netfilter(cluster: &Kubernetes) {
    for machine in &cluster.machines {
        for tool in ["iptables-save", "ip6tables-save"] {
            let rules = ok(machine.shell(tool));
            let foreign: Vec<&str> = rules
                .lines()
                .filter(|line| line.starts_with("-A") && !line.contains("KUBE-FIREWALL"))
                .collect();
            assert!(foreign.is_empty(), "{}: {foreign:?}", machine.name());
        }
        let tables = ok(machine.shell("nft list tables"));
        assert!(!tables.contains("kube-proxy"), "{tables}");
    }
    // So tunnels need no device, although that rule is there.
    for pod in pods(cluster, "kube-flannel", "app.kubernetes.io/name=flannel-agent") {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let status = ["flannel-agent", "status", "--output=json"];
        let arguments = [&["--namespace=kube-flannel", "exec", name, "--"], &status[..]].concat();
        let status: Value = ok(serde_json::from_str(&ok(cluster.kubectl(&arguments))));
        assert_eq!(status["fast_path"], "on, nothing on this node filters or translates");
    }
}

/// New pods of both DaemonSets take the places of the old ones, a node at a time, while requests go
/// from a pod, a node and the outside to a Service, and datagrams to the other node's pod.
fn updates_lose_nothing(cluster: &Kubernetes) {
    let [near, far] = ["node1", "node2"].map(|node| pod(cluster, NAME, node));
    let service = SocketAddr::new(service(cluster).into(), 80).to_string();
    let far = SocketAddr::new(far.address.into(), 8080).to_string();
    let node_port = SocketAddr::new(cluster.machines[0].place().addresses.v4.into(), NODE_PORT);
    let node_port = node_port.to_string();
    let mut loads = Vec::new();
    for (tcp, udp) in [(&service, &far), (&far, &service)] {
        let (tcp, udp) = (format!("--tcp={tcp}"), format!("--udp={udp}"));
        let arguments = ["exec", "--stdin", &near.name, "--", PEER, "load", &tcp, &udp];
        let command = cluster.kubectl_command(&[&arguments, &GENTLY[..]].concat());
        loads.push(("a pod", ok(peer::load_by(&ok(cluster.centre()), command))));
    }
    for (who, place, to) in [
        ("a node", cluster.machines[1].place().clone(), &service),
        ("the client", ok(cluster.lab.place("client")), &node_port),
    ] {
        let (tcp, udp) = (format!("--tcp={to}"), format!("--udp={to}"));
        loads.push((who, ok(peer::load(&place, &[&[tcp.as_str(), &udp], &GENTLY[..]].concat()))));
    }
    let before = AGENTS.map(|(namespace, agent)| uids(cluster, namespace, agent));
    for (namespace, agent) in AGENTS {
        let workload = format!("daemonset/{agent}");
        ok(cluster.kubectl(&["--namespace", namespace, "rollout", "restart", &workload]));
        ok(cluster.rolled_out(namespace, &workload));
    }
    for ((namespace, agent), before) in AGENTS.into_iter().zip(before) {
        let after = uids(cluster, namespace, agent);
        assert_eq!(after.len(), 2, "{agent}");
        assert!(after.is_disjoint(&before), "{agent}: {before:?} {after:?}");
    }
    for (who, load) in loads {
        let load = ok(load.stop());
        assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{who}: {load:?}");
        assert_eq!((load.failed, load.udp_missing), (0, 0), "{who}: {load:?}");
    }
}

/// Four loads, two kubelets and a control plane share the machine, which may have little to share: what
/// is slow is not lost.
const GENTLY: [&str; 4] = ["--rate=20", "--requests=20", "--datagrams=50", "--timeout=30"];

/// Where the image has the program.
const PEER: &str = "/usr/local/bin/lab-peer";

pub(crate) struct Pod {
    pub(crate) name: String,
    address: Ipv4Addr,
}

/// The pods with a label that the agents' and the test's DaemonSets give theirs.
pub(crate) fn pods(cluster: &Kubernetes, namespace: &str, selector: &str) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
    let mut found = ok(cluster.api.read(&path));
    match found["items"].take() {
        Value::Array(pods) => pods,
        other => panic!("{path}: {other}"),
    }
}

/// The pod of the test's DaemonSet on a node.
pub(crate) fn pod(cluster: &Kubernetes, name: &str, node: &str) -> Pod {
    let pods = pods(cluster, "default", &format!("app={name}"));
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == node).expect("one on each node");
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    Pod { name: text("/metadata/name").into(), address: ok(text("/status/podIP").parse()) }
}

fn uids(cluster: &Kubernetes, namespace: &str, agent: &str) -> BTreeSet<String> {
    let pods = pods(cluster, namespace, &format!("app.kubernetes.io/name={agent}"));
    // One that is on its way out may still be told.
    let pods = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.map(|pod| pod["metadata"]["uid"].to_string()).collect()
}

fn service(cluster: &Kubernetes) -> Ipv4Addr {
    let service = ok(cluster.api.read(&format!("/api/v1/namespaces/default/services/{NAME}")));
    ok(service["spec"]["clusterIP"].as_str().unwrap_or_default().parse())
}

/// Asks from inside a pod, in its namespaces and its cgroup.
pub(crate) fn ask_in(
    cluster: &Kubernetes,
    from: &Pod,
    protocol: Protocol,
    to: SocketAddr,
    count: u32,
) -> Vec<Answer> {
    let (to, count) = (to.to_string(), format!("--count={count}"));
    let mut arguments =
        vec!["exec", from.name.as_str(), "--", PEER, "ask", "--json", "--timeout=10"];
    arguments.extend([protocol.name(), &to, &count]);
    let said = ok(cluster.kubectl(&arguments));
    said.lines().map(|line| ok(serde_json::from_str(line))).collect()
}

/// Asks from a place of the lab.
pub(crate) fn ask_from(place: &Place, protocol: Protocol, to: SocketAddr) -> Vec<Answer> {
    let question = Question { count: Some(ASKED), ..Question::default() };
    ok(peer::ask_with(place, protocol, to, &question))
}

/// Waits until a Service has an endpoint on each node, in each of its families: a rollout is over before
/// they are told of.
pub(crate) fn both_are_endpoints(cluster: &Kubernetes, service: &str) {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
         ?labelSelector=kubernetes.io/service-name%3D{service}"
    );
    let is_whole = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() == 2
    };
    let what = format!("{service} has an endpoint on each node");
    ok(cluster.wait(&what, || {
        let slices = cluster.api.read(&path).ok()?;
        let slices = slices["items"].as_array()?;
        (!slices.is_empty() && slices.iter().all(is_whole)).then_some(())
    }));
}

#[track_caller]
pub(crate) fn assert_both_answer(answers: &[Answer]) {
    let names: BTreeSet<_> = answers.iter().map(Answer::name).collect();
    assert_eq!(names, [Some("node1"), Some("node2")].into(), "{answers:?}");
}
