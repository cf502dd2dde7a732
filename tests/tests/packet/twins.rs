//! The same packets through the engine on plain memory and through the loaded programs, with
//! the same tables: what comes out must be the same, and so must what is left in the tables.
//! `MILLRACE_PACKETS` says how many packets, if not the 100,000 of each family, and `MILLRACE_SEED`, a
//! number, which: other packets for each.

use std::ops::DerefMut;

use datapath::{
    counter::{Hook, Reason},
    flow::{Flow, FlowKey, Place, TICK_NS, Walk},
    header,
    host::{
        buffer::Buffer,
        frame::{Datagram, icmp},
        verify::{describe, difference},
    },
    packet::Verdict,
    tables::Store,
};

use crate::{
    host,
    machine::{Node, Side},
    plan::*,
    sender::Runs,
};

const PACKETS: u64 = 100_000;
/// Packets between two beginnings with empty tables of flows, which neither side fills then:
/// what the kernel evicts first is its own affair.
const ROUND: u64 = 5_000;
/// Packets that are remembered, since they lead to the flows' other directions.
const RECENT: usize = 32;

/// SplitMix64.
pub(crate) struct Dice(u64);

impl Dice {
    /// Thrown as always, unless `MILLRACE_SEED` says otherwise.
    pub(crate) fn new(usual: u64) -> Self {
        let seed = std::env::var("MILLRACE_SEED")
            .map_or(0, |seed| seed.parse::<u64>().expect("a number in MILLRACE_SEED"));
        Self(usual ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

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

/// Both machines with the same tables: of the proxy, or of the overlay.
pub(crate) struct Twins<F: Side, K, const OVERLAY: bool> {
    pub(crate) kernel: K,
    pub(crate) host: host::Machine<F, OVERLAY>,
}

/// What became of the packets of a comparison.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) packets: u64,
    pub(crate) passed: u64,
    pub(crate) rewritten: u64,
    pub(crate) dropped: u64,
    pub(crate) answered: u64,
}

impl<F, K, const OVERLAY: bool> Twins<F, K, OVERLAY>
where
    F: Side,
    K: Runs<F> + DerefMut<Target = Node<F>>,
    host::Machine<F, OVERLAY>: Runs<F>,
{
    pub(crate) fn new(mut kernel: K, mut host: host::Machine<F, OVERLAY>) -> Self {
        let device = Some(device::<F>(node::<F>(0).addr));
        kernel.set_device(device);
        host.set_device(device);
        Self { kernel, host }
    }

    /// Sends as many packets through both as shall be compared, each as `next` makes it of those
    /// that passed before it, and compares the tables now and then. Between, time passes: as many
    /// ticks as one of `ages`.
    pub(crate) fn compare(
        &mut self,
        dice: &mut Dice,
        ages: &[u32],
        mut next: impl FnMut(&mut Dice, &[Vec<u8>]) -> Option<(Hook, Vec<u8>)>,
    ) -> Counts {
        let mut counts = Counts { packets: packets(PACKETS), ..Counts::default() };
        let mut recent: Vec<Vec<u8>> = Vec::new();
        for index in 0..counts.packets {
            if index % ROUND == 0 {
                self.same_tables();
                self.forget_flows();
                recent.clear();
            } else if index % ROUND == 2_000 && !ages.is_empty() {
                self.pass(dice.of(ages));
            }
            let Some((hook, bytes)) = next(dice, &recent) else { continue };
            if bytes.len() < F::HEADER as usize {
                continue;
            }
            let (verdict, out) = self.run(hook, &bytes);
            match verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Drop => counts.dropped += 1,
                Verdict::Answer => counts.answered += 1,
            }
            if verdict != Verdict::Pass {
                continue;
            }
            counts.rewritten += u64::from(out != bytes);
            if out != bytes || dice.below(20) == 0 {
                if recent.len() < RECENT {
                    recent.push(out);
                } else {
                    recent[dice.below(RECENT)] = out;
                }
            }
        }
        self.same_tables();
        counts
    }

    /// Sends a packet through both, and returns what became of it.
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let now = tick();
        // Which flows a walk over the table meets first is its order's affair: none is made.
        let walk = Walk { in_vain: now, ..Walk::default() };
        self.kernel.set_walk(walk);
        (self.host.memory.now, self.host.memory.walk) = (now, walk);
        let kernel = Runs::run(&mut self.kernel, hook, bytes);
        let host = Runs::run(&mut self.host, hook, bytes);
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
            let kernel = Runs::drops(&mut self.kernel, hook);
            assert_eq!(kernel, self.host.drops(hook), "{hook:?} by {:?}", Reason::ALL);
        }
        for store in [Store::Answered, Store::Pending] {
            let kernel = timeless::<F>(Runs::rows(&mut self.kernel, store));
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
fn timeless<F: Side>(mut rows: Rows<F::Address>) -> Rows<F::Address> {
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

/// How many packets to compare, if it is to be as usual.
pub(crate) fn packets(usual: u64) -> u64 {
    std::env::var("MILLRACE_PACKETS")
        .map_or(usual, |count| count.parse().expect("a number in MILLRACE_PACKETS"))
}
