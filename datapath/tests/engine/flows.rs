//! The life of flows: settled, evicted, expired, refused for want of room.

use datapath::{
    address::protocol::{TCP, UDP},
    counter::Reason,
    flow::{Place, role},
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::Datagram,
    tables::Store,
};

use crate::{
    bed::Bed,
    machine::{Side, Sizes},
    plan::*,
    sender::ports,
};

both! {
    a_flood_pushes_out_no_settled_flow,
    a_handshake_completes_in_a_flood,
    a_table_of_expired_flows_makes_room,
    a_table_of_closed_flows_makes_room,
    a_table_of_live_flows_refuses_and_counts,
    a_flow_that_found_half_its_room_is_whole_later,
    one_tuple_serves_one_frontend,
    one_tuple_goes_elsewhere_if_it_can,
    a_tuple_is_free_again_once_its_flow_is_over,
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

fn one_tuple_serves_one_frontend<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Bed::<F>::new();
        let (c, b) = (client::<F>(40_000), near::<F>(8080));
        let (first, second) = (vip::<F>(80), at::<F>(96, 2, 80));
        bed.cluster_ip(first, proto, &[local(b)]);
        bed.cluster_ip(second, proto, &[local(b)]);
        let to = |v, flags| Datagram::<F>::of(proto, c, v, flags);
        for flags in [SYN, ACK] {
            bed.becomes(POD_IN, &to(first, flags).bytes(), &to(first, flags).to(b).bytes());
            let back = Datagram::<F>::of(proto, b, c, SYN | ACK);
            bed.drops(POD_IN, &to(second, SYN).bytes(), Reason::TupleInUse);
            bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(first).bytes());
        }
        bed.drops(POD_IN, &to(second, SYN).bytes(), Reason::TupleInUse);
        assert_eq!(bed.rows(), (0, 2));
    }
}

fn one_tuple_goes_elsewhere_if_it_can<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, b, other) = (client::<F>(40_000), near::<F>(8080), at::<F>(1, 9, 8080));
    bed.cluster_ip(vip::<F>(80), TCP, &[local(b)]);
    let both = [local(b), local(other)];
    bed.cluster_ip(at::<F>(96, 2, 80), TCP, &both);
    syn(&mut bed, c);
    let mut refused = 0;
    for _ in 0..40 {
        let second = Datagram::<F>::tcp(c, at::<F>(96, 2, 80), SYN);
        let outcome = bed.run(POD_IN, &second.bytes());
        if outcome.bytes == second.bytes() {
            refused += 1;
            continue;
        }
        assert_eq!(outcome.bytes, second.clone().to(other).bytes());
        break;
    }
    // Four choices out of two: one flow in sixteen is refused, and tries again.
    assert!(refused < 10);
}

fn a_tuple_is_free_again_once_its_flow_is_over<F: Side>() {
    let mut bed = web::<F>(Sizes::default());
    let (c, b, second) = (client::<F>(40_000), near::<F>(8080), at::<F>(96, 2, 80));
    bed.cluster_ip(second, TCP, &[local(b)]);
    handshake(&mut bed, c);
    let to = Datagram::<F>::tcp(c, second, SYN);
    bed.drops(POD_IN, &to.bytes(), Reason::TupleInUse);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, vip::<F>(80), FIN | ACK).bytes());
    bed.drops(POD_IN, &to.bytes(), Reason::TupleInUse);
    bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, FIN | ACK).bytes());
    bed.becomes(POD_IN, &to.bytes(), &to.clone().to(b).bytes());
    assert_eq!(bed.rows(), (2, 0), "nothing is left of the first flow");
}

/// Whichever row of an unanswered flow goes, a retransmitted SYN writes it again.
fn an_evicted_row_comes_back_with_the_next_syn<F: Side>() {
    for lost in [role::ORIGINAL, role::REPLY, role::ORIGINAL_SOURCE, role::REPLY_TARGET] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
        bed.node_port(30_080, TCP, &[remote(b)]);
        let to = |flags| Datagram::<F>::tcp(c, v, flags);
        bed.run(UP_IN, &to(SYN).bytes());
        bed.run(UP_OUT, &to(SYN).to(b).bytes());
        lose(&mut bed, lost);
        bed.becomes(UP_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
        let out = bed.run(UP_OUT, &to(SYN).to(b).bytes());
        let s = node::<F>(ports::<F>(&out.bytes).0.get());
        assert_ne!(s.port, c.port, "role {lost}");
        let back = |flags| Datagram::<F>::tcp(b, s, flags);
        bed.becomes(UP_IN, &back(SYN | ACK).bytes(), &back(SYN | ACK).to(c).bytes());
        let seen = back(SYN | ACK).to(c);
        bed.becomes(UP_OUT, &seen.bytes(), &seen.clone().from(v).bytes());
        bed.becomes(UP_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
        bed.becomes(UP_OUT, &to(ACK).to(b).bytes(), &to(ACK).to(b).from(s).bytes());
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
