//! The same for the masquerade: the engine and the loaded programs of the overlay, packet by packet.

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{TCP, UDP},
    },
    counter::Hook,
    header,
    host::{
        buffer::Buffer,
        frame::{Datagram, icmp},
    },
    policy::Policy,
};

use crate::{
    host,
    ipmasq::networks,
    machine::{Overlay, Side, Sizes},
    plan::*,
    twins::{Counts, Dice, Twins, back, complaint, mangle},
};

#[test]
fn v4() {
    compare::<V4>();
}

#[test]
fn v6() {
    compare::<V6>();
}

/// A packet from somebody to somebody.
fn request<F: Side>(dice: &mut Dice) -> Datagram<F> {
    let places = [
        client::<F>(0),
        near::<F>(0),
        far::<F>(0),
        outside::<F>(0),
        at::<F>(8, 8, 0),
        at::<F>(3, 3, 0),
        node::<F>(0),
    ];
    let ports = [1000, 1001, 53, 80, 60_000];
    let (mut src, mut dst) = (dice.of(&places), dice.of(&places));
    src.port = Be16::new(dice.of(&ports));
    dst.port = Be16::new(dice.of(&ports));
    if dice.below(4) == 0 {
        let kinds: &[u8] = if F::V6 { &[128, 128, 129, 135] } else { &[8, 8, 0, 13] };
        let [a, b] = src.port.bytes();
        let length = dice.below(80);
        return icmp(src.addr, dst.addr, [dice.of(kinds), 0], [a, b, 0, 1], &dice.bytes(length));
    }
    let flags = dice.of(&[0x02, 0x02, 0x02, 0x10, 0x18, 0x11, 0x12, 0x04, 0x00]);
    let mut packet = Datagram::of(dice.of(&[TCP, UDP]), src, dst, flags);
    packet.id = dice.below(8) as u32;
    packet
}

/// What answers a packet.
fn answer<F: Side>(dice: &mut Dice, bytes: &[u8]) -> Option<Datagram<F>> {
    let buffer = Buffer::new(bytes.to_vec());
    let header = F::header(&buffer, 0)?;
    let found = header::transport::<F, _>(&buffer, &header).ok()?;
    if found.proto != F::ICMP {
        return back(dice, bytes);
    }
    let message = bytes.get(found.offset as usize..)?;
    let rest = message.get(4..8)?.try_into().ok()?;
    let kind = if F::V6 { 129 } else { 0 };
    Some(icmp(header.dst, header.src, [kind, 0], rest, &message[8..]))
}

/// The next packet, and where it meets us.
fn next<F: Side>(dice: &mut Dice, recent: &[Vec<u8>]) -> Option<(Hook, Vec<u8>)> {
    let hook = dice.of(&[UP_IN, UP_OUT]);
    let of = dice.below(recent.len());
    let packet = match dice.below(10) {
        0..=3 if !recent.is_empty() => answer::<F>(dice, &recent[of])?,
        4 if !recent.is_empty() => complaint::<F>(dice, &recent[of])?,
        5 if !recent.is_empty() => return Some((hook, recent[of].clone())),
        _ => request(dice),
    };
    Some((hook, mangle(dice, packet)))
}

fn compare<F: Side>() {
    let sizes = Sizes::default();
    let mut twins: Twins<F, Overlay<F>, true> =
        Twins::new(Overlay::new(sizes), host::Overlay::new(sizes));
    // One port, so that there is no choice.
    let policy = Policy {
        v4: networks::<V4>(),
        v6: networks::<V6>(),
        nat_port_first: 60_000,
        nat_port_last: 60_000,
    };
    twins.kernel.set_policy(policy);
    twins.host.set_policy(policy);
    let counts = twins.compare(&mut Dice::new(0x6d61_7371), &[], next::<F>);
    let Counts { packets, rewritten, dropped, .. } = counts;
    println!("IPv{}: {packets} packets, {rewritten} rewritten, {dropped} dropped", F::SUFFIX);
    assert!(rewritten * 10 > packets && dropped * 100 > packets);
}
