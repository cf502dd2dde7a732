//! Associations of SCTP: tracked like connections of TCP, with a checksum of their own.

use datapath::{
    address::protocol::SCTP,
    counter::Reason,
    flow::Place,
    frontend::kind,
    host::frame::{Datagram, crc32c, icmp},
    sctp::chunk,
    service::{Service, SetRef, service_flags},
};

use crate::{
    bed::Bed,
    machine::{Side, Sizes},
    plan::*,
    sender::{ports, same},
};

both! {
    an_association_to_a_cluster_ip,
    an_association_through_a_node_port,
    an_association_of_a_pod_with_itself,
    packets_of_any_length_keep_their_checksum,
    a_checksum_that_comes_to_zero,
    padding_behind_a_packet_is_no_part_of_it,
    behind_options_and_extensions,
    wrong_checksums_stay_wrong,
    without_endpoints_it_is_refused,
    a_port_that_is_not_there_is_refused,
    policies_and_affinity_hold,
    forged_inits_push_out_no_association,
    an_init_again_stays_with_its_backend,
    an_association_that_ended_gives_its_tuple_up,
    associations_expire_as_netfilters_do,
    a_packet_without_an_association_is_dropped,
    a_packet_too_short_for_a_chunk_is_refused,
    fragments_go_where_no_port_changes,
    fragments_whose_port_changes_are_refused,
    an_answer_in_fragments_is_refused_too,
}

type At<F> = Place<<F as datapath::address::Family>::Address>;

fn frontend<F: Side>() -> At<F> {
    vip::<F>(38_412)
}

fn backend<F: Side>() -> At<F> {
    near::<F>(5000)
}

/// From a client to the frontend.
fn to<F: Side>(c: At<F>, kind: u8) -> Datagram<F> {
    Datagram::<F>::sctp(c, frontend::<F>(), kind)
}

/// From the backend.
fn back<F: Side>(c: At<F>, kind: u8) -> Datagram<F> {
    Datagram::<F>::sctp(backend::<F>(), c, kind)
}

fn asks<F: Side>(bed: &mut Bed<F>, c: At<F>, kind: u8) {
    let packet = to::<F>(c, kind).with_payload(b"question");
    bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(backend::<F>()).bytes());
}

fn replies<F: Side>(bed: &mut Bed<F>, c: At<F>, kind: u8) {
    let packet = back::<F>(c, kind).with_payload(b"answer");
    bed.becomes(POD_OUT, &packet.bytes(), &packet.clone().from(frontend::<F>()).bytes());
}

fn opens<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    asks(bed, c, chunk::INIT);
    replies(bed, c, chunk::INIT_ACK);
    asks(bed, c, chunk::COOKIE_ECHO);
}

fn core<F: Side>(sizes: Sizes) -> Bed<F> {
    let mut bed = Bed::<F>::sized(sizes);
    bed.cluster_ip(frontend::<F>(), SCTP, &[local(backend::<F>())]);
    bed
}

fn an_association_to_a_cluster_ip<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    asks(&mut bed, c, chunk::INIT);
    replies(&mut bed, c, chunk::INIT_ACK);
    assert_eq!(bed.rows(), (2, 0), "a forged INIT gets an answer too");
    asks(&mut bed, c, chunk::COOKIE_ECHO);
    assert_eq!(bed.rows(), (0, 2));
    replies(&mut bed, c, chunk::COOKIE_ACK);
    for kind in [chunk::DATA, chunk::HEARTBEAT] {
        asks(&mut bed, c, kind);
        replies(&mut bed, c, kind);
    }
    let seen: u64 = bed.flows().iter().map(|(_, row)| row.packets).sum();
    assert_eq!(seen, 8);
}

fn an_association_through_a_node_port<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_412), far::<F>(5000));
    bed.node_port(30_412, SCTP, &[remote(b)]);
    let to = |kind| Datagram::<F>::sctp(c, v, kind).with_payload(&[kind; 101]);
    bed.becomes(UP_IN, &to(chunk::INIT).bytes(), &to(chunk::INIT).to(b).bytes());
    let leaving = bed.run(UP_OUT, &to(chunk::INIT).to(b).bytes());
    let s = node::<F>(ports::<F>(&leaving.bytes).0.get());
    assert_ne!(s.port, c.port, "a source was given");
    same::<F>(&to(chunk::INIT).to(b).from(s).bytes(), &leaving.bytes);
    let back = |kind| Datagram::<F>::sctp(b, s, kind).with_payload(&[kind; 99]);
    for (asks, answers) in [(chunk::COOKIE_ECHO, chunk::INIT_ACK), (chunk::DATA, chunk::COOKIE_ACK)]
    {
        bed.becomes(UP_IN, &back(answers).bytes(), &back(answers).to(c).bytes());
        bed.becomes(UP_OUT, &back(answers).to(c).bytes(), &back(answers).to(c).from(v).bytes());
        bed.becomes(UP_IN, &to(asks).bytes(), &to(asks).to(b).bytes());
        bed.becomes(UP_OUT, &to(asks).to(b).bytes(), &to(asks).to(b).from(s).bytes());
        assert_eq!(bed.rows(), (0, 4));
    }
}

