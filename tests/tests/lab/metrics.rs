//! The names, types and labels of docs/metrics.md against those of a running agent, and the values
//! of kube-proxy's names.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use lab::{
    agent::{Agent, SocketLb},
    manifests::{Port, Service, Slice},
    peer::Protocol,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    exposition,
    service::{Family, PORT, TARGET, Target, expose, name},
};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// Name to type and labels.
type Table = BTreeMap<String, (String, BTreeSet<String>)>;

/// Rows of the tables that have four columns.
fn documented() -> Table {
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let &[name, kind, labels, _, ""] = &cells[..] else { return None };
        let name = name.strip_prefix('`')?.strip_suffix('`')?;
        let labels = labels.split_whitespace().map(Into::into).collect();
        Some((name.to_owned(), (kind.to_owned(), labels)))
    };
    DOCUMENT.lines().filter_map(row).collect()
}

fn told(text: &str) -> Table {
    let samples = ok(exposition::parse(text));
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut table = Table::new();
    for (family, kind) in types {
        let name = match kind {
            "counter" => format!("{family}_total"),
            "info" => format!("{family}_info"),
            _ => family.to_owned(),
        };
        let of_family = samples.iter().filter(|sample| match kind {
            "histogram" => sample.name == format!("{family}_bucket"),
            _ => sample.name == name,
        });
        let labels = of_family.flat_map(|sample| sample.labels.keys().cloned());
        let labels = labels.filter(|label| label != "le").collect();
        table.insert(name, (kind.to_owned(), labels));
    }
    table
}

#[test]
fn names_types_and_labels_are_those_of_the_document() {
    let cluster = Plan::single(SocketLb::On).up(&[expose(10, &["pod1a"])]);
    // Each path is counted once it was asked, a difference once there was one.
    ok(cluster.agents[0].health("/livez"));
    cluster.publish(&expose(10, &["pod1b"]));
    let text = ok(cluster.agents[0].metrics());
    let (told, documented) = (told(&text), documented());
    for (name, found) in &told {
        assert_eq!(documented.get(name), Some(found), "{name}");
    }
    // Nobody asks an API server here; a test of the client has these.
    let is_missing =
        |name: &&String| !told.contains_key(*name) && !name.starts_with("rest_client_");
    let missing: Vec<_> = documented.keys().filter(is_missing).collect();
    assert_eq!(missing, [""; 0], "{text}");
}

#[test]
fn paths_are_those_of_kubernetes_components() {
    let cluster = Plan::single(SocketLb::On).up(&[expose(10, &["pod1a"])]);
    let get = |path: &str| ok(cluster.agents[0].status(path));
    ok(cluster.agents[0].health("/livez"));
    let (code, text) = get("/metrics/slis");
    let samples = ok(exposition::parse(&text));
    let value = |name: &str, kind: &str| {
        let is_it =
            |sample: &&exposition::Sample| sample.name == name && sample.labels["type"] == kind;
        samples.iter().find(is_it).map(|sample| (sample.value, sample.labels["name"].clone()))
    };
    assert_eq!(code, 200);
    for kind in ["healthz", "livez"] {
        assert_eq!(value("kubernetes_healthcheck", kind), Some((1.0, "ping".into())), "{text}");
        assert!(
            value("kubernetes_healthchecks_total", kind).is_some_and(|it| it.0 >= 1.0),
            "{text}"
        );
    }
    let (code, text) = get("/flagz");
    assert_eq!(code, 200);
    assert!(
        text.contains("\nproxy-agent flagz\n") && text.contains("\nuplink=[\"eth0\"]\n"),
        "{text}"
    );
    let (code, text) = get("/statusz");
    assert_eq!(code, 200);
    assert!(text.contains("\nUp: 0 hr 00 min ") && text.contains("/statusz"), "{text}");
    for path in ["/debug/pprof", "/debug/flags/v"] {
        assert_eq!(get(path).0, 404, "{path}");
    }
}

