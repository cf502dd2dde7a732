//! Packets in pieces.

use datapath::{
    address::{
        V6,
        protocol::{TCP, UDP},
    },
    counter::Reason,
    header::tcp::{ACK, SYN},
    host::frame::{Datagram, Sum},
};

use crate::{
    bed::Bed,
    machine::Side,
    plan::*,
    sender::{ports, same},
};

both! {
    fragments_follow_their_first,
    fragments_of_answers_follow_their_first,
    fragments_are_masqueraded,
    a_fragment_before_its_first_is_refused_where_all_is_ours,
    a_fragment_before_its_first_passes_where_not_all_is_ours,
    datagrams_with_equal_ids_are_told_apart,
    fragments_of_refused_packets_are_refused,
    a_first_fragment_too_short_for_ports_is_refused,
    late_fragments_do_not_begin_flows,
    udp_without_checksum_stays_so,
    a_packet_in_one_fragment_is_whole,
    tcp_fragments,
}

fn fragments_follow_their_first<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    bed.cluster_ip(v, UDP, &[local(b)]);
    let packet = Datagram::<F>::udp(c, v).with_payload(&[0x5a; 3001]);
    let expected = packet.clone().to(b).fragments(1024);
    for _ in 0..2 {
        for (piece, expected) in packet.fragments(1024).iter().zip(&expected) {
            bed.becomes(POD_IN, piece, expected);
        }
    }
    // Once the first is there, order does not matter.
    for (piece, expected) in packet.fragments(1024).iter().zip(&expected).rev() {
        bed.becomes(POD_IN, piece, expected);
    }
    for piece in &expected {
        bed.passes(POD_OUT, piece);
    }
}

fn fragments_of_answers_follow_their_first<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    bed.cluster_ip(v, UDP, &[local(b)]);
    bed.run(POD_IN, &Datagram::<F>::udp(c, v).bytes());
    let answer = Datagram::<F>::udp(b, c).with_payload(&[0x5a; 3000]);
    let expected = answer.clone().from(v).fragments(1024);
    for (piece, expected) in answer.fragments(1024).iter().zip(&expected) {
        bed.becomes(POD_OUT, piece, expected);
    }
    assert_eq!(bed.rows(), (0, 2), "a first fragment is an answer");
}

fn fragments_are_masqueraded<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_053), far::<F>(5353));
    bed.node_port(30_053, UDP, &[remote(b)]);
    let packet = Datagram::<F>::udp(c, v).with_payload(&[0x5a; 2000]);
    let inside = packet.clone().to(b).fragments(1024);
    for (piece, expected) in packet.fragments(1024).iter().zip(&inside) {
        bed.becomes(UP_IN, piece, expected);
    }
    let out = bed.run(UP_OUT, &inside[0]);
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    let sent = packet.to(b).from(s).fragments(1024);
    same::<F>(&sent[0], &out.bytes);
    bed.becomes(UP_OUT, &inside[1], &sent[1]);
    // And the answer.
    let answer = Datagram::<F>::udp(b, s).with_payload(&[1; 1500]);
    let (came, inside) = (answer.fragments(800), answer.clone().to(c).fragments(800));
    let seen = answer.to(c).from(v).fragments(800);
    for ((came, inside), seen) in came.iter().zip(&inside).zip(&seen) {
        bed.becomes(UP_IN, came, inside);
        bed.becomes(UP_OUT, inside, seen);
    }
}

fn a_fragment_before_its_first_is_refused_where_all_is_ours<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let pieces =
        Datagram::<F>::udp(client::<F>(1), vip::<F>(53)).with_payload(&[1; 100]).fragments(64);
    bed.drops(POD_IN, &pieces[1], Reason::FragmentWithoutFirst);
    assert_eq!(bed.rows(), (0, 0));
}

fn a_fragment_before_its_first_passes_where_not_all_is_ours<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.node_port(30_053, UDP, &[local(near::<F>(5353))]);
    let pieces = Datagram::<F>::udp(outside::<F>(1), node::<F>(30_053))
        .with_payload(&[1; 100])
        .fragments(64);
    bed.passes(UP_IN, &pieces[1]);
    let pieces =
        Datagram::<F>::udp(near::<F>(5353), outside::<F>(1)).with_payload(&[1; 100]).fragments(64);
    bed.passes(UP_OUT, &pieces[1]);
}

