//! Frames from outside that are dealt with before the kernel makes socket buffers of them: by the
//! driver of a veth (native), and by the kernel (generic).

use std::{net::SocketAddr, path::Path, process::Command, thread::sleep, time::Duration};

use agent_kit::{
    Pod,
    bpf::XdpMode,
    counts::Counts,
    table::{MapTable, Table},
};
use datapath::{
    address::{Address, Ipv4, Ipv6},
    flow::{Flow, FlowKey, Parties, Place, flow_flags, role},
    wire::Leg,
};
use lab::{
    agent::{Agent, AgentOptions, SocketLb},
    peer::{self, Exchange},
};

use crate::{
    change::{datagrams, load_of_tcp},
    cluster::{Cluster, Plan, eventually, ok},
    service::{Exposed, FAMILIES, Target, expose},
    wired::{Stranger, Wired, index},
};

/// Packets of each kind that a node dealt with.
pub(crate) fn carried(cluster: &Cluster, node: usize) -> [u64; Leg::ALL.len()] {
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
    // All of these are reached from outside.
    for row in cluster.show(&["services"]).as_array().expect("rows") {
        assert_eq!(row["algorithm"], "maglev", "{row}");
    }
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
    let [local, out, _, back, ..] = carried(&cluster, 0);
    let most = BYTES / 1448;
    // Also what copies of the rows have counted.
    let shown = cluster.show(&["flows"]);
    let counted = |flow: &serde_json::Value| flow["packets"].as_u64().is_some_and(|of| of > most);
    let large = shown.as_array().into_iter().flatten().filter(|flow| counted(flow)).count();
    assert_eq!(large, 4, "{shown}");
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

/// XDP in the driver, and connections that are reset when their endpoint goes.
fn resetting(services: &[Exposed]) -> (Cluster, Wired) {
    let plan = Plan::new(SocketLb::On);
    let plan = plan.extra(&["--xdp=native", "--tcp-on-removed-endpoint=reset"]);
    let cluster = plan.up(services);
    let wired = ok(Wired::up(&cluster.lab));
    (cluster, wired)
}

/// Backends of the flows that are in a state.
fn backends_in(cluster: &Cluster, state: &str) -> Vec<String> {
    let shown = cluster.show(&["flows"]);
    let flows = shown.as_array().into_iter().flatten().filter(|flow| flow["state"] == state);
    flows.map(|flow| flow["backend"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What a driver has handled for seconds, by copies of rows, ends or follows as elsewhere when its endpoint
/// goes.
#[test]
fn what_the_driver_carries_heeds_a_change() {
    let (cluster, _wired) = resetting(&[expose(10, &["pod1a"]), expose(11, &["pod2a"])]);
    let target = |number| Target::NodePort("node1", number);
    let udp = [10, 11].map(|number| datagrams(&cluster, ("client", target(number), &[])));
    let flags = ["--rate=1", "--lasting=4", "--requests=20"];
    let tcp = [10, 11].map(|number| load_of_tcp(&cluster, "client", target(number), flags));
    sleep(Duration::from_secs(3));
    let [local, out, _, back, ..] = carried(&cluster, 0);
    assert!(local > 200 && out > 200 && back > 200, "{:?}", carried(&cluster, 0));
    cluster.publish(&expose(10, &["pod1b"]));
    cluster.publish(&expose(11, &["pod2b"]));
    sleep(Duration::from_secs(2));
    for (_, load) in udp {
        let load = ok(load.stop());
        // The pod before still answers; only what is under way in the moment of the change is lost.
        assert!(load.failed == 0 && load.udp_missing <= 4 && load.udp_moved > 0, "{load:?}");
    }
    for load in tcp {
        let load = ok(load.stop());
        // All that had begun before, of both families.
        assert!(load.errors.get("ECONNRESET").is_some_and(|&ended| ended >= 8), "{load:?}");
    }
}

/// What nobody has answered has one row, by which it is told; and is forgotten when its endpoint goes.
#[test]
fn a_connection_begins_in_the_driver() {
    let (cluster, _wired) = resetting(&[expose(10, &["pod1a"])]);
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
    for family in FAMILIES {
        let client = cluster.address("client", family);
        ok(cluster.lab.shell("pod1a", &format!("ip route add blackhole {client}")));
        let to = Target::NodePort("node1", 10).address(&cluster.lab, family);
        let open = format!("timeout 1 bash -c '</dev/tcp/{}/{}' || true", to.ip(), to.port());
        ok(cluster.lab.shell("client", &open));
    }
    let opening = || backends_in(&cluster, "opening");
    let mut expected =
        FAMILIES.map(|family| SocketAddr::new(cluster.address("pod1a", family), 8080).to_string());
    let mut found = opening();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    cluster.publish(&expose(10, &["pod1b"]));
    eventually("both are forgotten", || opening().is_empty().then_some(()));
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
}

/// A SYN that one endpoint left unanswered, before another one had the client's connection, does not end
/// that when the first endpoint goes.
#[test]
fn what_an_endpoint_left_unanswered_goes_with_it_alone() {
    let (cluster, _wired) = resetting(&[expose(10, &["pod1b"])]);
    let target = Target::NodePort("node1", 10);
    let load =
        load_of_tcp(&cluster, "client", target, ["--rate=1", "--lasting=4", "--requests=20"]);
    eventually("the load is under way", || {
        (backends_in(&cluster, "established").len() >= 8).then_some(())
    });
    cluster.publish(&expose(10, &["pod1a", "pod1b"]));
    let maps = cluster.lab.bpffs("node1").join("proxy/maps");
    let silent = ok(cluster.lab.addresses("pod1a"));
    let left = leave_unanswered(&maps, "4", Ipv4::from(silent.v4))
        + leave_unanswered(&maps, "6", Ipv6::from(silent.v6));
    assert!(left >= 8, "{left}");
    cluster.publish(&expose(10, &["pod1b"]));
    sleep(Duration::from_secs(2));
    let load = ok(load.stop());
    assert!(load.requests > 0 && load.failed == 0 && load.resets == 0, "{load:?}");
}

/// For each of a node's flows of TCP, writes the row that a SYN to another backend would have left; tells
/// how many.
fn leave_unanswered<A: Address>(maps: &Path, family: &str, backend: A) -> usize
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let [flows, mut pending] = ["FLOWS", "PENDING"].map(|name| {
        let table: MapTable<FlowKey<A>, Flow<A>> =
            ok(MapTable::open(maps, &format!("{name}{family}")));
        table
    });
    let rows = ok(flows.rows()).into_iter().filter(|(_, row)| row.role == role::ORIGINAL);
    let mut count = 0;
    for (key, row) in rows {
        let parties = Parties::of(&key, &row);
        let backend = Place::new(backend, parties.backend.port);
        let parties = Parties { backend, ..parties };
        let lone = flow_flags::LONE;
        let row =
            Flow { role: role::REPLY, flags: lone, to: key.dst, to_port: key.dst_port, ..row };
        ok(pending.insert(&parties.reply(), &row));
        count += 1;
    }
    count
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

/// Asks often enough that frames of flows that have been answered come in by the uplink.
fn exchanges(cluster: &Cluster) {
    for family in FAMILIES {
        let to = Target::NodePort("node1", 10).address(&cluster.lab, family);
        let outcome = ok(peer::exchange(&cluster.place("client"), to, BYTES / 4));
        assert_eq!(outcome, Exchange::whole(BYTES / 4), "{to}");
    }
}

/// What the kernel says of a node's uplink.
fn uplink(cluster: &Cluster) -> String {
    ok(cluster.lab.shell("node1", "ip -d link show eth0"))
}

/// Whoever runs it: the packet path serves, and `status` says why, until the device is free.
#[test]
fn a_program_of_somebody_elses_is_left_where_it_is() {
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let services = [expose(10, &["pod1a"]), expose(11, &["pod1b"])];
        let plan = Plan::single(SocketLb::On).extra(&["--xdp=native"]);
        let options = plan.options();
        let mut cluster = plan.without_agents(&services);
        let _wired = ok(Wired::up(&cluster.lab));
        let stranger = ok(Stranger::on(&cluster.lab, "node1", &["eth0".into()], mode));
        let before = uplink(&cluster);
        cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
        for service in &services {
            cluster.wait_programmed(service);
        }
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
        exchanges(&cluster);
        let told = status(&cluster, 0);
        let on = &told["xdp"][0];
        assert_eq!((&on["device"], &on["mode"]), (&"eth0".into(), &"none".into()), "{on}");
        let reason = on["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("another XDP program is there already"), "{reason}");
        // It was asked for by name.
        let problem = &told["problems"][0];
        assert_eq!(problem["object"], "--xdp", "{told}");
        assert_eq!((carried(&cluster, 0), uplink(&cluster)), ([0; Leg::ALL.len()], before));
        drop(stranger);
        eventually("the program is on", || {
            let told = status(&cluster, 0);
            let is_on = told["xdp"][0]["mode"] == "native" && told["problems"][0].is_null();
            is_on.then_some(())
        });
        exchanges(&cluster);
        assert!(carried(&cluster, 0)[Leg::Local as usize] > 100, "{:?}", carried(&cluster, 0));
    }
}

#[test]
fn it_is_put_back_where_another_hand_takes_it_off() {
    let plan = Plan::single(SocketLb::On).extra(&["--xdp=native"]);
    let cluster = plan.up(&[expose(10, &["pod1a"])]);
    let _wired = ok(Wired::up(&cluster.lab));
    exchanges(&cluster);
    let to = Target::NodePort("node1", 10).address(&cluster.lab, FAMILIES[0]);
    let (tcp, udp) = (format!("--tcp={to}"), format!("--udp={to}"));
    let load = ok(peer::load(&cluster.place("client"), &[&tcp, &udp, "--rate=50"]));
    let number = ok(index(&cluster.lab, "node1", "eth0"));
    let pin = cluster.lab.bpffs("node1").join(format!("proxy/links/xdp_ingress_{number}"));
    assert!(uplink(&cluster).contains("prog/xdp"), "{}", uplink(&cluster));
    ok(cluster.lab.shell("node1", &format!("bpftool link detach pinned {}", pin.display())));
    assert!(!uplink(&cluster).contains("prog/xdp"), "{}", uplink(&cluster));
    let mended = || {
        let labels = [("program", "xdp_ingress")];
        cluster.metric("millrace_attachment_repairs_total", &labels).to_string()
    };
    eventually("it is back, and counted", || {
        (uplink(&cluster).contains("prog/xdp") && mended() == "1").then_some(())
    });
    let log = cluster.agents[0].log();
    let said = |line: &str| {
        line.contains("another hand took a program off")
            && line.contains("eth0")
            && line.contains("xdp_ingress")
    };
    assert!(log.lines().any(said), "{log}");
    let before = carried(&cluster, 0)[Leg::Local as usize];
    exchanges(&cluster);
    let after = carried(&cluster, 0)[Leg::Local as usize];
    assert!(after > before + 100, "{before}, then {after}");
    let load = ok(load.stop());
    assert!(load.connections > 10 && load.requests > 100 && load.udp_sent > 100, "{load:?}");
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
    // What is as it was is not repaired.
    sleep(Duration::from_secs(6));
    assert_eq!(mended(), "1");
}

#[test]
fn cleanup_takes_it_off() {
    for mode in ["native", "generic"] {
        let plan = Plan::single(SocketLb::On).extra(&["--xdp", mode]);
        let mut cluster = plan.up(&[expose(10, &["pod1a"])]);
        assert!(uplink(&cluster).contains("prog/xdp"), "{}", uplink(&cluster));
        let status = ok(cluster.agents[0].end());
        assert!(status.success(), "{status}");
        // What is programmed stays in force.
        assert!(uplink(&cluster).contains("prog/xdp"), "{}", uplink(&cluster));
        cluster.reaches("client", Target::NodePort("node1", 10), &["pod1a"], "client");
        let output = ok(cluster.agents[0].ask(&["cleanup"]));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("on eth0"), "{text}");
        assert!(!uplink(&cluster).contains("xdp"), "{}", uplink(&cluster));
        assert!(!cluster.lab.bpffs("node1").join("proxy").exists(), "pins are left");
        let again = ok(cluster.agents[0].ask(&["cleanup"]));
        assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to remove"));
    }
}

/// What `check` says of XDP on a node's uplinks, and its verdict.
fn foreseen(cluster: &Cluster, uplinks: &[&str]) -> Vec<(String, String)> {
    let mut check = Command::new(AgentOptions::default().binary);
    check.args(["check", "-o", "json", "--uplink", &uplinks.join(","), "--bpffs"]);
    check.arg(cluster.lab.bpffs("node1"));
    let output = ok(cluster.lab.run("node1", check));
    let findings: Vec<serde_json::Value> = ok(serde_json::from_slice(&output.stdout));
    let of_xdp = findings.iter().filter(|finding| finding["subject"] == "XDP");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    of_xdp.map(|finding| (text(&finding["found"]), text(&finding["verdict"]))).collect()
}

/// One end of a pair, a device whose driver runs programs, and one that has none.
#[test]
fn check_foresees_what_auto_does() {
    let uplinks = ["eth0", "tap9", "br9"];
    let plan = Plan::single(SocketLb::On).extra(&["--xdp=auto", "--uplink", &uplinks.join(",")]);
    let options = plan.options();
    let mut cluster = plan.without_agents(&[]);
    for line in ["tuntap add mode tap name tap9", "link add br9 type bridge"] {
        ok(cluster.lab.shell("node1", &format!("ip {line}")));
    }
    let before = foreseen(&cluster, &uplinks);
    for ((found, verdict), (mode, why, expected)) in before.iter().zip([
        ("none on eth0", "one end of a veth pair", "warning"),
        ("native on tap9", "tun says basic, redirect", "ok"),
        ("none on br9", "a bridge has no driver", "warning"),
    ]) {
        assert!(found.contains(mode) && found.contains(why), "{found}");
        assert_eq!(verdict, expected, "{found}");
    }
    assert_eq!(before.len(), 3, "{before:?}");
    assert!(!uplink(&cluster).contains("xdp"), "{}", uplink(&cluster));
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    let told = eventually("the uplinks are told of", || {
        let told = status(&cluster, 0)["xdp"].as_array()?.clone();
        (told.len() == 3).then_some(told)
    });
    for (device, mode, driver, feature, reason) in [
        ("eth0", "none", "veth", Some("rx-sg"), "--xdp native"),
        ("tap9", "native", "tun", Some("ndo-xmit"), "the driver can run it"),
        ("br9", "none", "bridge", None, "a bridge has no driver"),
    ] {
        let on =
            told.iter().find(|on| on["device"] == device).unwrap_or_else(|| panic!("{told:?}"));
        assert_eq!((&on["mode"], &on["driver"]), (&mode.into(), &driver.into()), "{on}");
        let features = on["features"].as_array().expect("this kernel tells");
        assert_eq!(features.is_empty(), feature.is_none(), "{on}");
        assert!(feature.is_none_or(|feature| features.contains(&feature.into())), "{on}");
        assert!(on["reason"].as_str().is_some_and(|told| told.contains(reason)), "{on}");
    }
    let text = ok(cluster.agents[0].ask(&["status"])).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("tap9 native: the driver can run it; tun says basic"), "{text}");
    // What is ours is no stranger's.
    assert_eq!(foreseen(&cluster, &uplinks), before);
}

/// Whose program is there counts, and not which.
#[test]
fn check_tells_of_a_program_of_somebody_elses() {
    let cluster = Plan::single(SocketLb::On).without_agents(&[]);
    ok(cluster.lab.shell("node1", "ip tuntap add mode tap name tap9"));
    let stranger = ok(Stranger::on(&cluster.lab, "node1", &["tap9".into()], XdpMode::Native));
    let (found, verdict) = foreseen(&cluster, &["tap9"]).remove(0);
    assert!(found.contains("none on tap9: another XDP program is there already"), "{found}");
    assert_eq!(verdict, "warning");
    drop(stranger);
    assert_eq!(foreseen(&cluster, &["tap9"])[0].1, "ok");
}

/// A second network between the nodes, by which they reach each other's pods.
fn back_network(cluster: &Cluster) {
    let far = ok(cluster.lab.place("node2")).netns();
    let far = far.file_name().expect("a name").display().to_string();
    let add = format!("ip link add back type veth peer name back netns {far}");
    ok(cluster.lab.shell("node1", &add));
    for (node, number, other) in [("node1", 1, 2), ("node2", 2, 1)] {
        for line in [
            format!("address add 10.99.0.{number}/24 dev back"),
            format!("address add fd00:99::{number}/64 dev back nodad"),
            "link set back up".into(),
            format!("route replace 10.244.{other}.0/24 via 10.99.0.{other}"),
            format!("-6 route replace fd00:10:244:{other}::/64 via fd00:99::{other}"),
        ] {
            ok(cluster.lab.shell(node, &format!("ip {line}")));
        }
    }
}

/// Clients by one device, the backend's node by another: both drivers say that they send, so frames
/// leave in them; where one says that it does not any more, the packet path serves.
#[test]
fn frames_leave_by_another_device_where_its_driver_sends() {
    let services = [expose(11, &["pod2a"])];
    let uplinks = "--uplink=eth0,back";
    let plan = Plan::new(SocketLb::On).extra(&["--xdp=native", uplinks]);
    let options = plan.options();
    let mut cluster = plan.without_agents(&services);
    back_network(&cluster);
    for node in cluster.nodes() {
        cluster.agents.push(ok(Agent::start(&cluster.lab, &node, options.clone())));
    }
    cluster.wait_programmed(&services[0]);
    let wired = ok(Wired::up(&cluster.lab));
    let sends = |device: &str| {
        let told = status(&cluster, 0);
        let all = told["xdp"].as_array().cloned().unwrap_or_default();
        let on = all.iter().find(|on| on["device"] == device && on["mode"] == "native");
        let features = on.and_then(|on| on["features"].as_array().cloned());
        features.is_some_and(|features| features.contains(&"ndo-xmit".into()))
    };
    eventually("both send", || (sends("eth0") && sends("back")).then_some(()));
    let exchange = || {
        for family in FAMILIES {
            let to = Target::NodePort("node1", 11).address(&cluster.lab, family);
            let outcome = ok(peer::exchange(&cluster.place("client"), to, BYTES));
            assert_eq!(outcome, Exchange::whole(BYTES), "{to}");
        }
        let [_, out, _, back, ..] = carried(&cluster, 0);
        [out, back]
    };
    let most = BYTES / 1448;
    let first = exchange();
    assert!(first.iter().all(|&leg| leg > most), "{first:?}");
    // Without its peer's program, and without GRO there, a veth's driver has nobody to hand frames to.
    drop(wired);
    eventually("one sends no more", || (!sends("eth0") && sends("back")).then_some(()));
    // Ways that are known are asked for anew once a second.
    sleep(Duration::from_millis(1_200));
    let problem = status(&cluster, 0)["problems"][0]["message"].to_string();
    assert!(problem.contains("what is sent back by eth0 is lost"), "{problem}");
    let second = exchange();
    assert!(second[0] > first[0] + most, "{first:?}, then {second:?}");
    assert!(second[1] < first[1] + most / 2, "{first:?}, then {second:?}");
}
