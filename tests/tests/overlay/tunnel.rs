//! Packets that programs put into the tunnel and take out of it, past its device: that they do,
//! that nothing is lost when they begin or end to, and what they leave to the device.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use agent_kit::table::{MapTable, Table};
use datapath::{
    address::Ipv4,
    tunnel::{NetworkKey, Vtep},
};
use lab::peer::{self, Exchange, Protocol};
use nix::sys::socket::{setsockopt, sockopt};

use crate::bed::{Bed, DUAL, KERNEL, SINGLE, eventually, load, ok};

/// What the second node is known by, and the device that leads there.
const PEER: &str = "192.168.78.12";

/// Packets that a node's tunnel device has carried, both ways.
fn by_device(bed: &Bed, node: &str) -> u64 {
    let line = "awk '$1 == \"flannel.1:\" {print $3 + $11}' /proc/net/dev";
    bed.shell(node, line).trim().parse().expect("a number")
}

/// Packets and bytes of an agent's metrics, in and out.
fn told(bed: &Bed, nth: usize) -> BTreeMap<String, u64> {
    let text = ok(bed.agents[nth].metrics());
    let figure = |line: &str| {
        let (name, value) = line.strip_prefix("millrace_overlay_")?.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(figure).collect()
}

/// Whether programs may send to the second node by the uplink, as the first node's table has it.
fn is_by_uplink(bed: &Bed) -> bool {
    let maps = bed.lab.bpffs("node1").join("overlay/maps");
    let table: MapTable<NetworkKey<Ipv4>, Vtep<Ipv4>> = ok(MapTable::open(&maps, "VTEPS4"));
    let rows = ok(table.rows());
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].1.by_uplink != 0
}

fn fast_path(bed: &Bed) -> String {
    bed.show(0, "status")["fast_path"].as_str().unwrap_or_default().to_owned()
}

/// Bulk data from the first pod to an address, both ways.
fn exchange(bed: &Bed, to: IpAddr, bytes: u64) {
    let found = ok(peer::exchange(&ok(bed.lab.place("pod1a")), (to, 80).into(), bytes));
    assert_eq!(found, Exchange::whole(bytes), "{to}");
}

/// What the tunnel device carries while bulk data goes by IPv4.
fn carried_by_device(bed: &Bed) -> u64 {
    let before = by_device(bed, "node1");
    exchange(bed, ok(bed.lab.addresses("pod2a")).v4.into(), 4 << 20);
    by_device(bed, "node1") - before
}

#[test]
fn programs_carry_ipv4_past_the_device_and_it_is_counted() {
    const BYTES: u64 = 16 << 20;
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let [v4, v6] = ok(bed.lab.addresses("pod2a")).both();
    for (to, by_programs) in [(v4, true), (v6, false)] {
        let (before, device_before) = (told(&bed, 0), by_device(&bed, "node1"));
        exchange(&bed, to, BYTES);
        let device = by_device(&bed, "node1") - device_before;
        assert_eq!(device < 100, by_programs, "{to}: {device} packets by the device");
        // Metrics are as of the last look.
        let more = eventually("all of it is told of", || {
            let now = told(&bed, 0);
            let more: BTreeMap<_, _> = now
                .into_iter()
                .map(|(name, value)| (name.clone(), value - before[&name]))
                .collect();
            let bytes = |way| more[&format!("bytes_total{{direction=\"{way}\"}}")];
            (bytes("in") > BYTES && bytes("out") > BYTES).then_some(more)
        });
        for way in ["in", "out"] {
            let of = |what| more[&format!("{what}_total{{direction=\"{way}\"}}")];
            assert!(of("bytes") < BYTES * 5 / 4, "{to} {way}: {more:?}");
            // Segments stay together: each packet is several of what the wire carries.
            assert!(of("bytes") / of("packets") > 3 * 1430, "{to} {way}: {more:?}");
        }
    }
}

