//! Packets that are not the plain kind: fragments, large segments, without checksum, marked,
//! too large for a link behind the Service, or with nobody to receive them.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use lab::{
    agent::SocketLb,
    peer::{self, Exchange, Greeting, Protocol, Question},
};

use crate::{
    cluster::{Cluster, eventually, ok},
    mark, raw,
    service::{FAMILIES, Family, Target, expose, expose_at},
};

both! {
    udp_fragments_follow_their_first,
    path_mtu_discovery_works_through_a_service,
    port_unreachable_comes_back_translated,
    bulk_tcp_both_directions_is_intact,
    udp_checksum_zero_is_carried,
    skb_mark_is_left_alone,
    a_segment_that_fits_no_window_resets_nothing,
}

fn udp_fragments_follow_their_first(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    let question = Question {
        size: Some(8_000),
        answer_size: Some(8_000),
        count: Some(20),
        ..Question::default()
    };
    let ways = [
        ("pod1a", Target::ClusterIp(10)),
        ("pod1a", Target::ClusterIp(11)),
        ("node1", Target::ClusterIp(10)),
        ("client", Target::NodePort("node1", 10)),
        ("client", Target::NodePort("node1", 11)),
    ];
    for (from, target) in ways {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            for answer in cluster.ask_with(from, Protocol::Udp, to, &question) {
                let what = format!("{from} asks {to}: {answer:?}");
                assert_eq!(
                    answer.answer.as_ref().map(|answer| answer.bytes),
                    Some(8_000),
                    "{what}"
                );
                assert_eq!(answer.from, Some(to), "{what}");
            }
        }
    }
}

fn path_mtu_discovery_works_through_a_service(mode: SocketLb) {
    const MTU: &str = "1380";
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    // The narrow place is the last link: the error comes from the node behind the Service.
    ok(cluster.lab.shell("node2", &format!("ip link set cni0 mtu {MTU}")));
    for (from, target) in
        [("client", Target::NodePort("node1", 10)), ("pod1a", Target::ClusterIp(10))]
    {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            let bytes = 2 << 20;
            let outcome = ok(peer::exchange(&cluster.place(from), to, bytes));
            assert_eq!(outcome, Exchange::whole(bytes), "{from} to {to}");
            if from == "pod1a" && mode == SocketLb::On {
                continue;
            }
            // The error names the address that the sender knows, so it learns of that one.
            let route = ok(cluster.lab.shell(from, &format!("ip route get {}", to.ip())));
            assert!(route.contains(&format!("mtu {MTU}")), "{from} to {to}: {route}");
        }
    }
}

fn port_unreachable_comes_back_translated(mode: SocketLb) {
    // Nobody listens on this port of the pods.
    let services = [expose_at(10, 9, &["pod2a"]), expose_at(11, 9, &["pod1b"])];
    let cluster = Cluster::up(mode, &services);
    for from in ["pod1a", "node1"] {
        for number in [10, 11] {
            cluster.is_refused(from, Target::ClusterIp(number));
        }
    }
    cluster.is_refused("client", Target::NodePort("node1", 10));
    cluster.is_refused("client", Target::NodePort("node1", 11));
}

fn bulk_tcp_both_directions_is_intact(mode: SocketLb) {
    const BYTES: u32 = 24 << 20;
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    for (from, target) in [
        ("pod1a", Target::ClusterIp(10)),
        ("pod1a", Target::ClusterIp(11)),
        ("client", Target::NodePort("node1", 10)),
        ("client", Target::NodePort("node1", 11)),
    ] {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            let outcome = ok(peer::exchange(&cluster.place(from), to, BYTES.into()));
            assert_eq!(outcome, Exchange::whole(BYTES.into()), "{from} to {to}");
        }
    }
    // Segments of full size went through the programs, not one packet for each.
    let bytes = cluster.metric("millrace_service_bytes_total", &[("path", "packet")]);
    let packets = cluster.metric("millrace_service_packets_total", &[("path", "packet")]);
    assert!(bytes > 4.0 * f64::from(BYTES), "{bytes} bytes in {packets} packets");
}

