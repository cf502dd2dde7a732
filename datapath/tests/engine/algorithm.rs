//! The choice of a backend by other algorithms than chance, for clients whose packets are seen.

use std::collections::{BTreeMap, BTreeSet};

use datapath::{
    address::{Be16, protocol::TCP},
    algorithm::Algorithm,
    backend::{Backend, LOAD},
    counter::{Hook, Reason},
    frontend::kind,
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::Datagram,
    service::{Service, SetRef},
};

use crate::{bed::Bed, machine::Side, plan::*};

/// Of TCP's flags, one that the engine has no use for (RFC 9293, section 3.1).
const PSH: u8 = 8;

both! {
    backends_take_turns,
    one_that_stands_twice_in_its_set_gets_twice_as_many,
    ports_of_a_service_take_turns_on_their_own,
    a_source_goes_where_its_address_tells,
    other_sources_go_elsewhere,
    maglev_goes_where_address_and_port_tell,
    with_maglev_a_connection_of_a_node_that_is_lost_goes_on,
    what_is_no_segment_of_a_connection_resumes_none,
    without_maglev_nothing_is_resumed,
    the_one_with_fewer_connections_is_preferred,
    connections_are_about_as_many_everywhere,
    without_a_count_it_is_chance,
    affinity_holds_whatever_the_algorithm,
    one_backend_is_found_by_each,
}

const POD_IN: Hook = Hook::PodIngress;
const ALL: [Algorithm; 5] = [
    Algorithm::Random,
    Algorithm::RoundRobin,
    Algorithm::LeastConn,
    Algorithm::SourceHash,
    Algorithm::Maglev,
];

fn backends<F: Side>(ports: impl IntoIterator<Item = u16>) -> Vec<Backend<F::Address>> {
    ports.into_iter().map(|port| local(near::<F>(port))).collect()
}

/// A Service's port at its cluster IP and at a port of the node, and where its set is.
fn service<F: Side>(
    bed: &mut Bed<F>,
    port: u16,
    algorithm: Algorithm,
    backends: &[Backend<F::Address>],
) -> SetRef {
    let set = bed.set(backends);
    let service = bed.service_of(set, set, algorithm.flags());
    bed.frontend(vip::<F>(port), TCP, service, kind::CLUSTER_IP);
    bed.frontend(node::<F>(30_000 + port), TCP, service, kind::NODE_PORT);
    set
}

/// How many of so many connections, each from a port of its own, go to which backend.
fn counts<F: Side>(bed: &mut Bed<F>, connections: u16, to: u16) -> BTreeMap<u16, u32> {
    let mut counts = BTreeMap::new();
    for nth in 0..connections {
        let chosen = bed.chosen(POD_IN, client::<F>(1000 + 10 * to + nth), vip::<F>(to));
        *counts.entry(chosen.get()).or_default() += 1;
    }
    counts
}

fn backends_take_turns<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::RoundRobin, &backends::<F>(1..=7));
    let first = bed.chosen(POD_IN, client::<F>(999), vip::<F>(80)).get();
    for nth in 0..20 {
        let (hook, to) = match nth % 2 {
            0 => (POD_IN, vip::<F>(80)),
            _ => (Hook::UplinkIngress, node::<F>(30_080)),
        };
        let chosen = bed.chosen(hook, client::<F>(1000 + nth), to).get();
        assert_eq!(chosen, (first + nth) % 7 + 1, "{nth} after {first}");
    }
}

fn one_that_stands_twice_in_its_set_gets_twice_as_many<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::RoundRobin, &backends::<F>([1, 2, 1, 3]));
    assert_eq!(counts(&mut bed, 40, 80), BTreeMap::from([(1, 20), (2, 10), (3, 10)]));
}

fn ports_of_a_service_take_turns_on_their_own<F: Side>() {
    let mut bed = Bed::<F>::new();
    for port in [80, 81] {
        service(&mut bed, port, Algorithm::RoundRobin, &backends::<F>(1..=2));
    }
    for nth in 0..10 {
        let chosen =
            [80, 81].map(|to| bed.chosen(POD_IN, client::<F>(100 * to + nth), vip::<F>(to)));
        assert_eq!(chosen, [Be16::new(nth % 2 + 1); 2]);
    }
}

fn a_source_goes_where_its_address_tells<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::SourceHash, &backends::<F>(1..=100));
    for host in 0..20 {
        let choices: BTreeSet<Be16> =
            (1..20).map(|port| bed.chosen(POD_IN, at::<F>(3, host, port), vip::<F>(80))).collect();
        assert_eq!(choices.len(), 1, "{choices:?}");
    }
}

fn other_sources_go_elsewhere<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::SourceHash, &backends::<F>(1..=10));
    let mut counts: BTreeMap<Be16, u32> = BTreeMap::new();
    for host in 0..1000 {
        *counts.entry(bed.chosen(POD_IN, at::<F>(3, host, 1), vip::<F>(80))).or_default() += 1;
    }
    assert!(counts.len() == 10 && counts.values().all(|count| (50..200).contains(count)));
}

