//! From the outside to a port of the node.

use std::collections::BTreeSet;

use datapath::{
    address::{
        Be16,
        protocol::{SCTP, TCP, UDP},
    },
    counter::Reason,
    flow::{FlowKey, Place, hook},
    frontend::kind,
    header::tcp::{ACK, FIN, SYN},
    host::frame::Datagram,
    packet::Verdict,
    policy::MASQUERADE_MARK,
    service::{SetRef, service_flags},
};

use crate::{
    bed::{Bed, NAT_PORTS},
    machine::Side,
    plan::*,
    sender::{ports, same},
};

both! {
    a_backend_here_sees_the_client,
    a_backend_elsewhere_sees_the_node,
    a_pod_of_this_node_uses_the_port_too,
    other_ports_of_the_node_are_not_ours,
    sources_differ_in_their_ports,
    ports_come_from_the_range_alone,
    who_gives_a_source_says_so_by_a_mark,
    a_port_serves_several_backends,
    an_unanswered_flow_gives_its_port_up,
    a_flow_that_is_over_gives_its_port_up,
    without_a_free_port_the_flow_is_refused,
    a_port_that_a_socket_has_is_not_taken,
    without_an_address_nothing_is_masqueraded,
    policy_local_outside_and_inside,
    a_syn_again_keeps_its_source,
    a_port_on_a_loopback_address_is_no_packets,
}

fn a_backend_here_sees_the_client<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), near::<F>(8080));
        bed.node_port(30_080, proto, &[local(b)]);
        let to = |flags| Datagram::<F>::of(proto, c, v, flags);
        let back = |flags| Datagram::<F>::of(proto, b, c, flags);
        bed.becomes(UP_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
        bed.passes(POD_OUT, &to(SYN).to(b).bytes());
        bed.passes(POD_IN, &back(SYN | ACK).bytes());
        bed.becomes(UP_OUT, &back(SYN | ACK).bytes(), &back(SYN | ACK).from(v).bytes());
        bed.becomes(UP_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
        assert_eq!(bed.rows(), (0, 2));
        bed.becomes(UP_OUT, &back(ACK).bytes(), &back(ACK).from(v).bytes());
    }
}

fn a_backend_elsewhere_sees_the_node<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
        bed.node_port(30_080, proto, &[remote(b)]);
        let to = |flags| Datagram::<F>::of(proto, c, v, flags);
        bed.becomes(UP_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
        assert_eq!(bed.rows(), (3, 0), "no row for replies before there is a source");
        let leaving = bed.run(UP_OUT, &to(SYN).to(b).bytes());
        let s = node::<F>(ports::<F>(&leaving.bytes).0.get());
        assert!((NAT_PORTS.0..=NAT_PORTS.1).contains(&s.port.get()));
        same::<F>(&to(SYN).to(b).from(s).bytes(), &leaving.bytes);
        assert_eq!(bed.rows(), (4, 0));
        let back = |flags| Datagram::<F>::of(proto, b, s, flags);
        for turn in 0..3 {
            bed.becomes(UP_IN, &back(SYN | ACK).bytes(), &back(SYN | ACK).to(c).bytes());
            let seen = back(SYN | ACK).to(c);
            bed.becomes(UP_OUT, &seen.bytes(), &seen.clone().from(v).bytes());
            bed.becomes(UP_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
            bed.becomes(UP_OUT, &to(ACK).to(b).bytes(), &to(ACK).to(b).from(s).bytes());
            assert_eq!(bed.rows(), (0, 4), "turn {turn}");
        }
    }
}

fn a_pod_of_this_node_uses_the_port_too<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), node::<F>(30_080), far::<F>(8080));
    bed.node_port(30_080, TCP, &[remote(b)]);
    let syn = Datagram::<F>::tcp(c, v, SYN);
    let answer = Datagram::<F>::tcp(b, c, SYN | ACK);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(b).bytes());
    bed.passes(UP_OUT, &syn.to(b).bytes());
    bed.passes(UP_IN, &answer.bytes());
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
}

