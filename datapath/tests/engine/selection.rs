//! The choice of a backend: even, and never out of a set that changes meanwhile.

use std::collections::BTreeMap;

use datapath::{
    address::protocol::{TCP, UDP},
    connect::Call,
    counter::Reason,
    header::tcp::SYN,
    host::frame::Datagram,
    service::SetRef,
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    process::{connect, send},
    sender::ports,
};

both! {
    connections_spread_evenly,
    sockets_spread_evenly,
    unconnected_sockets_spread_evenly,
    a_torn_set_is_refused_and_counted,
    a_set_torn_for_a_moment_is_read_again,
}

/// Fails if the counts are further from even than five standard deviations of chi-square.
#[track_caller]
fn even<K: std::fmt::Debug>(counts: &BTreeMap<K, u32>, choices: u16) {
    assert_eq!(counts.len(), usize::from(choices), "{counts:?}");
    let total: u32 = counts.values().sum();
    let mean = f64::from(total) / f64::from(choices);
    let square = |count: &u32| (f64::from(*count) - mean).powi(2) / mean;
    let chi: f64 = counts.values().map(square).sum();
    let freedom = f64::from(choices - 1);
    assert!(chi <= freedom + 5.0 * (2.0 * freedom).sqrt(), "{chi} with {freedom} degrees");
}

const SIZES: [u16; 5] = [1, 2, 3, 7, 100];

fn backends<F: Side>(count: u16) -> Vec<datapath::backend::Backend<F::Address>> {
    (0..count).map(|index| local(near::<F>(1000 + index))).collect()
}

fn connections_spread_evenly<F: Side>() {
    for size in SIZES {
        let mut bed = Bed::<F>::new();
        bed.cluster_ip(vip::<F>(80), TCP, &backends::<F>(size));
        let mut counts = BTreeMap::new();
        for index in 0..4_000 {
            let c = at::<F>(3, index, 1024 + index);
            let syn = Datagram::<F>::tcp(c, vip::<F>(80), SYN);
            let outcome = bed.run(POD_IN, &syn.bytes());
            *counts.entry(ports::<F>(&outcome.bytes).1).or_default() += 1;
        }
        even(&counts, size);
    }
}

fn sockets_spread_evenly<F: Side>() {
    for size in SIZES {
        let mut bed = Bed::<F>::new();
        bed.cluster_ip(vip::<F>(80), TCP, &backends::<F>(size));
        let mut counts = BTreeMap::new();
        for _ in 0..20_000 {
            match connect::<F>(&mut bed.machine.memory, vip::<F>(80), TCP) {
                Call::Backend(place, _) => *counts.entry(place.port).or_default() += 1,
                other => panic!("{other:?}"),
            }
        }
        even(&counts, size);
    }
}

/// Cookies count up by one from socket to socket.
fn unconnected_sockets_spread_evenly<F: Side>() {
    for size in SIZES {
        let mut bed = Bed::<F>::new();
        bed.cluster_ip(vip::<F>(53), UDP, &backends::<F>(size));
        let mut counts = BTreeMap::new();
        for cookie in 0..20_000 {
            match send::<F>(&mut bed.machine.memory, vip::<F>(53), cookie) {
                Call::Backend(place, _) => *counts.entry(place.port).or_default() += 1,
                other => panic!("{other:?}"),
            }
        }
        even(&counts, size);
    }
}

fn a_torn_set_is_refused_and_counted<F: Side>() {
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &backends::<F>(3));
    let good = bed.set(&backends::<F>(3));
    let torn = SetRef { generation: good.generation + 1, ..good };
    bed.update(service, torn, torn, 0);
    let syn = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN);
    bed.drops(POD_IN, &syn.bytes(), Reason::BackendSetTorn);
    assert_eq!(connect::<F>(&mut bed.machine.memory, vip::<F>(80), TCP), Call::Pass);
    assert_eq!(bed.rows(), (0, 0));
    bed.update(service, good, good, 0);
    assert_eq!(bed.run(POD_IN, &syn.bytes()).verdict, datapath::packet::Verdict::Pass);
}

/// One slot of the set is being written over: other slots serve.
fn a_set_torn_for_a_moment_is_read_again<F: Side>() {
    use datapath::{affinity::Client, select, service::ServicePolicy, tables::Scope};
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &backends::<F>(2));
    let row = bed.machine.memory.services[&service];
    let slot = bed.machine.memory.backends.get_mut(&row.cluster.block).expect("a slot");
    slot.generation += 1;
    // The entropy is the same at each read, so only the whole slot serves.
    let choose = |bed: &mut Bed<F>, entropy| {
        select::select::<F, _>(
            &mut bed.machine.memory,
            service,
            ServicePolicy::default(),
            Scope::Cluster,
            Client::Node,
            entropy,
        )
    };
    assert_eq!(choose(&mut bed, 0), select::Choice::Torn);
    assert!(matches!(choose(&mut bed, u32::MAX), select::Choice::Backend(_)));
}