fn datagrams_with_equal_ids_are_told_apart<F: Side>() {
    let mut bed = Bed::<F>::new();
    let v = vip::<F>(53);
    bed.cluster_ip(v, UDP, &[local(near::<F>(5353))]);
    let make = |host, id| {
        let mut packet = Datagram::<F>::udp(at::<F>(1, host, 9), v).with_payload(&[1; 100]);
        packet.id = id;
        packet
    };
    bed.run(POD_IN, &make(2, 7).fragments(64)[0]);
    bed.drops(POD_IN, &make(3, 7).fragments(64)[1], Reason::FragmentWithoutFirst);
    bed.drops(POD_IN, &make(2, 8).fragments(64)[1], Reason::FragmentWithoutFirst);
    let expected = make(2, 7).to(near::<F>(5353)).fragments(64);
    bed.becomes(POD_IN, &make(2, 7).fragments(64)[1], &expected[1]);
}

fn fragments_of_refused_packets_are_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(53), UDP, &[]);
    let pieces =
        Datagram::<F>::udp(client::<F>(1), vip::<F>(53)).with_payload(&[1; 100]).fragments(64);
    bed.answers(POD_IN, &pieces[0], Reason::NoEndpoints);
    bed.drops(POD_IN, &pieces[1], Reason::FragmentWithoutFirst);
}

fn a_first_fragment_too_short_for_ports_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.node_port(30_080, TCP, &[local(near::<F>(8080))]);
    // RFC 3128: flags in the second fragment.
    let pieces = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN).fragments(8);
    bed.drops(POD_IN, &pieces[0], Reason::Malformed);
    let pieces = Datagram::<F>::tcp(outside::<F>(1), node::<F>(30_080), SYN).fragments(8);
    bed.passes(UP_IN, &pieces[0]);
    assert_eq!(bed.rows(), (0, 0));
}

/// A later fragment that meets a flow which is over, or not yet settled, goes by the ports that
/// its first fragment left, and never by the zeros that stand in its own place.
fn late_fragments_do_not_begin_flows<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    bed.cluster_ip(v, UDP, &[local(b)]);
    let packet = Datagram::<F>::udp(c, v).with_payload(&[1; 100]);
    let (pieces, expected) = (packet.fragments(64), packet.clone().to(b).fragments(64));
    bed.becomes(POD_IN, &pieces[0], &expected[0]);
    for ticks in [1, 5, 200] {
        bed.machine.pass(ticks);
        bed.becomes(POD_IN, &pieces[1], &expected[1]);
    }
    for (key, _) in bed.pending() {
        bed.machine.remove_row(datapath::tables::Store::Pending, &key);
    }
    bed.drops(POD_IN, &pieces[1], Reason::FragmentWithoutFirst);
}

fn udp_without_checksum_stays_so<F: Side>() {
    if F::V6 {
        return;
    }
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
    bed.cluster_ip(v, UDP, &[local(b)]);
    let mut packet = Datagram::<F>::udp(c, v);
    packet.sum = Sum::Zero;
    bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(b).bytes());
    let mut answer = Datagram::<F>::udp(b, c).with_payload(&[1; 200]);
    answer.sum = Sum::Zero;
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
    for (piece, expected) in answer.fragments(64).iter().zip(&answer.clone().from(v).fragments(64))
    {
        bed.becomes(POD_OUT, piece, expected);
    }
}

/// RFC 6946: an atomic fragment is a packet like any other.
fn a_packet_in_one_fragment_is_whole<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
    bed.cluster_ip(v, TCP, &[local(b)]);
    let packet = Datagram::<F>::tcp(c, v, SYN);
    bed.becomes(POD_IN, &packet.fragments(64)[0], &packet.clone().to(b).fragments(64)[0]);
}

fn tcp_fragments<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
    bed.cluster_ip(v, TCP, &[local(b)]);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, v, SYN).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, SYN | ACK).bytes());
    let packet = Datagram::<F>::tcp(c, v, ACK).with_payload(&[3; 500]);
    let expected = packet.clone().to(b).fragments(128);
    for (piece, expected) in packet.fragments(128).iter().zip(&expected) {
        bed.becomes(POD_IN, piece, expected);
    }
    assert_eq!(bed.rows(), (0, 2));
}

/// Options may stand among what is cut into pieces (RFC 8200 §4.5). Then a later fragment does
/// not even tell its protocol, and does not follow its first.
#[test]
fn fragments_that_begin_with_options_end_at_a_cluster_ip() {
    let mut bed = Bed::<V6>::new();
    let (c, v, b) = (client::<V6>(40_000), vip::<V6>(53), near::<V6>(5353));
    bed.cluster_ip(v, UDP, &[local(b)]);
    let pieces = |to| {
        let mut body = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
        let datagram = Datagram::<V6>::udp(c, to).with_payload(&[1; 100]).bytes();
        body.extend(&datagram[40..]);
        Datagram::<V6>::other(c.addr, to.addr, 60, &body).fragments(64)
    };
    bed.becomes(POD_IN, &pieces(v)[0], &pieces(b)[0]);
    bed.drops(POD_IN, &pieces(v)[1], Reason::UnknownPort);
}
