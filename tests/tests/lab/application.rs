//! What an application sees: the Service as its peer, whichever way its packets go.

use lab::{
    agent::SocketLb,
    peer::{Greeting, Protocol, Question},
};

use crate::{
    cluster::{Cluster, ok, show},
    service::{FAMILIES, Family, Target, expose},
};

both! {
    application_sees_the_service_as_peer,
    unconnected_udp_keeps_its_backend,
    closed_sockets_leave_no_rows,
}

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
                let greeting: Greeting =
                    serde_json::from_slice(&buffer[..bytes]).expect("a greeting");
                names.push(greeting.name);
            }
            names
        }));
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    }
}

/// Rows that the socket path holds on node1, both families.
fn sockets(cluster: &Cluster) -> u64 {
    let status = show(&cluster.agents[0], &["status"]);
    let tables = status["tables"].as_array().expect("a list");
    tables
        .iter()
        .filter(|table| table["table"].as_str().is_some_and(|name| name.starts_with("SOCKETS")))
        .map(|table| table["entries"].as_u64().expect("a number"))
        .sum()
}

fn closed_sockets_leave_no_rows(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let targets = FAMILIES.map(|family| Target::ClusterIp(10).address(&cluster.lab, family));
    let [v4, v6] = targets.map(|to| format!("/dev/tcp/{}/{}", to.ip(), to.port()));
    let end = std::env::temp_dir().join(format!("millrace-hold-{mode:?}-{}", std::process::id()));
    let line = format!(
        "bash -c 'exec 3<>{v4} 4<>{v6}; until [ -e {end} ]; do sleep 0.1; done'",
        end = end.display()
    );
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| cluster.lab.shell("node1", &line));
        while sockets(&cluster) < 2 {
            assert!(!holder.is_finished(), "{:?}", holder.join());
        }
        // Sockets of others come and go.
        for to in targets {
            cluster.ask("node1", Protocol::Udp, to);
            cluster.ask("pod1a", Protocol::Tcp, to);
        }
        assert_eq!(sockets(&cluster), 2);
        ok(std::fs::write(&end, ""));
        ok(holder.join().expect("no panic"));
    });
    ok(std::fs::remove_file(&end));
    assert_eq!(sockets(&cluster), 0);
}
