//! What the link layer says about a packet.

use datapath::{
    address::protocol::TCP,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
    packet::Verdict,
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    frames_for_others_are_none_of_ours_on_an_uplink,
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
            assert_eq!(bed.machine.run_frame(UP_IN, ethernet, 0, packet), passed);
            assert_eq!(bed.machine.drops(UP_IN).iter().sum::<u64>(), 0);
            // The frames of pods are for the bridge.
            assert_eq!(bed.machine.run_frame(POD_IN, ethernet, 0, packet).0, *in_a_pod);
        }
        bed.machine.clear_flows();
    }
}
