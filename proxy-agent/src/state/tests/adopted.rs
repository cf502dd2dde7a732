//! What the last agent left is kept while it may stand in what cannot be read, and no longer.

use super::*;
use crate::{doubt::Doubt, model::Name};

/// The state of a new agent that has read `text`, in front of what an agent that had read
/// `before` has left.
fn restarted(before: &str, text: &str, doubts: &[Doubt]) -> (State, Desired) {
    let mut last = state();
    last.apply(puts(before));
    let mut next = state();
    next.apply(puts(text));
    next.doubt(&doubts.into());
    next.adopt(last.desired().clone());
    (next, last.desired().clone())
}

fn file() -> Doubt {
    Doubt { document: "broken.yaml".into(), object: None }
}

fn object(kind: ObjectKind, name: &str) -> Doubt {
    let name = Name { namespace: "default".into(), name: name.into() };
    Doubt { document: "bad.yaml".into(), object: Some(ObjectKey { kind, name }) }
}

fn web(name: &str, address: u8) -> String {
    let ports = "[{port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]";
    let spec = format!("{{type: NodePort, clusterIP: 10.0.0.{address}, ports: {ports}}}");
    let endpoints = slice(name, name, "[{addresses: [10.1.0.1]}]");
    format!("{}---\n{endpoints}", service(name, &spec))
}

fn kept(state: &State) -> Vec<String> {
    let problems = state.problems().into_iter();
    problems.filter(|p| p.kind == ProblemKind::Kept).map(|p| p.to_string()).collect()
}

