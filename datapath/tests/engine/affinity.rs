//! Session affinity of clients whose packets are seen.

use std::collections::BTreeSet;

use datapath::{
    address::{
        Be16,
        protocol::{TCP, UDP},
    },
    backend::Backend,
    counter::Reason,
    frontend::kind,
    header::tcp::SYN,
    host::frame::Datagram,
    service::{Service, SetRef, service_flags},
};

use crate::{bed::Bed, machine::Side, plan::*, sender::ports};

both! {
    a_client_keeps_its_backend_by_whatever_frontend,
    clients_spread,
    ports_of_a_service_know_nothing_of_each_other,
    each_new_connection_begins_the_timeout_anew,
    a_client_keeps_its_backend_while_the_set_has_it,
    the_traffic_policy_comes_first,
    without_affinity_connections_spread_at_once,
    what_another_service_left_leads_nowhere_else,
    a_tuple_in_use_moves_nobody,
    without_endpoints_it_is_refused,
}

/// In ticks.
const TIMEOUT: u32 = 20;

/// Many, so that hardly any two choices agree by chance.
fn backends<F: Side>(ports: std::ops::RangeInclusive<u16>) -> Vec<Backend<F::Address>> {
    ports.map(|port| local(near::<F>(port))).collect()
}

/// Gives a Service these sets, and affinity.
fn stick<F: Side>(bed: &mut Bed<F>, service: u32, cluster: SetRef, local: SetRef, flags: u32) {
    bed.put(service, Service { cluster, local, flags, affinity: TIMEOUT });
}

/// A Service with affinity at its cluster IP, port 80, and at port 30,080 of the node.
fn sticky<F: Side>(backends: &[Backend<F::Address>]) -> (Bed<F>, u32) {
    let mut bed = Bed::<F>::new();
    let set = bed.set(backends);
    let service = bed.service_of(set, set, 0);
    stick(&mut bed, service, set, set, 0);
    for proto in [TCP, UDP] {
        bed.frontend(vip::<F>(80), proto, service, kind::CLUSTER_IP);
        bed.frontend(node::<F>(30_080), proto, service, kind::NODE_PORT);
        bed.frontend(at::<F>(99, 1, 80), proto, service, kind::LOAD_BALANCER);
    }
    (bed, service)
}

fn a_client_keeps_its_backend_by_whatever_frontend<F: Side>() {
    let (mut bed, _) = sticky::<F>(&backends::<F>(1..=100));
    for client in [client::<F>, outside::<F>] {
        let hook = if client(0) == outside::<F>(0) { UP_IN } else { POD_IN };
        let first = bed.chosen(hook, client(1000), vip::<F>(80));
        for port in 1001..1015 {
            assert_eq!(bed.chosen(hook, client(port), vip::<F>(80)), first);
            assert_eq!(bed.chosen(hook, client(100 + port), node::<F>(30_080)), first);
            assert_eq!(bed.chosen(hook, client(200 + port), at::<F>(99, 1, 80)), first);
            let datagram = Datagram::<F>::udp(client(port), vip::<F>(80));
            assert_eq!(ports::<F>(&bed.run(hook, &datagram.bytes()).bytes).1, first);
        }
    }
}

/// Clients that together reach each of ten backends: loaded programs choose at random, and one is
/// missed less than once in 10^11 runs.
const CLIENTS: u16 = 300;

fn clients_spread<F: Side>() {
    let (mut bed, _) = sticky::<F>(&backends::<F>(1..=10));
    let choices: BTreeSet<_> =
        (0..CLIENTS).map(|host| bed.chosen(POD_IN, at::<F>(3, host, 1), vip::<F>(80))).collect();
    assert_eq!(choices.len(), 10);
}

fn ports_of_a_service_know_nothing_of_each_other<F: Side>() {
    let (mut bed, _) = sticky::<F>(&backends::<F>(1..=100));
    let set = bed.set(&backends::<F>(1..=100));
    let other = bed.service_of(set, set, 0);
    stick(&mut bed, other, set, set, 0);
    bed.frontend(vip::<F>(81), TCP, other, kind::CLUSTER_IP);
    let alike = (0..30).filter(|&host| {
        let c = |port| at::<F>(3, host, port);
        let first = bed.chosen(POD_IN, c(1), vip::<F>(80));
        let second = bed.chosen(POD_IN, c(2), vip::<F>(81));
        assert_eq!(bed.chosen(POD_IN, c(3), vip::<F>(80)), first);
        assert_eq!(bed.chosen(POD_IN, c(4), vip::<F>(81)), second);
        first == second
    });
    assert!(alike.count() < 10);
}

