//! The life of flows: settled, evicted, expired, refused for want of room.

use datapath::{
    address::protocol::{SCTP, TCP, UDP},
    counter::{Hook, Reason},
    flow::{Place, role},
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::{Datagram, icmp},
    tables::Store,
};

use crate::{
    bed::Bed,
    machine::{Side, Sizes},
    node_port::{answer, leave},
    plan::*,
    sender::{ports, same},
};

both! {
    a_flood_pushes_out_no_settled_flow,
    a_handshake_completes_in_a_flood,
    a_table_of_expired_flows_makes_room,
    a_table_of_closed_flows_makes_room,
    a_table_of_live_flows_refuses_and_counts,
    a_flow_that_found_half_its_room_is_whole_later,
    one_port_reaches_one_backend_by_two_frontends,
    one_port_reaches_a_masqueraded_backend_by_two_frontends,
    an_alias_holds_for_fragments_and_errors,
    a_client_without_a_free_port_is_refused,
    a_tuple_is_free_again_once_its_flow_is_over,
    a_connection_by_no_service_has_the_tuple_of_one_that_is_over,
    an_evicted_row_comes_back_with_the_next_syn,
    an_evicted_row_comes_back_before_the_handshake_ends,
    an_evicted_row_comes_back_with_the_next_datagram,
    a_sweep_takes_what_has_expired,
    a_sweep_keeps_the_other_rows_of_a_live_flow,
    half_closed_flows_live_an_hour,
}

type At<F> = Place<<F as datapath::address::Family>::Address>;

fn syn<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    let syn = Datagram::<F>::tcp(c, vip::<F>(80), SYN);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(near::<F>(8080)).bytes());
}

fn syn_ack<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    let answer = Datagram::<F>::tcp(near::<F>(8080), c, SYN | ACK);
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(vip::<F>(80)).bytes());
}

fn ack<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    let ack = Datagram::<F>::tcp(c, vip::<F>(80), ACK);
    bed.becomes(POD_IN, &ack.bytes(), &ack.clone().to(near::<F>(8080)).bytes());
}

fn reply<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    let data = Datagram::<F>::tcp(near::<F>(8080), c, ACK).with_payload(b"data");
    bed.becomes(POD_OUT, &data.bytes(), &data.clone().from(vip::<F>(80)).bytes());
}

fn handshake<F: Side>(bed: &mut Bed<F>, c: At<F>) {
    syn(bed, c);
    syn_ack(bed, c);
    ack(bed, c);
}

fn web<F: Side>(sizes: Sizes) -> Bed<F> {
    let mut bed = Bed::<F>::sized(sizes);
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed
}

/// A client whose source is forged, of many.
fn forged<F: Side>(index: u16) -> At<F> {
    at::<F>(200, index, 1024 + index)
}

fn a_flood_pushes_out_no_settled_flow<F: Side>() {
    let mut bed = web::<F>(Sizes { pending: 1024, ..Sizes::default() });
    for port in 1..=20 {
        handshake(&mut bed, client::<F>(port));
    }
    for index in 0..4000 {
        syn(&mut bed, forged::<F>(index));
        if index % 2 == 0 {
            // A SYN-ACK to a forged source is no answer that counts.
            syn_ack(&mut bed, forged::<F>(index));
        }
    }
    let (pending, answered) = bed.rows();
    assert!(pending <= 1024, "{pending}");
    assert_eq!(answered, 40);
    for port in 1..=20 {
        ack(&mut bed, client::<F>(port));
        reply(&mut bed, client::<F>(port));
    }
}

fn a_handshake_completes_in_a_flood<F: Side>() {
    let mut bed = web::<F>(Sizes { pending: 2048, ..Sizes::default() });
    let mut index = 0;
    let mut flood = |bed: &mut Bed<F>, count: u16| {
        for _ in 0..count {
            syn(bed, forged::<F>(index));
            index += 1;
        }
    };
    for port in 1..=4 {
        flood(&mut bed, 1000);
        syn(&mut bed, client::<F>(port));
        flood(&mut bed, 200);
        syn_ack(&mut bed, client::<F>(port));
        flood(&mut bed, 200);
        ack(&mut bed, client::<F>(port));
        flood(&mut bed, 1000);
        reply(&mut bed, client::<F>(port));
    }
    assert_eq!(bed.rows().1, 8);
}

