//! What the link layer says about a packet.

use datapath::{
    address::{
        Mac,
        protocol::{TCP, UDP},
    },
    device::Device,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
    packet::Verdict,
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    frames_for_others_are_none_of_ours_on_an_uplink,
    an_answer_from_port_to_port_has_its_source_where_it_enters,
}

/// A switch floods, or the device listens to all: another node answers for its address.
fn frames_for_others_are_none_of_ours_on_an_uplink<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.cluster_ip(at::<F>(96, 2, 80), TCP, &[]);
    let refused = Datagram::<F>::tcp(outside::<F>(1), at::<F>(96, 2, 80), SYN).bytes();
    let stray = Datagram::<F>::tcp(outside::<F>(1), vip::<F>(80), ACK).bytes();
    let begun = Datagram::<F>::tcp(outside::<F>(1), vip::<F>(80), SYN).bytes();
    let packets = [(refused, Verdict::Answer), (stray, Verdict::Answer), (begun, Verdict::Pass)];
    for to in [[2, 0, 0, 0, 0, 9], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1]] {
        let mut ethernet = [2; 12];
        ethernet[..6].copy_from_slice(&to);
        for (packet, in_a_pod) in &packets {
            let passed = (Verdict::Pass, packet.clone());
            assert_eq!(bed.machine.run_frame(UP_IN, ethernet, &mut 0, packet), passed);
            assert_eq!(bed.machine.drops(UP_IN).iter().sum::<u64>(), 0);
            // The frames of pods are for the bridge.
            assert_eq!(bed.machine.run_frame(POD_IN, ethernet, &mut 0, packet).0, *in_a_pod);
        }
        bed.machine.clear_flows();
    }
}

const BRIDGE: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A frame from a pod to the bridge itself, or to another pod on it.
fn frame(to: [u8; 6]) -> [u8; 12] {
    let mut ethernet = [2; 12];
    ethernet[..6].copy_from_slice(&to);
    ethernet
}

/// A bridge hands on what one of its ports sends to another, and its own hook does not see it.
fn an_answer_from_port_to_port_has_its_source_where_it_enters<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    bed.cluster_ip(vip::<F>(53), UDP, &[local(near::<F>(5353))]);
    let on_a_bridge = Device { bridge: Mac(BRIDGE), ..device::<F>(node::<F>(0).addr) };
    let enters = |bed: &mut Bed<F>, to: [u8; 6], packet: &Datagram<F>| {
        let (verdict, bytes) = bed.machine.run_frame(POD_IN, frame(to), &mut 0, &packet.bytes());
        assert_eq!(verdict, Verdict::Pass);
        bytes
    };
    let (c, b) = (client::<F>(40_000), near::<F>(8080));
    let (to, back) =
        (Datagram::<F>::tcp(c, vip::<F>(80), SYN), Datagram::<F>::tcp(b, c, SYN | ACK));
    let port = [2, 0, 0, 0, 0, 7];
    bed.machine.set_device(Some(on_a_bridge));
    assert_eq!(enters(&mut bed, BRIDGE, &to), to.clone().to(b).bytes());
    // To the bridge itself: it is routed, and leaves by a hook that sees it.
    assert_eq!(enters(&mut bed, BRIDGE, &back), back.bytes());
    assert_eq!(enters(&mut bed, port, &back), back.clone().from(vip::<F>(80)).bytes());
    let ack = Datagram::<F>::tcp(c, vip::<F>(80), ACK);
    assert_eq!(enters(&mut bed, BRIDGE, &ack), ack.clone().to(b).bytes());
    assert_eq!(bed.rows(), (0, 2), "the answer was seen");

    // The first answer of a datagram's flow keeps it, there as well.
    let (c, b) = (client::<F>(40_001), near::<F>(5353));
    let (to, back) = (Datagram::<F>::udp(c, vip::<F>(53)), Datagram::<F>::udp(b, c));
    assert_eq!(enters(&mut bed, BRIDGE, &to), to.clone().to(b).bytes());
    assert_eq!(enters(&mut bed, port, &back), back.clone().from(vip::<F>(53)).bytes());
    assert_eq!(bed.rows(), (0, 4));

    // Where each port sees what leaves by it, nothing is done twice.
    bed.machine.set_device(Some(device::<F>(node::<F>(0).addr)));
    assert_eq!(enters(&mut bed, port, &back), back.bytes());
    // What is of no flow is left alone.
    bed.machine.set_device(Some(on_a_bridge));
    let other = Datagram::<F>::udp(near::<F>(1), c);
    assert_eq!(enters(&mut bed, port, &other), other.bytes());
}
