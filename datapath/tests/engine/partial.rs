//! Packets whose transport checksum a device is to complete (CHECKSUM_PARTIAL), as veth hands
//! them over: the field holds the sum of the pseudo header, and no more.

use datapath::{
    address::protocol::{SCTP, TCP, UDP},
    counter::{Hook, Reason},
    header::tcp::{ACK, FIN, SYN},
    host::{
        buffer::Buffer,
        frame::{Datagram, Sum, icmp},
        verify::{Expect, checksums},
    },
    packet::Verdict,
};

use crate::{bed::Bed, machine::Side, plan::*, sender::same};

both! {
    rewritten_both_ways,
    masqueraded,
    refused,
    reset,
}

fn partial<F: Side>(mut packet: Datagram<F>) -> (Buffer, Datagram<F>) {
    packet.sum = Sum::Partial;
    let (header, field) = match packet.proto {
        TCP => (20, 16),
        SCTP => (16, 8),
        _ => (8, 6),
    };
    let field = packet.bytes().len() - packet.payload.len() - header + field;
    let buffer = Buffer { partial: Some(field as u32), ..Buffer::new(packet.bytes()) };
    (buffer, packet)
}

/// Sends a packet that must go on as another, both partial.
#[track_caller]
fn becomes<F: Side>(bed: &mut Bed<F>, hook: Hook, packet: Datagram<F>, expected: Datagram<F>) {
    let (buffer, _) = partial(packet);
    let (verdict, out) = bed.machine.run_buffer(hook, buffer);
    assert_eq!(verdict, Verdict::Pass);
    assert_eq!(checksums::<F>(&out, Expect::Partial), Ok(()));
    same::<F>(&partial(expected).0.bytes, &out);
}

fn rewritten_both_ways<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
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
    for proto in [TCP, SCTP] {
        let mut bed = Bed::<F>::new();
        bed.nat_ports(59_000, 59_000);
        let (c, v, b) = (client::<F>(40_000), vip::<F>(80), client::<F>(8080));
        bed.cluster_ip(v, proto, &[local(b)]);
        let syn = Datagram::<F>::of(proto, c, v, SYN);
        becomes(&mut bed, POD_IN, syn.clone(), syn.clone().to(b));
        becomes(&mut bed, POD_OUT, syn.clone().to(b), syn.to(b).from(node::<F>(59_000)));
    }
}

/// Sends a packet that must be answered, by a packet whose checksum nobody is to complete:
/// that would spoil what stands where the other's checksum was.
#[track_caller]
fn answers<F: Side>(bed: &mut Bed<F>, hook: Hook, packet: Datagram<F>) -> (Vec<u8>, Vec<u8>) {
    let (mut buffer, packet) = partial(packet);
    assert_eq!(bed.machine.decide(hook, &mut buffer), Verdict::Answer);
    assert_eq!(buffer.partial, None);
    (packet.bytes(), buffer.bytes)
}

/// Packets with as much before the transport header as there may be.
fn dressed<F: Side>(packet: &Datagram<F>) -> Vec<Datagram<F>> {
    let mut packets = vec![packet.clone()];
    for length in [4, 20, 40] {
        let mut packet = packet.clone();
        packet.options = vec![1; length];
        packet.extensions = vec![(60, vec![0; 8]); length / 8];
        packets.push(packet);
    }
    let mut long = packet.clone();
    long.extensions = vec![(60, [&[0, 31][..], &[0; 254]].concat())];
    packets.push(long);
    packets
}

/// The answer quotes the packet, whose checksum is never completed: nothing checks it there.
fn refused<F: Side>() {
    let mut bed = Bed::<F>::new();
    let v = vip::<F>(80);
    bed.cluster_ip(v, TCP, &[]);
    let kind = if F::V6 { [1, 4] } else { [3, 3] };
    let header = if F::V6 { 40 } else { 20 };
    for to in [v, vip::<F>(81)] {
        for proto in [TCP, UDP, SCTP] {
            for payload in [0, 1, 3, 200] {
                let packet = Datagram::<F>::of(proto, client::<F>(1), to, SYN);
                for packet in dressed(&packet.with_payload(&vec![7; payload])) {
                    for hook in [POD_IN, UP_OUT] {
                        let src = packet.src.addr;
                        let (asked, out) = answers(&mut bed, hook, packet.clone());
                        let quote = &asked[..asked.len().min(128) & !3];
                        let expected = icmp::<F>(v.addr, src, kind, [0; 4], quote).bytes();
                        assert_eq!(out[header..], expected[header..]);
                    }
                }
            }
        }
    }
}

fn reset<F: Side>() {
    let mut bed = Bed::<F>::new();
    let v = vip::<F>(80);
    bed.cluster_ip(v, TCP, &[local(near::<F>(8080))]);
    for flags in [ACK, FIN] {
        let stray = Datagram::<F>::tcp(client::<F>(1), v, flags).with_payload(b"lost");
        for stray in dressed(&stray) {
            let (_, out) = answers(&mut bed, POD_IN, stray);
            assert_eq!(out.len(), if F::V6 { 60 } else { 40 });
            assert_eq!(checksums::<F>(&out, Expect::Full), Ok(()));
        }
    }
    assert_eq!(bed.dropped(POD_IN, Reason::NotSyn), 10);
}