/// Devices of pods that are wider than the tunnel, as they are where a CNI plugin does not heed
/// `FLANNEL_MTU`: the node tells what fits, and TCP follows.
#[test]
fn pods_with_wider_devices_are_told_what_fits() {
    let bed = Bed::up(SINGLE, &[]);
    for nth in 1..=2 {
        let wide = format!("ip link set vethpod{nth}a mtu 1500 && ip link set cni0 mtu 1500");
        bed.shell(&format!("node{nth}"), &wide);
        bed.shell(&format!("pod{nth}a"), "ip link set eth0 mtu 1500");
    }
    let ping = |length: u32| {
        // IPv4 and ICMP header are 28 bytes.
        let payload = length - 28;
        let ping = format!("ping -c1 -W2 -M do -s {payload} 10.244.2.10 2>&1 || true");
        bed.shell("pod1a", &ping)
    };
    for _ in 0..2 {
        let said = ping(1450);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let said = ping(1451);
    assert!(said.contains("mtu = 1450"), "{said}");
    exchange(&bed, ok(bed.lab.addresses("pod2a")).v4.into(), 4 << 20);
}

#[test]
fn a_node_with_classic_devices_is_a_peer_like_any_other() {
    let mut bed = Bed::furnished(DUAL, &[]);
    bed.agents[1].change_argument(KERNEL);
    bed.launch();
    bed.assert_joined();
    let load = load(&bed);
    // What it sends has a checksum outside, which the kernel looks at.
    let carried = carried_by_device(&bed);
    let load = ok(load.stop());
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
    assert!(carried > 100, "{carried}");
}

#[test]
fn datagrams_in_pieces_arrive() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let question = peer::Question {
        size: Some(4000),
        answer_size: Some(4000),
        count: Some(20),
        ..peer::Question::default()
    };
    for to in ok(bed.lab.addresses("pod2a")).both() {
        let pod = ok(bed.lab.place("pod1a"));
        let answers = ok(peer::ask_with(&pod, Protocol::Udp, (to, 53).into(), &question));
        for answer in answers {
            assert_eq!(answer.name(), Some("pod2a"), "{to}: {answer:?}");
        }
    }
}

#[test]
fn a_node_that_gets_another_hardware_address_is_found_again() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let mac = "02:00:00:00:78:99";
    bed.shell("node2", &format!("ip link set eth0 address {mac}"));
    eventually("the neighbour is asked for again", || {
        let pod = ok(bed.lab.place("pod1a"));
        let to = (ok(bed.lab.addresses("pod2a")).v4, 80);
        ok(peer::ask(&pod, Protocol::Tcp, to.into())).name().map(drop)
    });
    let known = bed.shell("node1", &format!("ip neigh show {PEER}"));
    assert!(known.contains(mac), "{known}");
    assert!(carried_by_device(&bed) < 100);
}

/// A way to the peer by another device than the uplink: the tunnel device finds it.
#[test]
fn another_way_to_a_peer_is_followed() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    assert!(is_by_uplink(&bed));
    let mac = bed.shell("node2", "ip -o link show eth0");
    let mac = mac.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    for line in [
        "ip link add other0 link eth0 type macvlan mode bridge",
        "ip link set other0 up",
        // Not asked for, so that the peer's answers come to where they came before.
        &format!("ip neigh add {PEER} lladdr {} dev other0", mac.expect("an address")),
        &format!("ip route add {PEER}/32 dev other0 src 192.168.78.11"),
    ] {
        bed.shell("node1", line);
    }
    eventually("the peer is not sent to by the uplink", || (!is_by_uplink(&bed)).then_some(()));
    bed.assert_joined();
    assert!(carried_by_device(&bed) > 100);
    bed.shell("node1", &format!("ip route del {PEER}/32 dev other0"));
    eventually("the peer is sent to by the uplink", || is_by_uplink(&bed).then_some(()));
    // A way that is too narrow is for the kernel to divide packets for.
    bed.shell("node1", &format!("ip route add {PEER}/32 dev eth0 mtu 1400"));
    eventually("the way is known to be narrow", || (!is_by_uplink(&bed)).then_some(()));
    bed.assert_joined();
    exchange(&bed, ok(bed.lab.addresses("pod2a")).v4.into(), 1 << 20);
    bed.shell("node1", &format!("ip route del {PEER}/32 dev eth0"));
    eventually("the way is wide again", || is_by_uplink(&bed).then_some(()));
    bed.assert_joined();
}

