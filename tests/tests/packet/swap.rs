//! Backend sets change all at once: programs read while a writer swaps sets, and each of them
//! sees the set before or the set after, never a mixture and never a hole. A writer that changes
//! sets in place, slot by slot, is caught by the same readers.
//!
//! A set's number stands in its backends' addresses, a slot's in their ports. A reader knows
//! which sets were in force while its packet was on its way; and once any reader has seen a set,
//! no packet sent later may meet an older one.

use std::{
    collections::VecDeque,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use agent_kit::{
    array::Array,
    barrier::Barrier,
    table::{MapTable, Table},
};
use datapath::{
    address::{Be16, Ipv4, V4, protocol},
    backend::Backend,
    counter::Hook,
    flow::Place,
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    host::frame::Datagram,
    maps::MARKS_LEN,
    service::{Service, SetRef, service_flags},
};

use crate::{
    machine::Sizes,
    object::{ETHERNET, Loaded, Object, Row, test_run},
    plan::vip,
};

/// Of every address the tables may know something.
static ALL_MARKED: [u8; MARKS_LEN] = [1; MARKS_LEN];

const SERVICE: u32 = 7;
/// Blocks of this many slots; a set fills a part of one.
const SLOTS: u32 = 16;
const READERS: usize = 2;
const SWAPS: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// How many backends a set has.
fn count(set: u64) -> u32 {
    1 + (set.wrapping_mul(7) % u64::from(SLOTS)) as u32
}

fn backend(set: u64, slot: u32, generation: u16) -> Backend<Ipv4> {
    Backend {
        addr: Ipv4::from_bytes((set as u32).to_be_bytes()),
        port: Be16::new(slot as u16),
        generation,
        flags: 0,
    }
}

/// What writers and readers tell each other.
#[derive(Default)]
struct Board {
    /// The set whose writing has begun.
    begun: AtomicU64,
    /// The set whose writing has ended.
    done: AtomicU64,
    /// The newest set that a reader has met.
    met: AtomicU64,
    stop: AtomicBool,
}

/// What a reader has seen.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    reads: u64,
    /// No backend, though every set has some.
    holes: u64,
    /// A slot that its set does not have, or a set that was not in force.
    strangers: u64,
    /// An older set after a newer one.
    mixtures: u64,
}

impl Seen {
    fn faults(self) -> u64 {
        self.holes + self.strangers + self.mixtures
    }
}

/// The arrays of an object, and the programs that read them.
struct Bed {
    loaded: Loaded,
    services: Array<Service>,
    backends: Array<Backend<Ipv4>>,
}

impl Bed {
    fn new() -> Self {
        let loaded = Loaded::take(Object::Proxy, Sizes { pending: 8192, ..Sizes::default() });
        let place = vip::<V4>(53);
        let key = FrontendKey::new(place.addr, place.port, protocol::UDP);
        let frontend = Frontend { service: SERVICE, kind: kind::CLUSTER_IP, pad: [0; 3] };
        let usage = AddressUse { flags: address_use::CLUSTER_IP };
        let table = |name| loaded.map(name);
        MapTable::new(table("FRONTENDS4"))
            .and_then(|mut rows| {
                rows.insert(&Row(key), &Row(frontend)).map_err(std::io::Error::other)
            })
            .expect("a row");
        MapTable::new(table("ADDRESSES4"))
            .and_then(|mut rows| {
                rows.insert(&Row(place.addr), &Row(usage)).map_err(std::io::Error::other)
            })
            .expect("a row");
        MapTable::new(table("ADDRESSMARKS"))
            .and_then(|mut rows| {
                rows.insert(&Row(0_u32), &Row(ALL_MARKED)).map_err(std::io::Error::other)
            })
            .expect("a row");
        let mut services = Array::<Service>::map(table("SERVICES").as_fd()).expect("a mapping");
        let backends = Array::map(table("BACKENDS4").as_fd()).expect("a mapping");
        services.write(SERVICE, &Service { flags: service_flags::USED, ..Service::default() });
        Self { loaded, services, backends }
    }
}

