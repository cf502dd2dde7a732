//! The choice of a backend by other algorithms than chance, in socket calls.

use std::collections::BTreeSet;

use datapath::{
    address::protocol::{TCP, UDP},
    algorithm::Algorithm,
    connect::{self, Call},
    frontend::kind,
    service::service_flags,
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    process::{
        Process::{self, Node, Pod},
        send,
    },
};

both! {
    connections_take_turns,
    a_socket_without_a_peer_keeps_its_backend,
    by_its_address_a_pod_is_left_to_the_packet_path,
    a_nodes_processes_go_where_its_address_tells,
    maglev_knows_no_port_yet,
    pods_calls_are_left_to_the_packet_path_if_the_service_is,
}

/// A Service of ten backends at its cluster IP.
fn bed<F: Side>(flags: u32) -> Bed<F> {
    let mut bed = Bed::<F>::new();
    let backends: Vec<_> = (1..=10).map(|port| local(near::<F>(port))).collect();
    let set = bed.set(&backends);
    let service = bed.service_of(set, set, flags);
    bed.frontend(vip::<F>(80), TCP, service, kind::CLUSTER_IP);
    bed.frontend(vip::<F>(53), UDP, service, kind::CLUSTER_IP);
    bed
}

/// The port of the backend that a connection goes to, if it is translated.
fn connect<F: Side>(bed: &mut Bed<F>, process: Process) -> Option<u16> {
    let memory = &mut bed.machine.memory;
    match connect::connect::<F, _>(memory, vip::<F>(80), TCP, &process) {
        Call::Backend(place, _) => Some(place.port.get()),
        Call::Pass => None,
        Call::Refuse => panic!("refused"),
    }
}

fn connections_take_turns<F: Side>() {
    let mut bed = bed::<F>(Algorithm::RoundRobin.flags());
    for nth in 0..30 {
        assert_eq!(connect(&mut bed, [Node, Pod][nth % 2]), Some(nth as u16 % 10 + 1));
    }
}

fn a_socket_without_a_peer_keeps_its_backend<F: Side>() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConn, Algorithm::Maglev] {
        let mut bed = bed::<F>(algorithm.flags());
        let memory = &mut bed.machine.memory;
        let first = send::<F>(memory, vip::<F>(53), 7);
        for _ in 0..20 {
            assert_eq!(send::<F>(memory, vip::<F>(53), 7), first, "{algorithm:?}");
        }
    }
}

fn by_its_address_a_pod_is_left_to_the_packet_path<F: Side>() {
    let mut bed = bed::<F>(Algorithm::SourceHash.flags());
    assert_eq!(connect(&mut bed, Pod), None);
    assert_eq!(send::<F>(&mut bed.machine.memory, vip::<F>(53), 7), Call::Pass);
}

fn a_nodes_processes_go_where_its_address_tells<F: Side>() {
    let mut bed = bed::<F>(Algorithm::SourceHash.flags());
    let mut nodes = BTreeSet::new();
    for node in 0..40_u32 {
        bed.machine.memory.settings.node_hash = datapath::hash::mix(node);
        let choices: BTreeSet<_> = (0..20).map(|_| connect(&mut bed, Node)).collect();
        assert_eq!(choices.len(), 1, "{choices:?}");
        nodes.extend(choices);
    }
    assert!(nodes.len() > 5, "{nodes:?}");
}

fn maglev_knows_no_port_yet<F: Side>() {
    let mut bed = bed::<F>(Algorithm::Maglev.flags());
    for process in [Node, Pod] {
        let choices: BTreeSet<_> = (0..200).map(|_| connect(&mut bed, process)).collect();
        assert_eq!(choices.len(), 10, "{choices:?}");
    }
}

fn pods_calls_are_left_to_the_packet_path_if_the_service_is<F: Side>() {
    let mut bed = bed::<F>(service_flags::PACKETS);
    assert_eq!(connect(&mut bed, Pod), None);
    assert_eq!(send::<F>(&mut bed.machine.memory, vip::<F>(53), 7), Call::Pass);
    assert!(connect(&mut bed, Node).is_some());
}
