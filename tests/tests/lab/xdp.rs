//! Frames from outside that are dealt with before the kernel makes socket buffers of them: by the
//! driver of a veth (native), and by the kernel (generic).

use std::{thread::sleep, time::Duration};

use agent_kit::counts::Counts;
use datapath::wire::Leg;
use lab::{
    agent::SocketLb,
    peer::{self, Exchange},
};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{FAMILIES, Target, expose},
    wired::Wired,
};

/// Packets of each kind that a node dealt with.
fn carried(cluster: &Cluster, node: usize) -> [u64; 5] {
    let maps = cluster.lab.bpffs(&cluster.nodes()[node]).join("proxy/maps");
    let counts = ok(Counts::open(&maps, "CARRIED"));
    Leg::ALL.map(|leg| counts.sum(leg as u32))
}

fn status(cluster: &Cluster, node: usize) -> serde_json::Value {
    let output = ok(cluster.agents[node].ask(&["status", "-o", "json"]));
    ok(serde_json::from_slice(&output.stdout))
}

const BYTES: u64 = 4 << 20;

/// Answers are right, and their sources; what is large arrives whole; and the kernel saw little of it.
fn serves(mode: &str) {
    let services = [expose(10, &["pod1a"]), expose(11, &["pod2a"])];
    let plan = Plan::new(SocketLb::On).extra(&["--xdp", mode]);
    let cluster = plan.up(&services);
    let _wired = ok(Wired::up(&cluster.lab));
    let on = status(&cluster, 0)["xdp"][0].clone();
    assert_eq!((&on["device"], &on["mode"]), (&"eth0".into(), &mode.into()), "{on}");
    for _ in 0..3 {
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
        cluster.reaches("client", Target::NodePort("node1", 11), &["pod2a"], "node1");
    }
    for family in FAMILIES {
        for number in [10, 11] {
            let to = Target::NodePort("node1", number).address(&cluster.lab, family);
            let outcome = ok(peer::exchange(&cluster.place("client"), to, BYTES));
            assert_eq!(outcome, Exchange::whole(BYTES), "{to}");
        }
    }
    let [local, out, _, back, _] = carried(&cluster, 0);
    let most = BYTES / 1448;
    assert!(local > most && out > most && back > most, "{:?}", carried(&cluster, 0));
}

#[test]
fn the_driver_carries_both_legs() {
    serves("native");
}

#[test]
fn the_kernel_carries_both_legs() {
    serves("generic");
}

/// Both paths have the same rows.
#[test]
fn modes_change_under_traffic() {
    let plan = Plan::new(SocketLb::On);
    let mut cluster = plan.up(&[expose(10, &["pod1a"]), expose(11, &["pod2a"])]);
    let _wired = ok(Wired::up(&cluster.lab));
    let loads = [10, 11].map(|number| {
        let to = Target::NodePort("node1", number).address(&cluster.lab, FAMILIES[0]);
        let (tcp, udp) = (format!("--tcp={to}"), format!("--udp={to}"));
        ok(peer::load(&cluster.place("client"), &[&tcp, &udp, "--rate=50", "--lasting=2"]))
    });
    for mode in ["native", "generic", "native", "off"] {
        sleep(Duration::from_millis(1_200));
        cluster.agents[0].change_argument(&format!("--xdp={mode}"));
        ok(cluster.agents[0].restart());
        let expected = if mode == "off" { "none" } else { mode };
        eventually(&format!("the mode is {mode}"), || {
            (status(&cluster, 0)["xdp"][0]["mode"] == expected).then_some(())
        });
    }
    sleep(Duration::from_millis(1_200));
    for load in loads {
        let load = ok(load.stop());
        assert!(load.connections > 100 && load.udp_sent > 10, "{load:?}");
        assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
    }
}
