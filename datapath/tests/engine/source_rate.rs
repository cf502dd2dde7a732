//! How many flows a source outside may begin.

use datapath::{
    address::{
        Be16,
        protocol::{SCTP, TCP, UDP},
    },
    counter::Reason,
    flow::Place,
    frontend::kind,
    header::tcp::{ACK, SYN},
    host::frame::{Datagram, Sample},
    sctp::chunk,
    service::{SetRef, service_flags},
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    any_number_unless_told,
    a_source_begins_a_burst_and_no_more,
    time_lets_it_begin_again,
    protocols_count_together,
    other_sources_are_not_touched,
    a_network_of_ipv6_is_one_source,
    what_is_begun_goes_on,
    what_pods_begin_does_not_count,
    what_begins_nothing_does_not_count,
    what_no_endpoint_serves_counts,
    ranges_come_first,
}

/// Flows a second; twice as many at once.
const RATE: u32 = 1;

/// A Service at a port of the node, and the rate in force.
fn guarded<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    for proto in [TCP, UDP, SCTP] {
        bed.node_port(30_080, proto, &[local(near::<F>(8080))]);
    }
    bed.new_flows(RATE);
    bed
}

fn port<F: Side>() -> Place<F::Address> {
    node::<F>(30_080)
}

fn somebody<F: Side>(net: u8, host: u16, port: u16) -> Place<F::Address> {
    Place::new(<F as Sample>::elsewhere(net, host), Be16::new(port))
}

fn syn<F: Side>(from: Place<F::Address>) -> Datagram<F> {
    Datagram::tcp(from, port::<F>(), SYN)
}

#[track_caller]
fn serves<F: Side>(bed: &mut Bed<F>, packet: &Datagram<F>) {
    bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(near::<F>(8080)).bytes());
}

#[track_caller]
fn refuses<F: Side>(bed: &mut Bed<F>, packet: &Datagram<F>) {
    let rows = bed.rows();
    bed.drops(UP_IN, &packet.bytes(), Reason::SourceRate);
    assert_eq!(bed.rows(), rows);
}

/// Has a source begin as many flows as it may at once.
#[track_caller]
fn exhaust<F: Side>(bed: &mut Bed<F>, net: u8, host: u16) {
    for number in 0..2 {
        serves(bed, &syn::<F>(somebody::<F>(net, host, 1000 + number)));
    }
}

fn any_number_unless_told<F: Side>() {
    let mut bed = guarded::<F>();
    bed.new_flows(0);
    for number in 0..50 {
        serves(&mut bed, &syn::<F>(somebody::<F>(8, 7, 1000 + number)));
    }
}

fn a_source_begins_a_burst_and_no_more<F: Side>() {
    let mut bed = guarded::<F>();
    exhaust(&mut bed, 8, 7);
    for number in 0..5 {
        refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 2000 + number)));
    }
    // What is refused is not held against it.
    bed.machine.pass(1);
    serves(&mut bed, &syn::<F>(somebody::<F>(8, 7, 3000)));
}

fn time_lets_it_begin_again<F: Side>() {
    let mut bed = guarded::<F>();
    for _ in 0..3 {
        exhaust(&mut bed, 8, 7);
        refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 2000)));
        bed.machine.pass(1);
        serves(&mut bed, &syn::<F>(somebody::<F>(8, 7, 3000)));
        refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 3001)));
        // Long idle, it has no more than a burst.
        bed.machine.pass(400);
        bed.machine.sweep();
    }
}

fn protocols_count_together<F: Side>() {
    let mut bed = guarded::<F>();
    let (from, to) = (somebody::<F>(8, 7, 1000), port::<F>());
    serves(&mut bed, &Datagram::<F>::udp(from, to));
    serves(&mut bed, &syn::<F>(from));
    refuses(&mut bed, &Datagram::<F>::udp(somebody::<F>(8, 7, 1001), to));
    refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 1001)));
    let init = Datagram::<F>::sctp(from, to, chunk::INIT);
    refuses(&mut bed, &init);
}

fn other_sources_are_not_touched<F: Side>() {
    let mut bed = guarded::<F>();
    exhaust(&mut bed, 8, 7);
    for net in 20..120 {
        serves(&mut bed, &syn::<F>(somebody::<F>(net, 7, 1000)));
    }
    refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 2000)));
}

