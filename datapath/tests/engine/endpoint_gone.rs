//! Connections whose endpoint has left its Service, which the agent has marked.

use datapath::{
    address::protocol::TCP,
    counter::Reason,
    flow::{flow_flags, role, seen},
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::Datagram,
    tables::Store,
};

use crate::{
    answers::reset,
    bed::Bed,
    machine::Side,
    node_port::{answer, leave},
    plan::*,
    sender::same,
};

both! {
    the_client_is_reset,
    the_endpoint_is_reset,
    a_masqueraded_connection_is_reset_at_both_ends,
    whose_service_and_proxy_are_others_now_is_reset_all_the_same,
    other_connections_go_on,
    a_reset_and_a_later_fragment_end_silently,
    the_port_is_free_for_another_connection,
    the_mark_stays_until_somebody_asks,
}

/// Has all connections to a backend reset, as the agent does.
fn gone<F: Side>(bed: &mut Bed<F>, backend: datapath::flow::Place<F::Address>) {
    for (key, mut row) in bed.flows() {
        let parties = datapath::flow::Parties::of(&key, &row);
        if parties.backend == backend {
            row.flags |= flow_flags::RESET;
            bed.machine.put_flow(key, row);
        }
    }
}

/// A connection from a pod by the cluster IP to a backend beside it.
fn established<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    connect(&mut bed, 40_000);
    bed
}

fn connect<F: Side>(bed: &mut Bed<F>, port: u16) {
    let (c, b) = (client::<F>(port), near::<F>(8080));
    let to = |flags| Datagram::<F>::tcp(c, vip::<F>(80), flags);
    let back = Datagram::<F>::tcp(b, c, SYN | ACK);
    bed.becomes(POD_IN, &to(SYN).bytes(), &to(SYN).to(b).bytes());
    bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(vip::<F>(80)).bytes());
    bed.becomes(POD_IN, &to(ACK).bytes(), &to(ACK).to(b).bytes());
}

fn the_client_is_reset<F: Side>() {
    for flags in [ACK, ACK | FIN, ACK | 0x08] {
        let mut bed = established::<F>();
        gone(&mut bed, near::<F>(8080));
        let data = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), flags);
        let data = data.with_payload(b"question");
        // Whatever comes again is answered again.
        for _ in 0..2 {
            let answer = bed.answers(POD_IN, &data.bytes(), Reason::EndpointGone);
            same::<F>(&reset(&data, data.acknowledgement, 0, RST), &answer);
        }
    }
}

fn the_endpoint_is_reset<F: Side>() {
    let mut bed = established::<F>();
    gone(&mut bed, near::<F>(8080));
    let data = Datagram::<F>::tcp(near::<F>(8080), client::<F>(40_000), ACK);
    let data = data.with_payload(b"answer");
    let answer = bed.answers(POD_OUT, &data.bytes(), Reason::EndpointGone);
    same::<F>(&reset(&data, data.acknowledgement, 0, RST), &answer);
}

fn a_masqueraded_connection_is_reset_at_both_ends<F: Side>() {
    let mut bed = Bed::<F>::new();
    let b = far::<F>(8080);
    bed.node_port(30_080, TCP, &[remote(b)]);
    let source = leave(&mut bed, 40_000, b);
    answer(&mut bed, 40_000, b, source);
    let to = Datagram::<F>::tcp(outside::<F>(40_000), node::<F>(30_080), ACK);
    let back = Datagram::<F>::tcp(b, node::<F>(source), ACK);
    gone(&mut bed, b);
    for data in [to, back] {
        let answer = bed.answers(UP_IN, &data.bytes(), Reason::EndpointGone);
        same::<F>(&reset(&data, data.acknowledgement, 0, RST), &answer);
    }
}

fn whose_service_and_proxy_are_others_now_is_reset_all_the_same<F: Side>() {
    let mut bed = established::<F>();
    let service = bed.cluster_ip(vip::<F>(80), TCP, &[]);
    assert_ne!(service, 1);
    bed.foreign_proxy(true);
    gone(&mut bed, near::<F>(8080));
    let data = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), ACK);
    bed.answers(POD_IN, &data.bytes(), Reason::EndpointGone);
}

fn other_connections_go_on<F: Side>() {
    let mut bed = established::<F>();
    gone(&mut bed, near::<F>(8080));
    connect(&mut bed, 40_001);
    let data = Datagram::<F>::tcp(client::<F>(40_001), vip::<F>(80), ACK);
    bed.becomes(POD_IN, &data.bytes(), &data.clone().to(near::<F>(8080)).bytes());
    let back = Datagram::<F>::tcp(near::<F>(8080), client::<F>(40_001), ACK);
    bed.becomes(POD_OUT, &back.bytes(), &back.clone().from(vip::<F>(80)).bytes());
}

fn a_reset_and_a_later_fragment_end_silently<F: Side>() {
    let mut bed = established::<F>();
    let data = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), ACK).with_payload(&[1; 64]);
    let pieces = data.fragments(40);
    bed.run(POD_IN, &pieces[0]);
    gone(&mut bed, near::<F>(8080));
    bed.drops(POD_IN, &pieces[1], Reason::EndpointGone);
    for flags in [RST, RST | ACK] {
        let rst = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), flags);
        bed.drops(POD_IN, &rst.bytes(), Reason::EndpointGone);
        let rst = Datagram::<F>::tcp(near::<F>(8080), client::<F>(40_000), flags);
        bed.drops(POD_OUT, &rst.bytes(), Reason::EndpointGone);
    }
}

/// To an endpoint that is there.
fn the_port_is_free_for_another_connection<F: Side>() {
    let mut bed = established::<F>();
    let heir = at::<F>(1, 9, 8080);
    let service = bed.cluster_ip(vip::<F>(80), TCP, &[local(heir)]);
    assert_ne!(service, 1);
    gone(&mut bed, near::<F>(8080));
    let syn = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), SYN);
    bed.becomes(POD_IN, &syn.bytes(), &syn.clone().to(heir).bytes());
    assert_eq!(bed.rows(), (2, 0), "nothing is left of the first");
}

fn the_mark_stays_until_somebody_asks<F: Side>() {
    let mut bed = established::<F>();
    gone(&mut bed, near::<F>(8080));
    bed.machine.pass(3_600);
    bed.machine.sweep();
    let data = Datagram::<F>::tcp(client::<F>(40_000), vip::<F>(80), ACK);
    bed.answers(POD_IN, &data.bytes(), Reason::EndpointGone);
    let original = bed.flows().into_iter().find(|(_, row)| row.role == role::ORIGINAL);
    assert_eq!(original.map(|(_, row)| row.seen & seen::RST), Some(seen::RST));
    bed.machine.sweep();
    assert_eq!(bed.machine.rows(Store::Answered).len(), 0, "it is over");
}
