//! Source ranges of a load balancer's addresses.

use datapath::{
    address::protocol::{TCP, UDP},
    counter::Reason,
    flow::Place,
    frontend::kind,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
    packet::Verdict,
    service::{SetRef, service_flags},
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    a_source_in_a_range_is_served_and_another_is_not,
    pods_are_subject_too,
    the_address_itself_may_be_a_source,
    to_be_dropped_comes_before_to_be_refused,
    other_frontends_have_no_ranges,
    ranges_are_a_services_own,
    the_longest_and_the_shortest_range,
    what_is_established_stays_when_ranges_change,
    what_begins_nothing_is_dropped_too,
    the_nodes_own_packets_are_dropped_on_their_way_out,
}

/// The load balancer's address.
fn balancer<F: Side>(port: u16) -> Place<F::Address> {
    at::<F>(99, 1, port)
}

/// Length of the range that holds the addresses of one net of the plan.
fn net<F: Side>() -> u32 {
    if F::V6 { 112 } else { 16 }
}

fn all<F: Side>() -> u32 {
    if F::V6 { 128 } else { 32 }
}

/// A Service with ranges, none as yet, by its cluster IP, its load balancer and the node's port.
fn guarded<F: Side>() -> (Bed<F>, u32) {
    let mut bed = Bed::<F>::new();
    let set = bed.set(&[local(near::<F>(8080))]);
    let service = bed.service_of(set, set, service_flags::SOURCE_RANGES);
    for proto in [TCP, UDP] {
        bed.frontend(balancer::<F>(80), proto, service, kind::LOAD_BALANCER);
        bed.frontend(vip::<F>(80), proto, service, kind::CLUSTER_IP);
        bed.frontend(node::<F>(30_080), proto, service, kind::NODE_PORT);
        bed.frontend(at::<F>(98, 1, 80), proto, service, kind::EXTERNAL_IP);
    }
    (bed, service)
}

fn syn<F: Side>(from: Place<F::Address>, to: Place<F::Address>) -> Vec<u8> {
    Datagram::<F>::tcp(from, to, SYN).bytes()
}

#[track_caller]
fn serves<F: Side>(bed: &mut Bed<F>, hook: datapath::counter::Hook, packet: &Datagram<F>) {
    bed.becomes(hook, &packet.bytes(), &packet.clone().to(near::<F>(8080)).bytes());
}

fn a_source_in_a_range_is_served_and_another_is_not<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    let (good, bad) = (outside::<F>(1000), at::<F>(7, 7, 1000));
    for packet in [
        Datagram::<F>::tcp(good, balancer::<F>(80), SYN),
        Datagram::<F>::udp(good, balancer::<F>(80)),
    ] {
        serves(&mut bed, UP_IN, &packet);
        bed.drops(UP_IN, &packet.from(bad).bytes(), Reason::SourceRange);
    }
    bed.forbid(service, outside::<F>(0).addr, net::<F>());
    bed.drops(UP_IN, &syn::<F>(outside::<F>(1001), balancer::<F>(80)), Reason::SourceRange);
}

fn pods_are_subject_too<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    bed.drops(POD_IN, &syn::<F>(client::<F>(1), balancer::<F>(80)), Reason::SourceRange);
    bed.admit(service, client::<F>(0).addr, all::<F>());
    serves(&mut bed, POD_IN, &Datagram::tcp(client::<F>(1), balancer::<F>(80), SYN));
    bed.drops(POD_IN, &syn::<F>(far::<F>(1), balancer::<F>(80)), Reason::SourceRange);
}

fn the_address_itself_may_be_a_source<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, balancer::<F>(0).addr, all::<F>());
    serves(&mut bed, UP_IN, &Datagram::tcp(balancer::<F>(1000), balancer::<F>(80), SYN));
}

fn to_be_dropped_comes_before_to_be_refused<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    for set in [SetRef::REJECT, SetRef::DROP] {
        bed.update(service, set, set, service_flags::SOURCE_RANGES);
        bed.drops(UP_IN, &syn::<F>(at::<F>(7, 7, 1), balancer::<F>(80)), Reason::SourceRange);
    }
    bed.update(service, SetRef::REJECT, SetRef::REJECT, service_flags::SOURCE_RANGES);
    bed.answers(UP_IN, &syn::<F>(outside::<F>(1), balancer::<F>(80)), Reason::NoEndpoints);
}