fn each_new_connection_begins_the_timeout_anew<F: Side>() {
    let (mut bed, _) = sticky::<F>(&backends::<F>(1..=100));
    let first = bed.chosen(POD_IN, client::<F>(1000), vip::<F>(80));
    for port in 1001..1006 {
        bed.machine.pass(TIMEOUT - 5);
        assert_eq!(bed.chosen(POD_IN, client::<F>(port), vip::<F>(80)), first);
    }
    let after: BTreeSet<_> = (1006..1012)
        .map(|port| {
            bed.machine.pass(TIMEOUT + 1);
            bed.chosen(POD_IN, client::<F>(port), vip::<F>(80))
        })
        .collect();
    assert!(after.len() > 1, "{after:?} after the timeout, {first:?} before");
}

fn a_client_keeps_its_backend_while_the_set_has_it<F: Side>() {
    let (mut bed, service) = sticky::<F>(&backends::<F>(1..=10));
    let first: Vec<_> =
        (0..40).map(|host| bed.chosen(POD_IN, at::<F>(3, host, 1), vip::<F>(80))).collect();
    for (round, range) in (2..).zip([1..=40, 1..=7, 3..=90]) {
        let set = bed.set(&backends::<F>(range.clone()));
        stick(&mut bed, service, set, set, 0);
        for (host, before) in (0..).zip(&first) {
            let c = |port| at::<F>(3, host, port);
            let now = bed.chosen(POD_IN, c(round), vip::<F>(80));
            assert!(range.contains(&now.get()), "{now:?} is gone");
            let was_lost = !(3..=7).contains(&before.get());
            assert!(now == *before || was_lost, "{before:?} became {now:?}");
            assert_eq!(bed.chosen(POD_IN, c(10 + round), vip::<F>(80)), now);
        }
    }
}

fn the_traffic_policy_comes_first<F: Side>() {
    let (mut bed, service) = sticky::<F>(&[local(near::<F>(1))]);
    let (cluster, here) = (bed.set(&[remote(far::<F>(9))]), bed.set(&[local(near::<F>(1))]));
    stick(&mut bed, service, cluster, here, service_flags::INTERNAL_LOCAL);
    let port = |number| Be16::new(number);
    for round in 0..3_u16 {
        let c = |port| client::<F>(1000 + 10 * round + port);
        assert_eq!(bed.chosen(POD_IN, c(1), node::<F>(30_080)), port(9));
        assert_eq!(bed.chosen(POD_IN, c(2), vip::<F>(80)), port(1));
    }
    stick(&mut bed, service, cluster, SetRef::DROP, service_flags::INTERNAL_LOCAL);
    let syn = Datagram::<F>::tcp(client::<F>(2000), vip::<F>(80), SYN);
    bed.drops(POD_IN, &syn.bytes(), Reason::TrafficPolicy);
}

fn without_affinity_connections_spread_at_once<F: Side>() {
    let (mut bed, service) = sticky::<F>(&[]);
    let set = bed.set(&backends::<F>(1..=10));
    let choices = |bed: &mut Bed<F>, ports: std::ops::Range<u16>| -> BTreeSet<_> {
        ports.map(|port| bed.chosen(POD_IN, client::<F>(port), vip::<F>(80))).collect()
    };
    for round in 0..3 {
        let ports = |half: u16| {
            let first = 1000 + CLIENTS * (2 * round + half);
            first..first + CLIENTS
        };
        stick(&mut bed, service, set, set, 0);
        assert_eq!(choices(&mut bed, ports(0)).len(), 1);
        bed.update(service, set, set, 0);
        assert_eq!(choices(&mut bed, ports(1)).len(), 10);
    }
}

/// A row by the index of a Service that is gone.
fn what_another_service_left_leads_nowhere_else<F: Side>() {
    let (mut bed, service) = sticky::<F>(&backends::<F>(1..=10));
    bed.chosen(POD_IN, client::<F>(1), vip::<F>(80));
    let set = bed.set(&backends::<F>(21..=30));
    stick(&mut bed, service, set, set, 0);
    let new = bed.chosen(POD_IN, client::<F>(2), vip::<F>(80));
    assert!((21..=30).contains(&new.get()), "{new:?}");
}

fn a_tuple_in_use_moves_nobody<F: Side>() {
    let (mut bed, _) = sticky::<F>(&backends::<F>(1..=10));
    let first = bed.chosen(POD_IN, client::<F>(1), vip::<F>(80));
    assert_eq!(bed.chosen(POD_IN, client::<F>(1), node::<F>(30_080)), first);
    assert_eq!(bed.chosen(POD_IN, client::<F>(2), node::<F>(30_080)), first);
}

fn without_endpoints_it_is_refused<F: Side>() {
    let (mut bed, _) = sticky::<F>(&[]);
    let syn = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN);
    bed.answers(POD_IN, &syn.bytes(), Reason::NoEndpoints);
}
