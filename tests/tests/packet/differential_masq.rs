//! The same for the masquerade: packets through the engine on plain memory and through the loaded
//! programs of the overlay.

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{TCP, UDP},
    },
    counter::{Hook, Reason},
    flow::Walk,
    header,
    host::{
        buffer::Buffer,
        frame::{Datagram, icmp},
        verify::{describe, difference},
    },
    packet::Verdict,
    policy::Policy,
    tables::Store,
};

use crate::{
    differential::{Dice, ROUND, back, complaint, mangle, packets, tick, timeless},
    host,
    ipmasq::networks,
    machine::{Overlay, Side, Sizes},
    plan::*,
};

#[test]
fn v4() {
    compare::<V4>();
}

#[test]
fn v6() {
    compare::<V6>();
}

/// Both machines with the same tables.
struct Pair<F: Side> {
    kernel: Overlay<F>,
    host: host::Overlay<F>,
}

impl<F: Side> Pair<F> {
    fn new() -> Self {
        let sizes = Sizes::default();
        let mut pair = Self { kernel: Overlay::new(sizes), host: host::Overlay::new(sizes) };
        // One port, so that there is no choice.
        let policy = Policy {
            v4: networks::<V4>(),
            v6: networks::<V6>(),
            nat_port_first: 60_000,
            nat_port_last: 60_000,
        };
        pair.kernel.set_policy(policy);
        pair.host.set_policy(policy);
        let device = Some(device::<F>(node::<F>(0).addr));
        pair.kernel.set_device(device);
        pair.host.set_device(device);
        pair
    }

    /// Sends a packet through both, and returns what became of it.
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let now = tick();
        let walk = Walk { in_vain: now, ..Walk::default() };
        self.kernel.set_walk(walk);
        (self.host.memory.now, self.host.memory.walk) = (now, walk);
        let kernel = self.kernel.run_marked(hook, 0, bytes);
        let host = self.host.run_marked(hook, 0, bytes);
        assert!(
            kernel == host,
            "{hook:?} of {}\nkernel {:?}, host {:?}: {}",
            describe::<F>(bytes),
            kernel.0,
            host.0,
            difference::<F>(&host.1, &kernel.1).unwrap_or_default()
        );
        kernel
    }

    fn same_tables(&mut self) {
        for hook in [UP_IN, UP_OUT] {
            let (kernel, host) = (self.kernel.drops(hook), self.host.drops(hook));
            assert_eq!(kernel, host, "{hook:?} by {:?}", Reason::ALL);
        }
        for store in [Store::Answered, Store::Pending] {
            let kernel = timeless::<F>(self.kernel.rows(store));
            let host = timeless::<F>(self.host.rows(store));
            assert_eq!(kernel, host, "{store:?}");
        }
    }

    fn forget_flows(&mut self) {
        self.kernel.clear_flows();
        let memory = &mut self.host.memory;
        memory.flows.clear();
        memory.pending.clear();
        memory.fragments.clear();
        memory.marks.fill(false);
    }
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
    let packets = packets();
    let mut pair = Pair::<F>::new();
    let mut dice = Dice(0x6d61_7371);
    let mut recent: Vec<Vec<u8>> = Vec::new();
    let (mut rewritten, mut dropped) = (0_u64, 0_u64);
    for index in 0..packets {
        if index % ROUND == 0 {
            pair.same_tables();
            pair.forget_flows();
            recent.clear();
        }
        let Some((hook, bytes)) = next::<F>(&mut dice, &recent) else { continue };
        if bytes.len() < F::HEADER as usize {
            continue;
        }
        let (verdict, out) = pair.run(hook, &bytes);
        dropped += u64::from(verdict == Verdict::Drop);
        if verdict == Verdict::Pass {
            rewritten += u64::from(out != bytes);
            // Recent packets lead to the flows' other directions.
            if out != bytes || dice.below(20) == 0 {
                if recent.len() < 32 {
                    recent.push(out);
                } else {
                    recent[dice.below(32)] = out;
                }
            }
        }
    }
    pair.same_tables();
    println!("IPv{}: {packets} packets, {rewritten} rewritten, {dropped} dropped", F::SUFFIX);
    assert!(rewritten * 10 > packets && dropped * 100 > packets);
}