/// Sockets made here belong to no pod's cgroup, so all goes the packet path.
fn udp_checksum_zero_is_carried(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    for (from, target) in [
        ("pod1a", Target::ClusterIp(10)),
        ("pod1a", Target::ClusterIp(11)),
        ("client", Target::NodePort("node1", 10)),
        ("client", Target::NodePort("node1", 11)),
    ] {
        let to = target.address(&cluster.lab, Family::V4);
        let greeting = ok(cluster.place(from).enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            mark::without_checksum(&socket).expect("SO_NO_CHECK");
            ask_by(&socket, to)
        }));
        assert_eq!(greeting.bytes, 3, "{from} to {to}");
    }
}

fn ask_by(socket: &UdpSocket, to: std::net::SocketAddr) -> Greeting {
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
    socket.connect(to).expect("connected");
    socket.send(b"who").expect("sent");
    let mut buffer = [0; 2048];
    let bytes = socket.recv(&mut buffer).unwrap_or_else(|err| panic!("{to}: {err}"));
    serde_json::from_slice(&buffer[..bytes]).expect("a greeting")
}

/// A process of the node that marks its packets serves a Service: its answers are rewritten as
/// they leave, and must still carry the mark; what comes in must carry none.
fn skb_mark_is_left_alone(mode: SocketLb) {
    const MARK: u32 = 0x0000_4d52;
    let cluster = Cluster::up(mode, &[expose(10, &["node1"])]);
    let to = Target::NodePort("node1", 10).address(&cluster.lab, Family::V4);
    let node = cluster.place("node1");
    let server = ok(node.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:8080").expect("a socket");
        mark::set(&socket, MARK).expect("SO_MARK");
        mark::report(&socket).expect("SO_RCVMARK");
        socket
    }));
    let tap = ok(node.enter(|| mark::Tap::open("eth0").expect("a packet socket")));
    let client = ok(cluster.place("client").enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(to).expect("connected");
        socket
    }));
    client.send(b"who").expect("sent");
    let (asker, found) = mark::receive(&server).expect("a request");
    assert_eq!(found, 0, "a request was marked on its way in");
    server.send_to(b"answer", asker).expect("answered");
    let mut buffer = [0; 64];
    client.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
    assert_eq!(client.recv(&mut buffer).expect("an answer"), 6);
    let seen = eventually("the answer is seen on the wire", || tap.mark_of_udp_from(to.port()));
    assert_eq!(seen, MARK, "the mark of an answer that was rewritten");
}

/// A late or broken segment of a pod must reach the client under the Service's address, or it would
/// answer a stranger with RST, which the pod takes for the client's (kubernetes/kubernetes#74839).
/// Sockets made here belong to no pod's cgroup, so all goes the packet path.
fn a_segment_that_fits_no_window_resets_nothing(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"]), expose(11, &["pod1b"])]);
    let resets = |place: &str| {
        let text = ok(cluster.lab.shell(place, "nstat -asz TcpOutRsts TcpEstabResets"));
        text.lines()
            .skip(1)
            .map(|line| line.split_once(".0").map_or(line, |(sum, _)| sum).to_owned())
            .collect::<Vec<_>>()
    };
    for (from, target, pod) in [
        ("pod1a", Target::ClusterIp(10), "pod2a"),
        ("pod1a", Target::ClusterIp(11), "pod1b"),
        ("client", Target::NodePort("node1", 10), "pod2a"),
        ("client", Target::NodePort("node1", 11), "pod1b"),
    ] {
        for family in FAMILIES {
            let to = target.address(&cluster.lab, family);
            let before = [resets(from), resets(pod)];
            let mut stream = ok(ok(cluster.lab.enter(from, || TcpStream::connect(to))));
            ok(stream.set_read_timeout(Some(Duration::from_secs(5))));
            let mut reader = BufReader::new(ok(stream.try_clone()));
            let mut line = String::new();
            ok(reader.read_line(&mut line));
            let greeting: Greeting = ok(serde_json::from_str(&line));
            assert_eq!(greeting.name, pod);
            for number in [1, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
                let send = || raw::stray_segment(greeting.local, greeting.source, number);
                ok(ok(cluster.lab.enter(pod, send)));
                let local = ok(stream.local_addr());
                ok(ok(cluster.lab.enter(from, || raw::stray_segment(local, to, number))));
                ok(writeln!(stream, "{number}"));
                line.clear();
                ok(reader.read_line(&mut line));
                assert_eq!(line.trim(), number.to_string(), "{from} to {to}");
            }
            assert_eq!([resets(from), resets(pod)], before, "{from} to {to}");
        }
    }
}
