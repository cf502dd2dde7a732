//! A backend set changes all at once: readers that look all the time see the old set or the
//! new one, never a mixture and never nothing, over the very arrays that the agent maps. The
//! same watch catches a writer that changes a set slot by slot.
//!
//! `MILLRACE_SWAPS` sets the number of swaps; the packet tier runs a million, and the ignored
//! test over arrays of the kernel, which needs root.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use agent_kit::{
    array::{Array, ArrayView},
    bpf::{MMAPABLE, MapLayout, map_create, map_type},
};
use datapath::{
    address::{Be16, Ipv4, protocol},
    backend::Backend,
    service::{Service, SetRef},
};
use proxy_agent::{
    apply::{Applier, Wait, tables::Tables},
    desired::{
        DesiredBackend, DesiredFrontend, DesiredService, DesiredSet, IpFamily, ServicePortKey,
    },
};

/// Space for a handful of sets, so that blocks are used again all the time.
const BACKENDS: u32 = 64;
const READERS: usize = 2;

/// Stands for the kernel's wait for running programs: readers hold it while they look.
#[derive(Default)]
struct Readers(RwLock<()>);

impl Wait for Readers {
    fn wait(&self) -> io::Result<()> {
        drop(self.0.write().unwrap());
        Ok(())
    }
}

/// What readers saw.
#[derive(Default, Debug)]
struct Seen {
    reads: AtomicU64,
    /// A backend of another generation than its set.
    torn: AtomicU64,
    /// Backends of two sets in one.
    mixed: AtomicU64,
    /// No set at all.
    holes: AtomicU64,
}

fn swaps() -> u32 {
    std::env::var("MILLRACE_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

/// Every set is of one port, as long as the port says.
fn backends(version: u32) -> Vec<DesiredBackend> {
    let port = (version % 7 + 1) as u16;
    let backend = |host| DesiredBackend { address: [10, 0, 0, host].into(), port, local: false };
    (0..port as u8).map(backend).collect()
}

fn look(services: &ArrayView<Service>, backends: &ArrayView<Backend<Ipv4>>, seen: &Seen) {
    let Some(word) = services.load(0, 0) else { return };
    let set = SetRef::from_word(word);
    seen.reads.fetch_add(1, Ordering::Relaxed);
    if set.count == 0 {
        seen.holes.fetch_add(1, Ordering::Relaxed);
        return;
    }
    for slot in set.block..set.block + u32::from(set.count) {
        let backend = backends.read(slot).unwrap();
        if backend.generation != set.generation {
            seen.torn.fetch_add(1, Ordering::Relaxed);
        } else if backend.port.get() != set.count {
            seen.mixed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Has readers look while `write` runs.
fn watch(
    services: &ArrayView<Service>,
    backends: &ArrayView<Backend<Ipv4>>,
    readers: &Readers,
    write: impl FnOnce(&Seen),
) -> Seen {
    let seen = Seen::default();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let reading = readers.0.read().unwrap();
                    for _ in 0..64 {
                        look(services, backends, &seen);
                    }
                    drop(reading);
                }
            });
        }
        write(&seen);
        done.store(true, Ordering::Relaxed);
    });
    seen
}

fn service(version: u32) -> DesiredService {
    DesiredService {
        frontends: vec![DesiredFrontend { address: [1, 1, 1, 1].into(), port: 80, kind: 1 }],
        cluster: DesiredSet::Backends(backends(version)),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    }
}

fn key() -> ServicePortKey {
    ServicePortKey {
        namespace: "default".into(),
        name: "web".into(),
        port: "http".into(),
        proto: protocol::TCP,
        family: IpFamily::V4,
    }
}