fn other_ports_of_the_node_are_not_ours<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.node_port(30_080, TCP, &[local(near::<F>(8080))]);
    for hook in [UP_IN, POD_IN] {
        bed.passes(hook, &Datagram::<F>::tcp(outside::<F>(1), node::<F>(22), SYN).bytes());
        bed.passes(hook, &Datagram::<F>::tcp(outside::<F>(1), node::<F>(22), ACK).bytes());
        bed.passes(hook, &Datagram::<F>::udp(outside::<F>(1), node::<F>(30_080)).bytes());
        // What a socket of the node began within our range comes back to it.
        bed.passes(hook, &Datagram::<F>::tcp(far::<F>(80), node::<F>(59_001), ACK).bytes());
        let (src, dst) = (outside::<F>(0).addr, node::<F>(0).addr);
        bed.passes(hook, &Datagram::<F>::other(src, dst, 47, &[1; 16]).bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

/// Sends a SYN through the node and returns the port that it leaves with.
pub(crate) fn leave<F: Side>(
    bed: &mut Bed<F>,
    client_port: u16,
    b: datapath::flow::Place<F::Address>,
) -> u16 {
    let syn = Datagram::<F>::tcp(outside::<F>(client_port), node::<F>(30_080), SYN);
    bed.becomes(UP_IN, &syn.bytes(), &syn.clone().to(b).bytes());
    let outcome = bed.run(UP_OUT, &syn.to(b).bytes());
    let port = ports::<F>(&outcome.bytes).0.get();
    assert_ne!(port, client_port, "a source was given");
    port
}

fn sources_differ_in_their_ports<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let given: BTreeSet<_> = (1000..1500).map(|port| leave(&mut bed, port, b)).collect();
    assert_eq!(given.len(), 500);
}

/// From ingress to egress, and only for what has no source yet.
fn who_gives_a_source_says_so_by_a_mark<F: Side>() {
    const OTHERS: u32 = 0x8001;
    let mut bed = Bed::<F>::new();
    let (near_b, far_b) = (near::<F>(8080), far::<F>(8080));
    for (port, backend, bits) in
        [(30_080, remote(far_b), MASQUERADE_MARK), (30_081, local(near_b), 0)]
    {
        bed.node_port(port, TCP, &[backend]);
        for flags in [SYN, ACK] {
            let asked = Datagram::<F>::tcp(outside::<F>(1000), node::<F>(port), flags);
            let mut mark = OTHERS;
            let (verdict, entered) = bed.machine.run_marked(UP_IN, &mut mark, &asked.bytes());
            assert_eq!((verdict, mark), (Verdict::Pass, OTHERS | bits));
            let (verdict, _) = bed.machine.run_marked(UP_OUT, &mut mark, &entered);
            assert_eq!((verdict, mark), (Verdict::Pass, OTHERS));
        }
    }
    let elsewhere = Datagram::<F>::tcp(outside::<F>(1), far::<F>(22), SYN).bytes();
    let mut mark = OTHERS | MASQUERADE_MARK;
    for hook in [UP_IN, UP_OUT] {
        let _ = bed.machine.run_marked(hook, &mut mark, &elsewhere);
        assert_eq!(mark, OTHERS | MASQUERADE_MARK, "it is not ours");
    }
}

fn ports_come_from_the_range_alone<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.nat_ports(59_990, 59_993);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let given: BTreeSet<_> = (1000..1003).map(|port| leave(&mut bed, port, b)).collect();
    assert_eq!(given.len(), 3);
    assert!(given.iter().all(|port| (59_990..=59_993).contains(port)), "{given:?}");
}

fn a_port_serves_several_backends<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.nat_ports(59_000, 59_000);
    let service = bed.node_port(30_080, TCP, &[]);
    for host in 1..=5 {
        let b = at::<F>(2, host, 8080);
        let set = bed.set(&[remote(b)]);
        bed.update(service, set, set, 0);
        assert_eq!(leave(&mut bed, 1000 + host, b), 59_000);
    }
}

