//! What is in force after documents come, break, empty, go and come back.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    directory::{EMPTY_GRACE, GONE_GRACE},
    model::Strings,
    reflect,
};
use std::time::Duration;

struct World {
    documents: Documents,
    now: Instant,
    /// Cluster IP by Service, as the receiver knows it.
    services: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        Self { documents: Documents::default(), now: Instant::now(), services: BTreeMap::new() }
    }

    fn see(&mut self, file: &str, seen: Seen) -> &mut Self {
        self.documents.see(&file.into(), seen);
        self.take();
        self
    }

    fn write(&mut self, file: &str, text: &str) -> &mut Self {
        let seen = match reflect::read(text, &mut Strings::default()) {
            _ if text.is_empty() => Seen::Empty(self.now + EMPTY_GRACE),
            Ok(reading) => Seen::Text(reading),
            Err(problem) => Seen::Broken(problem),
        };
        self.see(file, seen)
    }

    fn remove(&mut self, file: &str) -> &mut Self {
        self.see(file, Seen::Gone(self.now + GONE_GRACE))
    }

    fn pass(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.documents.settle(self.now);
        self.take();
        self
    }

    fn take(&mut self) {
        for change in self.documents.take_changes() {
            match change {
                Change::Put(key, Object::Service(service)) => {
                    let address = service.cluster_ips[0].to_string();
                    let before = self.services.insert(key.name.to_string(), address.clone());
                    assert_ne!(before, Some(address), "told without need");
                }
                Change::Put(key, _) => panic!("{key}"),
                Change::Delete(key) => {
                    assert!(self.services.remove(&key.name.to_string()).is_some());
                }
            }
        }
    }

    /// What cannot be read and never was.
    #[track_caller]
    fn doubts(&mut self, expected: &[&str]) -> &mut Self {
        let told: Vec<String> = self
            .documents
            .doubts()
            .map(|doubt| match doubt.object {
                Some(object) => format!("{}: {object}", doubt.document),
                None => doubt.document.to_string(),
            })
            .collect();
        assert_eq!(told, expected);
        self
    }

    /// Everything in force, then everything that is wrong.
    #[track_caller]
    fn expect(&mut self, services: &[&str], problems: &[&str]) -> &mut Self {
        let in_force: Vec<String> =
            self.services.iter().map(|(name, address)| format!("{name} {address}")).collect();
        assert_eq!(in_force, services);
        let told: Vec<String> = self.documents.problems().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), problems.len(), "{told:?}");
        for (told, expected) in told.iter().zip(problems) {
            assert!(told.contains(expected), "{told:?} lacks {expected:?}");
        }
        self
    }
}

fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {address}}}\n"
    )
}

#[test]
fn a_file_comes_changes_and_goes() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .expect(&["default/a 10.0.0.1"], &[])
        .write("a.yaml", &service("a", "10.0.0.2"))
        .expect(&["default/a 10.0.0.2"], &[])
        .remove("a.yaml")
        .expect(&["default/a 10.0.0.2"], &[])
        .pass(GONE_GRACE)
        .expect(&[], &[]);
}

#[test]
fn a_broken_file_is_in_doubt_until_it_was_read_once() {
    World::new()
        .write("a.yaml", "kind: [")
        .doubts(&["a.yaml"])
        .write("a.yaml", "kind: Service\n")
        .doubts(&["a.yaml"])
        .write("a.yaml", &service("a", "10.0.0.1"))
        .doubts(&[])
        .write("a.yaml", "kind: [")
        .doubts(&[])
        .write("b.yaml", "kind: [")
        .doubts(&["b.yaml"])
        .remove("b.yaml")
        .doubts(&["b.yaml"])
        .pass(GONE_GRACE)
        .doubts(&[]);
}

#[test]
fn an_object_is_in_doubt_until_a_version_of_it_was_good() {
    let bad = service("a", "10.0.0.999");
    World::new()
        .write("a.yaml", &(bad.clone() + &service("b", "10.0.0.2")))
        .doubts(&["a.yaml: Service default/a"])
        .write("a.yaml", &(service("a", "10.0.0.1") + &service("b", "10.0.0.2")))
        .doubts(&[])
        .write("a.yaml", &(bad + &service("b", "10.0.0.2")))
        .doubts(&[]);
}

#[test]
fn a_file_found_empty_is_in_doubt_for_a_while() {
    World::new()
        .write("a.yaml", "")
        .doubts(&["a.yaml"])
        .expect(&[], &[])
        .pass(EMPTY_GRACE)
        .doubts(&[]);
}

#[test]
fn a_file_renamed_over_loses_nothing() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .remove("a.yaml")
        .write("a.yaml", &service("a", "10.0.0.2"))
        .pass(Duration::from_secs(5))
        .expect(&["default/a 10.0.0.2"], &[]);
}

#[test]
fn an_emptied_file_is_believed_after_a_while() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .write("a.yaml", "")
        .pass(EMPTY_GRACE / 2)
        .write("a.yaml", "")
        .expect(&["default/a 10.0.0.1"], &[])
        .pass(EMPTY_GRACE / 2)
        .expect(&[], &[])
        .write("a.yaml", &service("a", "10.0.0.2"))
        .expect(&["default/a 10.0.0.2"], &[]);
}

#[test]
fn an_emptied_file_that_is_filled_loses_nothing() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .write("a.yaml", "")
        .pass(EMPTY_GRACE / 2)
        .write("a.yaml", &service("a", "10.0.0.1"))
        .pass(EMPTY_GRACE)
        .expect(&["default/a 10.0.0.1"], &[]);
}

