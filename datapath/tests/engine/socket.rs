//! What a process's `connect` and `sendmsg` become.

use datapath::{
    address::{
        Be16,
        protocol::{TCP, UDP},
    },
    connect::{self, Call},
    flow::Place,
    frontend::kind,
    service::{SetRef, service_flags},
    socket::{PeerKey, side},
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    process::{Process, connect, send},
};

both! {
    a_frontend_becomes_a_backend,
    what_is_no_frontend_passes,
    without_endpoints_it_is_refused,
    where_the_policy_allows_none_the_packet_path_decides,
    a_node_port_reaches_all_backends_from_inside,
    a_socket_sends_to_one_backend_while_the_set_is_the_same,
    a_socket_sends_to_one_backend_while_the_set_has_it,
    a_socket_that_is_forgotten_sends_where_it_did,
    one_backend_by_two_frontends_is_the_last_that_was_meant,
    a_pods_datagram_socket_with_a_peer_is_left_to_the_packet_path,
    a_pods_connection_that_may_have_to_be_reset_is_left_to_the_packet_path,
    a_pods_loopback_address_is_its_own,
}

fn a_frontend_becomes_a_backend<F: Side>() {
    let mut bed = Bed::<F>::new();
    let web = bed.cluster_ip(vip::<F>(80), TCP, &[remote(far::<F>(8080))]);
    let dns = bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let memory = &mut bed.machine.memory;
    assert_eq!(connect::<F>(memory, vip::<F>(80), TCP), Call::Backend(far::<F>(8080), web));
    assert_eq!(connect::<F>(memory, vip::<F>(53), UDP), Call::Backend(near::<F>(5353), dns));
    assert_eq!(send::<F>(memory, vip::<F>(53), 77), Call::Backend(near::<F>(5353), dns));
}

fn what_is_no_frontend_passes<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let memory = &mut bed.machine.memory;
    assert_eq!(connect::<F>(memory, vip::<F>(81), TCP), Call::Pass);
    assert_eq!(connect::<F>(memory, vip::<F>(80), UDP), Call::Pass);
    assert_eq!(connect::<F>(memory, far::<F>(80), TCP), Call::Pass);
    assert_eq!(send::<F>(memory, vip::<F>(80), 1), Call::Pass);
}

fn without_endpoints_it_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[]);
    bed.cluster_ip(vip::<F>(53), UDP, &[]);
    let memory = &mut bed.machine.memory;
    assert_eq!(connect::<F>(memory, vip::<F>(80), TCP), Call::Refuse);
    assert_eq!(send::<F>(memory, vip::<F>(53), 1), Call::Refuse);
}

fn where_the_policy_allows_none_the_packet_path_decides<F: Side>() {
    let mut bed = Bed::<F>::new();
    let cluster = bed.set(&[remote(far::<F>(8080))]);
    let service = bed.service_of(cluster, SetRef::DROP, service_flags::INTERNAL_LOCAL);
    bed.frontend(vip::<F>(80), TCP, service, kind::CLUSTER_IP);
    assert_eq!(connect::<F>(&mut bed.machine.memory, vip::<F>(80), TCP), Call::Pass);
}

fn a_node_port_reaches_all_backends_from_inside<F: Side>() {
    let mut bed = Bed::<F>::new();
    let cluster = bed.set(&[remote(far::<F>(8080))]);
    let service = bed.service_of(cluster, SetRef::DROP, service_flags::EXTERNAL_LOCAL);
    bed.frontend(node::<F>(30_080), TCP, service, kind::NODE_PORT);
    let call = connect::<F>(&mut bed.machine.memory, node::<F>(30_080), TCP);
    assert_eq!(call, Call::Backend(far::<F>(8080), service));
}

fn a_socket_sends_to_one_backend_while_the_set_is_the_same<F: Side>() {
    let mut bed = Bed::<F>::new();
    let backends: Vec<_> = (1..=100).map(|port| local(near::<F>(port))).collect();
    bed.cluster_ip(vip::<F>(53), UDP, &backends);
    let memory = &mut bed.machine.memory;
    let mut places = std::collections::BTreeSet::new();
    for cookie in (0..1000).map(|cookie: u64| cookie << 32 | 5) {
        let first = send::<F>(memory, vip::<F>(53), cookie);
        for _ in 0..5 {
            assert_eq!(send::<F>(memory, vip::<F>(53), cookie), first);
        }
        if let Call::Backend(place, _) = first {
            places.insert(place.port);
        }
    }
    assert!(places.len() > 90, "{}", places.len());
}

/// The place that a datagram goes to.
fn sent<F: Side>(bed: &mut Bed<F>, frontend: Place<F::Address>, cookie: u64) -> Place<F::Address> {
    match send::<F>(&mut bed.machine.memory, frontend, cookie) {
        Call::Backend(place, _) => place,
        other => panic!("{other:?}"),
    }
}

