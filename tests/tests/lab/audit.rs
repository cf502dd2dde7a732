//! Rows that somebody else removes or adds are found and put right.

use lab::agent::SocketLb;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose},
};

both! {
    rows_removed_by_hand_are_written_again,
    row_written_by_hand_is_removed,
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
        for [key, _] in &before {
            let line = format!("bpftool map delete pinned {} key {key}", pin(&cluster, map));
            ok(cluster.lab.shell("node1", &line));
        }
        assert_eq!(repairs(&cluster, map), 0);
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
