//! Whatever is done to the tables behind the agent's back, an audit finds it, once, and the
//! next writes repair it.

use agent_kit::audit::Difference;
use datapath::{
    address::Be16,
    backend::Backend,
    frontend::AddressUse,
    service::{Service, ServiceName},
};

use super::{super::audit::Part, *};

fn audit(applier: &mut Applier) -> Vec<Difference> {
    let parts = Part::ALL.into_iter();
    let mut all: Vec<_> = parts.flat_map(|part| applier.audit(part).unwrap()).collect();
    all.sort();
    all
}

fn told(differences: &[Difference]) -> Vec<String> {
    let told = |d: &Difference| format!("{} {} {}", d.table, d.key, d.damage);
    differences.iter().map(told).collect()
}

/// One Service with two frontends and one backend, programmed.
fn programmed() -> (Applier, Desired) {
    let frontend = |host| DesiredFrontend {
        address: [1, 1, 1, host].into(),
        port: 80,
        kind: kind::CLUSTER_IP,
    };
    let wanted = DesiredService {
        frontends: vec![frontend(1), frontend(2)],
        cluster: DesiredSet::Backends(vec![backend(1)]),
        local: DesiredSet::Drop,
        flags: 0,
        affinity: 0,
        ranges: Vec::new(),
    };
    let desired = Desired::from([(key(0, 0), wanted)]);
    let mut applier = applier(kernel(Vec::new()).tables);
    applier.complete();
    want(&mut applier, &Desired::new(), &desired);
    applier.sync();
    (applier, desired)
}

fn at(host: u8) -> FrontendKey<Ipv4> {
    FrontendKey::new(Ipv4::from(std::net::Ipv4Addr::new(1, 1, 1, host)), Be16::new(80), 6)
}

fn address(host: u8) -> Ipv4 {
    Ipv4::from(std::net::Ipv4Addr::new(1, 1, 1, host))
}

#[track_caller]
fn finds(damage: impl FnOnce(&mut Tables), expected: &[&str]) {
    let (mut applier, desired) = programmed();
    assert_eq!(told(&audit(&mut applier)), [""; 0]);
    damage(&mut applier.tables);
    assert_eq!(told(&audit(&mut applier)), expected);
    applier.sync();
    assert!(!applier.is_behind(), "{:?}", applier.refusals());
    check(&applier.tables, &desired);
    assert_eq!(told(&audit(&mut applier)), [""; 0]);
}

#[test]
fn a_frontend_that_was_removed_is_written_again() {
    let damage = |tables: &mut Tables| tables.frontends4.remove(&at(1)).unwrap();
    finds(damage, &["FRONTENDS4 1.1.1.1:80 protocol 6 missing"]);
}

#[test]
fn a_frontend_that_was_changed_leads_where_it_led() {
    for service in [0, 7, 9_999] {
        let row = Frontend { service, kind: kind::NODE_PORT, pad: [0; 3] };
        let damage = |tables: &mut Tables| tables.frontends4.insert(&at(2), &row).unwrap();
        finds(damage, &["FRONTENDS4 1.1.1.2:80 protocol 6 changed"]);
    }
}

#[test]
fn a_frontend_of_nobody_is_removed() {
    for service in [0, 7, 9_999] {
        let row = Frontend { service, kind: kind::CLUSTER_IP, pad: [0; 3] };
        let damage = |tables: &mut Tables| tables.frontends4.insert(&at(3), &row).unwrap();
        finds(damage, &["FRONTENDS4 1.1.1.3:80 protocol 6 foreign"]);
    }
}

#[test]
fn addresses_are_as_they_were() {
    let damage = |tables: &mut Tables| {
        tables.addresses4.remove(&address(1)).unwrap();
        tables.addresses4.insert(&address(2), &AddressUse { flags: 0 }).unwrap();
        tables.addresses4.insert(&address(3), &AddressUse { flags: 1 }).unwrap();
    };
    finds(
        damage,
        &["ADDRESSES4 1.1.1.1 missing", "ADDRESSES4 1.1.1.2 changed", "ADDRESSES4 1.1.1.3 foreign"],
    );
}

#[test]
fn names_are_as_they_were() {
    let other = ServiceName { text: [b'x'; 144] };
    finds(|tables| tables.names.remove(&0).unwrap(), &["NAMES 0 missing"]);
    finds(|tables| tables.names.insert(&0, &other).unwrap(), &["NAMES 0 changed"]);
    finds(|tables| tables.names.insert(&9, &other).unwrap(), &["NAMES 9 foreign"]);
}

#[test]
fn services_and_backends_are_as_they_were() {
    let used = Service { flags: service_flags::USED, ..Service::default() };
    finds(|tables| assert!(tables.services.write(0, &used)), &["SERVICES 0 changed"]);
    finds(|tables| assert!(tables.services.write(9, &used)), &["SERVICES 9 foreign"]);
    let damage = |tables: &mut Tables| {
        let row = tables.backends4.read(0).unwrap();
        tables.backends4.write(0, &Backend { port: Be16::new(81), ..row });
    };
    finds(damage, &["BACKENDS4 0 changed"]);
}

#[test]
fn before_the_source_has_told_everything_the_tables_are_the_truth() {
    let (applier, _) = programmed();
    let mut applier = restart(applier);
    applier.tables.frontends4.remove(&at(1)).unwrap();
    assert_eq!(audit(&mut applier), []);
}

proptest! {
    #[test]
    fn any_damage_is_repaired(
        desired in desired(),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        written in prop::collection::vec((0u8..6, 0u16..2, 0u32..20), 0..4),
    ) {
        let mut applier = applier(kernel(Vec::new()).tables);
        applier.complete();
        want(&mut applier, &Desired::new(), &desired);
        applier.sync();
        let keys: Vec<_> = applier.tables.frontends4.rows().unwrap();
        for index in removed.iter().filter(|_| !keys.is_empty()) {
            let _ = applier.tables.frontends4.remove(&keys[index.index(keys.len())].0);
        }
        for (host, port, service) in written {
            let address = Ipv4::from(std::net::Ipv4Addr::new(172, 16, 0, host));
            let key = FrontendKey::new(address, Be16::new(80 + port), 6);
            let row = Frontend { service, kind: 2, pad: [0; 3] };
            applier.tables.frontends4.insert(&key, &row).unwrap();
        }
        let is_damaged = !audit(&mut applier).is_empty();
        prop_assert_eq!(is_damaged, applier.is_behind());
        applier.sync();
        prop_assert!(!applier.is_behind());
        check(&applier.tables, &desired);
        prop_assert_eq!(audit(&mut applier), vec![]);
    }
}