/// Sends packets of ever new flows and looks at where they go.
fn read(loaded: &Loaded, board: &Board, reader: u64) -> Seen {
    let program = loaded.program(Hook::PodIngress);
    let mut frame = ETHERNET.to_vec();
    frame.extend([8, 0]);
    let client = Place::new(Ipv4::from_bytes([172, 16, 0, 1]), Be16::new(1));
    let mut packet = Datagram::<V4>::udp(client, vip::<V4>(53));
    packet.sum = datapath::host::frame::Sum::Zero;
    frame.extend(packet.bytes());
    let mut out = vec![0; frame.len() + 256];
    let mut seen = Seen::default();
    while !board.stop.load(SeqCst) {
        seen.reads += 1;
        // Only the address changes, so only its checksum would: nobody looks at that.
        let source = (seen.reads * READERS as u64 + reader) as u32;
        frame[14 + 12..14 + 16]
            .copy_from_slice(&(0xac10_0000 ^ source.rotate_left(16)).to_be_bytes());
        frame[14 + 20..14 + 22].copy_from_slice(&(1 + (source >> 8) as u16).to_be_bytes());
        let oldest = board.done.load(SeqCst);
        let met = board.met.load(SeqCst);
        let (verdict, _) = test_run(program, &mut 0, &frame, &mut out);
        let newest = board.begun.load(SeqCst);
        let address = [out[30], out[31], out[32], out[33]];
        if verdict != -1 || address == vip::<V4>(0).addr.bytes() {
            seen.holes += 1;
            continue;
        }
        let set = u64::from(u32::from_be_bytes(address));
        let slot = u32::from(u16::from_be_bytes([out[36], out[37]]));
        if set < oldest || set > newest || slot >= count(set) {
            seen.strangers += 1;
        } else if set < met {
            seen.mixtures += 1;
        }
        board.met.fetch_max(set, SeqCst);
    }
    seen
}

/// Lets readers read while `write` makes one set after the other.
fn race(bed: Bed, mut write: impl FnMut(&mut Arrays, u64)) -> (u64, Seen) {
    let Bed { loaded, services, backends } = bed;
    let board = Board::default();
    let mut arrays = Arrays { services, backends };
    write(&mut arrays, 1);
    board.begun.store(1, SeqCst);
    board.done.store(1, SeqCst);
    let mut swaps = 0;
    let seen = std::thread::scope(|scope| {
        let (loaded, board) = (&loaded, &board);
        let readers: Vec<_> = (0..READERS as u64)
            .map(|reader| scope.spawn(move || read(loaded, board, reader)))
            .collect();
        let until = Instant::now() + PATIENCE;
        while swaps < SWAPS && Instant::now() < until {
            let set = swaps + 2;
            board.begun.store(set, SeqCst);
            write(&mut arrays, set);
            board.done.store(set, SeqCst);
            swaps += 1;
        }
        board.stop.store(true, SeqCst);
        readers.into_iter().map(|reader| reader.join().expect("a reader")).fold(
            Seen::default(),
            |sum, seen| Seen {
                reads: sum.reads + seen.reads,
                holes: sum.holes + seen.holes,
                strangers: sum.strangers + seen.strangers,
                mixtures: sum.mixtures + seen.mixtures,
            },
        )
    });
    println!("{swaps} swaps: {seen:?}");
    (swaps, seen)
}

/// The arrays that a writer has.
struct Arrays {
    services: Array<Service>,
    backends: Array<Backend<Ipv4>>,
}

#[test]
fn a_set_changes_all_at_once() {
    let bed = Bed::new();
    let barrier = Barrier::new().expect("a barrier");
    let blocks = bed.backends.capacity() / SLOTS;
    let mut free: VecDeque<u32> = (0..blocks).collect();
    let mut retired = Vec::new();
    let mut current = None;
    let (swaps, seen) = race(bed, |arrays, set| {
        if free.is_empty() {
            // One wait for all the blocks that were given up since the last.
            barrier.wait().expect("a wait for the readers");
            free.extend(retired.drain(..));
        }
        let block = free.pop_front().expect("a block");
        let generation = (set % 65_535) as u16 + 1;
        for slot in 0..count(set) {
            arrays.backends.write(block * SLOTS + slot, &backend(set, slot, generation));
        }
        let word = SetRef { block: block * SLOTS, count: count(set) as u16, generation }.word();
        arrays.services.store(SERVICE, 0, word);
        retired.extend(current.replace(block));
    });
    assert_eq!(seen.faults(), 0, "{seen:?}");
    assert!(swaps >= 100_000 && seen.reads >= 10_000, "{swaps} swaps, {seen:?}");
}

#[test]
fn a_set_changed_in_place_is_caught() {
    let bed = Bed::new();
    let (_, seen) = race(bed, |arrays, set| {
        for slot in 0..count(set) {
            arrays.backends.write(slot, &backend(set, slot, 1));
        }
        let word = SetRef { block: 0, count: count(set) as u16, generation: 1 }.word();
        arrays.services.store(SERVICE, 0, word);
    });
    assert!(seen.faults() > 0, "the readers would not notice: {seen:?}");
}
