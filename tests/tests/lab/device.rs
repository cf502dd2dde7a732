//! Devices of pods come and go.

use std::time::{Duration, Instant};

use lab::{agent::SocketLb, peer};
use serde_json::Value;

use crate::{
    change::{assert_nothing_lost, load_arguments},
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose},
};

both! {
    pod_device_that_appears_later_is_attached_within_a_second,
    pod_device_that_is_gone_is_forgotten,
    routed_pod_links_work_without_a_bridge,
    hooks_move_from_bridge_to_pods_and_back_under_traffic,
}

/// Programs on a device.
fn programs(cluster: &Cluster, device: &str) -> usize {
    let status = cluster.show(&["status"]);
    let attachments = status["attachments"].as_array().into_iter().flatten();
    attachments.filter(|one| one["target"] == device).count()
}

fn pod_device_that_appears_later_is_attached_within_a_second(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let began = Instant::now();
    ok(cluster.lab.add_pod("node1", "pod1c"));
    eventually("the new pod's device has its programs", || {
        (programs(&cluster, "vethpod1c") == 1).then_some(())
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    cluster.reaches("pod1c", Target::ClusterIp(10), &["pod1b"], "pod1c");
}

fn pod_device_that_is_gone_is_forgotten(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    assert_eq!(programs(&cluster, "vethpod1b"), 1);
    let before = devices(&cluster);
    ok(cluster.lab.remove_pod("pod1b"));
    eventually("nothing of the device is left", || {
        let links = cluster.lab.bpffs("node1").join("proxy/links");
        let pins = std::fs::read_dir(links).ok()?.flatten().filter(|pin| {
            let name = pin.file_name().to_string_lossy().into_owned();
            name.starts_with("pod_") || name.starts_with("uplink_")
        });
        // One each of the pod that stays and its bridge, two of the uplink.
        (pins.count() == 4 && devices(&cluster) == before - 1).then_some(())
    });
    let status = cluster.show(&["status"]);
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
    cluster.answers("node1", Target::ClusterIp(10), &["pod1a"]);
}

/// Rows of the table of devices.
fn devices(cluster: &Cluster) -> usize {
    let map = cluster.lab.bpffs("node1").join("proxy/maps/DEVICES");
    let dump = cluster.lab.shell("node1", &format!("bpftool -j map dump pinned {}", map.display()));
    let rows: Value = serde_json::from_str(&ok(dump)).expect("JSON of bpftool");
    rows.as_array().map_or(0, Vec::len)
}

fn routed_pod_links_work_without_a_bridge(mode: SocketLb) {
    let mut plan = Plan::new(mode);
    plan.spec.nodes = plan.spec.nodes.into_iter().map(lab::NodeSpec::routed).collect();
    let services = [expose(10, &["pod1b"]), expose(11, &["pod2a"]), expose(12, &["pod1a"])];
    let cluster = plan.up(&services);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod2a"], "pod1a");
    cluster.answers("pod1a", Target::ClusterIp(12), &["pod1a"]);
    cluster.answers("node1", Target::ClusterIp(10), &["pod1b"]);
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
    cluster.reaches("client", Target::NodePort("node1", 11), &["pod2a"], "node1");
}

/// Waits until what leaves toward pods is seen by their bridge's hook, or by each pod's device.
fn await_hooks(cluster: &Cluster, at_bridge: bool) {
    let wanted = if at_bridge { (1, 1) } else { (0, 2) };
    eventually("hooks are where they belong", || {
        (["cni0", "vethpod1a"].map(|device| programs(cluster, device)) == [wanted.0, wanted.1])
            .then_some(())
    });
}

/// Rules of netfilter must see a reply's source as the backend sent it, and what comes in by
/// another port of the bridge passes its hook by.
fn hooks_move_from_bridge_to_pods_and_back_under_traffic(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"]), expose(11, &["pod1a"])]);
    await_hooks(&cluster, true);
    let arguments = load_arguments(&cluster, Target::ClusterIp(10));
    let gentle = ["--rate=50", "--lasting=4", "--requests=50", "--datagrams=100"];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(gentle).collect();
    let load = ok(peer::load(&cluster.place("pod1a"), &arguments));
    let does = |command: &str| drop(ok(cluster.lab.shell("node1", command)));
    for _ in 0..3 {
        does("nft 'add table inet t; add chain inet t f { type filter hook forward priority 0; }'");
        does("nft add rule inet t f ct state invalid counter");
        await_hooks(&cluster, false);
        // Connections of which the one half has another source would not be whole.
        does("nft add rule inet t f ct state invalid drop");
        cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b"]);
        cluster.answers("pod1a", Target::ClusterIp(11), &["pod1a"]);
        does("nft delete table inet t");
        await_hooks(&cluster, true);
        does("ip link add other type veth peer name another && ip link set other master cni0");
        await_hooks(&cluster, false);
        cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b"]);
        does("ip link delete other");
        await_hooks(&cluster, true);
    }
    assert_nothing_lost(&ok(load.stop()));
    let status = cluster.show(&["status"]);
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
}
