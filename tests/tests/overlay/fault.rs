//! What goes wrong: agents die, the store does, leases run out or are taken away, another hand
//! changes what was programmed.

use std::{thread::sleep, time::Duration};

use lab::peer::Load;

use crate::bed::{Bed, DUAL, KERNEL, PREFIX, eventually, load, ok};

fn assert_nothing_lost(load: &Load, bed: &Bed) {
    assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{load:?}");
    let lost = (load.failed, load.resets, load.udp_missing);
    assert_eq!(lost, (0, 0, 0), "{load:?}\n{}", bed.logs());
}

fn devices(bed: &Bed, nth: usize) -> serde_json::Value {
    bed.show(nth, "status")["devices"].clone()
}

#[test]
fn a_killed_agent_comes_back_with_subnet_and_mac_and_nobody_notices() {
    let mut bed = Bed::up(DUAL, &[]);
    let (before, subnet) = (devices(&bed, 0), bed.show(0, "status")["subnet"].clone());
    let load = load(&bed);
    for _ in 0..5 {
        ok(bed.agents[0].kill());
        sleep(Duration::from_millis(200));
        // The file is a hint; the lease tells the same.
        ok(std::fs::remove_file(bed.lab.subnet_file("node1")));
        ok(bed.agents[0].launch());
        ok(bed.agents[0].wait_ready());
    }
    assert_nothing_lost(&ok(load.stop()), &bed);
    assert_eq!(devices(&bed, 0), before);
    assert_eq!(bed.show(0, "status")["subnet"], subnet);
    assert_eq!(bed.show(0, "status")["repairs"], 0);
}

#[test]
fn a_device_that_is_gone_comes_back_with_its_mac() {
    for way in [&[][..], &[KERNEL]] {
        let mut bed = Bed::up(DUAL, way);
        let mac = devices(&bed, 0)[0]["mac"].clone();
        let route = bed.shell("node1", "ip route show dev flannel.1");
        bed.shell("node1", "ip link del flannel.1");
        eventually("the device is back with all it had", || {
            let routes = bed.shell("node1", "ip route show dev flannel.1 || true");
            (routes == route).then_some(())
        });
        bed.assert_joined();
        // Also when there is nobody to see it go, as at a reboot: peers' entries stay right.
        ok(bed.agents[0].kill());
        bed.shell("node1", "ip link del flannel.1; ip link del flannel-v6.1 2>&1 || true");
        ok(bed.agents[0].launch());
        ok(bed.agents[0].wait_ready());
        assert_eq!(devices(&bed, 0)[0]["mac"], mac);
        bed.assert_joined();
    }
}

#[test]
fn what_another_hand_changes_is_repaired_and_counted() {
    let bed = Bed::up(DUAL, &[KERNEL]);
    let fdb = bed.shell("node1", "bridge fdb show dev flannel.1");
    let mac = fdb.split(' ').next().unwrap();
    for line in [
        "ip route del 10.244.2.0/24".to_owned(),
        "ip route replace 10.244.2.0/24 via 192.168.78.1".into(),
        "ip neigh del 10.244.2.0 dev flannel.1".into(),
        format!("bridge fdb replace {mac} dev flannel.1 dst 192.168.78.99 self permanent"),
        "ip -6 route del fd00:10:244:2::/64".into(),
        "ip addr del 10.244.1.0/32 dev flannel.1".into(),
        "ip link set flannel.1 down".into(),
        "ip link set flannel.1 mtu 1400".into(),
    ] {
        let before = bed.show(0, "status")["repairs"].as_u64().unwrap();
        bed.shell("node1", &line);
        eventually(&format!("{line}: is repaired"), || {
            (bed.show(0, "status")["repairs"].as_u64()? > before).then_some(())
        });
        bed.assert_joined();
    }
    // What is not ours is left alone.
    bed.shell(
        "node1",
        "ip route add 10.250.0.0/24 via 192.168.78.1; ip route add 10.244.77.0/24 via 192.168.78.1",
    );
    sleep(Duration::from_secs(6));
    let routes = bed.shell("node1", "ip route");
    assert!(routes.contains("10.250.0.0/24") && routes.contains("10.244.77.0/24"), "{routes}");
}