#[test]
fn without_doubt_nothing_is_kept() {
    let (state, _) = restarted(&web("a", 1), "", &[]);
    assert_eq!(state.desired(), &Desired::new());
    assert_eq!(state.problems(), []);
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_nothing_explains() {
    let both = format!("{}---\n{}", web("a", 1), web("b", 2).replace("30080", "30081"));
    let (mut next, found) = restarted(&both, &web("a", 1), &[file()]);
    assert_eq!(next.desired(), &found);
    assert_eq!(
        kept(&next),
        ["broken.yaml: 1 adopted Service is kept as found, because this cannot be read \
          (default/b); repair or remove it"]
    );
    // It follows what is known meanwhile, and what is known goes when it is told to.
    next.apply(puts(&web("c", 3).replace("30080", "30083")));
    next.doubt(&[file()].into());
    assert_eq!(next.desired().len(), 6);
    let changes = next.apply(delete(&web("a", 1)));
    assert!(changes.iter().all(|(key, row)| key.name == "a" && row.is_none()), "{changes:?}");
    assert_eq!(next.doubt(&[file()].into()), []);
    // Repaired or removed: what is still not told of goes.
    let changes = next.doubt(&[].into());
    assert!(changes.iter().all(|(key, row)| key.name == "b" && row.is_none()), "{changes:?}");
    assert_eq!(changes.len(), 2);
    assert_eq!(kept(&next), [""; 0]);
    assert!(next.adopted.names().is_empty());
}

#[test]
fn a_repaired_file_is_followed() {
    let (mut next, _) = restarted(&web("a", 1), "", &[file()]);
    let repaired = web("a", 1).replace("10.1.0.1", "10.1.0.2").replace("30080", "30090");
    next.apply(puts(&repaired));
    next.doubt(&[].into());
    let mut fresh = state();
    fresh.apply(puts(&repaired));
    assert_eq!(next.desired(), fresh.desired());
    assert_eq!(next.problems(), []);
}

#[test]
fn affinity_and_source_ranges_are_kept_too() {
    for ranges in ["198.51.100.0/24", "192.0.2.0/24, 198.51.100.0/25"] {
        let (next, found) = restarted(&guarded(ranges), "", &[file()]);
        assert!(found.values().all(|row| row.affinity > 0 && !row.ranges.is_empty()));
        assert_eq!(next.desired(), &found);
    }
}

#[test]
fn a_service_that_was_told_of_again_is_not_kept_when_it_goes() {
    let (mut next, _) = restarted(&web("a", 1), "", &[file()]);
    next.apply(puts(&web("a", 1)));
    next.doubt(&[file()].into());
    next.apply(delete(&web("a", 1)));
    next.doubt(&[file()].into());
    assert_eq!(next.desired(), &Desired::new());
}

#[test]
fn an_object_that_is_refused_keeps_its_own_service_only() {
    let both = format!("{}---\n{}", web("a", 1), web("b", 2).replace("30080", "30081"));
    let (next, found) = restarted(&both, "", &[object(ObjectKind::Service, "a")]);
    assert!(next.desired().keys().all(|key| key.name == "a"), "{:?}", next.desired());
    // Its endpoints are not in doubt, and there are none.
    assert!(next.desired().values().all(|row| row.cluster == DesiredSet::Reject));
    let slices = slice("a", "a", "[{addresses: [10.1.0.1]}]");
    let (next, _) = restarted(&web("a", 1), &slices, &[object(ObjectKind::Service, "a")]);
    assert!(next.desired().iter().all(|(key, row)| found.get(key) == Some(row)));
    assert_eq!(next.desired().len(), 2);
}

#[test]
fn endpoints_that_cannot_be_read_stay_behind_a_service_that_can() {
    let only_service = web("a", 1).split("---").next().unwrap().to_owned();
    for doubt in [file(), object(ObjectKind::EndpointSlice, "a-x")] {
        let (mut next, found) = restarted(&web("a", 1), &only_service, &[doubt]);
        assert_eq!(next.desired(), &found);
        assert_eq!(kept(&next).len(), 1);
        next.doubt(&[].into());
        assert!(next.desired().values().all(|row| row.cluster == DesiredSet::Reject));
    }
    let elsewhere = [object(ObjectKind::Endpoints, "b")];
    let (next, _) = restarted(&web("a", 1), &only_service, &elsewhere);
    assert!(next.desired().values().all(|row| row.cluster == DesiredSet::Reject));
}

#[test]
fn endpoints_that_were_told_of_once_are_not_kept_when_they_go() {
    let endpoints = slice("a", "a", "[{addresses: [10.1.0.9]}]");
    let (mut next, _) = restarted(&web("a", 1), "", &[file()]);
    next.apply(puts(&endpoints));
    next.doubt(&[file()].into());
    let backends = |state: &State| state.desired().values().next().unwrap().cluster.clone();
    let DesiredSet::Backends(set) = backends(&next) else { panic!("{:?}", next.desired()) };
    assert_eq!(set[0].address.to_string(), "10.1.0.9");
    next.apply(delete(&endpoints));
    next.doubt(&[file()].into());
    assert_eq!(backends(&next), DesiredSet::Reject);
}

#[test]
fn a_service_that_can_be_read_comes_before_one_that_is_kept() {
    let new = service("new", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}");
    let (mut next, _) = restarted(&web("a", 1), &new, &[file()]);
    assert_eq!(frontends(&next), ["10.0.0.1:53/17 a", "10.0.0.1:80/6 new", "192.0.2.1:30080/6 a"]);
    next.doubt(&[].into());
    assert_eq!(frontends(&next), ["10.0.0.1:80/6 new"]);
    assert_eq!(next.problems(), []);
}

proptest! {
    /// With everything in doubt, everything stays as it was found.
    #[test]
    fn whatever_was_programmed_is_kept_whole(batches in batches()) {
        let mut last = state();
        for batch in &batches {
            last.apply(changes(batch));
        }
        prop_assume!(is_free_of_conflicts(&last));
        // A row that no frontend leads to leaves no trace.
        let left: Desired = last
            .desired()
            .iter()
            .filter(|(_, row)| !row.frontends.is_empty())
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect();
        let mut next = state();
        next.doubt(&[file()].into());
        next.adopt(left.clone());
        prop_assert_eq!(next.desired(), &left);
        next.doubt(&[].into());
        prop_assert_eq!(next.desired(), &Desired::new());
    }
}
