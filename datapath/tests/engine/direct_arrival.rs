//! Direct server return, at the node of the backend: what another node sent through the tunnel as it
//! came to it. On plain memory alone: programs see the tunnel only where a device has taken a packet
//! out of one, which the overlay tier has.

use std::collections::BTreeSet;

use datapath::{
    address::protocol::{SCTP, TCP, UDP},
    counter::{Hook, Reason},
    flow::Place,
    frontend::kind,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
    service::{SetRef, service_flags},
};

use crate::{
    bed::Bed,
    direct::publish,
    icmp::error,
    machine::Side,
    plan::*,
    sender::{ports, same},
};

both! {
    a_backend_here_answers_the_client,
    it_is_one_of_this_node,
    a_port_of_the_node_that_sent_it,
    without_a_backend_here_it_goes_on,
    what_nobody_has_does_not_go_round,
    errors_about_answers_arrive,
    a_segment_without_a_flow,
}

const ARRIVES: Hook = Hook::TunnelIngress;

/// The node that the client asked.
fn entry<F: Side>(port: u16) -> Place<F::Address> {
    at::<F>(9, 2, port)
}

/// With a Service at a balancer's address and a port of nodes, which has endpoints here and elsewhere.
fn bed<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    let cluster =
        bed.set(&[remote(far::<F>(8080)), local(near::<F>(8080)), remote(far::<F>(8081))]);
    let local = bed.set(&[local(near::<F>(8080))]);
    let service = publish(&mut bed, vip::<F>(80), kind::LOAD_BALANCER, cluster, local);
    for proto in [TCP, UDP, SCTP] {
        bed.frontend(node::<F>(30_080), proto, service, kind::NODE_PORT);
    }
    bed.node_answers(far::<F>(0).addr);
    bed.machine.memory.sender = Some(entry::<F>(0).addr);
    bed
}

fn a_backend_here_answers_the_client<F: Side>() {
    let (c, b) = (outside::<F>(40_000), near::<F>(8080));
    for v in [vip::<F>(80), entry::<F>(30_080)] {
        for proto in [TCP, UDP, SCTP] {
            let mut bed = bed::<F>();
            let to = |flags| Datagram::<F>::of(proto, c, v, flags);
            let back = |flags| Datagram::<F>::of(proto, b, c, flags);
            bed.becomes(ARRIVES, &to(SYN).bytes(), &to(SYN).to(b).bytes());
            bed.passes(POD_OUT, &to(SYN).to(b).bytes());
            bed.passes(POD_IN, &back(SYN | ACK).bytes());
            bed.becomes(UP_OUT, &back(SYN | ACK).bytes(), &back(SYN | ACK).from(v).bytes());
            bed.becomes(ARRIVES, &to(ACK).bytes(), &to(ACK).to(b).bytes());
            assert_eq!(bed.rows(), (0, 2));
            bed.becomes(UP_OUT, &back(ACK).bytes(), &back(ACK).from(v).bytes());
        }
    }
}

fn it_is_one_of_this_node<F: Side>() {
    let mut bed = bed::<F>();
    let chosen: BTreeSet<_> = (1..100)
        .map(|port| {
            let packet = Datagram::<F>::tcp(outside::<F>(port), vip::<F>(80), SYN);
            let arrived = bed.run(ARRIVES, &packet.bytes());
            same::<F>(&packet.to(near::<F>(8080)).bytes(), &arrived.bytes);
            ports::<F>(&arrived.bytes).1
        })
        .collect();
    assert_eq!(chosen.len(), 1);
}

fn a_port_of_the_node_that_sent_it<F: Side>() {
    let packet = |to| Datagram::<F>::tcp(outside::<F>(1), to, SYN).bytes();
    let mut bed = bed::<F>();
    bed.drops(ARRIVES, &packet(entry::<F>(30_081)), Reason::UnknownPort);
    // Of another node, for all we know it is to be forwarded there.
    bed.passes(ARRIVES, &packet(at::<F>(9, 3, 30_080)));
    // Only ports of nodes are everybody's.
    let service = bed.service(&[local(near::<F>(9))]);
    bed.frontend(node::<F>(443), TCP, service, kind::EXTERNAL_IP);
    bed.drops(ARRIVES, &packet(entry::<F>(443)), Reason::UnknownPort);
    // By an uplink, it is what this node forwards.
    bed.passes(UP_IN, &packet(entry::<F>(30_080)));
    assert_eq!(bed.rows(), (0, 0));
}

/// Its endpoint here went while the packet was on its way: then as from outside, but not to a node that
/// would choose again.
fn without_a_backend_here_it_goes_on<F: Side>() {
    let (c, b) = (outside::<F>(40_000), far::<F>(8080));
    for v in [vip::<F>(80), entry::<F>(30_080)] {
        for nothing in [SetRef::REJECT, SetRef::DROP] {
            let mut bed = bed::<F>();
            let cluster = bed.set(&[remote(b)]);
            let flags = datapath::algorithm::Algorithm::Maglev.flags();
            bed.update(1, cluster, nothing, flags);
            let packet = Datagram::<F>::tcp(c, v, SYN);
            bed.becomes(ARRIVES, &packet.bytes(), &packet.clone().to(b).bytes());
            let left = bed.run(UP_OUT, &packet.clone().to(b).bytes());
            let source = node::<F>(ports::<F>(&left.bytes).0.get());
            same::<F>(&packet.to(b).from(source).bytes(), &left.bytes);
            // By policy, nobody is to see it but endpoints here.
            bed.update(1, cluster, SetRef::DROP, flags | service_flags::EXTERNAL_LOCAL);
            let packet = Datagram::<F>::tcp(outside::<F>(2), v, SYN).bytes();
            bed.drops(ARRIVES, &packet, Reason::TrafficPolicy);
        }
    }
}

fn what_nobody_has_does_not_go_round<F: Side>() {
    let mut bed = bed::<F>();
    bed.update(1, SetRef::REJECT, SetRef::REJECT, 0);
    let packet = Datagram::<F>::tcp(outside::<F>(1), entry::<F>(30_080), SYN);
    let _ = bed.answers(ARRIVES, &packet.bytes(), Reason::NoEndpoints);
    bed.passes(ARRIVES, &Datagram::<F>::tcp(outside::<F>(1), far::<F>(80), SYN).bytes());
}

fn errors_about_answers_arrive<F: Side>() {
    let (c, b) = (outside::<F>(40_000), near::<F>(8080));
    for v in [vip::<F>(80), entry::<F>(30_080)] {
        let mut bed = bed::<F>();
        bed.run(ARRIVES, &Datagram::<F>::tcp(c, v, SYN).bytes());
        let reply = Datagram::<F>::tcp(b, c, ACK).with_payload(&[5; 300]);
        for by in [router::<F>(), c.addr] {
            let came = error::<F>(by, v.addr, &reply.clone().from(v).bytes());
            bed.becomes(ARRIVES, &came, &error::<F>(by, b.addr, &reply.bytes()));
        }
        let unknown = error::<F>(c.addr, v.addr, &reply.from(at::<F>(9, 2, 1)).bytes());
        bed.passes(ARRIVES, &unknown);
    }
}

/// The node that the client asked before is another: all choose alike.
fn a_segment_without_a_flow<F: Side>() {
    let mut bed = bed::<F>();
    let packet = Datagram::<F>::tcp(outside::<F>(1), vip::<F>(80), ACK);
    bed.becomes(ARRIVES, &packet.bytes(), &packet.to(near::<F>(8080)).bytes());
}