/// The backend answers, and the client answers that.
pub(crate) fn answer<F: Side>(
    bed: &mut Bed<F>,
    client_port: u16,
    b: datapath::flow::Place<F::Address>,
    source: u16,
) {
    let c = outside::<F>(client_port);
    let syn_ack = Datagram::<F>::tcp(b, node::<F>(source), SYN | ACK);
    bed.becomes(UP_IN, &syn_ack.bytes(), &syn_ack.clone().to(c).bytes());
    let v = node::<F>(30_080);
    bed.becomes(UP_OUT, &syn_ack.clone().to(c).bytes(), &syn_ack.to(c).from(v).bytes());
    let third = Datagram::<F>::tcp(c, v, ACK);
    bed.becomes(UP_IN, &third.bytes(), &third.clone().to(b).bytes());
}

/// A flood of flows that nobody answers must not keep others from beginning.
fn an_unanswered_flow_gives_its_port_up<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.nat_ports(59_000, 59_000);
    bed.node_port(30_080, TCP, &[remote(b)]);
    for client_port in 1000..1010 {
        assert_eq!(leave(&mut bed, client_port, b), 59_000);
    }
    answer(&mut bed, 1009, b, 59_000);
    let syn = Datagram::<F>::tcp(outside::<F>(1010), node::<F>(30_080), SYN);
    bed.becomes(UP_IN, &syn.bytes(), &syn.clone().to(b).bytes());
    bed.drops(UP_OUT, &syn.to(b).bytes(), Reason::NatPortsExhausted);
}

/// Closed rows stay for minutes, and clients of one node port ask more often than that.
fn a_flow_that_is_over_gives_its_port_up<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.nat_ports(59_000, 59_000);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let is_refused = |bed: &mut Bed<F>, client_port| {
        let syn = Datagram::<F>::tcp(outside::<F>(client_port), node::<F>(30_080), SYN);
        bed.becomes(UP_IN, &syn.bytes(), &syn.clone().to(b).bytes());
        bed.drops(UP_OUT, &syn.to(b).bytes(), Reason::NatPortsExhausted);
    };
    assert_eq!(leave(&mut bed, 1000, b), 59_000);
    answer(&mut bed, 1000, b, 59_000);
    bed.machine.pass(100);
    // It lives, however quiet it is.
    is_refused(&mut bed, 1001);
    let (c, v, s) = (outside::<F>(1000), node::<F>(30_080), node::<F>(59_000));
    let fin = Datagram::<F>::tcp(c, v, FIN | ACK);
    bed.becomes(UP_IN, &fin.bytes(), &fin.clone().to(b).bytes());
    bed.becomes(UP_OUT, &fin.clone().to(b).bytes(), &fin.to(b).from(s).bytes());
    let fin = Datagram::<F>::tcp(b, s, FIN | ACK);
    bed.becomes(UP_IN, &fin.bytes(), &fin.clone().to(c).bytes());
    bed.becomes(UP_OUT, &fin.clone().to(c).bytes(), &fin.to(c).from(v).bytes());
    // Its last segments may be on their way.
    is_refused(&mut bed, 1002);
    bed.machine.pass(2);
    assert_eq!(leave(&mut bed, 1003, b), 59_000);
    answer(&mut bed, 1003, b, 59_000);
    is_refused(&mut bed, 1004);
}