fn a_table_of_expired_flows_makes_room<F: Side>() {
    let mut bed = web::<F>(Sizes { flows: 256, ..Sizes::default() });
    for port in 1..=128 {
        handshake(&mut bed, client::<F>(port));
    }
    assert_eq!(bed.rows(), (0, 256));
    bed.machine.pass(86_401);
    // No sweep, no agent.
    for port in 1001..=1128 {
        handshake(&mut bed, client::<F>(port));
        reply(&mut bed, client::<F>(port));
    }
    assert_eq!(bed.dropped(POD_IN, Reason::FlowTableFull), 0);
}

fn close<F: Side>(bed: &mut Bed<F>, client: Place<F::Address>) {
    bed.run(POD_IN, &Datagram::<F>::tcp(client, vip::<F>(80), FIN | ACK).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(near::<F>(8080), client, FIN | ACK).bytes());
}

fn a_table_of_closed_flows_makes_room<F: Side>() {
    let mut bed = web::<F>(Sizes { flows: 256, ..Sizes::default() });
    for port in 1..=128 {
        handshake(&mut bed, client::<F>(port));
        if port > 1 {
            close(&mut bed, client::<F>(port));
        }
    }
    // As long as there is room, the last segments of a connection may be late.
    bed.machine.pass(100);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 256));
    for port in 1001..=1127 {
        handshake(&mut bed, client::<F>(port));
        reply(&mut bed, client::<F>(port));
    }
    ack(&mut bed, client::<F>(1));
    assert_eq!(bed.rows().1, 256);
    // For a while now closed flows go soon, but not at once.
    close(&mut bed, client::<F>(1001));
    bed.machine.pass(5);
    bed.machine.sweep();
    assert_eq!(bed.rows().1, 256);
    bed.machine.pass(7);
    bed.machine.sweep();
    assert_eq!(bed.rows().1, 254);
}

fn a_table_of_live_flows_refuses_and_counts<F: Side>() {
    let mut bed = web::<F>(Sizes { flows: 256, ..Sizes::default() });
    for port in 1..=128 {
        handshake(&mut bed, client::<F>(port));
    }
    for port in 1001..=1010 {
        let c = client::<F>(port);
        syn(&mut bed, c);
        syn_ack(&mut bed, c);
        let ack = Datagram::<F>::tcp(c, vip::<F>(80), ACK);
        bed.drops(POD_IN, &ack.bytes(), Reason::FlowTableFull);
    }
    for port in 1..=128 {
        ack(&mut bed, client::<F>(port));
        reply(&mut bed, client::<F>(port));
    }
    // The same for UDP, where the answer is what settles.
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let question = Datagram::<F>::udp(client::<F>(9), vip::<F>(53));
    bed.becomes(POD_IN, &question.bytes(), &question.clone().to(near::<F>(5353)).bytes());
    let answer = Datagram::<F>::udp(near::<F>(5353), client::<F>(9));
    bed.drops(POD_OUT, &answer.bytes(), Reason::FlowTableFull);
    // One flow ends, and its place is another's.
    let rst = Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), RST);
    bed.run(POD_IN, &rst.bytes());
    bed.machine.pass(12);
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(vip::<F>(53)).bytes());
}

fn a_flow_that_found_half_its_room_is_whole_later<F: Side>() {
    let mut bed = web::<F>(Sizes { flows: 255, ..Sizes::default() });
    for port in 1..=127 {
        handshake(&mut bed, client::<F>(port));
    }
    let c = client::<F>(1000);
    syn(&mut bed, c);
    syn_ack(&mut bed, c);
    let third = Datagram::<F>::tcp(c, vip::<F>(80), ACK);
    bed.drops(POD_IN, &third.bytes(), Reason::FlowTableFull);
    assert_eq!(bed.rows().1, 255);
    bed.run(POD_IN, &Datagram::<F>::tcp(client::<F>(1), vip::<F>(80), RST).bytes());
    bed.machine.pass(12);
    ack(&mut bed, c);
    reply(&mut bed, c);
    assert_eq!(bed.rows().1, 127 * 2);
}

/// A second Service of the backend that `web` has, and a client of both from one port.
fn second<F: Side>() -> At<F> {
    at::<F>(96, 2, 80)
}