fn swap(tables: Tables, swaps: u32) -> Seen {
    let readers = Arc::new(Readers::default());
    let (services, backends) = (tables.services.view(), tables.backends4.view());
    let wait: Arc<dyn Wait> = readers.clone();
    let mut applier = Applier::adopt(tables, wait).unwrap();
    applier.complete();
    applier.want(key(), Some(service(0)));
    applier.sync();
    watch(&services, &backends, &readers, |_| {
        for version in 1..=swaps {
            applier.want(key(), Some(service(version)));
            // Waits by itself whenever blocks run out.
            applier.sync();
            assert!(!applier.is_behind());
        }
    })
}

fn assert_whole(seen: &Seen) {
    println!("{seen:?}");
    assert!(seen.reads.load(Ordering::Relaxed) > 0);
    for count in [&seen.torn, &seen.mixed, &seen.holes] {
        assert_eq!(count.load(Ordering::Relaxed), 0, "{seen:?}");
    }
}

#[test]
fn readers_see_the_old_set_or_the_new() {
    assert_whole(&swap(Tables::private(4, BACKENDS, 4).unwrap(), swaps()));
}

#[test]
#[ignore = "needs root: arrays of the kernel"]
fn readers_see_the_old_set_or_the_new_in_kernel_arrays() {
    let array = |value_size, max_entries| {
        let (map_type, key_size) = (map_type::ARRAY, 4);
        let layout = MapLayout { map_type, key_size, value_size, max_entries, flags: MMAPABLE };
        map_create(layout, None).unwrap()
    };
    let mut tables = Tables::private(4, BACKENDS, 4).unwrap();
    tables.services = Array::map(array(24, 4).as_fd()).unwrap();
    tables.backends4 = Array::map(array(12, BACKENDS).as_fd()).unwrap();
    assert_whole(&swap(tables, swaps()));
}

/// Versions until something was caught, or long enough.
fn until(caught: &AtomicU64) -> impl Iterator<Item = u32> {
    (0..100 * swaps()).take_while(|_| caught.load(Ordering::Relaxed) == 0)
}

/// The watch is worth something: it catches what must not be done.
#[test]
fn a_writer_that_changes_slot_by_slot_is_caught() {
    let mut services = Array::<Service>::private(1).unwrap();
    let mut slots = Array::<Backend<Ipv4>>::private(16).unwrap();
    let views = (services.view(), slots.view());
    let seen = watch(&views.0, &views.1, &Readers::default(), |seen| {
        for version in until(&seen.mixed) {
            let set = backends(version);
            for (slot, backend) in (0..).zip(&set) {
                let row = Backend {
                    addr: Ipv4::default(),
                    port: Be16::new(backend.port),
                    generation: 1,
                    flags: 0,
                };
                slots.write(slot, &row);
            }
            let set = SetRef { block: 0, count: set.len() as u16, generation: 1 };
            services.store(0, 0, set.word());
        }
    });
    println!("{seen:?}");
    assert_ne!(seen.mixed.load(Ordering::Relaxed), 0, "{seen:?}");
}

/// So is one that uses blocks again without waiting for readers: the generation tells.
#[test]
fn a_block_used_again_too_early_is_caught_by_its_generation() {
    let mut services = Array::<Service>::private(1).unwrap();
    let mut slots = Array::<Backend<Ipv4>>::private(16).unwrap();
    let views = (services.view(), slots.view());
    let seen = watch(&views.0, &views.1, &Readers::default(), |seen| {
        for version in until(&seen.torn) {
            let set = backends(version);
            let generation = (version % 65_535) as u16 + 1;
            let block = version % 2 * 8;
            for (slot, backend) in (block..).zip(&set) {
                let port = Be16::new(backend.port);
                slots.write(slot, &Backend { addr: Ipv4::default(), port, generation, flags: 0 });
            }
            services.store(0, 0, SetRef { block, count: set.len() as u16, generation }.word());
        }
    });
    println!("{seen:?}");
    assert_ne!(seen.torn.load(Ordering::Relaxed), 0, "{seen:?}");
    assert_eq!(seen.mixed.load(Ordering::Relaxed), 0, "{seen:?}");
}