fn other_frontends_have_no_ranges<F: Side>() {
    let (mut bed, _) = guarded::<F>();
    for (port, to) in (1..).zip([node::<F>(30_080), vip::<F>(80), at::<F>(98, 1, 80)]) {
        serves(&mut bed, UP_IN, &Datagram::tcp(outside::<F>(port), to, SYN));
        serves(&mut bed, POD_IN, &Datagram::tcp(client::<F>(port), to, SYN));
    }
}

fn ranges_are_a_services_own<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    for other in [service - 1, service + 1, service << 8, service << 24] {
        bed.admit(other, outside::<F>(0).addr, net::<F>());
    }
    bed.drops(UP_IN, &syn::<F>(outside::<F>(1), balancer::<F>(80)), Reason::SourceRange);
    let set = bed.set(&[local(near::<F>(8080))]);
    bed.update(service, set, set, 0);
    serves(&mut bed, UP_IN, &Datagram::tcp(outside::<F>(1), balancer::<F>(80), SYN));
}

fn the_longest_and_the_shortest_range<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, all::<F>());
    serves(&mut bed, UP_IN, &Datagram::tcp(outside::<F>(1), balancer::<F>(80), SYN));
    // The neighbour differs in the last bit.
    let neighbour = at::<F>(8, 6, 1);
    bed.drops(UP_IN, &syn::<F>(neighbour, balancer::<F>(80)), Reason::SourceRange);
    bed.admit(service, F::address(0, 0), 1);
    let is_v4_like = bed.run(UP_IN, &syn::<F>(neighbour, balancer::<F>(80)));
    // 10.0.0.0 and its like begin with a zero bit, fd00:: with a one.
    assert_eq!(is_v4_like.verdict, Verdict::Pass);
}

fn what_is_established_stays_when_ranges_change<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    let (c, v, b) = (outside::<F>(1000), balancer::<F>(80), near::<F>(8080));
    let to = |flags| Datagram::<F>::tcp(c, v, flags);
    let back = |flags| Datagram::<F>::tcp(b, c, flags);
    serves(&mut bed, UP_IN, &to(SYN));
    bed.becomes(UP_OUT, &back(SYN | ACK).bytes(), &back(SYN | ACK).from(v).bytes());
    serves(&mut bed, UP_IN, &to(ACK));
    bed.forbid(service, outside::<F>(0).addr, net::<F>());
    serves(&mut bed, UP_IN, &to(ACK).with_payload(b"more"));
    bed.becomes(UP_OUT, &back(ACK).bytes(), &back(ACK).from(v).bytes());
    bed.drops(UP_IN, &syn::<F>(outside::<F>(1001), v), Reason::SourceRange);
}

/// No RST tells a stranger that there is something.
fn what_begins_nothing_is_dropped_too<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    let stray = |from| Datagram::<F>::tcp(from, balancer::<F>(80), ACK).bytes();
    bed.drops(UP_IN, &stray(at::<F>(7, 7, 1)), Reason::SourceRange);
    bed.answers(UP_IN, &stray(outside::<F>(1)), Reason::NotSyn);
}

fn the_nodes_own_packets_are_dropped_on_their_way_out<F: Side>() {
    let (mut bed, service) = guarded::<F>();
    bed.admit(service, outside::<F>(0).addr, net::<F>());
    let packets = [
        Datagram::<F>::tcp(node::<F>(1000), balancer::<F>(80), SYN),
        Datagram::<F>::udp(node::<F>(1000), balancer::<F>(80)),
    ];
    for packet in packets {
        bed.drops(UP_OUT, &packet.bytes(), Reason::SourceRange);
        // To where nothing is ours: somebody further out may know.
        bed.passes(UP_OUT, &packet.clone().to(balancer::<F>(81)).bytes());
        bed.passes(UP_OUT, &packet.clone().from(outside::<F>(1000)).bytes());
        bed.passes(UP_OUT, &packet.to(at::<F>(98, 1, 80)).bytes());
    }
    // It may have begun before there were ranges.
    bed.passes(UP_OUT, &Datagram::<F>::tcp(node::<F>(1000), balancer::<F>(80), ACK).bytes());
}
