//! IPv4 options and IPv6 extension headers: followed, or refused with a reason.

use datapath::{
    address::{
        V4, V6,
        protocol::{TCP, UDP},
    },
    counter::Reason,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
};

use crate::{bed::Bed, plan::*};

/// Bytes of an extension header of `units` times eight bytes more than the first eight.
fn header(units: u8) -> Vec<u8> {
    let mut bytes = vec![0, units];
    // One padding option over the rest (RFC 8200 §4.2).
    bytes.extend([1, 4 + units * 8]);
    bytes.resize(8 + units as usize * 8, 0);
    bytes
}

fn routing(left: u8) -> Vec<u8> {
    let mut bytes = vec![0, 2, 4, left];
    bytes.resize(24, 0);
    bytes
}

#[test]
fn options_of_every_length() {
    let mut bed = Bed::<V4>::new();
    let (c, v, b) = (client::<V4>(40_000), vip::<V4>(80), near::<V4>(8080));
    bed.cluster_ip(v, TCP, &[local(b)]);
    bed.cluster_ip(at::<V4>(96, 2, 80), TCP, &[]);
    for words in 0..=10 {
        let mut packet = Datagram::<V4>::tcp(c, v, SYN).with_payload(b"data");
        packet.options = [0x01, 0x07, 0x03, 0x04].repeat(words);
        bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(b).bytes());
        let mut answer = Datagram::<V4>::tcp(b, c, SYN | ACK);
        answer.options.clone_from(&packet.options);
        bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
        packet.dst = at::<V4>(96, 2, 80);
        bed.answers(POD_IN, &packet.bytes(), Reason::NoEndpoints);
        packet.flags = ACK;
        bed.answers(POD_IN, &packet.bytes(), Reason::NotSyn);
    }
}

#[test]
fn a_header_length_below_the_least_is_the_kernels() {
    let mut bed = Bed::<V4>::new();
    bed.cluster_ip(vip::<V4>(80), TCP, &[local(near::<V4>(8080))]);
    for first in [0x40, 0x44, 0x55, 0x65, 0x05] {
        let mut bytes = Datagram::<V4>::tcp(client::<V4>(1), vip::<V4>(80), SYN).bytes();
        bytes[0] = first;
        bed.passes(POD_IN, &bytes);
        bed.passes(POD_OUT, &bytes);
    }
}

#[test]
fn chains_are_followed() {
    let chains: [&[(u8, Vec<u8>)]; 6] = [
        &[(0, header(0))],
        &[(60, header(3))],
        &[(43, routing(0))],
        &[(0, header(0)), (60, header(1)), (43, routing(0)), (60, header(0))],
        &[(0, header(31))],
        &[
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
            (60, header(0)),
        ],
    ];
    for chain in chains {
        for proto in [TCP, UDP] {
            let mut bed = Bed::<V6>::new();
            let (c, v, b) = (client::<V6>(40_000), vip::<V6>(80), near::<V6>(8080));
            bed.cluster_ip(v, proto, &[local(b)]);
            let mut packet = Datagram::<V6>::of(proto, c, v, SYN);
            packet.extensions = chain.to_vec();
            bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(b).bytes());
            let mut answer = Datagram::<V6>::of(proto, b, c, SYN | ACK).with_payload(&[1; 99]);
            answer.extensions = chain.to_vec();
            bed.becomes(POD_OUT, &answer.bytes(), &answer.clone().from(v).bytes());
            // In pieces, the fragment header behind the rest.
            for (piece, expected) in
                answer.fragments(64).iter().zip(&answer.clone().from(v).fragments(64))
            {
                if chain.len() < 8 {
                    bed.becomes(POD_OUT, piece, expected);
                }
            }
        }
    }
}

#[test]
fn chains_that_are_not_followed() {
    let nine: Vec<_> = (0..9).map(|_| (60, header(0))).collect();
    let chains: [&[(u8, Vec<u8>)]; 6] = [
        &nine,
        &[(43, routing(1))],
        &[(51, header(1))],
        &[(50, header(1))],
        &[(135, header(0))],
        &[(0, header(0)), (43, routing(2))],
    ];
    for chain in chains {
        let mut bed = Bed::<V6>::new();
        bed.cluster_ip(vip::<V6>(80), TCP, &[local(near::<V6>(8080))]);
        bed.node_port(30_080, TCP, &[local(near::<V6>(8080))]);
        let mut packet = Datagram::<V6>::tcp(client::<V6>(1), vip::<V6>(80), SYN);
        packet.extensions = chain.to_vec();
        bed.drops(POD_IN, &packet.bytes(), Reason::ExtensionHeader);
        // On an address of the node they are somebody else's.
        packet.dst = node::<V6>(30_080);
        bed.passes(UP_IN, &packet.bytes());
        bed.passes(POD_OUT, &packet.bytes());
        assert_eq!(bed.rows(), (0, 0));
    }
}

#[test]
fn chains_that_end_too_early() {
    let mut bed = Bed::<V6>::new();
    bed.cluster_ip(vip::<V6>(80), TCP, &[local(near::<V6>(8080))]);
    let mut packet = Datagram::<V6>::tcp(client::<V6>(1), vip::<V6>(80), SYN);
    packet.extensions = vec![(0, header(0)), (60, header(2)), (43, routing(0))];
    let bytes = packet.bytes();
    for length in 40..bytes.len() - 6 {
        bed.drops(POD_IN, &bytes[..length], Reason::Malformed);
    }
    // A header that claims more than there is.
    let mut long = bytes;
    long[41] = 255;
    bed.drops(POD_IN, &long, Reason::Malformed);
    assert_eq!(bed.rows(), (0, 0));
}

#[test]
fn nothing_behind_the_headers() {
    let mut bed = Bed::<V6>::new();
    bed.cluster_ip(vip::<V6>(80), TCP, &[local(near::<V6>(8080))]);
    let mut packet = Datagram::<V6>::other(client::<V6>(0).addr, vip::<V6>(0).addr, 59, &[]);
    packet.extensions = vec![(60, header(0))];
    bed.answers(POD_IN, &packet.bytes(), Reason::UnknownPort);
}