/// Rules about packets to the node itself end the way past them, and nothing is lost meanwhile.
#[test]
fn the_way_changes_under_traffic_and_nothing_is_lost() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let load = load(&bed);
    let hooks = [
        ("input", "on, nothing on this node filters or translates; tunnels by the device: "),
        ("forward", "off: "),
        ("output", "on, nothing on this node filters or translates; tunnels by the device: "),
    ];
    for (hook, said) in hooks.into_iter().chain(hooks) {
        let rules = format!(
            "add table ip t; add chain ip t c {{ type filter hook {hook} priority 0; }}; \
             add rule ip t c ip saddr 10.99.0.0/16 drop"
        );
        bed.shell("node1", &format!("nft '{rules}'"));
        let expected = format!("{said}nftables chain ip t c has 1 rules");
        eventually(&expected, || (fast_path(&bed) == expected).then_some(()));
        assert!(carried_by_device(&bed) > 100, "{hook}");
        bed.shell("node1", "nft delete table ip t");
        let expected = "on, nothing on this node filters or translates";
        eventually(expected, || (fast_path(&bed) == expected).then_some(()));
        assert!(carried_by_device(&bed) < 100, "{hook}");
    }
    let load = ok(load.stop());
    assert!(load.connections > 3 && load.udp_sent > 20, "{load:?}");
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}\n{}", bed.logs());
}

/// What every kubelet has among the rules for a node itself is about other packets than a tunnel's;
/// beside it, or within the chain that leads there, another rule is one.
#[test]
fn a_kubelets_own_rules_do_not_end_the_way() {
    let free = "on, nothing on this node filters or translates";
    let bed = Bed::up(DUAL, &[]);
    for tool in ["iptables", "ip6tables"] {
        let loopback = if tool == "iptables" { "127.0.0.0/8" } else { "::1/128" };
        bed.shell("node1", &format!("{tool} -N KUBE-FIREWALL"));
        bed.shell(
            "node1",
            &format!("{tool} -A KUBE-FIREWALL ! -s {loopback} -d {loopback} -j DROP"),
        );
        bed.shell("node1", &format!("{tool} -A OUTPUT -j KUBE-FIREWALL"));
        bed.shell("node1", &format!("{tool} -A INPUT -j KUBE-FIREWALL"));
    }
    bed.assert_joined();
    // Another rule first, so that what is said next is said of these rules.
    bed.shell("node1", "iptables -I INPUT -s 10.99.0.0/16 -j DROP");
    let expected =
        format!("{free}; tunnels by the device: nftables chain ip filter INPUT has 2 rules");
    eventually(&expected, || (fast_path(&bed) == expected).then_some(()));
    bed.shell("node1", "iptables -D INPUT -s 10.99.0.0/16 -j DROP");
    eventually(free, || (fast_path(&bed) == free).then_some(()));
    assert!(carried_by_device(&bed) < 100);
    bed.shell("node1", "ip6tables -P OUTPUT DROP");
    let expected =
        format!("{free}; tunnels by the device: nftables chain ip6 filter OUTPUT has 1 rules");
    eventually(&expected, || (fast_path(&bed) == expected).then_some(()));
    bed.shell("node1", "ip6tables -P OUTPUT ACCEPT");
    eventually(free, || (fast_path(&bed) == free).then_some(()));
}

/// The kernel encrypts where it sends packets on; a program would send them as they are.
#[test]
fn what_ipsec_may_encrypt_is_left_to_the_kernel() {
    let bed = Bed::up(DUAL, &["--fast-path=on"]);
    assert_eq!(fast_path(&bed), "on, as told");
    let policy = "src 10.99.0.0/24 dst 10.98.0.0/24 dir out";
    let template = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
    bed.shell("node1", &format!("ip xfrm policy add {policy} {template}"));
    let expected = "on, as told; tunnels by the device: the kernel has policies of IPsec";
    eventually(expected, || (fast_path(&bed) == expected).then_some(()));
    bed.assert_joined();
    assert!(carried_by_device(&bed) > 100);
    bed.shell("node1", &format!("ip xfrm policy del {policy}"));
    eventually("it is plain again", || (fast_path(&bed) == "on, as told").then_some(()));
    assert!(carried_by_device(&bed) < 100);
}

