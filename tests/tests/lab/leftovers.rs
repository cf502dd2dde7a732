//! `cleanup --kube-proxy`: what kube-proxy leaves goes, in whichever kind of iptables it stands, and
//! what others made stays. What a real one leaves is in the cluster tier.

use lab::agent::SocketLb;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Plan, ok, show},
    service::{Target, expose},
};

/// Both kinds, of both families.
const KINDS: [&str; 4] = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];

fn sh(cluster: &Cluster, line: &str) -> String {
    ok(cluster.lab.shell("node1", line))
}

/// All rules of others, and what they stand in.
fn foreign(cluster: &Cluster) {
    for kind in KINDS {
        sh(
            cluster,
            &format!(
                "{kind} -N MINE && {kind} -N KUBE-FIREWALL && {kind} -N KUBE-ROUTER-INPUT && \
                 {kind} -A KUBE-ROUTER-INPUT -j RETURN && {kind} -A INPUT -j KUBE-FIREWALL && \
                 {kind} -A INPUT -p tcp --dport 9 -m comment --comment 'not -j KUBE-SERVICES' \
                 -j MINE && {kind} -t nat -A POSTROUTING -p udp --dport 9 -j ACCEPT && \
                 {kind} -t mangle -P INPUT ACCEPT"
            ),
        );
    }
    sh(cluster, "nft 'table inet kube-proxy-of-mine { chain c { counter; }; }'");
    sh(cluster, "nft 'table inet kube-proxy { chain c { counter; }; }'");
}

/// As kube-proxy makes them, in iptables and nftables mode, and the device of IPVS mode. It is no
/// dummy here, because not every kernel has such.
fn leave(cluster: &Cluster) {
    for kind in KINDS {
        sh(
            cluster,
            &format!(
                "for c in SERVICES NODEPORTS POSTROUTING MARK-MASQ SVC-A SEP-B PROXY-CANARY; do \
                 {kind} -t nat -N KUBE-$c; done && \
                 {kind} -t nat -A KUBE-SERVICES -j KUBE-SVC-A && \
                 {kind} -t nat -A KUBE-SVC-A -m comment --comment 'a/b:c -> x' -j KUBE-SEP-B && \
                 {kind} -t nat -I PREROUTING -m comment --comment 'kubernetes service portals' \
                 -j KUBE-SERVICES && {kind} -t nat -I POSTROUTING -j KUBE-POSTROUTING && \
                 {kind} -N KUBE-FORWARD && {kind} -I FORWARD -j KUBE-FORWARD && \
                 {kind} -I MINE -g KUBE-FORWARD && {kind} -t mangle -N KUBE-PROXY-CANARY"
            ),
        );
    }
    for family in ["ip", "ip6"] {
        sh(
            cluster,
            &format!("nft 'table {family} kube-proxy {{ chain services {{ counter; }}; }}'"),
        );
    }
    sh(cluster, "ip link add kube-ipvs0 type bridge");
}

/// All that a tool tells of rules, but for counters and times.
fn rules(cluster: &Cluster) -> Vec<String> {
    let saves = KINDS.map(|kind| format!("{kind}-save"));
    let tools = saves.iter().map(String::as_str).chain(["nft list tables", "ip -o link show"]);
    tools
        .flat_map(|tool| sh(cluster, tool).lines().map(ToOwned::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn what_kube_proxy_left_goes_and_what_others_made_stays() {
    let cluster = Plan::single(SocketLb::Host).up(&[expose(10, &["pod1b"])]);
    foreign(&cluster);
    let before = rules(&cluster);
    leave(&cluster);
    assert!(rules(&cluster).len() > before.len() + 40);
    let removed = show(&cluster.agents[0], &["cleanup", "--kube-proxy"]);
    assert_eq!(rules(&cluster), before);

    let told = removed["kube_proxy"].as_array().expect("a list");
    let count = |by: &str| told.iter().filter(|one| one["by"] == by).count();
    // Seven chains of nat with two jumps, one of filter with two, one of mangle.
    assert_eq!(KINDS.map(count), [13; 4], "{removed}");
    assert_eq!([count("nft"), count("device")], [2, 1], "{removed}");
    let jump = json!({"by": "ip6tables-legacy", "what": "filter rule MINE -g KUBE-FORWARD"});
    assert!(told.contains(&jump), "{removed}");
    // The agent that has taken its place goes on.
    assert_eq!(removed["agent_runs"], true);
    assert_eq!(removed["links"], Value::Array(Vec::new()));
    cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b"]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);

    let again = show(&cluster.agents[0], &["cleanup", "--kube-proxy"]);
    assert_eq!(again["kube_proxy"], Value::Array(Vec::new()));
    assert_eq!(rules(&cluster), before);
}

/// Without an agent Millrace's own goes too.
#[test]
fn without_an_agent_everything_goes() {
    let mut cluster = Plan::single(SocketLb::Host).up(&[expose(10, &["pod1b"])]);
    sh(&cluster, "iptables-nft -t nat -N KUBE-SERVICES");
    ok(cluster.agents[0].kill());
    let output = ok(cluster.agents[0].ask(&["cleanup", "--kube-proxy"]));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("removed iptables-nft: nat chain KUBE-SERVICES\n"), "{text}");
    assert!(text.contains("removed pins in "), "{text}");
    assert!(!cluster.lab.bpffs("node1").exists(), "pins are left");
}
