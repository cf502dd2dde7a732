//! The same packets through the engine on plain memory and through the loaded programs, with
//! the same tables: what comes out must be the same, and so must what is left in the tables.
//!
//! Choices are made comparable by leaving none: one backend to a set, one port to masquerade
//! with. `MILLRACE_PACKETS` says how many packets, if not the 100,000 of each family.

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{TCP, UDP},
    },
    backend::Backend,
    counter::{Hook, Reason},
    flow::{Flow, FlowKey, Place, TICK_NS, Walk},
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    header,
    host::{
        buffer::Buffer,
        frame::{Datagram, icmp},
        verify::{describe, difference},
    },
    packet::Verdict,
    service::{Service, SetRef, service_flags},
    settings::Settings,
    tables::Store,
};

use crate::{
    host,
    machine::{Machine, Side, Sizes},
    plan::*,
};

const PACKETS: u64 = 100_000;
/// Packets between two beginnings with empty tables of flows, which neither side fills then:
/// what the kernel evicts first is its own affair.
pub(crate) const ROUND: u64 = 5_000;

#[test]
fn v4() {
    compare::<V4>();
}

#[test]
fn v6() {
    compare::<V6>();
}

/// SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % limit.max(1) as u64) as usize
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// Both machines with the same tables.
struct Pair<F: Side> {
    kernel: Machine<F>,
    host: host::Machine<F>,
    services: u32,
}

impl<F: Side> Pair<F> {
    fn new() -> Self {
        let sizes = Sizes::default();
        let mut pair =
            Self { kernel: Machine::new(sizes), host: host::Machine::new(sizes), services: 1 };
        let settings = Settings {
            nat_port_first: 59_000,
            nat_port_last: 59_000,
            ipv6_checksum_flags: 0x10,
            ..Settings::default()
        };
        pair.kernel.set_settings(settings);
        pair.host.set_settings(settings);
        let device = Some(device::<F>(node::<F>(0).addr));
        pair.kernel.set_device(device);
        pair.host.set_device(device);
        let usage = address_use::FRONTEND | address_use::MASQUERADE;
        pair.address(node::<F>(0).addr, usage);
        pair
    }

    fn address(&mut self, address: F::Address, flags: u32) {
        self.kernel.put_address(address, AddressUse { flags });
        self.host.put_address(address, AddressUse { flags });
    }

    fn expose(
        &mut self,
        place: Place<F::Address>,
        proto: u8,
        backend: Option<Backend<F::Address>>,
        flags: u32,
    ) {
        let index = self.services;
        self.services += 1;
        let cluster = backend.map_or(SetRef::REJECT, |backend| {
            let row = Backend { generation: 1, ..backend };
            self.kernel.put_backend(index, row);
            self.host.put_backend(index, row);
            SetRef { block: index, count: 1, generation: 1 }
        });
        let row = Service { cluster, local: SetRef::DROP, flags, pad: 0 };
        self.kernel.put_service(index, row);
        self.host.put_service(index, row);
        let kind = if place.addr == node::<F>(0).addr {
            kind::NODE_PORT
        } else {
            self.address(place.addr, address_use::CLUSTER_IP);
            kind::CLUSTER_IP
        };
        let key = FrontendKey::new(place.addr, place.port, proto);
        let row = Frontend { service: index, kind, pad: [0; 3] };
        self.kernel.put_frontend(key, row);
        self.host.put_frontend(key, row);
    }

