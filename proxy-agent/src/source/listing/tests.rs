//! What is in force after lists, changes, silence and lists again.

use std::{collections::BTreeMap, time::Duration};

use super::*;
use crate::{
    model::{Object, Strings},
    reflect,
};

struct World {
    listing: Listing,
    now: Instant,
    /// Cluster IP by Service, as the receiver knows it.
    services: BTreeMap<String, String>,
    deleted: usize,
}

impl World {
    fn new() -> Self {
        let listing = Listing::new("https://server".into());
        Self { listing, now: Instant::now(), services: BTreeMap::new(), deleted: 0 }
    }

    fn take(&mut self, event: Event<Sight>) -> &mut Self {
        self.now += Duration::from_secs(1);
        self.listing.take(event, self.now);
        for change in self.listing.take_changes() {
            match change {
                Change::Put(key, Object::Service(service)) => {
                    let address = service.cluster_ips[0].to_string();
                    let before = self.services.insert(key.name.to_string(), address.clone());
                    assert_ne!(before, Some(address), "told without need");
                }
                Change::Put(key, _) => panic!("{key}"),
                Change::Delete(key) => {
                    assert!(self.services.remove(&key.name.to_string()).is_some());
                    self.deleted += 1;
                }
            }
        }
        self
    }

    #[track_caller]
    fn expect(&mut self, services: &[&str], problems: &[&str]) -> &mut Self {
        let in_force: Vec<String> =
            self.services.iter().map(|(name, address)| format!("{name} {address}")).collect();
        assert_eq!(in_force, services);
        let told: Vec<String> = self.listing.problems().map(|it| it.to_string()).collect();
        assert_eq!(told.len(), problems.len(), "{told:?}");
        for (told, expected) in told.iter().zip(problems) {
            assert!(told.starts_with(expected), "{told:?} is not {expected:?}");
        }
        self
    }
}

fn sight(name: &str, address: &str) -> Sight {
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": address, "ports": [{"port": 80}]},
    });
    let reading = reflect::read(&value.to_string(), &mut Strings::default()).expect("JSON");
    Sight { document: format!("Service default/{name}").into(), reading }
}

fn listed(services: &[(&str, &str)]) -> Event<Sight> {
    Event::Listed(services.iter().map(|(name, address)| sight(name, address)).collect())
}

#[test]
fn objects_come_change_and_go() {
    let mut world = World::new();
    assert!(!world.listing.is_settled());
    world
        .take(listed(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]))
        .expect(&["default/a 10.0.0.1", "default/b 10.0.0.2"], &[])
        .take(Event::Put(sight("a", "10.0.0.3")))
        .take(Event::Put(sight("c", "10.0.0.4")))
        .take(Event::Gone("Service default/b".into()))
        .expect(&["default/a 10.0.0.3", "default/c 10.0.0.4"], &[]);
    assert!(world.listing.is_settled());
}

#[test]
fn what_goes_that_was_never_told_changes_nothing() {
    World::new()
        .take(listed(&[("a", "10.0.0.1")]))
        .take(Event::Gone("Service default/b".into()))
        .expect(&["default/a 10.0.0.1"], &[]);
}

/// A watch tells a list once it is whole: whatever it tells before removes nothing.
#[test]
fn only_a_whole_list_removes_what_it_does_not_name() {
    let mut world = World::new();
    world
        .take(listed(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]))
        .take(Event::Trouble("it broke off".into()))
        .take(Event::Put(sight("c", "10.0.0.3")))
        .take(Event::Trouble("it broke off again".into()))
        .take(Event::Recovered);
    assert_eq!(world.deleted, 0);
    world
        .take(listed(&[("a", "10.0.0.9"), ("c", "10.0.0.3")]))
        .expect(&["default/a 10.0.0.9", "default/c 10.0.0.3"], &[]);
    assert_eq!(world.deleted, 1);
    world.take(listed(&[])).expect(&[], &[]);
}

#[test]
fn an_impossible_version_leaves_the_last_good_one() {
    let impossible = "Service default/a: spec.clusterIP: \"10.0.0.999\" is no IP address";
    let mut world = World::new();
    world
        .take(listed(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]))
        .take(Event::Put(sight("a", "10.0.0.999")))
        .expect(&["default/a 10.0.0.1", "default/b 10.0.0.2"], &[impossible])
        .take(listed(&[("a", "10.0.0.999")]))
        .expect(&["default/a 10.0.0.1"], &[impossible])
        .take(Event::Gone("Service default/a".into()))
        .expect(&[], &[]);
    assert_eq!(world.listing.doubts().count(), 0);
}

#[test]
fn an_object_that_was_never_good_is_in_doubt_alone() {
    let mut world = World::new();
    world.take(listed(&[("a", "10.0.0.999"), ("b", "10.0.0.2")]));
    let doubts: Vec<_> = world.listing.doubts().map(|doubt| doubt.object).collect();
    assert_eq!(doubts.len(), 1);
    assert_eq!(doubts[0].as_ref().unwrap().to_string(), "Service default/a");
}

#[test]
fn silence_is_a_problem_from_its_first_moment_until_it_is_over() {
    let mut world = World::new();
    world.take(Event::Trouble("refused".into())).expect(&[], &["https://server: refused; nothing"]);
    let since = world.listing.silent_since();
    assert_eq!(since, Some(world.now));
    world.take(Event::Trouble("timed out".into()));
    assert_eq!(world.listing.silent_since(), since);
    assert!(world.listing.take_problems_changed());
    world.take(Event::Recovered).expect(&[], &[]);
    assert!(world.listing.take_problems_changed());
    assert_eq!(world.listing.silent_since(), None);
    world
        .take(listed(&[("a", "10.0.0.1")]))
        .take(Event::Trouble("refused".into()))
        .expect(&["default/a 10.0.0.1"], &["https://server: refused; what was told before stays"]);
}

/// It may be that an account may not list what few ask for.
#[test]
fn nobody_waits_for_what_is_aside() {
    let mut world = World::new();
    world.listing = Listing::aside("https://server".into());
    assert!(!world.listing.is_settled());
    world.take(Event::Trouble("forbidden".into()));
    assert!(world.listing.is_settled());
    assert_eq!(world.listing.silent_since(), None);
    world
        .expect(&[], &["https://server: forbidden; until it can be heard, all goes on without it"])
        .take(Event::Recovered)
        .take(listed(&[("a", "10.0.0.1")]))
        .expect(&["default/a 10.0.0.1"], &[]);
    assert!(world.listing.is_settled());
}
