//! Devices of pods come and go.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use lab::{
    agent::{Agent, SocketLb},
    peer,
};
use serde_json::Value;

use crate::{
    change::{assert_nothing_lost, load_arguments},
    cluster::{Cluster, Plan, eventually, ok},
    restart::{link_ids, map_ids},
    service::{Target, expose},
};

both! {
    pod_device_that_appears_later_is_attached_within_a_second,
    pod_device_that_is_gone_is_forgotten,
    routed_pod_links_work_without_a_bridge,
    hooks_move_from_bridge_to_pods_and_back_under_traffic,
    programs_that_another_hand_takes_off_come_back,
    pins_that_another_hand_removes_are_made_again_and_nothing_is_lost,
    a_link_that_cannot_be_looked_at_keeps_no_other_from_being_dealt_with,
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

/// Every program with what it is on.
fn attachments(cluster: &Cluster) -> BTreeSet<[String; 3]> {
    let status = cluster.show(&["status"]);
    let said = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let attachments = status["attachments"].as_array().into_iter().flatten();
    attachments
        .map(|one| ["target", "hook", "program"].map(|field| said(one, field)))
        .filter(|[target, ..]| target != "gone")
        .collect()
}

fn mended(cluster: &Cluster, program: &str) -> usize {
    count(cluster, "millrace_attachment_repairs_total", &[("program", program)])
}

fn count(cluster: &Cluster, name: &str, labels: &[(&str, &str)]) -> usize {
    ok(cluster.metric(name, labels).to_string().parse())
}

/// The log names whatever was taken off, and the metrics count it.
fn assert_told(cluster: &Cluster, taken: &[[String; 3]]) {
    let log = cluster.agents[0].log();
    for [target, hook, program] in taken {
        // A cgroup is named by its path.
        let target = if target.starts_with("cgroup") { "/node1" } else { target };
        let said = |line: &&str| {
            line.contains("another hand took a program off")
                && line.contains(target)
                && line.contains(program.as_str())
                && (target == "/node1" || line.contains(hook.as_str()))
        };
        assert!(log.lines().any(|line| said(&line)), "{program} on {target} by {hook}: {log}");
        let times = taken.iter().filter(|[.., other]| other == program).count();
        assert_eq!(mended(cluster, program), times, "{program}");
    }
    let status = cluster.show(&["status"]);
    assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
}

/// All that a Service does, from everywhere.
fn assert_served(cluster: &Cluster) {
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.answers("node1", Target::ClusterIp(10), &["pod1b"]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);
}

fn programs_that_another_hand_takes_off_come_back(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let before = attachments(&cluster);
    assert!(before.len() >= 9 + 5, "{before:?}");
    let links = cluster.lab.bpffs("node1").join("proxy/links");
    for pin in ok(fs::read_dir(&links)).flatten() {
        let detach = format!("bpftool link detach pinned {}", pin.path().display());
        ok(cluster.lab.shell("node1", &detach));
    }
    eventually("all programs are back", || (attachments(&cluster) == before).then_some(()));
    assert_served(&cluster);
    let taken: Vec<_> = before.into_iter().collect();
    eventually("it is counted", || {
        taken.iter().all(|[.., program]| mended(&cluster, program) > 0).then_some(())
    });
    assert_told(&cluster, &taken);
    // What is as it was is not repaired.
    let log = cluster.agents[0].log();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(cluster.agents[0].log(), log);
}

fn pins(root: &Path) -> BTreeSet<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    ["links", "maps"].into_iter().flat_map(names).collect()
}

