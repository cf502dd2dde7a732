//! Direct server return: a client asks one node, the backend's node answers it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use agent_kit::counts::Counts;
use datapath::wire::Leg;
use lab::{
    agent::Agent,
    manifests::{self, Port, Service},
    peer::{self, Exchange, Protocol},
};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, DUAL, eventually, ok},
    proxy::{proxies, publish},
    wired::Wired,
};

const BYTES: u64 = 8 << 20;
/// An external address, for which the client asks one node or the other.
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// Packets that a node's tunnel device received and sent.
fn by_device(bed: &Bed, node: &str) -> [u64; 2] {
    let listed = bed.shell(node, "ip -s -j link show flannel.1");
    let listed: Value = ok(serde_json::from_str(&listed));
    ["rx", "tx"].map(|way| listed[0]["stats64"][way]["packets"].as_u64().expect("a number"))
}

fn carried(bed: &Bed, node: &str, leg: Leg) -> u64 {
    let maps = bed.lab.bpffs(node).join("proxy/maps");
    ok(Counts::open(&maps, "CARRIED")).sum(leg as u32)
}

/// Who answers the client at a place, and whom it sees.
fn asked(bed: &Bed, protocol: Protocol, to: SocketAddr) -> (String, IpAddr) {
    let answer = ok(peer::ask(&ok(bed.lab.place("client")), protocol, to));
    let what = || format!("{protocol:?} {to}: {answer:?}\n{}", bed.logs());
    let name = answer.name().unwrap_or_else(|| panic!("{}", what())).to_owned();
    (name, answer.source().unwrap_or_else(|| panic!("{}", what())).ip())
}

/// Waits until the first node knows that the second answers clients, or does not.
fn wait_known(bed: &Bed, answers: bool) {
    eventually(&format!("node1 knows of node2\n{}", bed.logs()), || {
        let peers = bed.show(0, "peers");
        let mut peers = peers.as_array().into_iter().flatten();
        peers.all(|peer| peer["answers"] == answers).then_some(())
    });
}

fn assert_seen_by_the_backend(bed: &Bed) {
    let client = ok(bed.lab.addresses("client")).both();
    for (own, node) in client.into_iter().zip(ok(bed.lab.addresses("node1")).both()) {
        for (protocol, port) in [(Protocol::Tcp, 30_080), (Protocol::Udp, 30_081)] {
            let seen = asked(bed, protocol, SocketAddr::new(node, port));
            assert_eq!(seen, ("pod2a".into(), own), "{}", bed.logs());
        }
    }
}

/// A large transfer through the first node, and what its tunnel device received and sent of it.
fn exchanged(bed: &Bed, node: IpAddr) -> [u64; 2] {
    let before = by_device(bed, "node1");
    let to = SocketAddr::new(node, 30_080);
    let outcome = ok(peer::exchange(&ok(bed.lab.place("client")), to, BYTES));
    assert_eq!(outcome, Exchange::whole(BYTES), "{to}\n{}", bed.logs());
    let after = by_device(bed, "node1");
    [after[0] - before[0], after[1] - before[1]]
}