/// The alias that a packet to the second frontend has got on its way to the backend; zero if none.
#[track_caller]
fn alias<F: Side>(bed: &mut Bed<F>, hook: Hook, packet: &Datagram<F>, b: At<F>) -> At<F> {
    let outcome = bed.run(hook, &packet.bytes());
    let known = Place::new(packet.src.addr, ports::<F>(&outcome.bytes).0);
    same::<F>(&packet.clone().from(known).to(b).bytes(), &outcome.bytes);
    known
}

fn one_port_reaches_one_backend_by_two_frontends<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let mut bed = Bed::<F>::new();
        let (c, b) = (client::<F>(40_000), near::<F>(8080));
        let (first, second) = (vip::<F>(80), second::<F>());
        bed.cluster_ip(first, proto, &[local(b)]);
        bed.cluster_ip(second, proto, &[local(b)]);
        let to = |v, flags| Datagram::<F>::of(proto, c, v, flags);
        for flags in [SYN, ACK] {
            bed.becomes(POD_IN, &to(first, flags).bytes(), &to(first, flags).to(b).bytes());
            let known = alias(&mut bed, POD_IN, &to(second, flags), b);
            assert!(known.port.get() >= 61_000, "{known:?}");
            // As often as it is asked.
            assert_eq!(alias(&mut bed, POD_IN, &to(second, flags), b), known);
            for (v, known) in [(first, c), (second, known)] {
                let back = Datagram::<F>::of(proto, b, known, SYN | ACK);
                bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(v).to(c).bytes());
            }
        }
        assert_eq!(bed.rows(), (0, 4), "protocol {proto}");
    }
}

fn one_port_reaches_a_masqueraded_backend_by_two_frontends<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, b) = (outside::<F>(40_000), far::<F>(8080));
    let frontends = [node::<F>(30_080), node::<F>(30_081)];
    for v in frontends {
        bed.node_port(v.port.get(), TCP, &[remote(b)]);
    }
    let mut sources = Vec::new();
    for flags in [SYN, ACK] {
        for v in frontends {
            let to = Datagram::<F>::tcp(c, v, flags);
            let known = alias(&mut bed, UP_IN, &to, b);
            assert_eq!(known == c, v == frontends[0]);
            let out = bed.run(UP_OUT, &to.clone().from(known).to(b).bytes());
            let s = node::<F>(ports::<F>(&out.bytes).0.get());
            same::<F>(&to.from(s).to(b).bytes(), &out.bytes);
            let back = Datagram::<F>::tcp(b, s, SYN | ACK);
            bed.becomes(UP_IN, &back.bytes(), &back.clone().to(known).bytes());
            let back = back.to(known);
            bed.becomes(UP_OUT, &back.bytes(), &back.clone().from(v).to(c).bytes());
            sources.push(s);
        }
    }
    assert_ne!(sources[0], sources[1]);
    assert_eq!(sources[..2], sources[2..]);
    assert_eq!(bed.rows(), (0, 8));
}

/// The second flow's fragments, and errors about it, tell what each side knows.
fn an_alias_holds_for_fragments_and_errors<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, b) = (client::<F>(40_000), near::<F>(5353));
    let (first, second) = (vip::<F>(53), second::<F>());
    bed.cluster_ip(first, UDP, &[local(b)]);
    bed.cluster_ip(second, UDP, &[local(b)]);
    bed.run(POD_IN, &Datagram::<F>::udp(c, first).bytes());
    let long = Datagram::<F>::udp(c, second).with_payload(&[7; 200]);
    let known = alias(&mut bed, POD_IN, &Datagram::<F>::udp(c, second), b);
    let pieces = long.fragments(64).into_iter().zip(long.clone().from(known).to(b).fragments(64));
    for (piece, expected) in pieces {
        bed.becomes(POD_IN, &piece, &expected);
    }
    let kind = if F::V6 { [1, 4] } else { [3, 3] };
    let error = |from: At<F>, to: At<F>, about: &Datagram<F>| {
        icmp::<F>(from.addr, to.addr, kind, [0; 4], &about.bytes()).bytes()
    };
    let question = Datagram::<F>::udp(known, b).with_payload(b"question");
    let asked = question.clone().from(c).to(second);
    bed.becomes(POD_OUT, &error(b, known, &question), &error(second, c, &asked));
    let answer = Datagram::<F>::udp(second, c).with_payload(b"answer");
    let given = answer.clone().from(b).to(known);
    bed.becomes(POD_IN, &error(c, second, &answer), &error(known, b, &given));
}