/// On any node that has the same set.
fn maglev_goes_where_address_and_port_tell<F: Side>() {
    let choices = |generations: u16| -> Vec<Be16> {
        let mut bed = Bed::<F>::new();
        // Elsewhere in the table.
        for _ in 0..generations {
            bed.set(&backends::<F>(1..=3));
        }
        service(&mut bed, 80, Algorithm::Maglev, &backends::<F>(1..=50));
        (0..100).map(|nth| bed.chosen(POD_IN, client::<F>(1000 + nth), vip::<F>(80))).collect()
    };
    let first = choices(0);
    assert_eq!(choices(5), first);
    assert!(first.iter().collect::<BTreeSet<_>>().len() > 30, "{first:?}");
}

/// Its next segment comes here, where nobody has seen it.
fn with_maglev_a_connection_of_a_node_that_is_lost_goes_on<F: Side>() {
    let beds = || {
        let mut bed = Bed::<F>::new();
        service(&mut bed, 80, Algorithm::Maglev, &backends::<F>(1..=50));
        bed
    };
    let (mut lost, mut here) = (beds(), beds());
    for (nth, flags) in [ACK, ACK | PSH, ACK | FIN].into_iter().cycle().take(30).enumerate() {
        let (c, v) = (outside::<F>(1000 + nth as u16), node::<F>(30_080));
        let b = near::<F>(lost.chosen(UP_IN, c, v).get());
        let segment = Datagram::<F>::tcp(c, v, flags).with_payload(b"more");
        let answer = Datagram::<F>::tcp(b, c, ACK);
        for _ in 0..2 {
            here.becomes(UP_IN, &segment.bytes(), &segment.clone().to(b).bytes());
            here.becomes(UP_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
        }
    }
    assert_eq!(here.rows(), (0, 60), "they are flows as any other");
}

fn what_is_no_segment_of_a_connection_resumes_none<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::Maglev, &backends::<F>(1..=50));
    let stray = |flags| Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), flags).bytes();
    for flags in [RST, RST | ACK] {
        bed.drops(POD_IN, &stray(flags), Reason::NotSyn);
    }
    for flags in [0, FIN, SYN | ACK, SYN | FIN] {
        bed.answers(POD_IN, &stray(flags), Reason::NotSyn);
    }
    // Another proxy may know it.
    bed.foreign_proxy(true);
    bed.passes(POD_IN, &stray(ACK));
    assert_eq!(bed.rows(), (0, 0));
}

fn without_maglev_nothing_is_resumed<F: Side>() {
    for algorithm in ALL.into_iter().filter(|&other| other != Algorithm::Maglev) {
        let mut bed = Bed::<F>::new();
        service(&mut bed, 80, algorithm, &backends::<F>(1..=50));
        let stray = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), ACK);
        bed.answers(POD_IN, &stray.bytes(), Reason::NotSyn);
    }
}

fn the_one_with_fewer_connections_is_preferred<F: Side>() {
    let mut bed = Bed::<F>::new();
    let set = service(&mut bed, 80, Algorithm::LeastConn, &backends::<F>(1..=2));
    bed.machine.put_load(set.block, 10_000 * LOAD);
    bed.machine.put_load(set.block + 1, 0);
    // The other is taken where both that are drawn are it.
    let counts = counts(&mut bed, 400, 80);
    assert!(counts[&2] > 240, "{counts:?}");
    assert_eq!(bed.machine.load(set.block + 1), counts[&2] * LOAD);
    assert_eq!(bed.machine.load(set.block), (10_000 + counts[&1]) * LOAD);
}

/// By chance the fewest and the most of 100 each would be some 30 apart.
fn connections_are_about_as_many_everywhere<F: Side>() {
    let mut bed = Bed::<F>::new();
    let set = service(&mut bed, 80, Algorithm::LeastConn, &backends::<F>(1..=10));
    for slot in 0..10 {
        bed.machine.put_load(set.block + slot, 0);
    }
    let counts = counts(&mut bed, 1000, 80);
    let (fewest, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(most - fewest < 15, "{counts:?}");
}

fn without_a_count_it_is_chance<F: Side>() {
    let mut bed = Bed::<F>::new();
    service(&mut bed, 80, Algorithm::LeastConn, &backends::<F>(1..=10));
    assert_eq!(counts(&mut bed, 300, 80).len(), 10);
}

fn affinity_holds_whatever_the_algorithm<F: Side>() {
    for algorithm in ALL {
        let mut bed = Bed::<F>::new();
        let set = bed.set(&backends::<F>(1..=10));
        let service = bed.service_of(set, set, 0);
        let flags = algorithm.flags();
        bed.put(service, Service { cluster: set, local: set, flags, affinity: 20 });
        bed.frontend(vip::<F>(80), TCP, service, kind::CLUSTER_IP);
        assert_eq!(counts(&mut bed, 20, 80).len(), 1, "{algorithm:?}");
    }
}

fn one_backend_is_found_by_each<F: Side>() {
    let mut bed = Bed::<F>::new();
    for (port, algorithm) in (80..).zip(ALL) {
        service(&mut bed, port, algorithm, &backends::<F>([9]));
        assert_eq!(counts(&mut bed, 5, port), BTreeMap::from([(9, 5)]), "{algorithm:?}");
    }
}
