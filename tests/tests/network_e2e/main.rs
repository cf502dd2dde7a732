//! All of Kubernetes' own tests of networks that a cluster of three nodes can run, with both agents as
//! DaemonSets and nobody else; which of them cannot pass there is told, and why.
//!
//! Needs what the tier cluster needs, and takes longer than a run of all tiers shall: so it is a tier
//! of its own, `cargo xtask test --tier network-e2e`.

#[allow(dead_code, reason = "the tier cluster uses the rest")]
#[path = "../cluster/bed.rs"]
mod bed;
#[path = "../cluster/e2e.rs"]
mod e2e;
#[allow(dead_code, reason = "the cases about manifests use the rest")]
#[path = "../deploy/manifest.rs"]
mod manifest;
mod unfit;
mod verdict;

use std::env;

use e2e::{Outcome, Selection};
use lab::kubernetes::Kubernetes;
use manifest::ok;
use serde_json::{Value, json};
use unfit::UNFIT;
use verdict::Verdict;

/// Who answers, who asks, and a node that has no part in it.
const NODES: u8 = 3;

const ZONES: usize = 3;

/// Three nodes and all that is asked of them share the machine: tests mostly wait.
const AT_ONCE: u8 = 6;

/// Of Kubernetes 1.35.4, those that are in the list of [`UNFIT`] among them. Another number is another
/// selection.
const TESTS: usize = 136;

const ALL: &str = r"\[sig-network\]";

/// Tests of what no part of this cluster gives, whoever balances its Services: policies of pods'
/// traffic, the other family, SCTP in the kernel, load balancers of a cloud, names of the Internet, the
/// right to log in to nodes by SSH, the cluster of a provider, and accounts of kube-proxy's iptables.
const ELSEWHERE: &[&str] = &[
    "DNS configMap nameserver",
    "Feature:IPv6DualStack",
    "Feature:LoadBalancer",
    "Feature:NetworkPolicy",
    "Feature:Networking-(IPv|DNS)",
    "Feature:PerformanceDNS",
    "KubeProxyNFAcct",
    "OffByDefault",
    "Provider:GCE",
    "SCTP",
    r"\[Disruptive\]",
];

/// Names a part of the tests by a regular expression of Go, in place of all.
const PART: &str = "MILLRACE_E2E";

#[test]
fn tests_of_networks_pass_but_for_those_that_cannot() {
    let part = env::var(PART).ok();
    let cluster = bed::deployed(NODES, &["e2e.tar"]);
    complete(&cluster);
    let focus = part.as_ref().map_or_else(|| ALL.into(), |part| format!("{ALL}.*({part})"));
    let skip = ELSEWHERE.join("|");
    let selection = Selection { name: "network", focus: &focus, skip: Some(&skip) };
    let outcome = e2e::run(&cluster, &selection, AT_ONCE);
    let verdict = Verdict::of(&outcome, UNFIT);
    assert_expected(&outcome, &verdict);
    if part.is_none() {
        assert_eq!(verdict.tests(), TESTS, "{}", outcome.log.display());
        assert_eq!(verdict.missing(UNFIT), [""; 0], "{}", outcome.log.display());
    }
}

/// Where nodes are neighbours, routes may join them in place of tunnels; by these a node's own packets
/// to other nodes' pods keep its address.
#[test]
fn others_pass_on_six_nodes_that_routes_join() {
    let names = UNFIT.iter().filter(|unfit| unfit.passes_elsewhere).map(|unfit| unfit.name);
    let names: Vec<_> = names.collect();
    let cluster = bed::deployed_with(2 * NODES, &["e2e.tar"], |object| {
        if object["metadata"]["name"] == "kube-flannel-cfg" {
            let network: Value = ok(serde_json::from_str(
                object["data"]["net-conf.json"].as_str().unwrap_or_default(),
            ));
            let joined = json!({"Network": network["Network"], "Backend": {"Type": "host-gw"}});
            object["data"]["net-conf.json"] = joined.to_string().into();
        }
    });
    complete(&cluster);
    let focus: Vec<_> = names.iter().map(|name| format!("{}$", literally(name))).collect();
    let selection = Selection { name: "network-routes", focus: &focus.join("|"), skip: None };
    let outcome = e2e::run(&cluster, &selection, AT_ONCE);
    let verdict = Verdict::of(&outcome, &[]);
    assert_expected(&outcome, &verdict);
    assert_eq!(verdict.tests(), names.len(), "{}", outcome.log.display());
}

/// Gives the cluster what tests ask for beside nodes: zones, and names of Services.
fn complete(cluster: &Kubernetes) {
    for (place, machine) in cluster.machines.iter().enumerate() {
        let zone = format!("topology.kubernetes.io/zone=zone{}", place % ZONES + 1);
        ok(cluster.kubectl(&["label", "node", machine.name(), &zone]));
    }
    ok(cluster.apply(&bed::dns()));
    ok(cluster.rolled_out("kube-system", "deployment/coredns"));
}

fn assert_expected(outcome: &Outcome, verdict: &Verdict) {
    println!("{verdict}");
    assert!(verdict.surprises().next().is_none(), "{outcome}");
}

/// A regular expression of Go that matches this text.
fn literally(text: &str) -> String {
    let quoted = |character: char| {
        let is_plain = character.is_alphanumeric() || character == ' ';
        [(!is_plain).then_some('\\'), Some(character)].into_iter().flatten()
    };
    text.chars().flat_map(quoted).collect()
}

#[test]
fn a_name_is_matched_by_itself() {
    assert_eq!(literally("[sig-network] a (b)"), r"\[sig\-network\] a \(b\)");
}
