//! Rows that change between two looks of the same program.

use datapath::{
    address::protocol::{TCP, UDP},
    header::tcp::{ACK, SYN},
    host::{frame::Datagram, memory::Memory},
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    an_answer_whose_flow_another_keeps_meanwhile,
    an_answer_whose_flow_is_evicted_meanwhile,
    a_request_whose_flow_another_keeps_meanwhile,
}

/// Two answers at once on two processors.
fn kept<F: Side>(memory: &mut Memory<F>) {
    let rows: Vec<_> = memory.pending.iter().map(|(key, row)| (*key, *row)).collect();
    for (key, row) in rows {
        memory.pending.remove(&key);
        memory.flows.insert(key, row);
    }
}

fn evicted<F: Side>(memory: &mut Memory<F>) {
    let keys: Vec<_> = memory.pending.iter().map(|(key, _)| *key).collect();
    for key in keys {
        memory.pending.remove(&key);
    }
}

/// A UDP flow that waits for an answer.
fn asked<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    bed.run(POD_IN, &Datagram::<F>::udp(client::<F>(1), vip::<F>(53)).bytes());
    assert_eq!(bed.rows(), (2, 0));
    bed
}

fn an_answer_whose_flow_another_keeps_meanwhile<F: Side>() {
    let mut bed = asked::<F>();
    bed.machine.memory.meanwhile = Some(kept);
    let answer = Datagram::<F>::udp(near::<F>(5353), client::<F>(1));
    bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(vip::<F>(53)).bytes());
    assert_eq!(bed.rows(), (0, 2));
}

/// Nothing is full, so nothing is looked for that could go.
fn an_answer_whose_flow_is_evicted_meanwhile<F: Side>() {
    let mut bed = asked::<F>();
    let walk = bed.machine.memory.walk;
    bed.machine.memory.meanwhile = Some(evicted);
    let answer = Datagram::<F>::udp(near::<F>(5353), client::<F>(1));
    bed.passes(POD_OUT, &answer.bytes());
    assert_eq!(bed.rows(), (0, 0));
    assert_eq!(bed.machine.memory.walk, walk);
}

fn a_request_whose_flow_another_keeps_meanwhile<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(1), vip::<F>(80), near::<F>(8080));
    bed.cluster_ip(v, TCP, &[local(b)]);
    bed.run(POD_IN, &Datagram::<F>::tcp(c, v, SYN).bytes());
    bed.run(POD_OUT, &Datagram::<F>::tcp(b, c, SYN | ACK).bytes());
    bed.machine.memory.meanwhile = Some(kept);
    let third = Datagram::<F>::tcp(c, v, ACK);
    bed.becomes(POD_IN, &third.bytes(), &third.clone().to(b).bytes());
    assert_eq!(bed.rows(), (0, 2));
}
