//! NodePorts whose backends are behind a tunnel, carried by the driver of the node that is asked: both
//! legs, past its tunnel device.

use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use agent_kit::counts::Counts;
use datapath::{flow::TICK_NS, wire::Leg};
use lab::peer::{self, Exchange};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{
    bed::{Bed, DUAL, eventually, ok, source_ports},
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
    // For so long another processor may know no way.
    sleep(2 * Duration::from_nanos(TICK_NS));
    assert_past_the_device(&bed, node.into());
}

/// Sends a datagram of zeros; what the client is told of it within a second, if not an answer.
fn told(socket: &Socket, bytes: usize, hops: u32) -> Option<i32> {
    let is_v6 = ok(socket.domain()) == Domain::IPV6;
    let set = if is_v6 { Socket::set_unicast_hops_v6 } else { Socket::set_ttl_v4 };
    ok(set(socket, hops));
    ok(socket.send(&vec![0; bytes]));
    loop {
        match (&*socket).read(&mut [0; 2_000]) {
            Ok(_) => {}
            Err(err) if err.kind() == ErrorKind::WouldBlock => return None,
            Err(err) => return err.raw_os_error(),
        }
    }
}

/// What has no hop left, or is longer than the tunnel takes, is the kernel's to answer: as any router would.
#[test]
fn what_the_driver_cannot_send_is_answered() {
    let bed = Bed::up(DUAL, &[]);
    publish(&bed);
    let _proxies = proxies(&bed, &["--xdp", "native"]);
    let _wired = ok(Wired::up(&bed.lab));
    for node in ok(bed.lab.addresses("node1")).both() {
        let to = SocketAddr::new(node, 30_081);
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
            if node.is_ipv6() {
                setsockopt(&socket, Ipv6RecvErr, &true)?;
            } else {
                setsockopt(&socket, Ipv4RecvErr, &true)?;
            }
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.connect(&to.into())?;
            Ok(socket)
        };
        let socket = ok(ok(bed.lab.enter("client", open)));
        // The first one begins the flow, on the packet path.
        assert_eq!(told(&socket, 9, 64), None, "{to}");
        let headers = if node.is_ipv6() { 48 } else { 28 };
        let (late, long) = (Some(libc::EHOSTUNREACH), Some(libc::EMSGSIZE));
        let cases = [
            ("as any other", 9, 64, 1, None),
            ("its last hop", 9, 1, 0, late),
            ("the other node's to answer, which the client does not know", 9, 2, 1, late),
            ("as far as needed", 9, 3, 1, None),
            ("all that fits", 1_430 - headers, 64, 1, None),
            ("one byte more", 1_431 - headers, 64, 0, long),
            ("as any other, afterwards", 9, 64, 1, None),
        ];
        for (what, bytes, hops, is_carried, expected) in cases {
            let before = carried(&bed, Leg::Tunnel);
            assert_eq!(told(&socket, bytes, hops), expected, "{what}: {to}");
            assert_eq!(carried(&bed, Leg::Tunnel) - before, is_carried, "{what}: {to}");
        }
    }
}

/// Both where the driver encapsulates and where the programs of the pod's own node do.
#[test]
fn tunnels_come_from_the_ports_that_are_asked_for() {
    let bed = Bed::up(DUAL, &["--vxlan-source-ports=5000-5003"]);
    publish(&bed);
    let _proxies = proxies(&bed, &["--xdp", "native"]);
    let _wired = ok(Wired::up(&bed.lab));
    let before = carried(&bed, Leg::Tunnel);
    let ports = source_ports(&bed, 64, || {
        for node in ok(bed.lab.addresses("node1")).both() {
            for _ in 0..8 {
                let to = SocketAddr::new(node, 30_080);
                let outcome = ok(peer::exchange(&ok(bed.lab.place("client")), to, 1));
                assert_eq!(outcome, Exchange::whole(1), "{to}");
            }
        }
    });
    assert!(carried(&bed, Leg::Tunnel) - before > 16);
    assert!(
        ports.len() > 1 && ports.iter().all(|port| (5_000..=5_003).contains(port)),
        "{ports:?}"
    );
}