fn a_socket_sends_to_one_backend_while_the_set_has_it<F: Side>() {
    let mut bed = Bed::<F>::new();
    let backends = |ports: std::ops::RangeInclusive<u16>| -> Vec<_> {
        ports.map(|port| local(near::<F>(port))).collect()
    };
    let service = bed.cluster_ip(vip::<F>(53), UDP, &backends(1..=10));
    let first: Vec<_> = (0..200).map(|cookie| sent(&mut bed, vip::<F>(53), cookie)).collect();
    for ports in [1..=40, 1..=7, 3..=200] {
        let set = bed.set(&backends(ports.clone()));
        bed.update(service, set, set, 0);
        for (cookie, before) in first.iter().enumerate() {
            let now = sent(&mut bed, vip::<F>(53), cookie as u64);
            let port = now.port.get();
            assert!(ports.contains(&port), "{port} is gone");
            let was_lost = !(3..=7).contains(&before.port.get());
            assert!(now == *before || was_lost, "{before:?} became {now:?}");
            assert_eq!(sent(&mut bed, vip::<F>(53), cookie as u64), now);
        }
    }
    bed.update(service, SetRef::REJECT, SetRef::REJECT, 0);
    let call = send::<F>(&mut bed.machine.memory, vip::<F>(53), 0);
    assert_eq!(call, Call::Refuse);
}

fn a_socket_that_is_forgotten_sends_where_it_did<F: Side>() {
    let mut bed = Bed::<F>::new();
    let backends: Vec<_> = (1..=10).map(|port| local(near::<F>(port))).collect();
    bed.cluster_ip(vip::<F>(53), UDP, &backends);
    for cookie in 0..100 {
        let first = sent(&mut bed, vip::<F>(53), cookie);
        bed.machine.memory.peers.clear();
        assert_eq!(sent(&mut bed, vip::<F>(53), cookie), first);
    }
}

fn one_backend_by_two_frontends_is_the_last_that_was_meant<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = near::<F>(5353);
    let (first, second) = (vip::<F>(53), at::<F>(96, 2, 53));
    bed.cluster_ip(first, UDP, &[local(b)]);
    bed.cluster_ip(second, UDP, &[local(b)]);
    for frontend in [first, second, first, first] {
        assert_eq!(sent(&mut bed, frontend, 7), b);
        let meant = bed.machine.memory.peers[&PeerKey::new(7, b, side::BACKEND)];
        assert_eq!((meant.addr, meant.port), (frontend.addr, frontend.port));
    }
}

/// Only where that sees the pod's packets, and not a socket that asks for each datagram.
fn a_pods_datagram_socket_with_a_peer_is_left_to_the_packet_path<F: Side>() {
    let mut bed = Bed::<F>::new();
    for proto in [TCP, UDP] {
        bed.cluster_ip(vip::<F>(80), proto, &[local(near::<F>(1))]);
    }
    let memory = &mut bed.machine.memory;
    for sees_pods in [0, 1] {
        memory.settings.sees_pods = sees_pods;
        for (caller, is_pods) in
            [(Process::Node, false), (Process::Pod, true), (Process::PodWithPeer, true)]
        {
            let is_left = |call| call == Call::Pass;
            let mut connect =
                |proto| connect::connect::<F, _>(memory, vip::<F>(80), proto, &caller);
            assert!(!is_left(connect(TCP)), "{caller:?}");
            assert_eq!(is_left(connect(UDP)), is_pods && sees_pods == 1, "{caller:?}");
            let sent = connect::send::<F, _>(memory, vip::<F>(80), 1, &caller);
            let has_peer = caller == Process::PodWithPeer;
            assert_eq!(is_left(sent), has_peer && sees_pods == 1, "{caller:?}");
        }
    }
}

/// The agent cannot end them in their sockets.
fn a_pods_connection_that_may_have_to_be_reset_is_left_to_the_packet_path<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(1))]);
    let memory = &mut bed.machine.memory;
    for (resets_tcp, sees_pods) in [(0, 1), (1, 0), (1, 1)] {
        memory.settings.resets_tcp = resets_tcp;
        memory.settings.sees_pods = sees_pods;
        for (caller, is_pods) in [(Process::Node, false), (Process::Pod, true)] {
            let call = connect::connect::<F, _>(memory, vip::<F>(80), TCP, &caller);
            let is_left = is_pods && resets_tcp == 1 && sees_pods == 1;
            assert_eq!(call == Call::Pass, is_left, "{caller:?}");
        }
    }
}

fn a_pods_loopback_address_is_its_own<F: Side>() {
    let mut bed = Bed::<F>::new();
    let frontend = Place::new(F::loopback(), Be16::new(30_080));
    let service = bed.service(&[local(near::<F>(8080))]);
    for proto in [TCP, UDP] {
        bed.frontend(frontend, proto, service, kind::NODE_PORT);
    }
    let memory = &mut bed.machine.memory;
    for (caller, expected) in [
        (Process::Node, Call::Backend(near::<F>(8080), service)),
        (Process::Pod, Call::Pass),
        (Process::PodWithPeer, Call::Pass),
    ] {
        for proto in [TCP, UDP] {
            let call = connect::connect::<F, _>(memory, frontend, proto, &caller);
            assert_eq!(call, expected, "{caller:?}");
        }
        assert_eq!(connect::send::<F, _>(memory, frontend, 1, &caller), expected, "{caller:?}");
    }
}