#[test]
fn a_dead_nodes_lease_runs_out_and_live_ones_are_renewed() {
    let mut bed = Bed::up(DUAL, &[KERNEL, "--subnet-lease-ttl=6"]);
    sleep(Duration::from_secs(8));
    bed.assert_joined();
    assert_eq!(bed.nodes(0).len(), 1);
    ok(bed.agents[1].kill());
    eventually("the dead node's entries are gone", || {
        let left = bed.shell("node1", "ip route show dev flannel.1; ip neigh show dev flannel.1 nud permanent; bridge fdb show dev flannel.1; ip -6 route show fd00:10:244:2::/64");
        left.trim().is_empty().then_some(())
    });
    assert_eq!(ok(bed.store.keys(&format!("{PREFIX}/subnets/"))).len(), 1);
    ok(bed.agents[1].launch());
    ok(bed.agents[1].wait_ready());
    eventually("it is a peer again", || (bed.nodes(0).len() == 1).then_some(()));
    bed.assert_joined();
}

#[test]
fn an_outage_of_etcd_is_told_and_stops_no_traffic() {
    let mut bed = Bed::up(DUAL, &[]);
    let load = load(&bed);
    bed.store.stop();
    eventually("the outage is told", || {
        (bed.show(0, "status")["store_reached"] == false).then_some(())
    });
    assert!(bed.show(0, "status")["problems"].to_string().contains("\"store\""));
    // An agent that starts meanwhile waits, and takes nothing away.
    ok(bed.agents[1].kill());
    ok(bed.agents[1].launch());
    sleep(Duration::from_secs(2));
    assert!(bed.agents[1].health("/readyz").is_ok_and(|(status, _)| status == 503));
    bed.assert_joined();
    ok(bed.store.start());
    ok(bed.agents[1].wait_ready());
    eventually("it is over", || (bed.show(0, "status")["store_reached"] == true).then_some(()));
    // What happens now is heard again.
    let value = r#"{"PublicIP":"192.168.78.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    ok(bed.store.put(&format!("{PREFIX}/subnets/10.244.99.0-24"), value));
    eventually("a new peer is known", || (bed.nodes(0).len() == 2).then_some(()));
    assert_nothing_lost(&ok(load.stop()), &bed);
}

#[test]
fn our_lease_taken_away_is_taken_again_under_traffic() {
    let bed = Bed::up(DUAL, &[]);
    let load = load(&bed);
    let key = format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64");
    ok(bed.store.ctl(&["del", &key]));
    eventually("it is there again", || bed.store.get(&key).ok().flatten());
    eventually("it is a peer again", || (bed.nodes(1).len() == 1).then_some(()));
    assert!(bed.agents[0].log().contains("our lease is lost"), "{}", bed.agents[0].log());
    bed.assert_joined();
    let load = ok(load.stop());
    // The peer forgot us for a moment, as it does of any lease that is removed.
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}");
}

#[test]
fn our_lease_overwritten_with_nonsense_is_written_again() {
    let bed = Bed::up(DUAL, &[]);
    let key = format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64");
    let before = ok(bed.store.get(&key));
    for nonsense in ["{", "{}"] {
        ok(bed.store.put(&key, nonsense));
        eventually("it says what it said", || (ok(bed.store.get(&key)) == before).then_some(()));
    }
    eventually("it is a peer again", || (bed.nodes(1).len() == 1).then_some(()));
    bed.assert_joined();
}

