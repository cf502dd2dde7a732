//! Session affinity of processes: the node's own are one client, pods' are known by their packets.

use std::collections::BTreeSet;

use datapath::{
    address::protocol::{TCP, UDP},
    connect::{self, Call},
    frontend::kind,
    service::Service,
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    process::{self, Process},
};

both! {
    the_nodes_own_processes_are_one_client,
    pods_are_left_to_the_packet_path,
    a_socket_that_has_a_backend_keeps_it,
}

const TIMEOUT: u32 = 20;

/// A Service at its cluster IP, ports 80 (TCP) and 53 (UDP), and the same with affinity.
fn bed<F: Side>() -> (Bed<F>, u32, Service) {
    let mut bed = Bed::<F>::new();
    let backends: Vec<_> = (1..=100).map(|port| local(near::<F>(port))).collect();
    let set = bed.set(&backends);
    let service = bed.service_of(set, set, 0);
    bed.frontend(vip::<F>(80), TCP, service, kind::CLUSTER_IP);
    bed.frontend(vip::<F>(53), UDP, service, kind::CLUSTER_IP);
    (bed, service, Service { cluster: set, local: set, flags: 0, affinity: TIMEOUT })
}

fn the_nodes_own_processes_are_one_client<F: Side>() {
    let (mut bed, service, sticky) = bed::<F>();
    bed.put(service, sticky);
    let mut first = BTreeSet::new();
    for _ in 0..5 {
        let memory = &mut bed.machine.memory;
        let call = connect::connect::<F, _>(memory, vip::<F>(80), TCP, &Process::Node);
        let Call::Backend(chosen, _) = call else { panic!("{call:?}") };
        for cookie in 0..20 {
            let again = connect::connect::<F, _>(memory, vip::<F>(80), TCP, &Process::Node);
            assert_eq!(again, call);
            let sent = connect::send::<F, _>(memory, vip::<F>(53), cookie, &Process::Node);
            assert_eq!(sent, call);
        }
        first.insert(chosen.port);
        bed.machine.memory.peers.clear();
        bed.machine.pass(TIMEOUT + 1);
    }
    assert!(first.len() > 1, "{first:?}");
}

fn pods_are_left_to_the_packet_path<F: Side>() {
    let (mut bed, service, sticky) = bed::<F>();
    bed.put(service, sticky);
    let memory = &mut bed.machine.memory;
    assert_eq!(process::connect::<F>(memory, vip::<F>(80), TCP), Call::Pass);
    assert_eq!(process::connect::<F>(memory, vip::<F>(53), UDP), Call::Pass);
    assert_eq!(process::send::<F>(memory, vip::<F>(53), 7), Call::Pass);
    assert!(memory.affinity.is_empty());
}

/// It asked before there was affinity.
fn a_socket_that_has_a_backend_keeps_it<F: Side>() {
    let (mut bed, service, sticky) = bed::<F>();
    let first = process::send::<F>(&mut bed.machine.memory, vip::<F>(53), 7);
    bed.put(service, sticky);
    assert_eq!(process::send::<F>(&mut bed.machine.memory, vip::<F>(53), 7), first);
}
