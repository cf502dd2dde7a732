//! `--ip-masq`: what of pods' traffic leaves under the node's address, and what keeps its own.

use std::net::{IpAddr, SocketAddr};

use lab::{
    address,
    peer::{self, Protocol},
};

use crate::bed::{Bed, DUAL, KERNEL, ok};

const PORTS: std::ops::RangeInclusive<u16> = 60_000..=65_535;

/// Asks a server over TCP and UDP; how it saw who asked.
#[track_caller]
fn seen(bed: &Bed, from: &str, to: IpAddr) -> Vec<SocketAddr> {
    let place = ok(bed.lab.place(from));
    [(Protocol::Tcp, 80), (Protocol::Udp, 53)]
        .map(|(protocol, port)| {
            let target = SocketAddr::new(to, port);
            let answer = ok(peer::ask(&place, protocol, target));
            answer.source().unwrap_or_else(|| panic!("{from} {protocol:?} {target}: {answer:?}"))
        })
        .to_vec()
}

#[track_caller]
fn assert_seen_as(bed: &Bed, from: &str, to: [IpAddr; 2], expected: [IpAddr; 2]) {
    for (to, expected) in to.into_iter().zip(expected) {
        for source in seen(bed, from, to) {
            assert_eq!(source.ip(), expected, "{from} to {to}");
            assert!(PORTS.contains(&source.port()), "{from} to {to}: {source}");
        }
        let ping = if to.is_ipv4() { "ping -4" } else { "ping -6" };
        bed.shell(from, &format!("{ping} -c2 -i0.2 -W2 {to}"));
        // Pods' links are narrower than the others: over IPv6 whoever answers must be told so, by
        // an error about a translated packet, before the first fragment gets through.
        bed.shell(from, &format!("{ping} -c3 -i0.3 -W2 -s 3000 -M dont {to}"));
    }
}

#[test]
fn pods_reach_the_outside_by_their_nodes_address() {
    reach_the_outside(&["--ip-masq"]);
}

#[test]
fn pods_of_the_kernels_tunnels_reach_the_outside_by_their_nodes_address() {
    reach_the_outside(&["--ip-masq", KERNEL]);
}

fn reach_the_outside(flags: &[&str]) {
    let bed = Bed::up(DUAL, flags);
    let places = ["client", "node2"].map(|name| ok(bed.lab.place(name)));
    let _servers = places.map(|place| ok(peer::serve(&place, &["--tcp=80", "--udp=53"])));
    let node = [address::node4(1).into(), address::node6(1).into()];
    let outside = [address::CLIENT4.into(), address::CLIENT6.into()];
    assert_seen_as(&bed, "pod1a", outside, node);
    // Other nodes' own addresses are outside, too.
    assert_seen_as(&bed, "pod1b", [address::node4(2).into(), address::node6(2).into()], node);
    // Among pods nothing changes.
    bed.assert_joined();
    let env = ok(std::fs::read_to_string(bed.lab.subnet_file("node1")));
    assert!(env.contains("FLANNEL_IPMASQ=true"), "{env}");
    // A port that nobody serves is refused, by an error about the translated packet.
    let pod = ok(bed.lab.place("pod1a"));
    for to in outside {
        let answer = ok(peer::ask(&pod, Protocol::Udp, SocketAddr::new(to, 9)));
        assert!(answer.is_refused(), "{answer:?}");
    }
}

#[test]
fn others_reach_pods_elsewhere_by_the_tunnels_address() {
    reach_pods_elsewhere(&["--ip-masq"]);
}

#[test]
fn others_reach_pods_elsewhere_by_the_address_of_the_kernels_tunnel() {
    reach_pods_elsewhere(&["--ip-masq", KERNEL]);
}

fn reach_pods_elsewhere(flags: &[&str]) {
    let bed = Bed::up(DUAL, flags);
    let (via4, via6) = (address::node4(1), address::node6(1));
    bed.shell(
        "client",
        &format!(
            "ip route add 10.244.0.0/16 via {via4} && ip route add fd00:10:244::/48 via {via6}"
        ),
    );
    let tunnel: [IpAddr; 2] =
        ["10.244.1.0", "fd00:10:244:1::"].map(|address| address.parse().expect("an address"));
    assert_seen_as(&bed, "client", ok(bed.lab.addresses("pod2a")).both(), tunnel);
    // A pod of the node that is asked first sees who asks, and its answers keep their source.
    let client: [IpAddr; 2] = [address::CLIENT4.into(), address::CLIENT6.into()];
    for (to, expected) in ok(bed.lab.addresses("pod1a")).both().into_iter().zip(client) {
        for source in seen(&bed, "client", to) {
            assert_eq!(source.ip(), expected);
        }
        bed.shell("client", &format!("ping -c2 -i0.2 -W2 {to}"));
    }
}

#[test]
fn ports_are_kept_free_and_given_back() {
    let reserved = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";
    let mut bed = Bed::up(DUAL, &["--ip-masq", "--nat-ports=61000-61999"]);
    assert_eq!(bed.shell("node1", reserved).trim(), "61000-61999");
    ok(bed.agents[0].kill());
    let bpffs = format!("--bpffs={}", bed.lab.bpffs("node1").display());
    let file = format!("--subnet-file={}", bed.lab.subnet_file("node1").display());
    let output = ok(bed.agents[0].ask(&["cleanup", &bpffs, &file, "--nat-ports=61000-61999"]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("gave back ports 61000-61999"), "{said}");
    assert_eq!(bed.shell("node1", reserved).trim(), "");
}
