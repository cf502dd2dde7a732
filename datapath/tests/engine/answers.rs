//! Packets that end here: refused with ICMP, reset, or dropped.

use datapath::{
    address::protocol::{TCP, UDP},
    counter::Reason,
    frontend::kind,
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::{Datagram, icmp},
    packet::Verdict,
    service::{SetRef, service_flags},
};

use crate::{bed::Bed, machine::Side, plan::*, sender::same};

both! {
    without_endpoints_port_unreachable,
    an_unknown_port_of_a_cluster_ip_is_refused,
    no_more_than_what_helps_is_quoted,
    other_protocols_to_a_cluster_ip_are_refused,
    errors_are_never_answered_with_errors,
    a_stray_segment_is_reset,
    a_stray_segment_without_ack_is_reset,
    a_stray_reset_ends_silently,
    a_syn_with_more_flags_begins_nothing,
    strays_pass_beside_another_proxy,
    packets_too_short_are_refused_or_left_alone,
    what_leaves_for_an_unknown_port_of_a_cluster_ip_is_refused,
    what_leaves_for_a_cluster_ip_meets_its_policy,
    what_leaves_for_other_addresses_passes,
    errors_and_later_fragments_that_leave_pass,
}

/// The ICMP port unreachable about a packet, from whom it was sent to.
fn unreachable<F: Side>(about: &Datagram<F>, quote: &[u8]) -> Vec<u8> {
    let kind = if F::V6 { [1, 4] } else { [3, 3] };
    let mut message = icmp::<F>(about.dst.addr, about.src.addr, kind, [0; 4], quote);
    (message.hops, message.id) = (64, 0);
    without_df::<F>(message.bytes())
}

/// Answers are made with no flags and no identification.
fn without_df<F: Side>(mut bytes: Vec<u8>) -> Vec<u8> {
    if !F::V6 {
        bytes[6] = 0;
        bytes[10..12].fill(0);
        let sum: u32 = bytes[..20]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let value = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[10..12].copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

fn without_endpoints_port_unreachable<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[]);
    bed.cluster_ip(vip::<F>(53), UDP, &[]);
    bed.node_port(30_080, TCP, &[]);
    let syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), SYN);
    let udp = Datagram::<F>::udp(client::<F>(40_000), vip::<F>(53));
    for packet in [syn, udp] {
        let answer = bed.answers(POD_IN, &packet.bytes(), Reason::NoEndpoints);
        same::<F>(&unreachable(&packet, &packet.bytes()), &answer);
    }
    let outer = Datagram::<F>::tcp(outside::<F>(40_000), node::<F>(30_080), SYN);
    let answer = bed.answers(UP_IN, &outer.bytes(), Reason::NoEndpoints);
    same::<F>(&unreachable(&outer, &outer.bytes()), &answer);
    assert_eq!(bed.rows(), (0, 0));
}

fn an_unknown_port_of_a_cluster_ip_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(81), SYN);
    // The same port, but the other protocol.
    let udp = Datagram::<F>::udp(client::<F>(40_000), vip::<F>(80));
    for packet in [syn, udp] {
        let answer = bed.answers(POD_IN, &packet.bytes(), Reason::UnknownPort);
        same::<F>(&unreachable(&packet, &packet.bytes()), &answer);
    }
}

fn no_more_than_what_helps_is_quoted<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(53), UDP, &[]);
    for length in [0, 1, 2, 3, 50, 83, 99, 100, 101, 700, 1400] {
        let payload: Vec<u8> = (0..=255).cycle().take(length).collect();
        let packet = Datagram::<F>::udp(client::<F>(1), vip::<F>(53)).with_payload(&payload);
        let bytes = packet.bytes();
        let answer = bed.answers(POD_IN, &bytes, Reason::NoEndpoints);
        let quote = bytes.len().min(128) & !3;
        same::<F>(&unreachable(&packet, &bytes[..quote]), &answer);
    }
}

fn other_protocols_to_a_cluster_ip_are_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let (src, dst) = (client::<F>(0).addr, vip::<F>(0).addr);
    let echo = icmp::<F>(src, dst, [if F::V6 { 128 } else { 8 }, 0], [0, 1, 0, 1], b"ping");
    let gre = Datagram::<F>::other(src, dst, 47, &[1; 24]);
    for packet in [echo, gre] {
        let answer = bed.answers(POD_IN, &packet.bytes(), Reason::UnknownPort);
        same::<F>(&unreachable(&packet, &packet.bytes()), &answer);
    }
}