#[test]
fn a_configuration_is_waited_for_until_it_can_be_used() {
    let wrong = DUAL.replace(r#""Network":"#, r#""SubnetLen":31,"Network":"#);
    let mut bed = Bed::prepare(&wrong, lab::LabSpec::default().nodes, &[]);
    for agent in &mut bed.agents {
        ok(agent.launch());
    }
    eventually("the fault is told", || {
        bed.show(0, "status")["problems"].to_string().contains("SubnetLen").then_some(())
    });
    ok(bed.store.put(&format!("{PREFIX}/config"), DUAL));
    for agent in &mut bed.agents {
        ok(agent.wait_ready());
    }
    assert_eq!(bed.show(0, "status")["problems"].as_array().map(Vec::len), Some(0));
}

#[test]
fn peers_that_change_are_followed_and_bad_ones_stop_nobody() {
    let bed = Bed::up(DUAL, &[KERNEL]);
    let key = |nth: u8| format!("{PREFIX}/subnets/10.244.{nth}.0-24");
    let value = |ip: &str, mac: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    };
    let fdb = || bed.shell("node1", "bridge fdb show dev flannel.1 | grep ^02:00:00:00:00 || true");
    ok(bed.store.put(&key(50), &value("192.168.78.50", "02:00:00:00:00:50")));
    eventually("the peer is programmed", || {
        (fdb().trim() == "02:00:00:00:00:50 dst 192.168.78.50 self permanent").then_some(())
    });
    ok(bed.store.put(&key(50), &value("192.168.78.50", "02:00:00:00:00:51")));
    eventually("its new MAC replaces the old one", || {
        (fdb().trim() == "02:00:00:00:00:51 dst 192.168.78.50 self permanent").then_some(())
    });
    ok(bed.store.put(&key(50), &value("192.168.78.52", "02:00:00:00:00:51")));
    eventually("its new address replaces the old one", || {
        (fdb().trim() == "02:00:00:00:00:51 dst 192.168.78.52 self permanent").then_some(())
    });
    ok(bed.store.put(&key(51), "{"));
    ok(bed.store.put(&format!("{PREFIX}/subnets/10.244.13.300-24"), "{}"));
    ok(bed.store.put(&key(52), &value("192.168.78.53", "02:00:00:00:00:53")));
    eventually("the good one is programmed", || fdb().contains("00:53").then_some(()));
    let problems = bed.show(0, "status")["problems"].to_string();
    for name in ["10.244.51.0-24", "10.244.13.300-24"] {
        assert!(problems.contains(name), "{problems}");
    }
    bed.assert_joined();
    // A node's own address changes: it says so itself.
    bed.shell("node2", "ip addr del 192.168.78.12/24 dev eth0; ip addr add 192.168.78.22/24 dev eth0; ip route add default via 192.168.78.1");
    eventually("the new address is published and followed", || {
        bed.shell("node1", "bridge fdb show dev flannel.1").contains("192.168.78.22").then_some(())
    });
    bed.assert_joined();
}

fn repairs(bed: &Bed) -> u64 {
    bed.show(0, "status")["repairs"].as_u64().unwrap_or_default()
}

/// Waits until that many more things were put right, and the log names what.
fn assert_repaired(bed: &Bed, before: u64, count: u64, said: &[&str]) {
    eventually(&format!("{said:?}: {count} repairs"), || {
        (repairs(bed) >= before + count).then_some(())
    });
    let log = bed.agents[0].log();
    let is_told = |line: &&str| said.iter().all(|part| line.contains(part));
    assert!(log.lines().any(|line| is_told(&line)), "{said:?}\n{log}");
    let metrics = ok(bed.agents[0].metrics());
    let counted = format!("millrace_overlay_repairs_total {}", repairs(bed));
    assert!(metrics.contains(&counted), "{counted}\n{metrics}");
    assert_eq!(bed.show(0, "status")["problems"], serde_json::json!([]));
    bed.assert_joined();
}

/// What the names of all that are on a node's devices begin with.
const PROGRAMS: [&str; 6] =
    ["tunnel_egress", "tunnel_ingress", "masq_egress", "masq_ingress", "decap_ingress", "bypass"];

#[test]
fn programs_that_another_hand_takes_off_are_put_back() {
    let bed = Bed::up(DUAL, &["--ip-masq"]);
    let links = bed.lab.bpffs("node1").join("overlay/links");
    let pins = bed.shell("node1", &format!("ls {}", links.display()));
    for program in PROGRAMS {
        assert!(pins.contains(program), "{program} is nowhere: {pins}");
    }
    for pin in pins.lines() {
        let before = repairs(&bed);
        bed.shell("node1", &format!("bpftool link detach pinned {}/{pin}", links.display()));
        let (program, index) = pin.rsplit_once('_').unwrap();
        let name = format!("ip -o link | awk -F'[ :@]+' '$1 == {index} {{print $2}}'");
        let device = bed.shell("node1", &name);
        let said = ["another hand took a program off", program, device.trim()];
        assert_repaired(&bed, before, 1, &said);
    }
    assert_eq!(bed.shell("node1", &format!("ls {}", links.display())), pins);
}