/// A pod that is a router for others: what came out of a tunnel whole is divided there.
#[test]
fn a_pod_passes_bulk_data_on() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "echo $$; exec sleep 600"]);
    command.stdout(std::process::Stdio::piped());
    let mut inner = ok(bed.lab.spawn("pod2a", command));
    let mut line = String::new();
    let out = inner.stdout().expect("its output");
    ok(std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line));
    let enter = format!("nsenter --net=/proc/{}/ns/net", line.trim());
    let to = "10.244.2.77";
    for line in [
        format!("ip link add in0 type veth peer name in1 netns {}", line.trim()),
        "ip link set in0 up".into(),
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.in0.proxy_arp=1 \
         net.ipv4.conf.eth0.proxy_arp=1"
            .into(),
        format!("ip route add {to}/32 dev in0"),
        format!("{enter} ip link set in1 up"),
        format!("{enter} ip addr add {to}/32 dev in1"),
        format!("{enter} ip route add default dev in1"),
    ] {
        bed.shell("pod2a", &line);
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", line.trim()));
    command.arg(peer::command().get_program());
    command.args(["serve", "--name", "inner", "--tcp=80"]);
    let server = ok(bed.lab.spawn("pod2a", command));
    let pod = ok(bed.lab.place("pod1a"));
    let address: IpAddr = to.parse().expect("an address");
    eventually("the pod behind the pod answers", || {
        ok(peer::ask(&pod, Protocol::Tcp, (address, 80).into())).name().map(drop)
    });
    // As it came, and divided by the kernel for a device that takes no large packets.
    for largest in [65_536, 1_500] {
        bed.shell("pod2a", &format!("ip link set dev in0 gso_max_size {largest}"));
        let before = by_device(&bed, "node2");
        exchange(&bed, address, 8 << 20);
        let carried = by_device(&bed, "node2") - before;
        assert!(carried < 100, "{carried} packets by the device");
    }
    drop((server, inner));
}

/// The same for a router whose next hop is a node again: what is marked as out of a tunnel goes
/// into one.
#[test]
fn a_pod_passes_bulk_data_back() {
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    let rules = "add table ip t; \
                 add chain ip t pre { type nat hook prerouting priority dstnat; }; \
                 add chain ip t post { type nat hook postrouting priority srcnat; }; \
                 add rule ip t pre tcp dport 80 dnat to 10.244.1.11; \
                 add rule ip t post masquerade";
    bed.shell("pod2a", &format!("sysctl -qw net.ipv4.ip_forward=1 && nft '{rules}'"));
    let (pod, target) = (ok(bed.lab.place("pod1a")), ok(bed.lab.addresses("pod2a")).v4.into());
    let answer = ok(peer::ask(&pod, Protocol::Tcp, (target, 80).into()));
    assert_eq!(answer.name(), Some("pod1b"), "{answer:?}");
    exchange(&bed, target, 8 << 20);
}

/// A pod that gives the kernel many datagrams at once (`UDP_SEGMENT`).
#[test]
fn datagrams_sent_at_once_arrive_one_by_one() {
    const SIZE: u16 = 1_000;
    const COUNT: usize = 12;
    let bed = Bed::up(DUAL, &[]);
    bed.assert_joined();
    for to in ok(bed.lab.addresses("pod2b")).both() {
        let bind = |pod: &str| {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            ok(ok(bed.lab.enter(pod, || UdpSocket::bind((any, 0)))))
        };
        let (sender, receiver) = (bind("pod1a"), bind("pod2b"));
        ok(receiver.set_read_timeout(Some(Duration::from_secs(2))));
        ok(setsockopt(&sender, sockopt::UdpGsoSegment, &SIZE.into()));
        let port = ok(receiver.local_addr()).port();
        let data: Vec<u8> =
            (0..usize::from(SIZE) * COUNT).map(|at| (at / 1_000 * 16 + at % 13) as u8).collect();
        for _ in 0..20 {
            assert_eq!(ok(sender.send_to(&data, (to, port))), data.len());
            for part in data.chunks(SIZE.into()) {
                let mut buffer = [0; 2 * SIZE as usize];
                let (length, _) = ok(receiver.recv_from(&mut buffer));
                assert!(buffer[..length] == *part, "{to}: {length} bytes");
            }
        }
    }
}
