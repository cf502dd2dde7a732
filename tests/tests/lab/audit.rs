//! Rows that somebody else removes or adds are found and put right.

use lab::{
    address::{SERVICE_CIDR4, SERVICE_CIDR6},
    agent::{Agent, SocketLb},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose},
};

both! {
    rows_removed_by_hand_are_written_again,
    row_written_by_hand_is_removed,
    what_programs_are_told_is_told_again,
}

fn pin(cluster: &Cluster, map: &str) -> String {
    cluster.lab.bpffs("node1").join("proxy/maps").join(map).display().to_string()
}

/// Keys and values of a table as `bpftool` prints and takes them.
fn rows(cluster: &Cluster, map: &str) -> Vec<[String; 2]> {
    let line = format!("bpftool -j map dump pinned {}", pin(cluster, map));
    let rows: Vec<Value> = ok(serde_json::from_str(&ok(cluster.lab.shell("node1", &line))));
    let bytes = |list: &Value| -> String {
        let bytes = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        bytes.collect::<Vec<_>>().join(" ")
    };
    rows.iter().map(|row| [bytes(&row["key"]), bytes(&row["value"])]).collect()
}

/// Has the agent look at once; by itself it does so every few minutes.
fn audit(cluster: &Cluster) {
    let pid = cluster.agents[0].id().expect("it runs");
    ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP));
}

fn repairs(cluster: &Cluster, table: &str) -> i64 {
    cluster.metric("millrace_audit_repairs_total", &[("table", table)]).round() as i64
}

fn rows_removed_by_hand_are_written_again(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    for map in ["FRONTENDS4", "FRONTENDS6", "ADDRESSES4", "NAMES"] {
        let mut before = rows(&cluster, map);
        before.sort();
        assert!(before.len() >= 2, "{map}: {before:?}");
        // Before: once they are gone, the agent may look by itself.
        assert_eq!(repairs(&cluster, map), 0);
        for [key, _] in &before {
            let line = format!("bpftool map delete pinned {} key {key}", pin(&cluster, map));
            ok(cluster.lab.shell("node1", &line));
        }
        audit(&cluster);
        eventually("the rows are back", || {
            let mut after = rows(&cluster, map);
            after.sort();
            (after == before).then_some(())
        });
        assert_eq!(repairs(&cluster, map), before.len().cast_signed() as i64, "{map}");
        let log = cluster.agents[0].log();
        assert!(log.contains(map) && log.contains("missing"), "{log}");
    }
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);
}

fn row_written_by_hand_is_removed(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let before = rows(&cluster, "FRONTENDS4");
    // The same frontend on another port.
    let [key, value] = &before[0];
    let mut bytes: Vec<&str> = key.split(' ').collect();
    bytes[5] = "0xfe";
    let line = format!(
        "bpftool map update pinned {} key {} value {value}",
        pin(&cluster, "FRONTENDS4"),
        bytes.join(" ")
    );
    ok(cluster.lab.shell("node1", &line));
    assert_eq!(rows(&cluster, "FRONTENDS4").len(), before.len() + 1);
    audit(&cluster);
    eventually("the row is gone", || {
        (rows(&cluster, "FRONTENDS4").len() == before.len()).then_some(())
    });
    assert_eq!(repairs(&cluster, "FRONTENDS4"), 1);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
}

/// Tables of which the agent writes all rows, and that are no Service's.
fn what_programs_are_told_is_told_again(mode: SocketLb) {
    let mut cluster = Plan::single(mode).without_agents(&[expose(10, &["pod1b"])]);
    let networks = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [SERVICE_CIDR4, SERVICE_CIDR6]},
    });
    ok(cluster.lab.publish("networks.yaml", &[networks]));
    let agent = ok(Agent::start(&cluster.lab, "node1", Plan::single(mode).options()));
    cluster.agents.push(agent);
    cluster.wait_programmed(&expose(10, &["pod1b"]));
    let zeros = |length: usize| vec!["0"; length].join(" ");
    for map in ["SETTINGS", "SERVICECOVER", "SERVICENETS4", "SERVICENETS6", "DEVICES"] {
        let before = sorted(&cluster, map);
        let [key, value] = before.first().unwrap_or_else(|| panic!("{map} has a row"));
        let pin = pin(&cluster, map);
        let length = value.split(' ').count();
        damage(
            &cluster,
            map,
            &before,
            "changed",
            &format!("bpftool map update pinned {pin} key {key} value {}", zeros(length)),
        );
        // An array has all its rows at all times.
        if !matches!(map, "SETTINGS" | "SERVICECOVER") {
            let line = format!("bpftool map delete pinned {pin} key {key}");
            damage(&cluster, map, &before, "missing", &line);
        }
    }
    // A network of IPv4 of length 0; a device and a cgroup that there are not.
    for (map, key, value) in [
        ("SERVICENETS4", zeros(8), "1 0 0 0".to_owned()),
        ("DEVICES", "255 255 255 127".into(), sorted(&cluster, "DEVICES")[0][1].clone()),
        ("BYPASSCGROUPS", ["255"; 8].join(" "), "1 0 0 0".into()),
    ] {
        let before = sorted(&cluster, map);
        let pin = pin(&cluster, map);
        let line = format!("bpftool map update pinned {pin} key {key} value {value}");
        damage(&cluster, map, &before, "foreign", &line);
    }
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);
}

fn sorted(cluster: &Cluster, map: &str) -> Vec<[String; 2]> {
    let mut rows = rows(cluster, map);
    rows.sort();
    rows
}

/// Does damage to a table, and waits until it is as it was, told of, and counted.
fn damage(cluster: &Cluster, map: &str, before: &[[String; 2]], what: &str, line: &str) {
    let counted = repairs(cluster, map);
    ok(cluster.lab.shell("node1", line));
    audit(cluster);
    eventually(&format!("{map} is as it was"), || {
        (sorted(cluster, map) == before && repairs(cluster, map) > counted).then_some(())
    });
    assert_eq!(repairs(cluster, map), counted + 1, "{map}: {what}");
    let log = cluster.agents[0].log();
    let is_told = |line: &&str| {
        line.contains("a row was not as written") && line.contains(map) && line.contains(what)
    };
    assert!(log.lines().any(|line| is_told(&line)), "{map} {what}: {log}");
}
