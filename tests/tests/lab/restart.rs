//! The agent dies, comes back, and ends: traffic does not notice.

use std::{collections::BTreeMap, os::fd::AsFd};

use agent_kit::bpf::{self, MapLayout, map_type};
use lab::{
    agent::{Agent, SocketLb},
    peer,
};
use nix::sys::signal::Signal;

use crate::{
    change::{assert_nothing_lost, load_arguments},
    cluster::{Cluster, Plan, backends, eventually, ok, show},
    service::{Target, expose},
};

both! {
    twenty_kills_under_traffic_lose_nothing,
    restart_adopts_and_removes_only_after_the_first_full_list,
    clean_exit_leaves_everything,
    cleanup_removes_everything,
    two_agents_do_not_disturb_each_other,
    second_agent_on_the_same_pins_is_refused,
    marks_of_another_make_are_remade_with_what_they_mark,
}

fn twenty_kills_under_traffic_lose_nothing(mode: SocketLb) {
    let services = [expose(10, &["pod1b", "pod2a"]), expose(11, &["pod2b"])];
    let mut cluster = Cluster::up(mode, &services);
    let load = |cluster: &Cluster, from, target| {
        let arguments = load_arguments(cluster, target);
        let gentle = ["--rate=50", "--lasting=4", "--requests=50", "--datagrams=100"];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(gentle).collect();
        ok(peer::load(&cluster.place(from), &arguments))
    };
    let loads = [
        load(&cluster, "pod1a", Target::ClusterIp(10)),
        load(&cluster, "client", Target::NodePort("node1", 11)),
    ];
    for kill in 0..20_u64 {
        let agent = &mut cluster.agents[0];
        ok(agent.kill());
        ok(agent.launch());
        // Killed again at a different moment of its start each time, and ready every other.
        if kill % 2 == 0 {
            ok(agent.wait_ready());
        } else {
            std::thread::sleep(std::time::Duration::from_millis(40 * kill));
        }
    }
    let agent = &mut cluster.agents[0];
    ok(agent.wait_ready());
    let mut sum = peer::Load::default();
    for load in loads {
        let load = ok(load.stop());
        sum.connections += load.connections;
        sum.requests += load.requests;
        sum.failed += load.failed;
        sum.resets += load.resets;
        sum.udp_sent += load.udp_sent;
        sum.udp_missing += load.udp_missing;
        sum.errors.extend(load.errors);
    }
    println!(
        "20 kills, --socket-lb {}, {} connections, {} requests, {} datagrams: {} failed \
         requests, {} resets, {} missing UDP sequence numbers",
        mode.name(),
        sum.connections,
        sum.requests,
        sum.udp_sent,
        sum.failed,
        sum.resets,
        sum.udp_missing
    );
    assert_nothing_lost(&sum);
}

fn restart_adopts_and_removes_only_after_the_first_full_list(mode: SocketLb) {
    let (old, kept) = (expose(10, &["pod2a"]), expose(11, &["pod1b"]));
    let mut cluster = Cluster::up(mode, &[old.clone(), kept]);
    let programs = |agent: &Agent| show(agent, &["status"])["attachments"].clone();
    let before = programs(&cluster.agents[0]);
    ok(cluster.agents[0].kill());
    // What is programmed goes on, whatever the manifests say meanwhile.
    ok(cluster.lab.withdraw(&old.file()));
    cluster.write(&expose(12, &["pod2b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod2a"], "node1");
    // A directory that cannot be read yet is no empty list.
    let manifests = cluster.lab.manifests("node1");
    let aside = manifests.with_extension("aside");
    ok(std::fs::rename(&manifests, &aside));
    ok(cluster.agents[0].launch());
    eventually("the agent answers", || cluster.agents[0].health("/livez").ok());
    assert!(backends(&cluster.agents[0], 10).is_some(), "removed before the first list");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod2a"], "pod1a");
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    ok(std::fs::rename(&aside, &manifests));
    ok(cluster.agents[0].wait_ready());
    cluster.wait_programmed(&expose(12, &["pod2b"]));
    eventually("the old Service is gone", || {
        backends(&cluster.agents[0], 10).is_none().then_some(())
    });
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    cluster.reaches("pod1a", Target::ClusterIp(12), &["pod2b"], "pod1a");
    let links = |shown: &serde_json::Value| -> Vec<u64> {
        shown.as_array().into_iter().flatten().filter_map(|one| one["link_id"].as_u64()).collect()
    };
    assert_eq!(links(&programs(&cluster.agents[0])), links(&before), "links were made anew");
}

fn clean_exit_leaves_everything(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let agent = &mut cluster.agents[0];
    let pid = agent.id().expect("it runs");
    ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGTERM));
    eventually("the agent ends when asked to", || agent.log().contains("stopping").then_some(()));
    ok(agent.kill());
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.answers("node1", Target::NodePort("node1", 10), &["pod1b"]);
}

