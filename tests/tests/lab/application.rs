//! What an application sees: the Service as its peer, whichever way its packets go.

use lab::{
    agent::SocketLb,
    peer::{Protocol, Question},
};

use crate::{
    cluster::Cluster,
    service::{FAMILIES, Family, Target, expose},
};

both! { application_sees_the_service_as_peer, unconnected_udp_keeps_its_backend }

fn application_sees_the_service_as_peer(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    for from in ["pod1a", "node1"] {
        for target in [Target::ClusterIp(10), Target::NodePort("node1", 10)] {
            for family in FAMILIES {
                sees_the_service(&cluster, from, target, family);
            }
        }
    }
}

fn sees_the_service(cluster: &Cluster, from: &str, target: Target, family: Family) {
    let to = target.address(&cluster.lab, family);
    for mapped in [false, true] {
        if mapped && family == Family::V6 {
            continue;
        }
        for (protocol, unconnected) in
            [(Protocol::Tcp, false), (Protocol::Udp, false), (Protocol::Udp, true)]
        {
            let question = Question { mapped, unconnected, ..Question::default() };
            let answer = cluster.ask_with(from, protocol, to, &question).remove(0);
            let what = format!("{from}, {question:?}: {answer:?}");
            assert_eq!(answer.name(), Some("pod2a"), "{what}");
            let seen = if protocol == Protocol::Udp { answer.from } else { answer.peer };
            // A v6 socket writes a v4 peer as ::ffff:a.b.c.d.
            let plain = seen.map(|seen| (seen.ip().to_canonical(), seen.port()));
            assert_eq!(plain, Some((to.ip(), to.port())), "{what}");
            assert_eq!(seen.map(|seen| seen.is_ipv6()), Some(mapped || to.is_ipv6()), "{what}");
            if !unconnected {
                let peer = answer.peer.map(|peer| (peer.ip().to_canonical(), peer.port()));
                assert_eq!(peer, Some((to.ip(), to.port())), "{what}");
            }
        }
    }
}

fn unconnected_udp_keeps_its_backend(mode: SocketLb) {
    use std::net::UdpSocket;

    use crate::cluster::ok;

    // One port of one client: `ask` opens a socket for each request, and a flow is a tuple.
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b", "pod2a", "pod2b"])]);
    let pod = cluster.place("pod1a");
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let names = ok(pod.enter(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).expect("a timeout");
            let mut names = Vec::new();
            for _ in 0..20 {
                socket.send_to(b"who", to).expect("sent");
                let mut buffer = [0; 2048];
                let (bytes, from) = socket.recv_from(&mut buffer).expect("an answer");
                assert_eq!(from, to);
                let greeting: lab::peer::Greeting =
                    serde_json::from_slice(&buffer[..bytes]).expect("a greeting");
                names.push(greeting.name);
            }
            names
        }));
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    }
}
