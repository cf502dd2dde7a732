//! From a pod to a cluster IP, and back.

use datapath::{
    address::protocol::{TCP, UDP},
    counter::Reason,
    flow::role,
    frontend::kind,
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::Datagram,
    service::{SetRef, service_flags},
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    sender::{ports, same},
};

both! {
    tcp_goes_to_the_backend_and_its_answer_comes_from_the_vip,
    udp_goes_to_the_backend_and_its_answer_comes_from_the_vip,
    a_backend_elsewhere_needs_no_masquerade,
    a_pod_reaches_itself,
    a_syn_again_goes_to_the_same_backend,
    a_syn_after_both_fins_begins_a_new_flow,
    a_syn_after_a_reset_begins_a_new_flow,
    a_syn_into_an_open_flow_stays_with_its_backend,
    an_idle_udp_flow_begins_anew,
    other_destinations_are_left_alone,
    internal_policy_local,
    hops_and_marks_of_the_packet_stay,
    packets_and_connections_are_counted,
}

fn tcp_goes_to_the_backend_and_its_answer_comes_from_the_vip<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
    let to = |flags| Datagram::<F>::tcp(c, v, flags);
    let back = |flags| Datagram::<F>::tcp(b, c, flags);

    bed.becomes(POD_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
    assert_eq!(bed.rows(), (2, 0));
    bed.passes(POD_OUT, &to(SYN).to(b).bytes());
    bed.passes(POD_IN, &back(SYN | ACK).bytes());
    bed.becomes(POD_OUT, &back(SYN | ACK).bytes(), &back(SYN | ACK).from(v).bytes());
    assert_eq!(bed.rows(), (2, 0), "a SYN-ACK alone proves no client");
    bed.becomes(POD_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
    assert_eq!(bed.rows(), (0, 2), "the third segment does");

    let odd = to(ACK).with_payload(b"GET / HTTP/1.1\r\n\r");
    bed.becomes(POD_IN, &odd.bytes(), &odd.clone().to(b).bytes());
    let data = back(ACK).with_payload(&[7; 1200]);
    bed.becomes(POD_OUT, &data.bytes(), &data.clone().from(v).bytes());
    bed.becomes(POD_IN, &to(FIN | ACK).bytes(), &to(FIN | ACK).to(b).bytes());
    bed.becomes(POD_OUT, &back(FIN | ACK).bytes(), &back(FIN | ACK).from(v).bytes());
    bed.becomes(POD_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
    assert_eq!(bed.rows(), (0, 2));
}

fn udp_goes_to_the_backend_and_its_answer_comes_from_the_vip<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    let to = Datagram::<F>::udp(c, v);
    let back = Datagram::<F>::udp(b, c).with_payload(b"odd");
    for _ in 0..3 {
        bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
        assert_eq!(bed.rows(), (2, 0), "no answer yet");
    }
    bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(v).bytes());
    assert_eq!(bed.rows(), (0, 2));
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
    bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(v).bytes());
}

fn a_backend_elsewhere_needs_no_masquerade<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[remote(far::<F>(8080))]);
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), far::<F>(8080));
    let syn = Datagram::<F>::tcp(c, v, SYN);
    let answer = Datagram::<F>::tcp(b, c, SYN | ACK);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(b).bytes());
    bed.passes(UP_OUT, &syn.to(b).bytes());
    bed.passes(UP_IN, &answer.bytes());
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
}

/// Client and backend are one pod: its kernel would take no packet from itself, so the source
/// becomes the node's, and the answer finds its way back through it.
fn a_pod_reaches_itself<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (client::<F>(40_000), vip::<F>(80), client::<F>(8080));
        bed.cluster_ip(v, proto, &[local(b)]);
        let to = |flags| Datagram::<F>::of(proto, c, v, flags);
        bed.becomes(POD_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
        let leaving = bed.run(POD_OUT, &to(SYN).to(b).bytes());
        let s = node::<F>(ports::<F>(&leaving.bytes).0.get());
        assert!((59_000..=59_999).contains(&s.port.get()));
        same::<F>(&to(SYN).to(b).from(s).bytes(), &leaving.bytes);
        let back = |flags| Datagram::<F>::of(proto, b, s, flags);
        for _ in 0..2 {
            bed.becomes(POD_IN, &back(SYN | ACK).bytes(), &back(SYN | ACK).to(c).bytes());
            let seen = back(SYN | ACK).to(c);
            bed.becomes(POD_OUT, &seen.bytes(), &seen.clone().from(v).bytes());
            bed.becomes(POD_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
            bed.becomes(POD_OUT, &to(ACK).to(b).bytes(), &to(ACK).to(b).from(s).bytes());
        }
        assert_eq!(bed.rows(), (0, 4));
    }
}

fn a_syn_again_goes_to_the_same_backend<F: Side>() {
    let mut bed = Bed::<F>::new();
    let backends: Vec<_> = (1..=50).map(|host| local(at::<F>(1, 100 + host, 8080))).collect();
    bed.cluster_ip(vip::<F>(80), TCP, &backends);
    let syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), SYN).bytes();
    let first = bed.run(POD_IN, &syn);
    for _ in 0..20 {
        assert_eq!(bed.run(POD_IN, &syn), first);
    }
    assert_eq!(bed.rows(), (2, 0));
}

