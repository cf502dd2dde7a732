//! Devices of pods come and go.

use std::time::{Duration, Instant};

use lab::agent::SocketLb;
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose},
};

both! {
    pod_device_that_appears_later_is_attached_within_a_second,
    pod_device_that_is_gone_is_forgotten,
    routed_pod_links_work_without_a_bridge,
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
        (programs(&cluster, "vethpod1c") == 2).then_some(())
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    cluster.reaches("pod1c", Target::ClusterIp(10), &["pod1b"], "pod1c");
}

fn pod_device_that_is_gone_is_forgotten(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    assert_eq!(programs(&cluster, "vethpod1b"), 2);
    let before = devices(&cluster);
    ok(cluster.lab.remove_pod("pod1b"));
    eventually("nothing of the device is left", || {
        let links = cluster.lab.bpffs("node1").join("proxy/links");
        let pins = std::fs::read_dir(links).ok()?.flatten().filter(|pin| {
            let name = pin.file_name().to_string_lossy().into_owned();
            name.starts_with("pod_") || name.starts_with("uplink_")
        });
        // Two for the pod that stays, two for the uplink.
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