    /// Sends a packet through both, and returns what became of it.
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let now = tick();
        // Which flows a walk over the table meets first is its order's affair: none is made.
        let walk = Walk { in_vain: now, ..Walk::default() };
        self.kernel.set_walk(walk);
        (self.host.memory.now, self.host.memory.walk) = (now, walk);
        let kernel = self.kernel.run(hook, bytes);
        let host = self.host.run(hook, bytes);
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
        for hook in Hook::ALL {
            assert_eq!(
                self.kernel.drops(hook),
                self.host.drops(hook),
                "{hook:?} by {:?}",
                Reason::ALL
            );
        }
        for service in 1..self.services {
            assert_eq!(self.kernel.counters(service), self.host.counters(service));
        }
        for store in [Store::Answered, Store::Pending] {
            let kernel = timeless::<F>(self.kernel.rows(store));
            let host = timeless::<F>(self.host.rows(store));
            assert_eq!(kernel.len(), host.len(), "{store:?}");
            for (kernel, host) in kernel.iter().zip(&host) {
                assert_eq!(kernel, host, "{store:?}");
            }
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

    fn pass(&mut self, ticks: u32) {
        self.kernel.pass(ticks);
        let memory = &mut self.host.memory;
        let answered = memory.flows.values_mut();
        for row in answered.chain(memory.pending.iter_mut().map(|(_, row)| row)) {
            row.last = row.last.wrapping_sub(ticks);
        }
    }
}

/// The programs' clock, when it will not change soon.
pub(crate) fn tick() -> u32 {
    loop {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes the structure given.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
        let now = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
        if now % TICK_NS < TICK_NS - 50_000_000 {
            return (now / TICK_NS) as u32;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

type Rows<A> = Vec<(FlowKey<A>, Flow<A>)>;

/// Rows without what depends on when they were written.
pub(crate) fn timeless<F: Side>(mut rows: Rows<F::Address>) -> Rows<F::Address> {
    rows.sort_by_key(|(key, _)| *key);
    for (_, row) in &mut rows {
        (row.last, row.since) = (0, 0);
    }
    rows
}

/// A packet that goes back to where another came from.
pub(crate) fn back<F: Side>(dice: &mut Dice, bytes: &[u8]) -> Option<Datagram<F>> {
    let buffer = Buffer::new(bytes.to_vec());
    let header = F::header(&buffer, 0)?;
    let found = header::transport::<F, _>(&buffer, &header).ok()?;
    if !header::has_ports(found.proto) {
        return None;
    }
    let src = Place::new(header.dst, found.ports.dst_port);
    let dst = Place::new(header.src, found.ports.src_port);
    let flags = dice.of(&[0x12, 0x10, 0x10, 0x18, 0x11, 0x04]);
    Some(Datagram::of(found.proto, src, dst, flags))
}

/// An ICMP message about a packet.
pub(crate) fn complaint<F: Side>(dice: &mut Dice, about: &[u8]) -> Option<Datagram<F>> {
    let header = F::header(&Buffer::new(about.to_vec()), 0)?;
    let by = if dice.below(2) == 0 { header.dst } else { router::<F>() };
    let kinds: &[[u8; 2]] = if F::V6 {
        &[[1, 4], [2, 0], [3, 0], [4, 0], [128, 0], [137, 0]]
    } else {
        &[[3, 3], [3, 4], [11, 0], [12, 0], [8, 0], [5, 1]]
    };
    let kind = dice.of(kinds);
    let rest = dice.bytes(4);
    let length = if dice.below(2) == 0 { about.len() } else { dice.below(about.len() + 1) };
    Some(icmp::<F>(by, header.src, kind, [rest[0], rest[1], rest[2], rest[3]], &about[..length]))
}

/// A packet from somebody to somebody, most likely to a frontend.
fn request<F: Side>(dice: &mut Dice) -> Datagram<F> {
    let clients = [
        client::<F>(0),
        client::<F>(0),
        near::<F>(0),
        far::<F>(0),
        outside::<F>(0),
        at::<F>(8, 8, 0),
    ];
    let frontends = [
        (vip::<F>(80), TCP),
        (vip::<F>(80), TCP),
        (vip::<F>(53), UDP),
        (vip::<F>(81), TCP),
        (at::<F>(96, 2, 80), TCP),
        (at::<F>(96, 2, 53), UDP),
        (at::<F>(96, 3, 80), TCP),
        (at::<F>(96, 4, 80), TCP),
        (at::<F>(96, 5, 80), TCP),
        (at::<F>(96, 5, 53), UDP),
        (node::<F>(30_080), TCP),
        (node::<F>(30_081), TCP),
        (node::<F>(30_053), UDP),
        (node::<F>(30_054), UDP),
        (node::<F>(59_000), UDP),
        (node::<F>(22), TCP),
        (far::<F>(8080), TCP),
    ];
    let mut src = dice.of(&clients);
    src.port = Be16::new(dice.of(&[1000, 1001, 1002, 1003, 8080, 5353]));
    let (dst, proto) = dice.of(&frontends);
    let flags = dice.of(&[0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x12, 0x04, 0x14, 0x00, 0xc2]);
    let mut packet = Datagram::of(proto, src, dst, flags);
    packet.id = dice.below(8) as u32;
    packet
}

/// Options, extension headers, a payload.
fn dress<F: Side>(dice: &mut Dice, packet: &mut Datagram<F>) {
    if dice.below(3) == 0 && header::has_ports(packet.proto) {
        let length = dice.below(300);
        packet.payload = dice.bytes(length);
    }
    if dice.below(10) == 0 {
        packet.options = vec![1; 4 * dice.below(11)];
        for _ in 0..dice.below(4) {
            let units = dice.below(3);
            let number = dice.of(&[0, 60, 60, 43, 51, 44, 135]);
            let mut header = dice.bytes(8 * (units + 1));
            header[1] = units as u8;
            if number == 43 {
                header[3] = dice.below(2) as u8;
            }
            packet.extensions.push((number, header));
        }
    }
    if dice.below(20) == 0 && !F::V6 {
        packet.sum = datapath::host::frame::Sum::Zero;
    }
}

/// The bytes of a packet, dressed, cut into pieces or spoilt now and then.
pub(crate) fn mangle<F: Side>(dice: &mut Dice, mut packet: Datagram<F>) -> Vec<u8> {
    dress(dice, &mut packet);
    let mut bytes = packet.bytes();
    if dice.below(8) == 0 && header::has_ports(packet.proto) {
        let pieces = packet.with_payload(&[7; 200]).fragments(8 * (1 + dice.below(20)));
        bytes.clone_from(&pieces[dice.below(pieces.len())]);
    }
    match dice.below(12) {
        0 => {
            for _ in 0..=dice.below(4) {
                let at = dice.below(bytes.len());
                bytes[at] = dice.below(256) as u8;
            }
        }
        1 => bytes.truncate(dice.below(bytes.len() + 1)),
        2 => {
            let length = dice.below(64);
            bytes.extend(dice.bytes(length));
        }
        _ => {}
    }
    bytes
}

/// The next packet, and where it meets us.
fn next<F: Side>(dice: &mut Dice, recent: &[Vec<u8>]) -> Option<(Hook, Vec<u8>)> {
    let hooks = [Hook::PodIngress, Hook::PodEgress, Hook::UplinkIngress, Hook::UplinkEgress];
    let (ins, outs) = ([hooks[0], hooks[2]], [hooks[1], hooks[3]]);
    let (hook, packet) = match dice.below(10) {
        // What came in goes out.
        0..=2 if !recent.is_empty() => {
            return Some((dice.of(&outs), recent[dice.below(recent.len())].clone()));
        }
        3 | 4 if !recent.is_empty() => {
            let of = dice.below(recent.len());
            (dice.of(&hooks), back::<F>(dice, &recent[of])?)
        }
        5 if !recent.is_empty() => {
            let about = dice.below(recent.len());
            (dice.of(&hooks), complaint::<F>(dice, &recent[about])?)
        }
        // A process of the node asks.
        6 => (Hook::UplinkEgress, request(dice)),
        _ => (dice.of(&ins), request(dice)),
    };
    Some((hook, mangle(dice, packet)))
}

/// How many packets to compare.
pub(crate) fn packets() -> u64 {
    std::env::var("MILLRACE_PACKETS")
        .map_or(PACKETS, |count| count.parse().expect("a number in MILLRACE_PACKETS"))
}

fn compare<F: Side>() {
    let packets = packets();
    let mut pair = Pair::<F>::new();
    pair.expose(vip::<F>(80), TCP, Some(local(near::<F>(8080))), 0);
    pair.expose(vip::<F>(53), UDP, Some(local(near::<F>(5353))), 0);
    pair.expose(at::<F>(96, 2, 80), TCP, Some(remote(far::<F>(8080))), 0);
    pair.expose(at::<F>(96, 2, 53), UDP, Some(remote(far::<F>(5353))), 0);
    pair.expose(at::<F>(96, 3, 80), TCP, None, 0);
    pair.expose(
        at::<F>(96, 4, 80),
        TCP,
        Some(local(near::<F>(8080))),
        service_flags::INTERNAL_LOCAL,
    );
    pair.expose(at::<F>(96, 5, 80), TCP, Some(local(client::<F>(8080))), 0);
    pair.expose(at::<F>(96, 5, 53), UDP, Some(local(client::<F>(5353))), 0);
    pair.expose(node::<F>(30_080), TCP, Some(local(near::<F>(8080))), 0);
    pair.expose(node::<F>(30_081), TCP, Some(remote(far::<F>(8080))), 0);
    pair.expose(node::<F>(30_053), UDP, Some(remote(far::<F>(5353))), 0);
    pair.expose(
        node::<F>(30_054),
        UDP,
        Some(local(near::<F>(5353))),
        service_flags::EXTERNAL_LOCAL,
    );
    let mut dice = Dice(0x006d_696c_6c72_6163);
    let mut recent: Vec<Vec<u8>> = Vec::new();
    let mut verdicts = [0_u64; 4];
    for index in 0..packets {
        if index % ROUND == 0 {
            pair.same_tables();
            pair.forget_flows();
            recent.clear();
        } else if index % ROUND == 2_000 {
            pair.pass(dice.of(&[35, 135, 4_000, 90_000]));
        }
        let Some((hook, bytes)) = next::<F>(&mut dice, &recent) else { continue };
        if bytes.len() < F::HEADER as usize {
            continue;
        }
        let (verdict, out) = pair.run(hook, &bytes);
        verdicts[verdict as usize] += 1;
        if verdict == Verdict::Pass {
            verdicts[3] += u64::from(out != bytes);
            // Recent packets lead to the flows' other directions.
            if out != bytes || dice.below(20) == 0 {
                if recent.len() < 32 {
                    recent.push(out);
                } else {
                    let at = dice.below(32);
                    recent[at] = out;
                }
            }
        }
    }
    pair.same_tables();
    let [passed, dropped, answered, rewritten] = verdicts;
    println!(
        "IPv{}: {packets} packets, {passed} passed ({rewritten} rewritten), {dropped} dropped, {answered} answered",
        F::SUFFIX
    );
    assert!(rewritten * 10 > packets && dropped * 100 > packets && answered * 100 > packets);
    let reached = Hook::ALL.iter().flat_map(|hook| pair.kernel.drops(*hook)).enumerate();
    let reached: std::collections::BTreeSet<_> =
        reached.filter(|(_, count)| *count > 0).map(|(at, _)| at % Reason::ALL.len()).collect();
    println!("reasons met: {:?}", reached.iter().map(|at| Reason::ALL[*at]).collect::<Vec<_>>());
}