fn errors_are_never_answered_with_errors<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let (src, dst) = (client::<F>(0).addr, vip::<F>(0).addr);
    let quote = Datagram::<F>::tcp(vip::<F>(80), client::<F>(1), ACK).bytes();
    let kinds: &[u8] = if F::V6 { &[1, 2, 3, 4, 127, 137] } else { &[3, 4, 5, 11, 12] };
    for kind in kinds {
        let error = icmp::<F>(src, dst, [*kind, 0], [0; 4], &quote);
        bed.drops(POD_IN, &error.bytes(), Reason::UnknownPort);
        bed.drops(
            POD_IN,
            &icmp::<F>(src, dst, [*kind, 0], [0; 4], &[]).bytes(),
            Reason::UnknownPort,
        );
    }
}

/// What a closed port would answer.
pub(crate) fn reset<F: Side>(
    about: &Datagram<F>,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
) -> Vec<u8> {
    let mut answer = Datagram::<F>::tcp(about.dst, about.src, flags);
    (answer.sequence, answer.acknowledgement) = (sequence, acknowledgement);
    (answer.hops, answer.id) = (64, 0);
    let mut bytes = answer.bytes();
    let at = if F::V6 { 40 } else { 20 };
    // A reset offers no window.
    let sum = u16::from_be_bytes([bytes[at + 16], bytes[at + 17]]);
    let changed = u32::from(!sum) + u32::from(!0xfaf0_u16);
    let changed = !((changed & 0xffff) + (changed >> 16)) as u16;
    bytes[at + 14..at + 16].fill(0);
    bytes[at + 16..at + 18].copy_from_slice(&changed.to_be_bytes());
    without_df::<F>(bytes)
}

fn a_stray_segment_is_reset<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.node_port(30_080, TCP, &[local(near::<F>(8080))]);
    for (hook, c, v) in [
        (POD_IN, client::<F>(40_000), vip::<F>(80)),
        (UP_IN, outside::<F>(40_000), node::<F>(30_080)),
    ] {
        for flags in [ACK, ACK | FIN, SYN | ACK, ACK | 0x08] {
            for payload in [&b""[..], b"odd", &[1; 1000]] {
                let stray = Datagram::<F>::tcp(c, v, flags).with_payload(payload);
                let answer = bed.answers(hook, &stray.bytes(), Reason::NotSyn);
                same::<F>(&reset(&stray, stray.acknowledgement, 0, RST), &answer);
            }
        }
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn a_stray_segment_without_ack_is_reset<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    for (flags, payload, length) in
        [(FIN, &b""[..], 1), (FIN, b"four", 5), (0, b"odd", 3), (SYN | FIN, b"", 2), (0, b"", 0)]
    {
        let mut stray =
            Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), flags).with_payload(payload);
        stray.sequence = 0xffff_fffe;
        let answer = bed.answers(POD_IN, &stray.bytes(), Reason::NotSyn);
        let next = 0xffff_fffe_u32.wrapping_add(length);
        same::<F>(&reset(&stray, 0, next, RST | ACK), &answer);
    }
}

fn a_stray_reset_ends_silently<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    for flags in [RST, RST | ACK, RST | SYN] {
        let stray = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), flags);
        bed.drops(POD_IN, &stray.bytes(), Reason::NotSyn);
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn a_syn_with_more_flags_begins_nothing<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.answers(
        POD_IN,
        &Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN | FIN).bytes(),
        Reason::NotSyn,
    );
    assert_eq!(bed.rows(), (0, 0));
    // ECN's flags and PSH are no others.
    let syn = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN | 0xc8);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(near::<F>(8080)).bytes());
}

fn strays_pass_beside_another_proxy<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.foreign_proxy(true);
    for flags in [ACK, ACK | FIN, RST, RST | ACK, SYN | ACK] {
        let stray = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), flags);
        bed.passes(POD_IN, &stray.bytes());
    }
    let syn = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(near::<F>(8080)).bytes());
}