fn cleanup_removes_everything(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let reserved = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";
    assert!(ok(cluster.lab.shell("node1", reserved)).contains("50000-59999"));
    let ids: Vec<u64> = link_ids(&cluster.show(&["status"]));
    assert!(ids.len() > 8, "{ids:?}");
    ok(cluster.agents[0].kill());
    // Twice: what is gone already is no error.
    for _ in 0..2 {
        let output = ok(cluster.agents[0].ask(&["cleanup"]));
        assert!(output.status.success(), "{output:?}");
    }
    assert!(!cluster.lab.bpffs("node1").exists(), "pins are left");
    assert_eq!(ok(cluster.lab.shell("node1", reserved)).trim(), "");
    let all = cluster.links();
    assert!(ids.iter().all(|id| !all.contains_key(id)), "{ids:?} of {all:?} are still there");
}

pub(crate) fn link_ids(status: &serde_json::Value) -> Vec<u64> {
    let attachments = status["attachments"].as_array().into_iter().flatten();
    attachments.filter_map(|one| one["link_id"].as_u64()).collect()
}

fn two_agents_do_not_disturb_each_other(mode: SocketLb) {
    let mut cluster = Cluster::up(mode, &[expose(10, &["pod1b", "pod2b"])]);
    let all = ["pod1b", "pod2b"];
    let second = show(&cluster.agents[1], &["status"]);
    ok(cluster.agents[0].kill());
    let output = ok(cluster.agents[0].ask(&["cleanup"]));
    assert!(output.status.success(), "{output:?}");
    // The other node has all it had; the first has no proxy any more.
    assert_eq!(show(&cluster.agents[1], &["status"])["attachments"], second["attachments"]);
    cluster.reaches("pod2a", Target::ClusterIp(10), &all, "pod2a");
    cluster.answers("node2", Target::NodePort("node2", 10), &all);
    ok(cluster.agents[0].launch());
    ok(cluster.agents[0].wait_ready());
    cluster.wait_programmed(&expose(10, &all));
    cluster.reaches("pod1a", Target::ClusterIp(10), &all, "pod1a");
}

fn second_agent_on_the_same_pins_is_refused(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    let manifests = format!("--source=dir:{}", cluster.lab.directory("node1").display());
    let output = ok(cluster.agents[0].ask(&["run", &manifests]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("another agent") && text.contains("--bpffs"), "{text}");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    // One that was killed is in nobody's way.
    ok(cluster.agents[0].kill());
    ok(cluster.agents[0].launch());
    ok(cluster.agents[0].wait_ready());
}

fn marks_of_another_make_are_remade_with_what_they_mark(mode: SocketLb) {
    const FLOWS: [&str; 5] = ["FLOWS4", "FLOWS6", "PENDING4", "PENDING6", "MARKS"];
    const SOCKETS: [&str; 5] = ["SOCKETS4", "SOCKETS6", "PEERS4", "PEERS6", "PEERMARKS"];
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    for (remade, kept) in [(FLOWS, SOCKETS), (SOCKETS, FLOWS)] {
        let before = map_ids(&cluster);
        ok(cluster.agents[0].kill());
        // As if the agent before had been built with fewer marks.
        let marks = cluster.lab.bpffs("node1").join("proxy/maps").join(remade[4]);
        ok(std::fs::remove_file(&marks));
        let fewer = MapLayout {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 64,
            max_entries: 1,
            flags: 0,
        };
        let map = ok(bpf::map_create(fewer, None));
        ok(bpf::obj_pin(map.as_fd(), &marks));
        ok(cluster.agents[0].launch());
        ok(cluster.agents[0].wait_ready());
        cluster.wait_programmed(&expose(10, &["pod1b"]));
        let after = map_ids(&cluster);
        for name in remade {
            assert_ne!(after[name], before[name], "{name} is still there");
        }
        for name in kept {
            assert_eq!(after[name], before[name], "{name} was made anew");
        }
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    }
}

/// Maps of the first node by name.
pub(crate) fn map_ids(cluster: &Cluster) -> BTreeMap<String, u64> {
    let maps = ok(std::fs::read_dir(cluster.lab.bpffs("node1").join("proxy/maps")));
    let id = |map: std::fs::DirEntry| {
        let show = format!("bpftool -j map show pinned {}", map.path().display());
        let shown: serde_json::Value =
            ok(serde_json::from_str(&ok(cluster.lab.shell("node1", &show))));
        (map.file_name().to_string_lossy().into_owned(), shown["id"].as_u64().expect("an id"))
    };
    maps.flatten().map(id).collect()
}
