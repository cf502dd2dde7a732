//! Pings to addresses of Services that answer them.

use datapath::{
    counter::Reason,
    frontend::address_use::{CLUSTER_IP, ECHO, FRONTEND, LOAD_BALANCER},
    host::frame::{Datagram, icmp},
    packet::Verdict,
};

use crate::{bed::Bed, machine::Side, plan::*, sender::same};

both! {
    a_ping_is_answered_wherever_it_enters_or_leaves,
    an_answer_has_all_its_hops,
    without_the_option_a_cluster_ip_refuses_pings,
    what_is_no_ping_is_not_answered,
}

const IDENTIFIER: [u8; 4] = [0x12, 0x34, 0, 7];

fn echo<F: Side>(kinds: (u8, u8), src: F::Address, dst: F::Address, body: &[u8]) -> Datagram<F> {
    icmp::<F>(src, dst, [if F::V6 { kinds.1 } else { kinds.0 }, 0], IDENTIFIER, body)
}

fn ping<F: Side>(src: F::Address, dst: F::Address, body: &[u8]) -> Datagram<F> {
    echo((8, 128), src, dst, body)
}

fn pong<F: Side>(src: F::Address, dst: F::Address, body: &[u8]) -> Datagram<F> {
    Datagram { hops: 64, ..echo((0, 129), src, dst, body) }
}

fn a_ping_is_answered_wherever_it_enters_or_leaves<F: Side>() {
    for flags in [CLUSTER_IP, FRONTEND, FRONTEND | LOAD_BALANCER] {
        let mut bed = Bed::<F>::new();
        let (c, v) = (outside::<F>(0).addr, vip::<F>(0).addr);
        bed.address(v, flags | ECHO);
        for hook in [UP_IN, POD_IN, UP_OUT] {
            for body in [&[][..], &[0x61; 57], &[0xff; 1400]] {
                let (verdict, bytes) = bed.machine.run(hook, &ping::<F>(c, v, body).bytes());
                assert_eq!(verdict, Verdict::Answer, "{hook:?}, {flags}");
                same::<F>(&pong::<F>(v, c, body).bytes(), &bytes);
            }
        }
        assert_eq!(bed.rows(), (0, 0));
    }
}

fn an_answer_has_all_its_hops<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v) = (outside::<F>(0).addr, vip::<F>(0).addr);
    bed.address(v, CLUSTER_IP | ECHO);
    for hops in [1, 2, 63, 65, 255] {
        let asked = Datagram { hops, ..ping::<F>(c, v, b"hops") };
        same::<F>(&pong::<F>(v, c, b"hops").bytes(), &bed.machine.run(UP_IN, &asked.bytes()).1);
    }
}

fn without_the_option_a_cluster_ip_refuses_pings<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v) = (outside::<F>(0).addr, vip::<F>(0).addr);
    bed.address(v, CLUSTER_IP);
    for hook in [UP_IN, POD_IN, UP_OUT] {
        bed.answers(hook, &ping::<F>(c, v, b"who").bytes(), Reason::UnknownPort);
    }
    bed.address(v, FRONTEND);
    for hook in [UP_IN, POD_IN, UP_OUT] {
        bed.passes(hook, &ping::<F>(c, v, b"who").bytes());
    }
}

fn what_is_no_ping_is_not_answered<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v) = (outside::<F>(0).addr, vip::<F>(0).addr);
    bed.address(v, CLUSTER_IP | ECHO);
    bed.address(node::<F>(0).addr, FRONTEND);
    for hook in [UP_IN, POD_IN] {
        // To another, a reply, another code, another kind; all as without the option.
        bed.passes(hook, &ping::<F>(c, node::<F>(0).addr, b"").bytes());
        bed.answers(hook, &pong::<F>(c, v, b"").bytes(), Reason::UnknownPort);
        let kind = if F::V6 { 128 } else { 8 };
        let coded = icmp::<F>(c, v, [kind, 1], IDENTIFIER, &[]);
        bed.answers(hook, &coded.bytes(), Reason::UnknownPort);
        let timestamp = icmp::<F>(c, v, [if F::V6 { 144 } else { 13 }, 0], IDENTIFIER, &[0; 12]);
        bed.answers(hook, &timestamp.bytes(), Reason::UnknownPort);
    }
}