fn without_a_free_port_the_flow_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.nat_ports(59_000, 59_001);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let (first, second) = (leave(&mut bed, 1000, b), leave(&mut bed, 1001, b));
    assert_ne!(first, second);
    answer(&mut bed, 1000, b, first);
    answer(&mut bed, 1001, b, second);
    let syn = Datagram::<F>::tcp(outside::<F>(1002), node::<F>(30_080), SYN);
    for _ in 0..2 {
        bed.becomes(UP_IN, &syn.bytes(), &syn.clone().to(b).bytes());
        bed.drops(UP_OUT, &syn.clone().to(b).bytes(), Reason::NatPortsExhausted);
    }
    // The others go on.
    let ack = Datagram::<F>::tcp(outside::<F>(1000), b, ACK);
    bed.becomes(UP_OUT, &ack.bytes(), &ack.clone().from(node::<F>(first)).bytes());
}

fn a_port_that_a_socket_has_is_not_taken<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.nat_ports(59_000, 59_000);
    bed.node_port(30_080, UDP, &[remote(b)]);
    bed.machine.hold(&FlowKey::new(b, node::<F>(59_000), UDP, hook::INGRESS));
    let packet = Datagram::<F>::udp(outside::<F>(1000), node::<F>(30_080));
    bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
    bed.drops(UP_OUT, &packet.clone().to(b).bytes(), Reason::NatPortsExhausted);
    bed.nat_ports(59_001, 59_001);
    let expected = packet.clone().to(b).from(node::<F>(59_001));
    bed.becomes(UP_OUT, &packet.to(b).bytes(), &expected.bytes());
}

fn without_an_address_nothing_is_masqueraded<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.node_port(30_080, TCP, &[remote(far::<F>(8080))]);
    let syn = Datagram::<F>::tcp(outside::<F>(1000), node::<F>(30_080), SYN);
    bed.run(UP_IN, &syn.bytes());
    bed.device(None);
    bed.drops(UP_OUT, &syn.clone().to(far::<F>(8080)).bytes(), Reason::NoMasqueradeAddress);
    bed.no_device();
    bed.drops(UP_OUT, &syn.to(far::<F>(8080)).bytes(), Reason::NoMasqueradeAddress);
}

fn policy_local_outside_and_inside<F: Side>() {
    for kind in [kind::NODE_PORT, kind::EXTERNAL_IP, kind::LOAD_BALANCER] {
        let mut bed = Bed::<F>::new();
        let far_set = bed.set(&[remote(far::<F>(8080))]);
        let service = bed.service_of(far_set, SetRef::DROP, service_flags::EXTERNAL_LOCAL);
        let v = at::<F>(99, 1, 80);
        bed.frontend(v, TCP, service, kind);
        let syn = |c| Datagram::<F>::tcp(c, v, SYN);
        bed.drops(UP_IN, &syn(outside::<F>(1)).bytes(), Reason::TrafficPolicy);
        let inside = syn(client::<F>(1));
        bed.becomes(POD_IN, &inside.bytes(), &inside.clone().to(far::<F>(8080)).bytes());
        let near_set = bed.set(&[local(near::<F>(8080))]);
        bed.update(service, far_set, near_set, service_flags::EXTERNAL_LOCAL);
        let other = syn(outside::<F>(2));
        bed.becomes(UP_IN, &other.bytes(), &other.clone().to(near::<F>(8080)).bytes());
    }
}

fn a_syn_again_keeps_its_source<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let first = leave(&mut bed, 1000, b);
    for _ in 0..10 {
        assert_eq!(leave(&mut bed, 1000, b), first);
    }
    assert_eq!(bed.rows(), (4, 0));
}

/// Only the node's own sockets may mean it: a packet with that destination is forged, and would get to
/// a Service that is meant for the node alone (CVE-2020-8558).
fn a_port_on_a_loopback_address_is_no_packets<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let mut bed = Bed::<F>::new();
        let (c, v) = (outside::<F>(40_000), Place::new(F::loopback(), Be16::new(30_080)));
        let service = bed.service(&[local(near::<F>(8080))]);
        bed.frontend(v, proto, service, kind::NODE_PORT);
        for hook in [UP_IN, POD_IN] {
            bed.passes(hook, &Datagram::<F>::of(proto, c, v, SYN).bytes());
        }
        assert_eq!(bed.rows(), (0, 0));
    }
}