/// No packet may come in by a device that is not the way back to its source.
fn filter_strictly(bed: &Bed) {
    for node in ["node1", "node2"] {
        bed.shell(node, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done");
    }
}

fn answers_pass_the_first_node_by(arguments: &[&str]) {
    let bed = Bed::up(DUAL, arguments);
    publish(&bed);
    let _proxies = proxies(&bed, &["--dsr"]);
    wait_known(&bed, true);
    filter_strictly(&bed);
    assert_seen_by_the_backend(&bed);
    for node in ok(bed.lab.addresses("node1")).both() {
        let [received, sent] = exchanged(&bed, node);
        assert!(received < 40 && sent > BYTES / 66_000, "{node}: {received} received, {sent} sent");
    }
}

#[test]
fn answers_pass_the_node_by_that_was_asked() {
    answers_pass_the_first_node_by(&[]);
}

/// The overlay's masquerade would give the client another source.
#[test]
fn answers_pass_the_node_by_that_was_asked_beside_the_overlays_masquerade() {
    answers_pass_the_first_node_by(&["--ip-masq"]);
}

/// In both nodes' drivers: neither tunnel device sees more than what begins and ends.
#[test]
fn drivers_carry_what_goes_to_a_node_that_answers() {
    let bed = Bed::up(DUAL, &[]);
    publish(&bed);
    let _proxies = proxies(&bed, &["--dsr", "--xdp", "native"]);
    let _wired = ok(Wired::up(&bed.lab));
    wait_known(&bed, true);
    filter_strictly(&bed);
    assert_seen_by_the_backend(&bed);
    for node in ok(bed.lab.addresses("node1")).both() {
        let legs = || (carried(&bed, "node1", Leg::Direct), carried(&bed, "node2", Leg::Arrived));
        let (before, there) = (legs(), by_device(&bed, "node2"));
        let [received, sent] = exchanged(&bed, node);
        let after = (legs(), by_device(&bed, "node2"));
        assert!(received + sent < 40, "{node}: {received} received, {sent} sent");
        assert!(after.1[0] - there[0] < 40, "{node}: {there:?}, {:?}", after.1);
        let legs = [after.0.0 - before.0, after.0.1 - before.1];
        assert!(legs.iter().all(|&leg| leg > BYTES / 1_500), "{node}: {legs:?}");
    }
}

/// The proxies came first, and say what they lack.
#[test]
fn an_overlay_that_comes_later_is_found() {
    let mut bed = Bed::furnished(DUAL, &[]);
    publish(&bed);
    let proxies = proxies(&bed, &["--dsr"]);
    let status = || {
        let output = ok(proxies[0].ask(&["status", "-o", "json"]));
        let status: Value = ok(serde_json::from_slice(&output.stdout));
        let problems = status["problems"].as_array().into_iter().flatten();
        let mut told = problems.filter_map(|problem| problem["message"].as_str());
        told.any(|message| message.contains("no tables of flannel-agent"))
    };
    eventually("the proxy misses the overlay", || status().then_some(()));
    bed.launch();
    wait_known(&bed, true);
    eventually("the proxy has found the overlay", || (!status()).then_some(()));
    assert_seen_by_the_backend(&bed);
}

/// One of both nodes does not say so: replies come back as ever.
#[test]
fn a_node_that_does_not_answer_is_asked_as_ever() {
    let bed = Bed::up(DUAL, &[]);
    publish(&bed);
    for options in [[["--dsr"].as_slice(), &[]], [[].as_slice(), &["--dsr"]]] {
        let _proxies = proxies_of(&bed, options);
        wait_known(&bed, !options[1].is_empty());
        let to = SocketAddr::new(ok(bed.lab.addresses("node1")).v4.into(), 30_080);
        let (name, source) = asked(&bed, Protocol::Tcp, to);
        let client = IpAddr::from(ok(bed.lab.addresses("client")).v4);
        assert!(name == "pod2a" && source != client, "{source}");
        assert_eq!(exchanged(&bed, to.ip()).map(|packets| packets > 40), [true; 2]);
    }
}

/// The proxies of both nodes, with options of their own.
fn proxies_of(bed: &Bed, options: [&[&str]; 2]) -> Vec<Agent> {
    use lab::agent::{AgentOptions, SocketLb};
    let start = |(node, extra): (&str, &[&str])| {
        let extra = extra.iter().map(ToString::to_string).collect();
        let options = AgentOptions { socket_lb: SocketLb::Host, extra, ..AgentOptions::default() };
        ok(Agent::start(&bed.lab, node, options))
    };
    ["node1", "node2"].into_iter().zip(options).map(start).collect()
}

/// What the client asked first is out of its way: the other node knows the connection.
#[test]
fn connections_outlive_the_way_by_the_node_that_was_asked() {
    let bed = Bed::up(DUAL, &[]);
    let ports = [Port::tcp("tcp", 80, 80), Port::udp("udp", 53, 53)];
    let mut service = Service::new("far").cluster_ip([10, 96, 0, 20].into());
    service = service.set("/spec/externalIPs", json!([BALANCER.to_string()]));
    for port in ports {
        service = service.port(port);
    }
    let mut documents = vec![service.build()];
    documents.extend(ok(manifests::slices(&bed.lab, "far", &ports, &["pod2a"])));
    ok(bed.lab.publish("nodes.yaml", &manifests::nodes(&bed.lab)));
    ok(bed.lab.publish("far.yaml", &documents));
    let _proxies = proxies(&bed, &["--dsr"]);
    wait_known(&bed, true);
    let by = |node: &str| {
        let via = ok(bed.lab.addresses(node)).v4;
        bed.shell("client", &format!("ip route replace {BALANCER} via {via}"));
    };
    by("node1");
    let client = ok(bed.lab.place("client"));
    let to = SocketAddr::new(BALANCER.into(), 80);
    let exchange = || {
        let outcome = ok(peer::exchange(&client, to, 16 * BYTES));
        assert_eq!(outcome, Exchange::whole(16 * BYTES), "{}", bed.logs());
    };
    let udp = format!("--udp={BALANCER}:53");
    let load = ok(peer::load(&client, &[&udp, "--rate=50", "--datagrams=200"]));
    std::thread::scope(|scope| {
        let exchange = scope.spawn(exchange);
        for node in ["node2", "node1"].into_iter().cycle().take(20) {
            by(node);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        exchange.join().expect("all of it");
    });
    let load = ok(load.stop());
    assert_eq!((load.udp_missing, load.udp_moved), (0, 0), "{load:?}");
}