/// Every length of a packet. What is shorter than the fields that change is dropped or left
/// alone, never half rewritten.
fn packets_too_short_are_refused_or_left_alone<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    bed.cluster_ip(at::<F>(96, 2, 80), TCP, &[]);
    bed.node_port(30_080, TCP, &[local(near::<F>(8080))]);
    let header = if F::V6 { 40 } else { 20 };
    let icmp = icmp::<F>(
        client::<F>(0).addr,
        vip::<F>(0).addr,
        [if F::V6 { 1 } else { 3 }, 1],
        [0; 4],
        &Datagram::<F>::tcp(vip::<F>(80), client::<F>(9), ACK).bytes(),
    );
    for (hook, packet) in [
        (POD_IN, Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), SYN).with_payload(b"fast")),
        (POD_IN, Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), ACK)),
        (POD_IN, Datagram::<F>::udp(client::<F>(1), vip::<F>(53))),
        (POD_IN, Datagram::<F>::tcp(client::<F>(1), at::<F>(96, 2, 80), SYN)),
        (POD_IN, icmp),
        (UP_IN, Datagram::<F>::tcp(outside::<F>(1), node::<F>(30_080), SYN)),
        (POD_OUT, Datagram::<F>::tcp(near::<F>(8080), client::<F>(1), ACK)),
    ] {
        let whole = packet.bytes();
        for length in 0..whole.len() {
            let cut = &whole[..length];
            let outcome = bed.run(hook, cut);
            match outcome.verdict {
                Verdict::Drop | Verdict::Answer => assert!(length >= header, "{length}"),
                Verdict::Pass if outcome.bytes == cut => {}
                Verdict::Pass => {
                    // All that changes was there.
                    assert_eq!(outcome.bytes.len(), length);
                    let least = header + if packet.proto == TCP { 18 } else { 8 };
                    assert!(length >= least, "rewritten at {length}");
                    let expected = match (hook, packet.proto) {
                        (POD_OUT, _) => packet.clone().from(vip::<F>(80)),
                        (_, TCP) => packet.clone().to(near::<F>(8080)),
                        _ => packet.clone().to(near::<F>(5353)),
                    };
                    same::<F>(&expected.bytes()[..length], &outcome.bytes);
                }
            }
        }
    }
}

/// A process of the node names a port that the cluster IP does not have: its packet is seen
/// only when it leaves.
fn what_leaves_for_an_unknown_port_of_a_cluster_ip_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let n = node::<F>(40_000);
    let ping = [if F::V6 { 128 } else { 8 }, 0];
    for packet in [
        Datagram::<F>::tcp(n, vip::<F>(81), SYN),
        Datagram::<F>::udp(n, vip::<F>(80)),
        Datagram::<F>::udp(n, vip::<F>(81)).with_payload(&[]),
        icmp::<F>(n.addr, vip::<F>(0).addr, ping, [0, 1, 0, 1], b"ping"),
        Datagram::<F>::other(n.addr, vip::<F>(0).addr, 132, &[1; 24]),
    ] {
        let answer = bed.answers(UP_OUT, &packet.bytes(), Reason::UnknownPort);
        same::<F>(&unreachable(&packet, &packet.bytes()), &answer);
        // The answer comes in by the same device and is for the node itself.
        bed.passes(UP_IN, &answer);
        // Only where it leaves the node is it lost.
        bed.passes(POD_OUT, &packet.bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

/// What the socket path left as it was, and what it never saw.
fn what_leaves_for_a_cluster_ip_meets_its_policy<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (n, v) = (node::<F>(40_000), vip::<F>(80));
    let elsewhere = bed.set(&[remote(far::<F>(8080))]);
    let service = bed.service_of(elsewhere, SetRef::DROP, service_flags::INTERNAL_LOCAL);
    bed.frontend(v, UDP, service, kind::CLUSTER_IP);
    let packet = Datagram::<F>::udp(n, v);
    bed.drops(UP_OUT, &packet.bytes(), Reason::TrafficPolicy);
    bed.update(service, SetRef::REJECT, SetRef::REJECT, service_flags::INTERNAL_LOCAL);
    let answer = bed.answers(UP_OUT, &packet.bytes(), Reason::NoEndpoints);
    same::<F>(&unreachable(&packet, &packet.bytes()), &answer);
    bed.update(service, elsewhere, SetRef::DROP, 0);
    bed.passes(UP_OUT, &packet.bytes());
}

fn what_leaves_for_other_addresses_passes<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let service = bed.service(&[]);
    let external = at::<F>(50, 1, 80);
    bed.frontend(external, TCP, service, kind::EXTERNAL_IP);
    let n = node::<F>(40_000);
    for to in [at::<F>(50, 1, 81), external, outside::<F>(81), at::<F>(96, 9, 80)] {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(n, to, SYN).bytes());
        bed.passes(UP_OUT, &Datagram::<F>::udp(n, to).bytes());
    }
}

fn errors_and_later_fragments_that_leave_pass<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let (n, v) = (node::<F>(40_000), vip::<F>(81));
    let quote = Datagram::<F>::tcp(v, n, ACK).bytes();
    let kinds: &[u8] = if F::V6 { &[1, 2, 3, 4, 127, 137] } else { &[3, 4, 5, 11, 12] };
    for kind in kinds {
        bed.passes(UP_OUT, &icmp::<F>(n.addr, v.addr, [*kind, 0], [0; 4], &quote).bytes());
    }
    let packet = Datagram::<F>::udp(n, v).with_payload(&[1; 200]);
    let pieces = packet.fragments(128);
    let answer = bed.answers(UP_OUT, &pieces[0], Reason::UnknownPort);
    same::<F>(&unreachable(&packet, &pieces[0][..128]), &answer);
    bed.passes(UP_OUT, &pieces[1]);
}
