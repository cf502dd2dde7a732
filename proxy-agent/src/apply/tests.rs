//! The law of `apply`: whatever the tables held, whatever fails on the way, they come to hold
//! what is wanted, and a reader at any moment sees each Service as it was or as it should be.

mod audit;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};

use agent_kit::table::{MemoryTable, Table, TableError};
use datapath::{
    address::{Ipv4, protocol},
    frontend::{Frontend, FrontendKey, address_use, kind},
    service::{ServicePolicy, SetRef, service_flags},
};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::{Applier, Wait, ledger::Ledger, op::Op, tables::Tables};
use crate::desired::{
    Desired, DesiredBackend, DesiredFrontend, DesiredService, DesiredSet, IpFamily, ServicePortKey,
};

const SERVICES: u32 = 16;
const BACKENDS: u32 = 256;
const FRONTENDS: u32 = 64;

/// What a sync plans, one after the other.
const STEPS: [fn(&mut Ledger) -> Vec<Op>; 5] = [
    Ledger::stale_ranges,
    Ledger::missing_ranges,
    Ledger::plan,
    Ledger::stale_ranges,
    Ledger::close,
];

struct NoWait;

impl Wait for NoWait {
    fn wait(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A table whose writes fail as a seed says.
struct Faulty<K, V> {
    rows: MemoryTable<K, V>,
    faults: Arc<Mutex<Vec<bool>>>,
}

impl<K, V> Faulty<K, V>
where
    MemoryTable<K, V>: Table<K, V>,
{
    fn attempt<T>(
        &mut self,
        write: impl FnOnce(&mut MemoryTable<K, V>) -> Result<T, TableError>,
    ) -> Result<T, TableError> {
        if self.faults.lock().unwrap().pop().unwrap_or(false) {
            return Err(TableError::Kernel(io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        write(&mut self.rows)
    }
}

impl<K: Send, V: Send> Table<K, V> for Faulty<K, V>
where
    MemoryTable<K, V>: Table<K, V>,
{
    fn capacity(&self) -> u32 {
        self.rows.capacity()
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        self.rows.get(key)
    }

    fn rows(&self) -> Result<Vec<(K, V)>, TableError> {
        self.rows.rows()
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.attempt(|rows| rows.insert(key, value))
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        self.attempt(|rows| rows.remove(key))
    }
}

/// Tables that outlive an applier, as pinned ones outlive the agent.
struct Kernel {
    tables: Tables,
    faults: Arc<Mutex<Vec<bool>>>,
}

fn kernel(faults: Vec<bool>) -> Kernel {
    let mut tables = Tables::private(SERVICES, BACKENDS, FRONTENDS).unwrap();
    let faults = Arc::new(Mutex::new(faults));
    let faulty = || Arc::clone(&faults);
    tables.frontends4 = Box::new(Faulty { rows: MemoryTable::new(FRONTENDS), faults: faulty() });
    tables.addresses4 = Box::new(Faulty { rows: MemoryTable::new(FRONTENDS), faults: faulty() });
    tables.ranges4 = Box::new(Faulty { rows: MemoryTable::new(FRONTENDS), faults: faulty() });
    Kernel { tables, faults }
}

fn key(service: u8, port: u8) -> ServicePortKey {
    ServicePortKey {
        namespace: "ns".into(),
        name: format!("s{service}"),
        port: format!("p{port}"),
        proto: protocol::TCP,
        family: IpFamily::V4,
    }
}

fn backend(host: u8) -> DesiredBackend {
    DesiredBackend { address: [10, 0, 0, host].into(), port: 80, local: host.is_multiple_of(3) }
}

fn set() -> impl Strategy<Value = DesiredSet> {
    prop_oneof![
        1 => Just(DesiredSet::Reject),
        1 => Just(DesiredSet::Drop),
        6 => prop::collection::btree_set(0u8..8, 1..5).prop_map(|hosts| {
            DesiredSet::Backends(hosts.into_iter().map(backend).collect())
        }),
    ]
}

fn range(number: u8) -> IpNetwork {
    IpNetwork::new([192, 0, number, 0].into(), 24).unwrap()
}

/// Frontends are few, so that Services take them over from each other.
fn desired() -> impl Strategy<Value = Desired> {
    // Ranges, and whether they admit the node.
    let guard = (prop::collection::btree_set(0u8..4, 0..3), any::<bool>());
    let service = (set(), set(), 0u32..4, 0u32..3, guard);
    let services = prop::collection::btree_map((0u8..4, 0u8..2), service, 0..6);
    let owners = prop::collection::vec((any::<prop::sample::Index>(), 1u8..5), 10);
    (services, owners).prop_map(|(services, owners)| {
        let mut desired: Desired = services
            .into_iter()
            .map(|((service, port), (cluster, local, mut flags, affinity, guard))| {
                let ranges: Vec<IpNetwork> = guard.0.into_iter().map(range).collect();
                if !ranges.is_empty() {
                    let admitted = if guard.1 { service_flags::NODE_ADMITTED } else { 0 };
                    flags |= service_flags::SOURCE_RANGES | admitted;
                }
                let frontends = Vec::new();
                let wanted = DesiredService { frontends, cluster, local, flags, affinity, ranges };
                (key(service, port), wanted)
            })
            .collect();
        let count = desired.len();
        for (place, (owner, kind)) in owners.into_iter().enumerate() {
            if count > 0 {
                let wanted = desired.values_mut().nth(owner.index(count)).unwrap();
                wanted.frontends.push(DesiredFrontend {
                    address: [172, 16, 0, place as u8 / 2].into(),
                    port: 80 + place as u16 % 2,
                    kind,
                });
            }
        }
        desired
    })
}

fn want(applier: &mut Applier, before: &Desired, after: &Desired) {
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        applier.want(key.clone(), None);
    }
    for (key, wanted) in after {
        if before.get(key) != Some(wanted) {
            applier.want(key.clone(), Some(wanted.clone()));
        }
    }
}

fn owner(desired: &Desired, at: (std::net::IpAddr, u16)) -> Option<&ServicePortKey> {
    let holds = |wanted: &DesiredService| {
        wanted.frontends.iter().any(|frontend| (frontend.address, frontend.port) == at)
    };
    desired.iter().find(|(_, wanted)| holds(wanted)).map(|(key, _)| key)
}

/// What a reader finds behind a set.
fn read_set(tables: &Tables, set: SetRef) -> DesiredSet {
    if set.count == 0 {
        return if set == SetRef::DROP { DesiredSet::Drop } else { DesiredSet::Reject };
    }
    let slots = set.block..set.block + u32::from(set.count);
    let read = |slot| {
        let row = tables.backends4.read(slot).unwrap();
        assert_eq!(row.generation, set.generation, "a set of mixed generations");
        DesiredBackend {
            address: std::net::IpAddr::from(row.addr),
            port: row.port.get(),
            local: row.flags & datapath::backend::backend_flags::LOCAL != 0,
        }
    };
    DesiredSet::Backends(slots.map(read).collect())
}

/// What a reader finds behind a frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    kind: u8,
    policy: ServicePolicy,
    cluster: DesiredSet,
    local: DesiredSet,
    /// Where there are such.
    ranges: Option<BTreeSet<IpNetwork>>,
}

impl Seen {
    fn admits(&self, range: &IpNetwork) -> bool {
        self.kind != kind::LOAD_BALANCER
            || self.ranges.as_ref().is_none_or(|ranges| ranges.contains(range))
    }
}

/// What a reader finds behind each frontend.
fn observe(tables: &Tables) -> BTreeMap<(std::net::IpAddr, u16), Seen> {
    let rows = tables.frontends4.rows().unwrap();
    let ranges = tables.ranges(IpFamily::V4).unwrap();
    let see = |(key, row): (FrontendKey<Ipv4>, Frontend)| {
        let service = tables.services.read(row.service).unwrap();
        assert_ne!(service.flags & service_flags::USED, 0, "a frontend of a row not in use");
        let policy = ServicePolicy {
            flags: service.flags & !service_flags::USED,
            affinity: service.affinity,
        };
        let of_service = ranges.iter().filter(|at| at.service == row.service);
        let seen = Seen {
            kind: row.kind,
            policy,
            cluster: read_set(tables, service.cluster),
            local: read_set(tables, service.local),
            ranges: (service.flags & service_flags::SOURCE_RANGES != 0)
                .then(|| of_service.map(|at| at.range).collect()),
        };
        ((std::net::IpAddr::from(key.addr), key.port.get()), seen)
    };
    rows.into_iter().map(see).collect()
}

fn check(tables: &Tables, desired: &Desired) {
    let mut wanted = BTreeMap::new();
    let mut addresses: BTreeMap<std::net::IpAddr, u32> = BTreeMap::new();
    for service in desired.values() {
        for frontend in &service.frontends {
            let policy = ServicePolicy { flags: service.flags, affinity: service.affinity };
            let sees = Seen {
                kind: frontend.kind,
                policy,
                cluster: service.cluster.clone(),
                local: service.local.clone(),
                ranges: (service.flags & service_flags::SOURCE_RANGES != 0)
                    .then(|| service.ranges.iter().copied().collect()),
            };
            wanted.insert((frontend.address, frontend.port), sees);
            *addresses.entry(frontend.address).or_default() |= match frontend.kind {
                kind::CLUSTER_IP => address_use::CLUSTER_IP,
                kind::LOAD_BALANCER => address_use::FRONTEND | address_use::LOAD_BALANCER,
                _ => address_use::FRONTEND,
            };
        }
    }
    assert_eq!(observe(tables), wanted);
    let rows = tables.addresses4.rows().unwrap();
    let actual: BTreeMap<_, _> = rows
        .into_iter()
        .map(|(address, used)| (std::net::IpAddr::from(address), used.flags))
        .collect();
    assert_eq!(actual, addresses);
    assert_eq!(tables.names.rows().unwrap().len(), desired.len());
}

fn applier(tables: Tables) -> Applier {
    Applier::adopt(tables, Arc::new(NoWait)).unwrap()
}

/// The same tables under the eyes of a new agent.
fn restart(applier: Applier) -> Applier {
    self::applier(applier.tables)
}

proptest! {
    #[test]
    fn tables_come_to_hold_what_is_wanted(steps in prop::collection::vec(desired(), 1..6)) {
        let mut applier = applier(kernel(Vec::new()).tables);
        applier.complete();
        let mut before = Desired::new();
        for after in steps {
            want(&mut applier, &before, &after);
            applier.sync();
            prop_assert!(!applier.is_behind());
            check(&applier.tables, &after);
            if let Some(wait) = applier.begin_wait() {
                wait.wait().unwrap();
                applier.wait_ended(&Ok(()));
            }
            before = after;
        }
        want(&mut applier, &before, &Desired::new());
        applier.sync();
        prop_assert!(applier.tables.frontends4.rows().unwrap().is_empty());
        prop_assert_eq!(applier.services(), 0);
        prop_assert!(applier.fill().iter().all(|fill| fill.entries == 0));
    }

    #[test]
    fn failed_writes_are_written_again(
        first in desired(),
        second in desired(),
        faults in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let kernel = kernel(faults);
        let left = Arc::clone(&kernel.faults);
        let mut applier = applier(kernel.tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &first);
        applier.sync();
        want(&mut applier, &first, &second);
        while !left.lock().unwrap().is_empty() || applier.is_behind() {
            let before = left.lock().unwrap().len();
            applier.sync();
            if before == 0 {
                prop_assert!(!applier.is_behind());
            } else if !applier.is_behind() {
                left.lock().unwrap().clear();
            }
        }
        check(&applier.tables, &second);
    }

    #[test]
    fn a_new_agent_finds_what_the_last_one_left(
        first in desired(),
        second in desired(),
        faults in prop::collection::vec(any::<bool>(), 0..30),
    ) {
        let kernel = kernel(faults);
        let left = Arc::clone(&kernel.faults);
        let mut applier = applier(kernel.tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &first);
        applier.sync();
        // It dies with writes undone. The next one writes nothing before it knows all.
        let seen = observe(&applier.tables);
        let mut applier = restart(applier);
        left.lock().unwrap().clear();
        applier.sync();
        prop_assert_eq!(observe(&applier.tables), seen);
        want(&mut applier, &Desired::new(), &second);
        applier.complete();
        applier.sync();
        prop_assert!(!applier.is_behind());
        check(&applier.tables, &second);
    }

    #[test]
    fn a_new_agent_that_wants_the_same_writes_nothing(desired in desired()) {
        let mut applier = applier(kernel(Vec::new()).tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &desired);
        applier.sync();
        // A row that no frontend leads to cannot be adopted, for want of its protocol.
        let desired: Desired =
            desired.into_iter().filter(|(_, wanted)| !wanted.frontends.is_empty()).collect();
        let mut applier = restart(applier);
        prop_assert_eq!(&applier.adopted(), &desired);
        want(&mut applier, &Desired::new(), &desired);
        applier.complete();
        prop_assert_eq!(applier.ledger.missing_ranges(), vec![]);
        prop_assert_eq!(applier.ledger.plan(), vec![]);
    }

    /// Between any two writes, a frontend leads where it led, where it will lead, or, for one
    /// Service whose sets and policies all change, to a mixture of whole sets.
    #[test]
    fn a_reader_sees_old_or_new(first in desired(), second in desired()) {
        let mut applier = applier(kernel(Vec::new()).tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &first);
        applier.sync();
        let old = observe(&applier.tables);
        want(&mut applier, &first, &second);
        let mut target = BTreeMap::new();
        for service in second.values() {
            for frontend in &service.frontends {
                let sees = (service.cluster.clone(), service.local.clone());
                target.insert((frontend.address, frontend.port), sees);
            }
        }
        let verify = |applier: &Applier| {
            let now = observe(&applier.tables);
            for (at, seen) in &now {
                let Seen { cluster, local, .. } = seen;
                let before = old.get(at);
                let after = target.get(at);
                let is_old_or_new = |now: &DesiredSet, before: Option<&DesiredSet>, after| {
                    Some(now) == before || Some(now) == after
                };
                // A frontend that changes hands may be seen with its old owner's new sets.
                let moved = owner(&first, *at) != owner(&second, *at);
                if !moved && after.is_some() {
                    assert!(
                        is_old_or_new(cluster, before.map(|b| &b.cluster), after.map(|a| &a.0))
                            && is_old_or_new(local, before.map(|b| &b.local), after.map(|a| &a.1)),
                        "{at:?} leads astray"
                    );
                }
            }
            for at in old.keys().filter(|at| target.contains_key(*at)) {
                assert!(now.contains_key(at), "{at:?} is not there for a moment");
            }
        };
        for step in STEPS {
            for op in step(&mut applier.ledger) {
                applier.run(op);
                verify(&applier);
            }
        }
    }

    /// Between any two writes, whoever is admitted before and after is, and nobody is who is
    /// neither: also where writes fail.
    #[test]
    fn ranges_that_change_admit_nobody_else(
        first in desired(),
        changed in prop::collection::vec((prop::collection::btree_set(0u8..4, 0..3), any::<bool>()), 8),
        faults in prop::collection::vec(any::<bool>(), 0..12),
    ) {
        let kernel = kernel(Vec::new());
        let left = Arc::clone(&kernel.faults);
        let mut applier = applier(kernel.tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &first);
        applier.sync();
        let old = observe(&applier.tables);
        let mut second = first.clone();
        for (wanted, (ranges, admits_node)) in second.values_mut().zip(changed) {
            wanted.ranges = ranges.into_iter().map(range).collect();
            wanted.flags &= !(service_flags::SOURCE_RANGES | service_flags::NODE_ADMITTED);
            if !wanted.ranges.is_empty() {
                let admitted = if admits_node { service_flags::NODE_ADMITTED } else { 0 };
                wanted.flags |= service_flags::SOURCE_RANGES | admitted;
            }
        }
        let new = {
            let mut applier = self::applier(self::kernel(Vec::new()).tables);
            applier.complete();
            want(&mut applier, &Desired::new(), &second);
            applier.sync();
            observe(&applier.tables)
        };
        want(&mut applier, &first, &second);
        *left.lock().unwrap() = faults;
        let verify = |applier: &Applier| {
            for (at, seen) in observe(&applier.tables) {
                for number in 0..4 {
                    let (before, after) = (&old[&at], &new[&at]);
                    let range = range(number);
                    let now = seen.admits(&range);
                    assert!(
                        now == before.admits(&range) || now == after.admits(&range),
                        "{at:?} admits {range}: {now}"
                    );
                }
            }
        };
        while applier.is_behind() {
            for step in STEPS {
                for op in step(&mut applier.ledger) {
                    applier.run(op);
                    verify(&applier);
                }
            }
        }
        check(&applier.tables, &second);
    }
}

/// One of every ten writes of a real change is a replacement at most.
#[test]
fn a_renamed_port_keeps_its_frontends() {
    let mut applier = applier(kernel(Vec::new()).tables);
    applier.complete();
    let frontend = DesiredFrontend { address: [1, 1, 1, 1].into(), port: 80, kind: 1 };
    let wanted = DesiredService {
        frontends: vec![frontend],
        cluster: DesiredSet::Backends(vec![backend(1)]),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    };
    applier.want(key(0, 0), Some(wanted.clone()));
    applier.sync();
    applier.want(key(0, 0), None);
    applier.want(key(0, 1), Some(wanted));
    let ops = applier.ledger.plan();
    assert!(matches!(ops[..], [Op::Name { index: 0, .. }]), "{ops:?}");
}

#[test]
fn a_full_table_is_told_and_filled_once_there_is_room() {
    let mut applier = applier(kernel(Vec::new()).tables);
    applier.complete();
    let large = |hosts: u8, count: u16| DesiredService {
        frontends: vec![DesiredFrontend { address: [1, 1, 1, hosts].into(), port: 80, kind: 1 }],
        cluster: DesiredSet::Backends(
            (0..count).map(|port| DesiredBackend { port, ..backend(hosts) }).collect(),
        ),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    };
    applier.want(key(0, 0), Some(large(1, 200)));
    applier.want(key(1, 0), Some(large(2, 100)));
    applier.sync();
    assert!(applier.is_behind());
    let [refusal] = &applier.refusals()[..] else { panic!("one refusal") };
    assert_eq!((refusal.table, refusal.is_full), ("BACKENDS4", true));
    assert_eq!(observe(&applier.tables).len(), 1);
    applier.want(key(0, 0), Some(large(1, 50)));
    applier.sync();
    assert!(!applier.is_behind(), "{:?}", applier.refusals());
    assert_eq!(observe(&applier.tables).len(), 2);
}

/// What has weights, or a table of Maglev's, is served without these where there is no room for them.
#[test]
fn a_set_that_is_longer_than_its_backends_makes_do_with_them() {
    let mut applier = applier(kernel(Vec::new()).tables);
    applier.complete();
    let wanted = |hosts: u8, slots: usize| DesiredService {
        frontends: vec![DesiredFrontend { address: [1, 1, 1, hosts].into(), port: 80, kind: 1 }],
        cluster: DesiredSet::Backends(
            [backend(hosts), backend(9), backend(7)].into_iter().cycle().take(slots).collect(),
        ),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    };
    let count =
        |applier: &Applier, index: u32| applier.tables.services.read(index).unwrap().cluster.count;
    applier.want(key(0, 0), Some(wanted(1, 200)));
    applier.want(key(1, 0), Some(wanted(2, 100)));
    for round in 0..3 {
        applier.sync();
        assert_eq!((count(&applier, 0), count(&applier, 1)), (200, 3), "round {round}");
        assert!(applier.is_behind(), "it is not what was wanted");
        let [refusal] = &applier.refusals()[..] else { panic!("one refusal") };
        assert_eq!((refusal.table, refusal.is_full), ("BACKENDS4", true));
        assert_eq!(observe(&applier.tables).len(), 2);
    }
    applier.want(key(0, 0), Some(wanted(1, 50)));
    applier.sync();
    assert_eq!((count(&applier, 0), count(&applier, 1)), (50, 100));
    assert!(!applier.is_behind(), "{:?}", applier.refusals());
}

/// Several rows replaced in one table: each but the first needs a wait before it.
#[test]
fn memory_of_a_replaced_row_is_not_used_before_a_wait() {
    struct Watch(Arc<Mutex<u32>>);
    impl Wait for Watch {
        fn wait(&self) -> io::Result<()> {
            *self.0.lock().unwrap() += 1;
            Ok(())
        }
    }
    let waits = Arc::new(Mutex::new(0));
    let tables = kernel(Vec::new()).tables;
    let mut applier = Applier::adopt(tables, Arc::new(Watch(Arc::clone(&waits)))).unwrap();
    applier.complete();
    let wanted = |hosts: &[u8], host: u8| DesiredService {
        frontends: hosts
            .iter()
            .map(|&host| DesiredFrontend { address: [1, 1, 1, host].into(), port: 80, kind: 1 })
            .collect(),
        cluster: DesiredSet::Backends(vec![backend(host)]),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    };
    applier.want(key(0, 0), Some(wanted(&[1, 2, 3], 1)));
    applier.want(key(1, 0), Some(wanted(&[4], 2)));
    applier.sync();
    assert_eq!(*waits.lock().unwrap(), 0);
    // Two frontends change hands.
    applier.want(key(0, 0), Some(wanted(&[1], 1)));
    applier.want(key(1, 0), Some(wanted(&[2, 3, 4], 2)));
    applier.sync();
    assert_eq!(*waits.lock().unwrap(), 1);
    // The next insertion has to wait too; a change of backends has not.
    applier.want(key(1, 0), Some(wanted(&[2, 3, 4], 5)));
    applier.sync();
    assert_eq!(*waits.lock().unwrap(), 1);
    applier.want(key(0, 0), Some(wanted(&[1, 9], 1)));
    applier.sync();
    assert_eq!(*waits.lock().unwrap(), 2);
    assert!(!applier.is_behind());
}
