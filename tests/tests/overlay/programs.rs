//! Nodes whose programs choose the tunnel: what they have, what programs refuse and answer, what
//! is followed and repaired, and the way from the classic devices and back.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lab::peer::{self, Protocol};

use crate::bed::{Bed, DUAL, KERNEL, PREFIX, eventually, load, ok};

/// A counter of an agent's metrics.
fn drops(bed: &Bed, nth: usize, reason: &str) -> u64 {
    let text = ok(bed.agents[nth].metrics());
    let lines = text.lines().filter(|line| {
        line.starts_with("millrace_drops_total{") && line.contains(&format!("reason=\"{reason}\""))
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn a_node_has_one_device_and_no_entry_for_a_peer() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let link = bed.shell("node1", "ip -d link show flannel.1");
    for part in ["mtu 1430", "vxlan external", "dstport 8472"] {
        assert!(link.contains(part), "{part}\n{link}");
    }
    assert!(!bed.shell("node1", "ip -o link").contains("flannel-v6"));
    let said = |line: &str| bed.shell("node1", line).trim().to_owned();
    assert_eq!(
        said("ip route show dev flannel.1"),
        "10.244.0.0/16 via 169.254.1.1 onlink",
        "one route for all pods elsewhere"
    );
    assert!(
        said("ip -6 route show dev flannel.1").contains("fd00:10:244::/48 via fe80::1 metric 1024")
    );
    assert_eq!(said("ip -4 neigh show dev flannel.1 nud permanent | wc -l"), "1");
    assert_eq!(
        said("ip route show type blackhole"),
        "blackhole 10.244.1.0/24 proto 77 metric 4096",
        "packets to pods that are not there do not leave"
    );
    let mac =
        |nth: usize| bed.show(nth, "status")["devices"][0]["mac"].as_str().unwrap().to_owned();
    let expected = [
        format!("10.244.2.0/24 to 192.168.78.12 {}", mac(1)),
        format!("fd00:10:244:2::/64 to fd00:78::12 {}", mac(1)),
    ];
    assert_eq!(bed.vteps("node1"), expected);
    let peers = bed.show(0, "peers").to_string();
    assert!(peers.contains("10.244.2.0/24") && peers.contains(&mac(1)), "{peers}");
    let pin = bed.lab.bpffs("node1").join("overlay/maps/VTEPS4");
    let dump = bed.shell("node1", &format!("bpftool map dump pinned {}", pin.display()));
    assert!(dump.contains("\"underlay\"") && dump.contains("\"mac\""), "{dump}");
}

#[test]
fn what_does_not_fit_is_told_to_the_sender() {
    let bed = Bed::up(DUAL, &[]);
    // IPv4 and ICMP header are 28 bytes, IPv6's 48.
    for (ping, to, largest) in
        [("ping -4", "10.244.2.10", 1430 - 28), ("ping -6", "fd00:10:244:2::10", 1430 - 48)]
    {
        bed.shell("pod1a", &format!("{ping} -c1 -W2 -M do -s {largest} {to}"));
        // The pod's own device is as narrow: the node is asked to send from behind it.
        let more = largest + 1;
        let said = bed.shell("node1", &format!("{ping} -c1 -W2 -M do -s {more} {to} 2>&1 || true"));
        assert!(said.contains("essage too long") || said.contains("too big"), "{said}");
        bed.shell("pod1a", &format!("{ping} -c1 -W2 -M dont -s 4000 {to}"));
    }
}

#[test]
fn pods_that_no_node_has_are_unreachable_at_once() {
    let bed = Bed::up(DUAL, &[]);
    let pod = ok(bed.lab.place("pod1a"));
    for target in ["10.244.200.1:80", "[fd00:10:244:200::1]:80"] {
        let target: SocketAddr = target.parse().unwrap();
        let began = std::time::Instant::now();
        let answer = ok(peer::ask(&pod, Protocol::Tcp, target));
        assert!(answer.name().is_none(), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "{target} {:?}", began.elapsed());
    }
    assert!(drops(&bed, 0, "no_peer") >= 2);
}

#[test]
fn frames_of_strangers_are_refused_and_counted() {
    let bed = Bed::up(DUAL, &[]);
    // The right number and a MAC that no lease tells; then another number.
    for (vni, reason) in [(1, "unknown_peer"), (7, "wrong_vni")] {
        let mac = bed.show(0, "status")["devices"][0]["mac"].as_str().unwrap().to_owned();
        bed.shell(
            "fabric",
            &format!(
                "ip link add vx{vni} address 02:00:00:00:00:66 type vxlan id {vni} \
                 remote 192.168.78.11 dstport 8472 && ip link set vx{vni} up && \
                 ip route add 10.244.1.0/24 via 10.244.1.0 dev vx{vni} onlink src 192.168.78.1 && \
                 ip neigh add 10.244.1.0 lladdr {mac} dev vx{vni}"
            ),
        );
        let said = bed.shell("fabric", "ping -c2 -i0.2 -W1 10.244.1.10 || true");
        assert!(said.contains("100% packet loss"), "{said}");
        assert!(drops(&bed, 0, reason) >= 2, "{reason}");
        bed.shell("fabric", &format!("ip link del vx{vni}"));
    }
    bed.assert_joined();
}

#[test]
fn peers_that_change_are_followed() {
    let bed = Bed::up(DUAL, &[]);
    let key = |nth: u8| format!("{PREFIX}/subnets/10.244.{nth}.0-24");
    let value = |ip: &str, mac: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    };
    for (ip, mac) in [
        ("192.168.78.50", "02:00:00:00:00:50"),
        ("192.168.78.50", "02:00:00:00:00:51"),
        ("192.168.78.52", "02:00:00:00:00:51"),
    ] {
        ok(bed.store.put(&key(50), &value(ip, mac)));
        let row = format!("10.244.50.0/24 to {ip} {mac}");
        eventually(&row, || bed.vteps("node1").contains(&row).then_some(()));
    }
    ok(bed.store.ctl(&["del", &key(50)]));
    eventually("the row is gone", || (bed.vteps("node1").len() == 2).then_some(()));
    bed.assert_joined();
}

#[test]
fn what_another_hand_changes_is_repaired() {
    let bed = Bed::up(DUAL, &[]);
    let pins = bed.lab.bpffs("node1").join("overlay");
    let row = "hex 18 00 00 00 0a f4 02 00";
    let maps = pins.join("maps");
    for line in [
        "ip route del 10.244.0.0/16".to_owned(),
        "ip route replace 10.244.0.0/16 via 192.168.78.1".into(),
        "ip -6 route del fd00:10:244::/48".into(),
        "ip neigh del 169.254.1.1 dev flannel.1".into(),
        "ip route del blackhole 10.244.1.0/24 metric 4096".into(),
        "ip link set flannel.1 down".into(),
        format!("bpftool map delete pinned {}/VTEPS4 key {row}", maps.display()),
    ] {
        let before = bed.show(0, "status")["repairs"].as_u64().unwrap();
        bed.shell("node1", &line);
        eventually(&format!("{line}: is repaired"), || {
            (bed.show(0, "status")["repairs"].as_u64()? > before).then_some(())
        });
        bed.assert_joined();
    }
    // A program taken off its device is put back.
    for program in ["tunnel_egress", "tunnel_ingress"] {
        bed.shell("node1", &format!("rm {}/links/{program}_*", pins.display()));
        eventually(&format!("{program} is back"), || {
            bed.shell("node1", &format!("ls {}/links", pins.display()))
                .contains(program)
                .then_some(())
        });
        bed.assert_joined();
    }
}

/// From the classic devices to programs and back, as by a change of flags: a connection that is
/// open goes on, and the gap is short.
#[test]
fn a_node_changes_its_way_and_connections_go_on() {
    let mut bed = Bed::up(DUAL, &[KERNEL]);
    let macs = |bed: &Bed| {
        let key = format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64");
        ok(bed.store.get(&key)).expect("a lease")
    };
    let lease = macs(&bed);
    let load = load(&bed);
    for way in ["--datapath=ebpf", KERNEL, "--datapath=ebpf"] {
        ok(bed.agents[0].kill());
        bed.agents[0].change_argument(way);
        ok(bed.agents[0].launch());
        ok(bed.agents[0].wait_ready());
        bed.assert_joined();
        assert_eq!(macs(&bed), lease, "peers need not learn anything");
        sleep(Duration::from_millis(300));
    }
    let load = ok(load.stop());
    assert_eq!((load.failed, load.resets), (0, 0), "{load:?}\n{}", bed.logs());
    // Those of the moment in which a device replaces the other are lost.
    println!("{} datagrams of {} lost in three changes", load.udp_missing, load.udp_sent);
}

fn fast_path(bed: &Bed, nth: usize) -> String {
    bed.show(nth, "status")["fast_path"].as_str().unwrap_or_default().to_owned()
}

/// Packets that the node's bridge of pods has seen.
fn forwarded(bed: &Bed) -> u64 {
    let text = bed.shell("node1", "awk '/^Ip: [0-9]/ {print $7}' /proc/net/snmp");
    text.trim().parse().expect("a number")
}

#[test]
fn the_fast_path_passes_the_stack_by_until_rules_are_made() {
    let bed = Bed::up(DUAL, &[]);
    assert!(fast_path(&bed, 0).starts_with("on"), "{}", fast_path(&bed, 0));
    let count = |expected: &str| {
        let before = forwarded(&bed);
        bed.shell("pod1a", "ping -c20 -i0.01 -W2 10.244.2.10");
        let more = forwarded(&bed) - before;
        // The first packets go by the stack, until the pod's place is known.
        assert!(if expected == "fast" { more < 20 } else { more >= 40 }, "{expected}: {more}");
    };
    count("fast");
    let rules = "add table ip t; add chain ip t c { type filter hook forward priority 0; }; \
                 add rule ip t c ip saddr 10.99.0.0/16 drop";
    bed.shell("node1", &format!("nft '{rules}'"));
    eventually("rules end the fast path", || {
        (fast_path(&bed, 0) == "off: nftables chain ip t c has 1 rules").then_some(())
    });
    bed.assert_joined();
    count("stack");
    bed.shell("node1", "nft delete table ip t");
    eventually("without rules it is back", || fast_path(&bed, 0).starts_with("on").then_some(()));
    bed.assert_joined();
    count("fast");
}

#[test]
fn told_to_be_off_it_is_off() {
    let bed = Bed::up(DUAL, &["--fast-path=off"]);
    assert_eq!(fast_path(&bed, 0), "off, as told");
    bed.assert_joined();
    let links =
        bed.shell("node1", &format!("ls {}/overlay/links", bed.lab.bpffs("node1").display()));
    assert!(!links.contains("bypass"), "{links}");
}

/// A neighbour that translates as kube-proxy's rules do, with conntrack: what it translates must
/// pass it both ways.
#[test]
fn beside_a_translator_with_conntrack_no_connection_is_lost() {
    let bed = Bed::up(DUAL, &[]);
    let pod = ok(bed.lab.place("pod1a"));
    let direct = load(&bed);
    let rules = "add table ip p; \
                 add chain ip p pre { type nat hook prerouting priority dstnat; }; \
                 add chain ip p post { type nat hook postrouting priority srcnat; }; \
                 add rule ip p pre ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.2.10:80; \
                 add rule ip p pre ip daddr 10.96.0.1 udp dport 53 dnat to 10.244.2.10:53";
    bed.shell("node1", &format!("nft '{rules}'"));
    eventually("rules end the fast path", || fast_path(&bed, 0).starts_with("off").then_some(()));
    let through = ["--tcp=10.96.0.1:80", "--udp=10.96.0.1:53", "--rate=50", "--lasting=2"];
    let through = ok(peer::load(&pod, &through));
    sleep(Duration::from_secs(2));
    for load in [ok(through.stop()), ok(direct.stop())] {
        assert!(load.connections > 20 && load.udp_sent > 20, "{load:?}");
        assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
    }
}