fn a_client_without_a_free_port_is_refused<F: Side>() {
    let mut bed = web::<F>(Sizes { pending: 1 << 14, ..Sizes::default() });
    bed.cluster_ip(second::<F>(), TCP, &[local(near::<F>(8080))]);
    for port in (61_000..=u16::MAX).chain([40_000]) {
        syn(&mut bed, client::<F>(port));
    }
    let to = Datagram::<F>::tcp(client::<F>(40_000), second::<F>(), SYN);
    bed.drops(POD_IN, &to.bytes(), Reason::TupleInUse);
}

fn a_tuple_is_free_again_once_its_flow_is_over<F: Side>() {
    let mut bed = web::<F>(Sizes::default());
    let (c, b) = (client::<F>(40_000), near::<F>(8080));
    bed.cluster_ip(second::<F>(), TCP, &[local(b)]);
    handshake(&mut bed, c);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, vip::<F>(80), FIN | ACK).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, FIN | ACK).bytes());
    let to = Datagram::<F>::tcp(c, second::<F>(), SYN);
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
    assert_eq!(bed.rows(), (2, 0), "nothing is left of the first flow");
}

/// A client may have asked a Service and then ask its endpoint itself, from the same port: its SYN has no row.
fn a_connection_by_no_service_has_the_tuple_of_one_that_is_over<F: Side>() {
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
    let to_client = |flags| Datagram::<F>::tcp(b, c, flags);
    for by_client in [FIN | ACK, RST] {
        let mut bed = web::<F>(Sizes::default());
        handshake(&mut bed, c);
        // Retransmitted, it is the flow's.
        let again = to_client(SYN | ACK);
        bed.becomes(POD_OUT, &again.bytes(), &again.clone().from(v).bytes());
        bed.run(POD_IN, &Datagram::<F>::tcp(c, v, by_client).bytes());
        if by_client == FIN | ACK {
            bed.becomes(POD_OUT, &again.bytes(), &again.clone().from(v).bytes());
            bed.run(POD_OUT, &to_client(FIN | ACK).bytes());
        }
        bed.passes(POD_IN, &Datagram::<F>::tcp(c, b, SYN).bytes());
        for flags in [SYN | ACK, ACK, FIN | ACK] {
            bed.passes(POD_OUT, &to_client(flags).bytes());
        }
        assert_eq!(bed.rows(), (0, 0));
    }
}

/// Whichever row of an unanswered flow goes, a retransmitted SYN writes it again.
fn an_evicted_row_comes_back_with_the_next_syn<F: Side>() {
    for lost in [role::ORIGINAL, role::REPLY, role::ORIGINAL_SOURCE, role::REPLY_TARGET] {
        let mut bed = Bed::<F>::new();
        let b = far::<F>(8080);
        bed.node_port(30_080, TCP, &[remote(b)]);
        leave(&mut bed, 40_000, b);
        lose(&mut bed, lost);
        let source = leave(&mut bed, 40_000, b);
        answer(&mut bed, 40_000, b, source);
        let third = Datagram::<F>::tcp(outside::<F>(40_000), b, ACK);
        bed.becomes(UP_OUT, &third.bytes(), &third.from(node::<F>(source)).bytes());
        assert_eq!(bed.flows().len(), 4, "role {lost}");
    }
}

/// Removes the row of a role from `PENDING`.
fn lose<F: Side>(bed: &mut Bed<F>, lost: u8) {
    let found: Vec<_> = bed.pending().into_iter().filter(|(_, row)| row.role == lost).collect();
    assert_eq!(found.len(), 1, "role {lost}");
    for (key, _) in found {
        bed.machine.remove_row(Store::Pending, &key);
    }
}