#[test]
fn an_empty_file_that_goes_is_gone_sooner() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .write("a.yaml", "")
        .remove("a.yaml")
        .pass(GONE_GRACE)
        .expect(&[], &[]);
}

#[test]
fn a_broken_file_keeps_its_objects_until_it_is_good_or_gone() {
    let broken = "kind: [\n";
    World::new()
        .write("a.yaml", &(service("a", "10.0.0.1") + &service("b", "10.0.0.2")))
        .write("a.yaml", broken)
        .expect(&["default/a 10.0.0.1", "default/b 10.0.0.2"], &["a.yaml: "])
        .write("a.yaml", &service("a", "10.0.0.3"))
        .expect(&["default/a 10.0.0.3"], &[])
        .write("a.yaml", broken)
        .remove("a.yaml")
        .pass(GONE_GRACE)
        .expect(&[], &[]);
}

#[test]
fn an_impossible_object_keeps_its_last_good_version_and_stops_no_other() {
    World::new()
        .write("a.yaml", &(service("a", "10.0.0.1") + &service("b", "10.0.0.2")))
        .write("a.yaml", &(service("a", "10.0.0.300") + &service("b", "10.0.0.4")))
        .expect(
            &["default/a 10.0.0.1", "default/b 10.0.0.4"],
            &["a.yaml: Service default/a: spec.clusterIP: \"10.0.0.300\" is no IP address"],
        )
        .write("a.yaml", &service("b", "10.0.0.4"))
        .expect(&["default/b 10.0.0.4"], &[]);
}

#[test]
fn an_impossible_object_that_was_never_good_is_not_there() {
    World::new()
        .write("a.yaml", &(service("a", "x") + &service("b", "10.0.0.2")))
        .expect(&["default/b 10.0.0.2"], &["spec.clusterIP"]);
}

#[test]
fn an_object_that_cannot_be_told_may_be_any() {
    let nameless = "---\napiVersion: v1\nkind: Service\nmetadata: {nam: a}\n";
    World::new()
        .write("a.yaml", &(service("a", "10.0.0.1") + &service("b", "10.0.0.2")))
        .write("a.yaml", &(nameless.to_string() + &service("b", "10.0.0.4")))
        .expect(&["default/a 10.0.0.1", "default/b 10.0.0.4"], &["metadata.name"]);
}

#[test]
fn of_two_files_with_one_object_the_first_by_name_counts() {
    World::new()
        .write("b.yaml", &service("a", "10.0.0.2"))
        .write("c.yaml", &service("a", "10.0.0.3"))
        .expect(
            &["default/a 10.0.0.2"],
            &["c.yaml: Service default/a: also stands in b.yaml, which counts"],
        )
        .write("a.yaml", &service("a", "10.0.0.1"))
        .expect(&["default/a 10.0.0.1"], &["b.yaml: Service default/a: also stands in a.yaml"])
        .remove("a.yaml")
        .remove("b.yaml")
        .pass(GONE_GRACE)
        .expect(&["default/a 10.0.0.3"], &[]);
}

#[test]
fn of_two_versions_in_one_file_the_first_counts() {
    World::new()
        .write("a.yaml", &(service("a", "10.0.0.1") + &service("a", "10.0.0.2")))
        .expect(&["default/a 10.0.0.1"], &["a.yaml: Service default/a: stands twice"]);
}

#[test]
fn an_object_moves_to_another_file_unseen() {
    let mut world = World::new();
    world.write("a.yaml", &service("a", "10.0.0.1"));
    let now = world.now;
    let reading = reflect::read(&service("a", "10.0.0.1"), &mut Strings::default()).unwrap();
    world.documents.see(&"b.yaml".into(), Seen::Text(reading));
    world.documents.see(&"a.yaml".into(), Seen::Gone(now));
    world.documents.settle(now);
    assert_eq!(world.documents.take_changes(), []);
    world.expect(&["default/a 10.0.0.1"], &[]);
}

#[test]
fn a_service_that_becomes_headless_is_gone() {
    World::new()
        .write("a.yaml", &service("a", "10.0.0.1"))
        .write("a.yaml", &service("a", "None"))
        .expect(&[], &[])
        .write("a.yaml", &service("a", "10.0.0.1"))
        .expect(&["default/a 10.0.0.1"], &[]);
}

proptest! {
    /// However files were written before, what is in force is what they say in the end.
    #[test]
    fn the_past_of_sound_files_does_not_matter(
        steps in vec((
            select(vec!["a.yaml", "b.yaml", "c.yaml"]),
            vec((select(vec!["x", "y"]), 1..4_u8), 0..3),
            0..4_u8,
        ), 0..20)
    ) {
        let mut world = World::new();
        let mut last = BTreeMap::new();
        for (file, objects, how) in &steps {
            let text: String = objects
                .iter()
                .map(|(name, number)| service(name, &format!("10.0.0.{number}")))
                .collect();
            match how {
                0 => { world.remove(file).pass(GONE_GRACE); last.remove(file); }
                1 => { world.write(file, "kind: ["); }
                _ => { world.write(file, &format!("# read\n{text}")); last.insert(file, text); }
            }
        }
        let mut fresh = World::new();
        for (file, text) in last {
            fresh.write(file, &format!("# read\n{text}"));
        }
        prop_assert_eq!(world.services, fresh.services);
    }
}