#[test]
fn what_programs_are_told_is_told_again() {
    let bed = Bed::up(DUAL, &["--ip-masq"]);
    let maps = bed.lab.bpffs("node1").join("overlay/maps");
    for table in ["TUNNELS", "POLICIES", "DEVICES"] {
        let pin = maps.join(table);
        let dump = bed.shell("node1", &format!("bpftool -j map dump pinned {}", pin.display()));
        let rows: serde_json::Value = serde_json::from_str(&dump).unwrap();
        let bytes = |field: &str| {
            let bytes = rows[0][field].as_array().into_iter().flatten();
            bytes.filter_map(|byte| byte.as_str()).collect::<Vec<_>>()
        };
        // Another byte than the one that is there, which may be any.
        let (key, mut value) = (bytes("key").join(" "), bytes("value"));
        value[0] = if value[0] == "0x00" { "0x01" } else { "0x00" };
        let value = value.join(" ");
        let before = repairs(&bed);
        let update = format!("bpftool map update pinned {} key {key} value {value}", pin.display());
        bed.shell("node1", &update);
        assert_repaired(&bed, before, 1, &["a row was not as written", table, "changed"]);
        let after = bed.shell("node1", &format!("bpftool -j map dump pinned {}", pin.display()));
        assert_eq!(after, dump, "{table}");
    }
}

#[test]
fn pins_that_another_hand_removes_are_made_again_and_nothing_is_lost() {
    let mut bed = Bed::up(DUAL, &["--ip-masq"]);
    let root = bed.lab.bpffs("node1").join("overlay");
    let list = format!("ls {0}/links; ls {0}/maps/", root.display());
    let pins = bed.shell("node1", &list);
    let ids = |bed: &Bed| {
        let show = format!(
            "for it in {0}/maps/*; do bpftool map show pinned $it | head -1; done; \
             for it in {0}/links/*; do bpftool link show pinned $it | head -1; done",
            root.display()
        );
        bed.shell("node1", &show)
    };
    let objects = ids(&bed);
    let load = load(&bed);
    let before = repairs(&bed);
    ok(std::fs::remove_dir_all(&root));
    let list = format!("{list} 2>&1 || true");
    eventually("all pins are back", || (bed.shell("node1", &list) == pins).then_some(()));
    let count = pins.lines().count() as u64;
    assert_repaired(&bed, before, count, &["another hand removed pins", "VTEPS4"]);
    // They are of what was there, and the next agent goes on with it.
    assert_eq!(ids(&bed), objects);
    ok(bed.agents[0].restart());
    bed.assert_joined();
    assert_nothing_lost(&ok(load.stop()), &bed);
}

/// On a kernel without links there are filters in their place.
#[test]
fn filters_that_another_hand_removes_are_put_back() {
    let mut bed = Bed::furnished(DUAL, &["--ip-masq"]);
    for agent in &mut bed.agents {
        agent.refuse_links();
    }
    bed.launch();
    bed.assert_joined();
    let filters = |bed: &Bed| {
        let list = "for it in flannel.1 eth0 vethpod1a vethpod1b; do tc filter show dev $it ingress; \
                    tc filter show dev $it egress; done | grep -o 'handle 0x4d4c [a-z_]*'";
        bed.shell("node1", list)
    };
    let all = filters(&bed);
    for program in PROGRAMS {
        assert!(all.contains(program), "{program} is nowhere: {all}");
    }
    for (line, count, said) in [
        ("tc filter del dev flannel.1 egress", 2, ["tunnel_egress", "clsact egress", "flannel.1"]),
        ("tc qdisc del dev eth0 clsact", 2, ["decap_ingress", "clsact ingress", "eth0"]),
        ("tc qdisc del dev vethpod1a clsact", 1, ["bypass_ingress", "clsact ingress", "vethpod1a"]),
    ] {
        let before = repairs(&bed);
        bed.shell("node1", line);
        assert_repaired(&bed, before, count, &said);
        assert_eq!(filters(&bed), all, "{line}");
    }
}