/// The client has the SYN-ACK and sends no SYN any more: its next segment must bring the rows
/// back that the answers need.
fn an_evicted_row_comes_back_before_the_handshake_ends<F: Side>() {
    for lost in [role::REPLY, role::ORIGINAL_SOURCE, role::REPLY_TARGET] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
        bed.node_port(30_080, TCP, &[remote(b)]);
        let to = |flags| Datagram::<F>::tcp(c, v, flags);
        bed.run(UP_IN, &to(SYN).bytes());
        let out = bed.run(UP_OUT, &to(SYN).to(b).bytes());
        let s = node::<F>(ports::<F>(&out.bytes).0.get());
        let back = |flags| Datagram::<F>::tcp(b, s, flags);
        bed.run(UP_IN, &back(SYN | ACK).bytes());
        bed.run(UP_OUT, &back(SYN | ACK).to(c).bytes());
        lose(&mut bed, lost);
        for _ in 0..2 {
            bed.becomes(UP_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
            bed.becomes(UP_OUT, &to(ACK).to(b).bytes(), &to(ACK).to(b).from(s).bytes());
            bed.becomes(UP_IN, &back(ACK).bytes(), &back(ACK).to(c).bytes());
            let seen = back(ACK).to(c);
            bed.becomes(UP_OUT, &seen.bytes(), &seen.clone().from(v).bytes());
        }
        assert_eq!(bed.rows(), (0, 4), "role {lost}");
    }
}

fn an_evicted_row_comes_back_with_the_next_datagram<F: Side>() {
    for lost in [role::ORIGINAL, role::REPLY] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (client::<F>(40_000), vip::<F>(53), near::<F>(5353));
        bed.cluster_ip(v, UDP, &[local(b)]);
        let question = Datagram::<F>::udp(c, v);
        bed.run(POD_IN, &question.bytes());
        lose(&mut bed, lost);
        // Resolvers ask again after seconds.
        bed.machine.pass(5);
        bed.becomes(POD_IN, &question.bytes(), &question.clone().to(b).bytes());
        let answer = Datagram::<F>::udp(b, c);
        bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
        assert_eq!(bed.rows(), (0, 2), "role {lost}");
    }
}

fn a_sweep_takes_what_has_expired<F: Side>() {
    let mut bed = web::<F>(Sizes::default());
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let (open, reset, closed) = (client::<F>(1), client::<F>(2), client::<F>(3));
    for c in [open, reset, closed] {
        handshake(&mut bed, c);
    }
    bed.run(POD_IN, &Datagram::<F>::udp(client::<F>(4), vip::<F>(53)).bytes());
    bed.run(POD_OUT, &Datagram::<F>::udp(near::<F>(5353), client::<F>(4)).bytes());
    bed.run(POD_IN, &Datagram::<F>::tcp(reset, vip::<F>(80), RST).bytes());
    bed.run(POD_IN, &Datagram::<F>::tcp(closed, vip::<F>(80), FIN | ACK).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(near::<F>(8080), closed, FIN | ACK).bytes());
    let left = |bed: &mut Bed<F>, ticks| {
        bed.machine.pass(ticks);
        bed.machine.sweep();
        bed.rows()
    };
    assert_eq!(left(&mut bed, 0), (0, 8));
    assert_eq!(left(&mut bed, 9), (0, 8));
    assert_eq!(left(&mut bed, 3), (0, 6), "the reset flow");
    assert_eq!(left(&mut bed, 100), (0, 6));
    assert_eq!(left(&mut bed, 15), (0, 2), "the closed one and the datagram's");
    assert_eq!(left(&mut bed, 86_000), (0, 2));
    assert_eq!(left(&mut bed, 500), (0, 0));
}

/// One direction may be silent for long, as in a download.
fn a_sweep_keeps_the_other_rows_of_a_live_flow<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_053), far::<F>(5353));
    bed.node_port(30_053, UDP, &[remote(b)]);
    bed.run(UP_IN, &Datagram::<F>::udp(c, v).bytes());
    let out = bed.run(UP_OUT, &Datagram::<F>::udp(c, b).bytes());
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    for _ in 0..10 {
        let answer = Datagram::<F>::udp(b, s);
        bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
        bed.becomes(UP_OUT, &answer.clone().to(c).bytes(), &answer.to(c).from(v).bytes());
        bed.machine.pass(110);
        bed.machine.sweep();
        assert_eq!(bed.rows(), (0, 4));
    }
    bed.machine.pass(20);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 0));
}

fn half_closed_flows_live_an_hour<F: Side>() {
    let mut bed = web::<F>(Sizes::default());
    let c = client::<F>(1);
    handshake(&mut bed, c);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, vip::<F>(80), FIN | ACK).bytes());
    bed.machine.pass(3_590);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 2));
    reply(&mut bed, c);
    bed.machine.pass(3_602);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 0));
}
