//! What holds of all packets. The bed checks with every packet that right checksums stay right
//! and that what does not go on is counted once.

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{SCTP, TCP, UDP},
    },
    counter::Hook,
    flow::Place,
    header::{
        Part,
        tcp::{ACK, SYN},
        transport,
    },
    host::{buffer::Buffer, frame::Datagram},
    packet::Verdict,
};
use proptest::{collection::vec, prelude::*};

use crate::{bed::Bed, machine::Side, plan::*};

const HOOKS: [Hook; 4] = [POD_IN, POD_OUT, UP_IN, UP_OUT];

/// A node with one Service of each kind and a flow to each.
fn busy<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    for proto in [TCP, UDP, SCTP] {
        bed.cluster_ip(vip::<F>(80), proto, &[local(near::<F>(8080))]);
        bed.cluster_ip(at::<F>(96, 2, 80), proto, &[]);
        bed.node_port(30_080, proto, &[remote(far::<F>(8080))]);
        for (hook, c, v) in
            [(POD_IN, client::<F>(1), vip::<F>(80)), (UP_IN, outside::<F>(1), node::<F>(30_080))]
        {
            let out = bed.run(hook, &Datagram::<F>::of(proto, c, v, SYN).bytes());
            bed.run(UP_OUT, &out.bytes);
        }
    }
    bed
}

/// Source and destination of a packet.
fn tuple<F: Side>(bytes: &[u8]) -> (Place<F::Address>, Place<F::Address>) {
    let buffer = Buffer::new(bytes.to_vec());
    let header = F::header(&buffer, 0).expect("a header");
    assert_eq!(header.part, Part::Whole);
    let found = transport::<F, _>(&buffer, &header).expect("ports");
    (Place::new(header.src, found.ports.src_port), Place::new(header.dst, found.ports.dst_port))
}

/// Over its way there and back a packet's parties see of each other what they should.
fn round_trip<F: Side>(proto: u8, port: u16, data: &[u8], far_away: bool) {
    let mut bed = Bed::<F>::new();
    let backend = if far_away { far::<F>(8080) } else { near::<F>(8080) };
    let row = if far_away { remote(backend) } else { local(backend) };
    bed.node_port(30_080, proto, &[row]);
    let (c, v) = (outside::<F>(port), node::<F>(30_080));
    for flags in [SYN, ACK] {
        let there = Datagram::<F>::of(proto, c, v, flags).with_payload(data);
        let inside = bed.run(UP_IN, &there.bytes());
        let arrived = bed.run(UP_OUT, &inside.bytes);
        let (s, b) = tuple::<F>(&arrived.bytes);
        assert_eq!(b, backend);
        assert_eq!(s == c, !far_away || s.port == c.port && s.addr == c.addr);
        let back = Datagram::<F>::of(proto, b, s, flags | ACK).with_payload(data);
        let inside = bed.run(UP_IN, &back.bytes());
        let arrived = bed.run(UP_OUT, &inside.bytes);
        assert_eq!(tuple::<F>(&arrived.bytes), (v, c));
        let payload = arrived.bytes.len() - data.len();
        assert_eq!(arrived.bytes[payload..], *data);
    }
}

/// Any bytes behind a header that leads to us.
fn anything<F: Side>(hook: Hook, head: &[u8], bytes: &[u8]) {
    let mut bed = busy::<F>();
    bed.run(hook, bytes);
    let mut packet = head.to_vec();
    packet.extend(bytes);
    let outcome = bed.run(hook, &packet);
    if outcome.verdict == Verdict::Pass {
        assert_eq!(outcome.bytes.len(), packet.len());
    }
}

/// A header to one of our addresses, or from a backend.
fn head<F: Side>(choice: usize, next: u8) -> Vec<u8> {
    let parties = [
        (client::<F>(0), vip::<F>(0)),
        (client::<F>(0), at::<F>(96, 2, 0)),
        (outside::<F>(0), node::<F>(0)),
        (near::<F>(0), client::<F>(0)),
        (far::<F>(0), node::<F>(0)),
        (far::<F>(0), outside::<F>(0)),
    ];
    let (src, dst) = parties[choice % parties.len()];
    Datagram::<F>::other(src.addr, dst.addr, next, &[]).bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn there_and_back(proto in prop_oneof![Just(TCP), Just(UDP), Just(SCTP)], port in 1_u16..,
                      data in vec(any::<u8>(), 0..200), far_away: bool) {
        round_trip::<V4>(proto, port, &data, far_away);
        round_trip::<V6>(proto, port, &data, far_away);
    }

    #[test]
    fn nothing_panics(hook in 0..4_usize, choice in 0..6_usize,
                      next in prop_oneof![Just(TCP), Just(UDP), Just(SCTP), Just(1), Just(58), Just(44), Just(0), any::<u8>()],
                      bytes in vec(any::<u8>(), 0..120)) {
        anything::<V4>(HOOKS[hook], &head::<V4>(choice, next), &bytes);
        anything::<V6>(HOOKS[hook], &head::<V6>(choice, next), &bytes);
    }

    #[test]
    fn incremental_sums_never_go_astray(port in any::<u16>(), to in any::<u16>(), host in any::<u16>(),
                                        data in vec(any::<u8>(), 0..64), proto in prop_oneof![Just(TCP), Just(UDP), Just(SCTP)]) {
        let mut bed = Bed::<V4>::new();
        let mut b = at::<V4>(2, host, 0);
        b.port = Be16::new(to.max(1));
        bed.cluster_ip(vip::<V4>(80), proto, &[remote(b)]);
        let packet = Datagram::<V4>::of(proto, client::<V4>(port), vip::<V4>(80), SYN).with_payload(&data);
        let outcome = bed.run(POD_IN, &packet.bytes());
        prop_assert_eq!(outcome.verdict, Verdict::Pass);
        prop_assert_eq!(tuple::<V4>(&outcome.bytes).1, b);
    }
}
