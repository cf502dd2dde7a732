//! NodePorts whose backends are behind a tunnel, carried by the driver of the node that is asked: both
//! legs, past its tunnel device.

use std::net::{IpAddr, SocketAddr};

use agent_kit::counts::Counts;
use datapath::wire::Leg;
use lab::peer::{self, Exchange};
use serde_json::Value;

use crate::{
    bed::{Bed, DUAL, eventually, ok},
    proxy::{proxies, publish},
    wired::Wired,
};

const BYTES: u64 = 8 << 20;

/// Packets that the first node's tunnel device received and sent.
fn by_device(bed: &Bed) -> u64 {
    let listed = bed.shell("node1", "ip -s -j link show flannel.1");
    let listed: Value = ok(serde_json::from_str(&listed));
    let of = |way: &str| listed[0]["stats64"][way]["packets"].as_u64().expect("a number");
    of("rx") + of("tx")
}

fn carried(bed: &Bed, leg: Leg) -> u64 {
    let maps = bed.lab.bpffs("node1").join("proxy/maps");
    ok(Counts::open(&maps, "CARRIED")).sum(leg as u32)
}

/// A large transfer through the NodePort; what the first node's device and its driver saw of it.
fn assert_past_the_device(bed: &Bed, node: IpAddr) {
    let before = (by_device(bed), carried(bed, Leg::Tunnel), carried(bed, Leg::TunnelBack));
    let to = SocketAddr::new(node, 30_080);
    let outcome = ok(peer::exchange(&ok(bed.lab.place("client")), to, BYTES));
    assert_eq!(outcome, Exchange::whole(BYTES), "{to}\n{}", bed.logs());
    let device = by_device(bed) - before.0;
    let legs = [carried(bed, Leg::Tunnel) - before.1, carried(bed, Leg::TunnelBack) - before.2];
    // Handshake, and what ends it.
    assert!(device < 40, "{to}: the device saw {device} packets, the driver {legs:?}");
    assert!(legs.iter().all(|&leg| leg > BYTES / 1_500), "{to}: {legs:?}");
}

#[test]
fn both_legs_pass_the_tunnel_device_by() {
    both_legs_pass_the_device_by(&[]);
}

/// The overlay's masquerade, which would give the same flows a source, leaves them to the proxy.
#[test]
fn both_legs_pass_the_tunnel_device_by_beside_the_overlays_masquerade() {
    both_legs_pass_the_device_by(&["--ip-masq"]);
}

fn both_legs_pass_the_device_by(arguments: &[&str]) {
    let bed = Bed::up(DUAL, arguments);
    publish(&bed);
    let proxies = proxies(&bed, &["--xdp", "native"]);
    let _wired = ok(Wired::up(&bed.lab));
    for node in ok(bed.lab.addresses("node1")).both() {
        assert_past_the_device(&bed, node);
    }
    drop(proxies);
}

/// The proxy came first, and found no tables of nodes.
#[test]
fn an_overlay_that_comes_later_is_found() {
    let mut bed = Bed::furnished(DUAL, &[]);
    publish(&bed);
    let _proxies = proxies(&bed, &["--xdp", "native"]);
    let _wired = ok(Wired::up(&bed.lab));
    bed.launch();
    let node = ok(bed.lab.addresses("node1")).v4;
    eventually("the tunnel is used", || {
        let to = SocketAddr::new(node.into(), 30_080);
        let outcome = ok(peer::exchange(&ok(bed.lab.place("client")), to, 1 << 16));
        (outcome == Exchange::whole(1 << 16) && carried(&bed, Leg::Tunnel) > 0).then_some(())
    });
    assert_past_the_device(&bed, node.into());
}