fn an_association_of_a_pod_with_itself<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), frontend::<F>(), client::<F>(5000));
    bed.cluster_ip(v, SCTP, &[local(b)]);
    let to = Datagram::<F>::sctp(c, v, chunk::INIT);
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
    let out = bed.run(POD_OUT, &to.clone().to(b).bytes());
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    same::<F>(&to.to(b).from(s).bytes(), &out.bytes);
    let back = Datagram::<F>::sctp(b, s, chunk::INIT_ACK);
    bed.becomes(POD_IN, &back.bytes(), &back.clone().to(c).bytes());
    bed.becomes(POD_OUT, &back.clone().to(c).bytes(), &back.to(c).from(v).bytes());
}

fn packets_of_any_length_keep_their_checksum<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    for length in (0..300).chain([511, 512, 513, 1023, 1024, 1400, 3000]) {
        let payload: Vec<u8> = (0..length).map(|at: u32| (at * 7) as u8).collect();
        let packet = to::<F>(c, chunk::DATA).with_payload(&payload);
        bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(backend::<F>()).bytes());
        let packet = back::<F>(c, chunk::DATA).with_payload(&payload);
        bed.becomes(POD_OUT, &packet.bytes(), &packet.clone().from(frontend::<F>()).bytes());
    }
}

/// The verification tag with which a packet's checksum is zero. The checksum is linear in the tag's
/// bits, so they are what a system of 32 equations says.
fn with_zero_checksum<F: Side>(mut packet: Datagram<F>) -> Datagram<F> {
    let checksum = |packet: &Datagram<F>| {
        let bytes = packet.bytes();
        let mut message = bytes[bytes.len() - 16 - packet.payload.len()..].to_vec();
        message[8..12].fill(0);
        crc32c(&message)
    };
    packet.sequence = 0;
    let start = checksum(&packet);
    let mut rows: Vec<(u32, u32)> = (0..32)
        .map(|bit| {
            packet.sequence = 1 << bit;
            (checksum(&packet) ^ start, 1 << bit)
        })
        .collect();
    let (mut left, mut tag) = (start, 0);
    for bit in 0..32 {
        let at = rows.iter().position(|(sum, _)| sum >> bit & 1 == 1).expect("tags differ");
        let (sum, tags) = rows.swap_remove(at);
        for row in rows.iter_mut().filter(|row| row.0 >> bit & 1 == 1) {
            *row = (row.0 ^ sum, row.1 ^ tags);
        }
        if left >> bit & 1 == 1 {
            (left, tag) = (left ^ sum, tag ^ tags);
        }
    }
    packet.sequence = tag;
    assert_eq!((left, checksum(&packet)), (0, 0));
    packet
}

/// It looks like one that a device is to compute, and is none.
fn a_checksum_that_comes_to_zero<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    let packet = with_zero_checksum(to::<F>(c, chunk::DATA).with_payload(b"some data"));
    bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(backend::<F>()).bytes());
    // And one that becomes zero.
    let packet = with_zero_checksum(packet.to(backend::<F>()));
    bed.becomes(POD_IN, &packet.clone().to(frontend::<F>()).bytes(), &packet.bytes());
}

/// A device pads short frames to 60 bytes.
fn padding_behind_a_packet_is_no_part_of_it<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    let packet = to::<F>(c, chunk::COOKIE_ACK);
    let padded = |packet: &Datagram<F>| [&packet.bytes()[..], &[0x5a; 10]].concat();
    bed.becomes(POD_IN, &padded(&packet), &padded(&packet.clone().to(backend::<F>())));
}

fn behind_options_and_extensions<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    for (kind, length) in [(chunk::INIT, 4), (chunk::COOKIE_ECHO, 40), (chunk::DATA, 20)] {
        let mut packet = to::<F>(c, kind).with_payload(&[9; 77]);
        packet.options = vec![1; length];
        packet.extensions = vec![(60, vec![0; 8]); length / 4];
        packet.extensions.truncate(8);
        bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(backend::<F>()).bytes());
    }
}