/// Of IPv4, each address is one.
fn a_network_of_ipv6_is_one_source<F: Side>() {
    let mut bed = guarded::<F>();
    exhaust(&mut bed, 8, 7);
    for host in 100..110 {
        let packet = syn::<F>(somebody::<F>(8, host, 1000));
        if F::V6 { refuses(&mut bed, &packet) } else { serves(&mut bed, &packet) }
    }
}

fn what_is_begun_goes_on<F: Side>() {
    let mut bed = guarded::<F>();
    let (c, d) = (somebody::<F>(8, 7, 1000), somebody::<F>(8, 7, 1001));
    let (v, b) = (port::<F>(), near::<F>(8080));
    serves(&mut bed, &syn::<F>(c));
    let datagram = Datagram::<F>::udp(d, v);
    serves(&mut bed, &datagram);
    refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 2000)));
    // What nobody has answered yet.
    for _ in 0..5 {
        serves(&mut bed, &syn::<F>(c));
        serves(&mut bed, &datagram);
    }
    let back = Datagram::<F>::tcp(b, c, SYN | ACK);
    bed.becomes(UP_OUT, &back.bytes(), &back.clone().from(v).bytes());
    let back = Datagram::<F>::udp(b, d);
    bed.becomes(UP_OUT, &back.bytes(), &back.clone().from(v).bytes());
    for _ in 0..5 {
        serves(&mut bed, &Datagram::<F>::tcp(c, v, ACK).with_payload(b"more"));
        serves(&mut bed, &datagram);
    }
    refuses(&mut bed, &syn::<F>(somebody::<F>(8, 7, 2000)));
}

fn what_pods_begin_does_not_count<F: Side>() {
    let mut bed = guarded::<F>();
    for number in 0..20 {
        let packet = Datagram::<F>::tcp(client::<F>(1000 + number), port::<F>(), SYN);
        bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(near::<F>(8080)).bytes());
    }
    let from_outside = Datagram::<F>::tcp(client::<F>(2000), port::<F>(), SYN);
    serves(&mut bed, &from_outside);
}

fn what_begins_nothing_does_not_count<F: Side>() {
    let mut bed = guarded::<F>();
    for number in 0..5 {
        let from = somebody::<F>(8, 7, 1000 + number);
        bed.answers(UP_IN, &Datagram::<F>::tcp(from, port::<F>(), ACK).bytes(), Reason::NotSyn);
        bed.passes(UP_IN, &Datagram::<F>::tcp(from, node::<F>(22), SYN).bytes());
        bed.passes(UP_IN, &Datagram::<F>::udp(from, far::<F>(53)).bytes());
    }
    exhaust(&mut bed, 8, 7);
    bed.answers(
        UP_IN,
        &Datagram::<F>::tcp(somebody::<F>(8, 7, 9), port::<F>(), ACK).bytes(),
        Reason::NotSyn,
    );
    bed.passes(UP_IN, &Datagram::<F>::tcp(somebody::<F>(8, 7, 9), node::<F>(22), SYN).bytes());
}

/// What is answered with ICMP costs as much.
fn what_no_endpoint_serves_counts<F: Side>() {
    let mut bed = guarded::<F>();
    bed.node_port(30_081, TCP, &[]);
    let packet = |port| Datagram::<F>::tcp(somebody::<F>(8, 7, port), node::<F>(30_081), SYN);
    for number in 0..2 {
        bed.answers(UP_IN, &packet(1000 + number).bytes(), Reason::NoEndpoints);
    }
    refuses(&mut bed, &packet(2000));
}

fn ranges_come_first<F: Side>() {
    let mut bed = guarded::<F>();
    let set = bed.set(&[local(near::<F>(8080))]);
    let service = bed.service_of(set, SetRef::DROP, service_flags::SOURCE_RANGES);
    let balancer = at::<F>(99, 1, 80);
    bed.frontend(balancer, TCP, service, kind::LOAD_BALANCER);
    for number in 0..5 {
        let from = somebody::<F>(8, 7, 1000 + number);
        bed.drops(UP_IN, &Datagram::<F>::tcp(from, balancer, SYN).bytes(), Reason::SourceRange);
    }
    exhaust(&mut bed, 8, 7);
}