fn handshake<F: Side>(bed: &mut Bed<F>, c: datapath::flow::Place<F::Address>) {
    let (v, b) = (vip::<F>(80), near::<F>(8080));
    let to = |flags| Datagram::<F>::tcp(c, v, flags);
    bed.becomes(POD_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
    let back = Datagram::<F>::tcp(b, c, SYN | ACK);
    bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(v).bytes());
    bed.becomes(POD_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
}

fn a_syn_after_both_fins_begins_a_new_flow<F: Side>() {
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
    handshake(&mut bed, c);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, v, FIN | ACK).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, FIN | ACK).bytes());
    assert_eq!(bed.rows(), (0, 2));
    // The Service has moved meanwhile: only a new flow goes to its new backend.
    let set = bed.set(&[local(at::<F>(1, 9, 9090))]);
    bed.update(service, set, set, 0);
    let syn = Datagram::<F>::tcp(c, v, SYN);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(at::<F>(1, 9, 9090)).bytes());
    assert_eq!(bed.rows(), (2, 0));
}

fn a_syn_after_a_reset_begins_a_new_flow<F: Side>() {
    for by_client in [true, false] {
        let mut bed = Bed::<F>::new();
        bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
        let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
        handshake(&mut bed, c);
        if by_client {
            bed.run(POD_IN, &Datagram::<F>::tcp(c, v, RST).bytes());
        } else {
            bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, RST | ACK).bytes());
        }
        let syn = Datagram::<F>::tcp(c, v, SYN);
        bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(b).bytes());
        assert_eq!(bed.rows(), (2, 0));
        handshake(&mut bed, c);
        assert_eq!(bed.rows(), (0, 2));
    }
}

fn a_syn_into_an_open_flow_stays_with_its_backend<F: Side>() {
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let c = client::<F>(40_000);
    handshake(&mut bed, c);
    bed.update(service, SetRef::REJECT, SetRef::REJECT, 0);
    let syn = Datagram::<F>::tcp(c, vip::<F>(80), SYN);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(near::<F>(8080)).bytes());
    assert_eq!(bed.rows(), (0, 2));
}

fn an_idle_udp_flow_begins_anew<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    let service = bed.cluster_ip(v, UDP, &[local(b)]);
    let to = Datagram::<F>::udp(c, v);
    bed.run(POD_IN, &to.bytes());
    bed.run(POD_OUT, &Datagram::<F>::udp(b, c).bytes());
    let new = at::<F>(1, 9, 5353);
    let set = bed.set(&[local(new)]);
    bed.update(service, set, set, 0);
    bed.machine.pass(115);
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
    bed.machine.pass(122);
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(new).bytes());
    assert_eq!(bed.rows(), (2, 0));
}

fn other_destinations_are_left_alone<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    for hook in [POD_IN, POD_OUT, UP_IN, UP_OUT] {
        for proto in [TCP, UDP] {
            let direct = Datagram::<F>::of(proto, client::<F>(1), far::<F>(80), SYN);
            bed.passes(hook, &direct.bytes());
        }
        let ping = [if F::V6 { 128 } else { 8 }, 0];
        let (src, dst) = (client::<F>(0).addr, far::<F>(0).addr);
        let ping = datapath::host::frame::icmp::<F>(src, dst, ping, [0; 4], b"ping");
        bed.passes(hook, &ping.bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn internal_policy_local<F: Side>() {
    let mut bed = Bed::<F>::new();
    let cluster = bed.set(&[remote(far::<F>(8080))]);
    let service = bed.service_of(cluster, SetRef::DROP, service_flags::INTERNAL_LOCAL);
    bed.frontend(vip::<F>(80), TCP, service, kind::CLUSTER_IP);
    let syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), SYN);
    bed.drops(POD_IN, &syn.bytes(), Reason::TrafficPolicy);
    assert_eq!(bed.rows(), (0, 0));
    let near_set = bed.set(&[local(near::<F>(8080))]);
    bed.update(service, cluster, near_set, service_flags::INTERNAL_LOCAL);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(near::<F>(8080)).bytes());
}

fn hops_and_marks_of_the_packet_stay<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let mut syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), SYN);
    (syn.hops, syn.id) = (1, 0xffff);
    let class = if F::V6 { 0x0b } else { 0xb8 };
    let mut bytes = syn.bytes();
    let mut expected = syn.to(near::<F>(8080)).bytes();
    for packet in [&mut bytes, &mut expected] {
        if F::V6 {
            packet[0] |= class;
            packet[3] = 0x77;
        } else {
            // DSCP and ECN, with the header checksum that belongs to them.
            packet[1] = class;
            let old = u32::from(u16::from_be_bytes([packet[10], packet[11]]));
            let sum = (!old & 0xffff) + u32::from(class);
            let new = !((sum & 0xffff) + (sum >> 16)) as u16;
            packet[10..12].copy_from_slice(&new.to_be_bytes());
        }
    }
    bed.becomes(POD_IN, &bytes, &expected);
}

fn packets_and_connections_are_counted<F: Side>() {
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    handshake(&mut bed, client::<F>(40_000));
    handshake(&mut bed, client::<F>(40_001));
    let counters = bed.machine.counters(service);
    assert_eq!(counters.packet_connections, 2);
    assert_eq!(counters.packets, 6);
    assert_eq!(counters.bytes, 6 * if F::V6 { 60 } else { 40 });
    for (_, row) in bed.flows() {
        let packets = if row.role == role::ORIGINAL { 2 } else { 1 };
        assert_eq!((row.packets, row.service), (packets, service));
    }
}