#[test]
fn flows_that_were_ended_are_counted() {
    let cluster = Plan::single(SocketLb::Off).up(&[expose(10, &["pod1a"])]);
    let metric = |name: &str| {
        let name = format!("kubeproxy_conntrack_reconciler_{name}");
        cluster.metric(&name, &[("ip_family", "IPv4")])
    };
    let target = Target::NodePort("node1", 10).address(&cluster.lab, Family::V4);
    let answer = cluster.ask("client", Protocol::Udp, target);
    assert_eq!(answer.name(), Some("pod1a"), "{answer:?}");
    assert_eq!(metric("deleted_entries_total"), 0.0);
    let rounds = metric("sync_duration_seconds_count");
    cluster.publish(&expose(10, &["pod1b"]));
    eventually("the flow is ended", || (metric("deleted_entries_total") == 1.0).then_some(()));
    assert!(metric("sync_duration_seconds_count") > rounds);
}

/// A Service's EndpointSlice that says when its pods changed.
fn changed_at(cluster: &Cluster, time: SystemTime) {
    let port = Port::tcp("tcp", PORT, TARGET);
    let since = ok(time.duration_since(SystemTime::UNIX_EPOCH)).as_secs();
    let date = ok(cluster.lab.shell("client", &format!("date -u -d @{since} +%FT%TZ")));
    let slice = Slice::new(&name(10), false, &[port])
        .endpoint(cluster.address("pod1b", Family::V4), "node1")
        .set(
            "/metadata/annotations/endpoints.kubernetes.io~1last-change-trigger-time",
            json!(date.trim()),
        );
    let mut documents = expose(10, &[]).documents(&cluster.lab);
    documents.truncate(1);
    documents.push(slice.build());
    ok(cluster.lab.publish("web10.yaml", &documents));
}

#[test]
fn changes_are_counted_as_kube_proxy_counts_them() {
    let local = |pods: &[&str]| expose(10, pods).with(Service::external_local);
    let cluster = Plan::new(SocketLb::Host).up(&[local(&["pod1a"])]);
    let metric =
        |name: &str, labels: &[(&str, &str)]| cluster.metric(&format!("kubeproxy_{name}"), labels);
    let changes = "sync_proxy_rules_endpoint_changes_total";
    let before = metric(changes, &[]);
    assert!(before >= 2.0, "{before}");
    let no_local = |policy: &str, family: &str| {
        let labels = [("traffic_policy", policy), ("ip_family", family)];
        metric("sync_proxy_rules_no_local_endpoints_total", &labels)
    };
    assert_eq!(no_local("external", "IPv4"), 0.0);
    cluster.publish(&local(&["pod2a"]));
    // Two slices, and two ports of each family.
    assert_eq!(metric(changes, &[]) - before, 2.0);
    assert_eq!(no_local("external", "IPv4"), 2.0);
    assert_eq!(no_local("external", "IPv6"), 2.0);
    assert_eq!(no_local("internal", "IPv4"), 0.0);
    for pending in ["endpoint", "service"] {
        assert_eq!(metric(&format!("sync_proxy_rules_{pending}_changes_pending"), &[]), 0.0);
    }
    assert_eq!(metric("sync_full_proxy_rules_duration_seconds_count", &[]), 2.0);

    // Pods that changed before the agent began are none of its doing.
    let programming = |what: &str, family: &str| {
        let name = format!("network_programming_duration_seconds_{what}");
        metric(&name, &[("ip_family", family)])
    };
    changed_at(&cluster, SystemTime::now() - Duration::from_hours(1));
    eventually("the change is seen", || (metric(changes, &[]) - before > 2.0).then_some(()));
    assert_eq!(programming("count", "IPv4"), 0.0);
    std::thread::sleep(Duration::from_secs(1));
    changed_at(&cluster, SystemTime::now());
    eventually("it is measured", || (programming("count", "IPv4") == 1.0).then_some(()));
    // The time is written in whole seconds.
    assert!(programming("sum", "IPv4") < 3.0, "{}", programming("sum", "IPv4"));
    assert_eq!(programming("count", "IPv6"), 0.0);
}

#[test]
fn what_cannot_be_written_is_counted() {
    let plan = Plan::single(SocketLb::Host).extra(&["--capacity=frontends=1"]);
    let options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1a"])]);
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    for family in ["IPv4", "IPv6"] {
        let failures = |of: &str| {
            let name = format!("kubeproxy_sync_proxy_rules_nftables_{of}_failures_total");
            cluster.metric(&name, &[("ip_family", family)])
        };
        eventually("a table is full", || (failures("sync") > 0.0).then_some(()));
        assert_eq!(failures("cleanup"), 0.0);
    }
}