/// What is spoilt on its way is not mended.
fn wrong_checksums_stay_wrong<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    let at = if F::V6 { 48 } else { 28 };
    let spoilt = |packet: Datagram<F>| {
        let mut bytes = packet.bytes();
        bytes[at] ^= 0x55;
        bytes
    };
    let packet = to::<F>(c, chunk::DATA).with_payload(b"data");
    bed.becomes(POD_IN, &spoilt(packet.clone()), &spoilt(packet.to(backend::<F>())));
}

/// ICMP port unreachable, as kube-proxy's `reject` has it.
fn is_refused<F: Side>(bed: &mut Bed<F>, packet: &Datagram<F>, reason: Reason) {
    let kind = if F::V6 { [1, 4] } else { [3, 3] };
    let quote = packet.bytes();
    let expected = icmp::<F>(packet.dst.addr, packet.src.addr, kind, [0; 4], &quote).bytes();
    let header = F::HEADER as usize;
    for hook in [POD_IN, UP_OUT] {
        let answer = bed.answers(hook, &quote, reason);
        assert_eq!(answer[header..], expected[header..]);
    }
}

fn without_endpoints_it_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(frontend::<F>(), SCTP, &[]);
    is_refused(&mut bed, &to::<F>(client::<F>(1), chunk::INIT), Reason::NoEndpoints);
    assert_eq!(bed.rows(), (0, 0));
}

/// TCP at the same port is another frontend.
fn a_port_that_is_not_there_is_refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(frontend::<F>(), datapath::address::protocol::TCP, &[local(backend::<F>())]);
    is_refused(&mut bed, &to::<F>(client::<F>(1), chunk::INIT), Reason::UnknownPort);
}

/// As for every protocol.
fn policies_and_affinity_hold<F: Side>() {
    let mut bed = Bed::<F>::new();
    let everywhere: Vec<_> = (1..=100).map(|port| remote(far::<F>(port))).collect();
    let (cluster, here) = (bed.set(&everywhere), bed.set(&[local(backend::<F>())]));
    let service = bed.service_of(cluster, SetRef::DROP, service_flags::EXTERNAL_LOCAL);
    bed.frontend(node::<F>(30_412), SCTP, service, kind::NODE_PORT);
    bed.frontend(frontend::<F>(), SCTP, service, kind::CLUSTER_IP);
    let outside = |port| Datagram::<F>::sctp(outside::<F>(port), node::<F>(30_412), chunk::INIT);
    bed.drops(UP_IN, &outside(1).bytes(), Reason::TrafficPolicy);
    let (flags, affinity) = (service_flags::EXTERNAL_LOCAL, 20);
    bed.put(service, Service { cluster, local: here, flags, affinity });
    bed.becomes(UP_IN, &outside(2).bytes(), &outside(2).to(backend::<F>()).bytes());
    let chosen = |bed: &mut Bed<F>, port| {
        let out = bed.run(POD_IN, &to::<F>(client::<F>(port), chunk::INIT).bytes());
        ports::<F>(&out.bytes).1
    };
    let first = chosen(&mut bed, 1);
    assert!((2..20).all(|port| chosen(&mut bed, port) == first));
}

fn forged_inits_push_out_no_association<F: Side>() {
    let mut bed = core::<F>(Sizes { pending: 1024, ..Sizes::default() });
    for port in 1..=10 {
        opens(&mut bed, client::<F>(port));
    }
    assert_eq!(bed.rows(), (0, 20));
    for host in 0..2000 {
        let forged = at::<F>(200, host, 1024 + host);
        asks(&mut bed, forged, chunk::INIT);
        // Whom it answers has sent nothing, and sends nothing.
        replies(&mut bed, forged, chunk::INIT_ACK);
    }
    assert_eq!(bed.rows().1, 20);
    for port in 1..=10 {
        asks(&mut bed, client::<F>(port), chunk::DATA);
        replies(&mut bed, client::<F>(port), chunk::DATA);
    }
}

fn an_init_again_stays_with_its_backend<F: Side>() {
    let mut bed = Bed::<F>::new();
    let service = bed.cluster_ip(frontend::<F>(), SCTP, &[local(backend::<F>())]);
    let c = client::<F>(40_000);
    asks(&mut bed, c, chunk::INIT);
    let set = bed.set(&[local(at::<F>(1, 77, 5000))]);
    bed.update(service, set, set, 0);
    asks(&mut bed, c, chunk::INIT);
    opens(&mut bed, c);
    asks(&mut bed, c, chunk::INIT);
    assert_eq!(bed.rows(), (0, 2));
}

