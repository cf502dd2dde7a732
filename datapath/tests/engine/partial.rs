//! Packets whose transport checksum a device is to complete (CHECKSUM_PARTIAL), as veth hands
//! them over: the field holds the sum of the pseudo header, and no more.

use datapath::{
    address::protocol::{TCP, UDP},
    counter::Reason,
    header::tcp::{ACK, SYN},
    host::{
        buffer::Buffer,
        frame::{Datagram, Sum, icmp},
        verify::{Expect, checksums},
    },
    packet::Verdict,
};

use crate::{
    bed::{Bed, same},
    machine::Side,
    plan::*,
};

both! {
    rewritten_both_ways,
    masqueraded,
    refused,
}

fn partial<F: Side>(mut packet: Datagram<F>) -> (Buffer, Datagram<F>) {
    packet.sum = Sum::Partial;
    let header =
        packet.bytes().len() - packet.payload.len() - if packet.proto == TCP { 20 } else { 8 };
    let field = header + if packet.proto == TCP { 16 } else { 6 };
    let buffer = Buffer { bytes: packet.bytes(), partial: Some(field as u32) };
    (buffer, packet)
}

/// Sends a packet that must go on as another, both partial.
#[track_caller]
fn becomes<F: Side>(
    bed: &mut Bed<F>,
    hook: datapath::counter::Hook,
    packet: Datagram<F>,
    expected: Datagram<F>,
) {
    let (buffer, _) = partial(packet);
    let (verdict, out) = bed.machine.run_buffer(hook, buffer);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(checksums::<F>(&out, Expect::Partial), Ok(()));
    same::<F>(&partial(expected).0.bytes, &out);
}

fn rewritten_both_ways<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (client::<F>(40_000), vip::<F>(80), near::<F>(8080));
        bed.cluster_ip(v, proto, &[local(b)]);
        let to = |flags| Datagram::<F>::of(proto, c, v, flags).with_payload(&[0xff; 3000]);
        let back = |flags| Datagram::<F>::of(proto, b, c, flags).with_payload(&[0x33; 999]);
        becomes(&mut bed, POD_IN, to(SYN), to(SYN).to(b));
        becomes(&mut bed, POD_OUT, back(SYN | ACK), back(SYN | ACK).from(v));
        becomes(&mut bed, POD_IN, to(ACK), to(ACK).to(b));
        let mut odd = to(ACK);
        odd.options = vec![1; 12];
        odd.extensions = vec![(60, vec![0; 8])];
        becomes(&mut bed, POD_IN, odd.clone(), odd.to(b));
    }
}

fn masqueraded<F: Side>() {
    let mut bed = Bed::<F>::new();
    bed.nat_ports(59_000, 59_000);
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), client::<F>(8080));
    bed.cluster_ip(v, TCP, &[local(b)]);
    let syn = Datagram::<F>::tcp(c, v, SYN);
    becomes(&mut bed, POD_IN, syn.clone(), syn.clone().to(b));
    becomes(&mut bed, POD_OUT, syn.clone().to(b), syn.to(b).from(node::<F>(59_000)));
}

/// The answer quotes the packet, whose checksum is never completed: nothing checks it there.
fn refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    let v = vip::<F>(80);
    bed.cluster_ip(v, TCP, &[]);
    let (buffer, packet) = partial(Datagram::<F>::tcp(client::<F>(1), v, SYN));
    let (verdict, out) = bed.machine.run_buffer(POD_IN, buffer);
    assert_eq!(verdict, Verdict::Answer);
    let kind = if F::V6 { [1, 4] } else { [3, 3] };
    let expected = icmp::<F>(v.addr, packet.src.addr, kind, [0; 4], &packet.bytes()).bytes();
    let header = if F::V6 { 40 } else { 20 };
    assert_eq!(out[header..], expected[header..]);
    assert_eq!(bed.dropped(POD_IN, Reason::NoEndpoints), 1);
}
