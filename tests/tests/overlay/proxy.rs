//! Beside proxy-agent on the same nodes: Services of the packet path through the tunnel, with the
//! fast path on, whichever agent comes first, upgrades or leaves.

use std::{net::IpAddr, thread::sleep, time::Duration};

use agent_kit::table::{MapTable, Table};
use datapath::tunnel::{Tunnel, fast_path};
use lab::{
    agent::{Agent, AgentOptions, SocketLb},
    manifests::{self, Port, Service},
    peer,
};

use crate::bed::{Bed, DUAL, eventually, ok};

const VIP: [u8; 4] = [10, 96, 0, 20];
const VIP6: [u16; 8] = [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x20];

pub(crate) fn publish(bed: &Bed) {
    let ports = [Port::tcp("tcp", 80, 80), Port::udp("udp", 53, 53)];
    let mut service = Service::new("far").cluster_ip(VIP.into()).cluster_ip(VIP6.into());
    for (port, number) in ports.into_iter().zip(30080..) {
        service = service.port(port).node_port(number);
    }
    let mut documents = vec![service.build()];
    documents.extend(ok(manifests::slices(&bed.lab, "far", &ports, &["pod2a"])));
    ok(bed.lab.publish("nodes.yaml", &manifests::nodes(&bed.lab)));
    ok(bed.lab.publish("far.yaml", &documents));
}

/// The proxies of both nodes; pods reach Services by the packet path.
pub(crate) fn proxies(bed: &Bed, extra: &[&str]) -> Vec<Agent> {
    let start = |node: &str| {
        let extra = extra.iter().map(ToString::to_string).collect();
        let options = AgentOptions { socket_lb: SocketLb::Host, extra, ..AgentOptions::default() };
        ok(Agent::start(&bed.lab, node, options))
    };
    ["node1", "node2"].map(start).into()
}

/// Connections through the Service, from a pod and from outside, while `meanwhile` happens.
fn assert_served(bed: &Bed, meanwhile: impl FnOnce()) {
    let node = ok(bed.lab.addresses("node1")).v4;
    let loads = [
        (
            "pod1a",
            format!("--tcp={}:80", IpAddr::from(VIP)),
            format!("--udp={}:53", IpAddr::from(VIP)),
        ),
        ("client", format!("--tcp={node}:30080"), format!("--udp={node}:30081")),
    ];
    let loads = loads.map(|(from, tcp, udp)| {
        ok(peer::load(&ok(bed.lab.place(from)), &[&tcp, &udp, "--rate=50", "--lasting=2"]))
    });
    sleep(Duration::from_millis(500));
    meanwhile();
    sleep(Duration::from_millis(1_500));
    for load in loads {
        let load = ok(load.stop());
        assert!(load.connections > 10 && load.udp_sent > 10, "{load:?}");
        let lost = (load.failed, load.resets, load.udp_missing);
        assert_eq!(lost, (0, 0, 0), "{load:?}\n{}", bed.logs());
    }
}

/// Waits until the programs of both nodes put packets straight into pods: they do only beside a
/// proxy whose table of marks they read.
fn wait_straight(bed: &Bed) {
    for node in ["node1", "node2"] {
        let maps = bed.lab.bpffs(node).join("overlay/maps");
        eventually(&format!("{node} knows its proxy\n{}", bed.logs()), || {
            let table: MapTable<u32, Tunnel> = ok(MapTable::open(&maps, "TUNNELS"));
            let row = ok(table.get(&0)).expect("an array has its row");
            (row.fast_path == fast_path::STRAIGHT).then_some(())
        });
    }
}

#[test]
fn the_overlay_first_and_then_the_proxy() {
    let mut bed = Bed::up(DUAL, &["--ip-masq"]);
    publish(&bed);
    let mut proxies = proxies(&bed, &[]);
    wait_straight(&bed);
    assert_served(&bed, || {});
    assert_served(&bed, || {
        ok(proxies[0].restart());
        ok(proxies[1].restart());
    });
    wait_straight(&bed);
    let mut agents = std::mem::take(&mut bed.agents);
    assert_served(&bed, || agents.iter_mut().for_each(|agent| ok(agent.restart())));
    bed.agents = agents;
    wait_straight(&bed);
    // The proxy leaves; the overlay goes on.
    for proxy in &mut proxies {
        ok(proxy.kill());
        let output = ok(proxy.ask(&["cleanup"]));
        assert!(output.status.success(), "{output:?}");
    }
    bed.assert_joined();
}

#[test]
fn the_proxy_first_and_then_the_overlay() {
    let mut bed = Bed::furnished(DUAL, &["--ip-masq"]);
    publish(&bed);
    let _proxies = proxies(&bed, &[]);
    bed.launch();
    wait_straight(&bed);
    bed.assert_joined();
    assert_served(&bed, || {});
}