fn an_association_that_ended_gives_its_tuple_up<F: Side>() {
    let endings: [&[(bool, u8)]; 3] = [
        &[(true, chunk::SHUTDOWN), (false, chunk::SHUTDOWN_ACK), (true, chunk::SHUTDOWN_COMPLETE)],
        &[(true, chunk::ABORT)],
        &[(false, chunk::ABORT)],
    ];
    for ending in endings {
        let mut bed = Bed::<F>::new();
        let service = bed.cluster_ip(frontend::<F>(), SCTP, &[local(backend::<F>())]);
        let c = client::<F>(40_000);
        opens(&mut bed, c);
        for (by_client, kind) in ending {
            if *by_client { asks(&mut bed, c, *kind) } else { replies(&mut bed, c, *kind) }
        }
        assert_eq!(bed.rows(), (0, 2), "for what is late");
        let other = at::<F>(1, 77, 5000);
        let set = bed.set(&[local(other)]);
        bed.update(service, set, set, 0);
        let init = to::<F>(c, chunk::INIT);
        bed.becomes(POD_IN, &init.bytes(), &init.clone().to(other).bytes());
        assert_eq!(bed.rows(), (2, 0));
    }
}

fn associations_expire_as_netfilters_do<F: Side>() {
    let lives = |ending: &[(bool, u8)], ticks: u32| {
        let mut bed = core::<F>(Sizes::default());
        let c = client::<F>(40_000);
        opens(&mut bed, c);
        for (by_client, kind) in ending {
            if *by_client { asks(&mut bed, c, *kind) } else { replies(&mut bed, c, *kind) }
        }
        bed.machine.pass(ticks);
        bed.machine.sweep();
        bed.rows() == (0, 2)
    };
    assert!(lives(&[], 208));
    assert!(!lives(&[], 212));
    for ending in [(true, chunk::SHUTDOWN), (false, chunk::SHUTDOWN), (false, chunk::ABORT)] {
        assert!(lives(&[ending], 8));
        assert!(!lives(&[ending], 12));
    }
    assert!(lives(&[(true, chunk::HEARTBEAT)], 208));
}

fn a_packet_without_an_association_is_dropped<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    for kind in [
        chunk::DATA,
        chunk::INIT_ACK,
        chunk::HEARTBEAT,
        chunk::ABORT,
        chunk::SHUTDOWN,
        chunk::COOKIE_ECHO,
        0x80,
        0xff,
    ] {
        let stray = to::<F>(client::<F>(1), kind).with_payload(b"lost").bytes();
        bed.foreign_proxy(false);
        bed.drops(POD_IN, &stray, Reason::NotInit);
        // Another proxy may know the association.
        bed.foreign_proxy(true);
        bed.passes(POD_IN, &stray);
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn a_packet_too_short_for_a_chunk_is_refused<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let whole = to::<F>(client::<F>(1), chunk::INIT).bytes();
    for length in [0, 3, 8, 12, 15] {
        let short = &whole[..F::HEADER as usize + length];
        bed.drops(POD_IN, short, Reason::Malformed);
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn fragments_go_where_no_port_changes<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(5000), near::<F>(5000));
    bed.cluster_ip(v, SCTP, &[local(b)]);
    for kind in [chunk::INIT, chunk::COOKIE_ECHO, chunk::DATA] {
        let packet = Datagram::<F>::sctp(c, v, kind).with_payload(&[0x5a; 3001]);
        let expected = packet.clone().to(b).fragments(1024);
        for (piece, expected) in packet.fragments(1024).iter().zip(&expected) {
            bed.becomes(POD_IN, piece, expected);
        }
    }
}

fn fragments_whose_port_changes_are_refused<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    let pieces = to::<F>(c, chunk::DATA).with_payload(&[0x5a; 3001]).fragments(1024);
    bed.drops(POD_IN, &pieces[0], Reason::SctpFragment);
    for piece in &pieces[1..] {
        bed.drops(POD_IN, piece, Reason::FragmentWithoutFirst);
    }
}

fn an_answer_in_fragments_is_refused_too<F: Side>() {
    let mut bed = core::<F>(Sizes::default());
    let c = client::<F>(40_000);
    opens(&mut bed, c);
    let pieces = back::<F>(c, chunk::DATA).with_payload(&[0x5a; 1001]).fragments(512);
    bed.drops(POD_OUT, &pieces[0], Reason::SctpFragment);
}