fn pins_that_another_hand_removes_are_made_again_and_nothing_is_lost(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let root = cluster.lab.bpffs("node1").join("proxy");
    let (before, on) = (pins(&root), attachments(&cluster));
    let ids = |cluster: &Cluster| (link_ids(&cluster.show(&["status"])), map_ids(cluster));
    let objects = ids(&cluster);
    let arguments = load_arguments(&cluster, Target::ClusterIp(10));
    let gentle = ["--rate=50", "--lasting=4", "--requests=50", "--datagrams=100"];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(gentle).collect();
    let load = ok(peer::load(&cluster.place("pod1a"), &arguments));
    ok(fs::remove_dir_all(&root));
    eventually("all pins are back", || (pins(&root) == before).then_some(()));
    // They are of what was there, and not of something new.
    assert_eq!(ids(&cluster), objects);
    assert_eq!(attachments(&cluster), on);
    assert_eq!(count(&cluster, "millrace_pin_repairs_total", &[]), before.len());
    let log = cluster.agents[0].log();
    assert!(log.contains("another hand removed pins") && log.contains("FRONTENDS4"), "{log}");
    assert_served(&cluster);
    // The tables are still this agent's alone.
    let manifests = format!("--source=dir:{}", cluster.lab.directory("node1").display());
    let output = ok(cluster.agents[0].ask(&["run", &manifests]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("another agent"), "{text}");
    // The next agent goes on with them.
    ok(cluster.agents[0].restart());
    assert_eq!(ids(&cluster), objects);
    assert_nothing_lost(&ok(load.stop()));
    assert_served(&cluster);
}

fn a_link_that_cannot_be_looked_at_keeps_no_other_from_being_dealt_with(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    let root = cluster.lab.bpffs("node1").join("proxy");
    let before = pins(&root);
    let pin = |program: &str| {
        let name = before.iter().find(|name| name.starts_with(program)).expect("a pin of it");
        root.join("links").join(name)
    };
    // The first by name, as they are looked at.
    let (blocked, unpinned) = (pin("pod_egress_"), pin("uplink_egress_"));
    ok(fs::remove_file(&blocked));
    ok(fs::create_dir(&blocked));
    let detach = format!("bpftool link detach pinned {}", pin("uplink_ingress_").display());
    ok(cluster.lab.shell("node1", &detach));
    ok(fs::remove_file(&unpinned));
    ok(cluster.lab.remove_pod("pod1b"));
    ok(cluster.lab.add_pod("node1", "pod1c"));
    eventually("all but that one are as they should be", || {
        let now = pins(&root);
        let gone = before.difference(&now).count();
        let come = now.difference(&before).count();
        ((gone, come) == (1, 1) && mended(&cluster, "uplink_ingress") == 1 && unpinned.exists())
            .then_some(())
    });
    cluster.answers("node1", Target::ClusterIp(10), &["pod1a"]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1a"]);
    let told = || cluster.show(&["status"])["problems"].to_string();
    assert!(told().contains(&*blocked.to_string_lossy()), "{}", told());
    ok(fs::remove_dir(&blocked));
    eventually("that one, too", || (blocked.exists() && told() == "[]").then_some(()));
    assert_eq!(mended(&cluster, "pod_egress"), 0, "it was on all the time");
}

/// A kernel without links has filters in their place.
#[test]
fn filters_that_another_hand_removes_come_back() {
    let mut cluster = Plan::single(SocketLb::Off).without_agents(&[expose(10, &["pod1b"])]);
    let options = Plan::single(SocketLb::Off).options();
    let mut agent = ok(Agent::prepare(&cluster.lab, "node1", options));
    agent.refuse_links();
    ok(agent.launch());
    ok(agent.wait_ready());
    cluster.agents.push(agent);
    cluster.wait_programmed(&expose(10, &["pod1b"]));
    let before = attachments(&cluster);
    let hooks: BTreeSet<&str> = before.iter().map(|[_, hook, _]| hook.as_str()).collect();
    assert_eq!(hooks, ["clsact egress", "clsact ingress"].into());
    let served = || {
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
        cluster.answers("client", Target::NodePort("node1", 10), &["pod1b"]);
    };
    served();
    let mut taken: Vec<[String; 3]> = Vec::new();
    for (line, device) in [
        ("tc filter del dev vethpod1a ingress", "vethpod1a"),
        ("tc qdisc del dev eth0 clsact", "eth0"),
        ("tc filter del dev cni0 egress", "cni0"),
    ] {
        ok(cluster.lab.shell("node1", line));
        taken.extend(before.iter().filter(|[target, ..]| target == device).cloned());
        eventually(&format!("{line}: all filters are back"), || {
            (attachments(&cluster) == before).then_some(())
        });
        eventually(&format!("{line}: it is told"), || {
            taken.iter().all(|[.., program]| mended(&cluster, program) > 0).then_some(())
        });
        served();
    }
    assert_eq!(taken.len(), 4, "{taken:?}");
    assert_told(&cluster, &taken);
}
