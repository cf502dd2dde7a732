//! Laws of the state, on random batches, and the cases of frontends that two Services claim.

mod adopted;
mod serving;

use std::collections::BTreeMap;

use datapath::{algorithm::Algorithm, service::service_flags};
use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    compile::NodeFacts,
    desired::DesiredSet,
    model::Strings,
    problem::ProblemKind,
    reflect::{self, Outcome},
};

fn facts() -> NodeFacts {
    let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    NodeFacts { name: "here".into(), own: addresses.clone(), addresses, ..NodeFacts::default() }
}

fn state() -> State {
    State::new(facts())
}

fn puts(text: &str) -> Vec<Change> {
    let reading = reflect::read(text, &mut Strings::default()).expect("YAML");
    assert_eq!(reading.problems, []);
    let objects = reading.objects.into_iter();
    objects
        .map(|(key, outcome)| match outcome {
            Outcome::Good(object) => Change::Put(key, object),
            other => panic!("{key}: {other:?}"),
        })
        .collect()
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn slice(name: &str, service: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: \
         {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\nports: [{{port: \
         8080}}]\nendpoints: {endpoints}\n"
    )
}

fn delete(text: &str) -> Vec<Change> {
    let puts = puts(text).into_iter();
    puts.map(|change| match change {
        Change::Put(key, _) | Change::Delete(key) => Change::Delete(key),
    })
    .collect()
}

/// Frontends and the Service that has each.
fn frontends(state: &State) -> Vec<String> {
    let mut lines: Vec<String> = state
        .desired()
        .iter()
        .flat_map(|(key, row)| {
            row.frontends
                .iter()
                .map(|f| format!("{}:{}/{} {}", f.address, f.port, key.proto, key.name))
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn who_held_a_cluster_ip_first_keeps_it_until_it_goes() {
    let mut state = state();
    let (b, a) = (
        "{clusterIP: 10.0.0.1, ports: [{port: 80}]}",
        "{clusterIP: 10.0.0.1, ports: [{port: 80}, {port: 81, name: x}]}",
    );
    state.apply(puts(&service("b", b)));
    state.apply(puts(&service("a", a)));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 b", "10.0.0.1:81/6 a"]);
    let problems = state.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].kind, ProblemKind::Conflict);
    assert_eq!(
        problems[0].to_string(),
        "Service default/a: spec.clusterIPs: 10.0.0.1:80/TCP is held by Service default/b and \
         leads there; change one of the two"
    );
    // Touching the holder does not loosen its hold.
    state.apply(puts(&service(
        "b",
        "{clusterIP: 10.0.0.1, internalTrafficPolicy: Local, ports: [{port: 80}]}",
    )));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 b", "10.0.0.1:81/6 a"]);
    let changes = state.apply(delete(&service("b", b)));
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 a", "10.0.0.1:81/6 a"]);
    assert_eq!(state.problems(), []);
}

#[test]
fn what_load_balancers_are_told_follows_services_and_endpoints() {
    let told = |state: &State| {
        let all = state.health().iter();
        all.map(|(name, health)| format!("{name} {} {}", health.port, health.local_endpoints))
            .collect::<Vec<_>>()
    };
    let local = |port: u16| {
        service(
            "a",
            &format!(
                "{{clusterIP: 10.0.0.1, type: LoadBalancer, externalTrafficPolicy: Local, \
                 healthCheckNodePort: {port}, ports: [{{port: 80}}]}}"
            ),
        )
    };
    let endpoint = slice("a-1", "a", "[{addresses: [10.1.0.1], nodeName: here}]");
    let mut state = state();
    state.apply(puts(&endpoint));
    assert_eq!(told(&state), [""; 0]);
    state.apply(puts(&local(32_000)));
    assert_eq!(told(&state), ["default/a 32000 1"]);
    state.apply(delete(&endpoint));
    state.apply(puts(&local(32_001)));
    assert_eq!(told(&state), ["default/a 32001 0"]);
    state.apply(puts(&service("a", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")));
    assert_eq!(told(&state), [""; 0]);
    state.apply(puts(&local(32_000)));
    state.apply(delete(&local(32_000)));
    assert_eq!(told(&state), [""; 0]);
}

#[test]
fn ports_without_endpoints_where_their_policy_wants_them_are_counted() {
    let spec = |policy: &str| {
        format!(
            "{{clusterIPs: [10.0.0.1, 'fd00::1'], type: NodePort, {policy}, ports: [{{port: 80, \
             nodePort: 30080}}]}}"
        )
    };
    let counts = |state: &State| {
        let NoLocal { internal, external } = state.no_local();
        [internal, external]
    };
    let away = slice("a-1", "a", "[{addresses: [10.1.0.1], nodeName: there}]");
    let here = slice("a-1", "a", "[{addresses: [10.1.0.1], nodeName: here}]");
    let mut state = state();
    state.apply(puts(&service("a", &spec("externalTrafficPolicy: Local"))));
    // No endpoint at all is another matter.
    assert_eq!(counts(&state), [[0, 0], [0, 0]]);
    state.apply(puts(&away));
    assert_eq!(counts(&state), [[0, 0], [1, 0]]);
    state.apply(puts(&service("a", &spec("internalTrafficPolicy: Local"))));
    assert_eq!(counts(&state), [[1, 0], [0, 0]]);
    state.apply(puts(&here));
    assert_eq!(counts(&state), [[0, 0], [0, 0]]);
    state.apply(puts(&away));
    assert_eq!(counts(&state), [[1, 0], [0, 0]]);
    state.apply(delete(&service("a", &spec("internalTrafficPolicy: Local"))));
    assert_eq!(counts(&state), [[0, 0], [0, 0]]);
}

#[test]
fn changes_are_counted_and_the_pods_of_slices_that_say_since_when() {
    let since = "annotations: {endpoints.kubernetes.io/last-change-trigger-time: \
                 '2026-01-31T12:00:00.5Z'}, name:";
    let text = slice("a-1", "a", "[{addresses: [10.1.0.1]}]").replacen("name:", since, 1);
    let mut state = state();
    state.apply(puts(&service("a", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")));
    state.apply(puts(&text));
    state.apply(delete(&text));
    let triggers = vec![Trigger { family: IpFamily::V4, at_ms: 1_769_860_800_500 }];
    assert_eq!(state.take_told(), Told { services: 1, endpoints: 2, triggers });
    assert_eq!(state.take_told(), Told::default());
}

#[test]
fn of_newcomers_the_oldest_has_it_then_the_first_by_name() {
    let text = |name: &str, created: &str| {
        service(name, "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")
            .replace("{name:", &format!("{{{created}name:"))
    };
    let batch = [
        text("a", ""),
        text("b", "creationTimestamp: '2026-01-02T00:00:00Z', "),
        text("c", "creationTimestamp: '2026-01-01T00:00:00Z', "),
    ];
    let mut state = state();
    state.apply(batch.iter().flat_map(|text| puts(text)));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 c"]);
    state.apply(delete(&batch[2]));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 b"]);
    state.apply(delete(&batch[1]));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 a"]);
}

#[test]
fn a_services_own_address_takes_precedence_over_a_node_port() {
    let mut state = state();
    state.apply(puts(&service(
        "n",
        "{type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 30000}]}",
    )));
    state.apply(puts(&service(
        "e",
        "{clusterIP: 10.0.0.2, externalIPs: [192.0.2.1], ports: [{port: 30000}]}",
    )));
    assert_eq!(frontends(&state), ["10.0.0.1:80/6 n", "10.0.0.2:30000/6 e", "192.0.2.1:30000/6 e"]);
    assert_eq!(state.problems()[0].field, "spec.ports[0].nodePort");
}

#[test]
fn an_address_that_stands_twice_is_one_frontend() {
    let mut state = state();
    state.apply(puts(&service(
        "e",
        "{clusterIP: 10.0.0.2, externalIPs: [192.0.2.9, 192.0.2.9], ports: [{port: 80}]}",
    )));
    assert_eq!(frontends(&state), ["10.0.0.2:80/6 e", "192.0.2.9:80/6 e"]);
    assert_eq!(state.problems(), []);
}

#[test]
fn node_ports_follow_the_nodes_addresses() {
    let mut state = state();
    state.apply(puts(&service(
        "n",
        "{type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 30000}]}",
    )));
    state.apply(puts(&service("other", "{clusterIP: 10.0.0.3, ports: [{port: 80}]}")));
    let changes = state.set_addresses(vec!["192.0.2.7".parse().unwrap()], Vec::new());
    assert_eq!(changes.len(), 1);
    assert_eq!(frontends(&state)[2], "192.0.2.7:30000/6 n");
    assert_eq!(state.set_addresses(vec!["192.0.2.7".parse().unwrap()], Vec::new()), []);
}

/// By whatever frontend: a Service has one set.
#[test]
fn services_that_are_reached_from_outside_have_their_own_default() {
    let mut state = State::new(NodeFacts { algorithm_outside: Algorithm::Maglev, ..facts() });
    let chosen = |state: &State| -> Vec<Algorithm> {
        state.desired().values().map(|row| Algorithm::of(row.flags)).collect()
    };
    let outside = "{type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80, nodePort: 30000}]}";
    let inside = "{clusterIP: 10.0.0.1, ports: [{port: 80}]}";
    for (spec, expected) in [(outside, Algorithm::Maglev), (inside, Algorithm::Random)] {
        state.apply(puts(&service("web", spec)));
        assert_eq!(chosen(&state), [expected], "{spec}");
    }
}

/// A Service whose load balancer admits these sources.
fn guarded(ranges: &str) -> String {
    let spec = format!(
        "{{type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{{port: 80}}], sessionAffinity: \
         ClientIP, loadBalancerSourceRanges: [{ranges}]}}"
    );
    format!("{}status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.1}}]}}}}\n", service("g", &spec))
}

#[test]
fn whether_the_node_is_admitted_follows_its_own_addresses() {
    let mut state = state();
    state.apply(puts(&guarded("198.51.100.0/24")));
    let admitted = |state: &State| {
        let row = state.desired().values().next().unwrap();
        let ranges: Vec<String> = row.ranges.iter().map(ToString::to_string).collect();
        (row.flags & service_flags::NODE_ADMITTED != 0, ranges.join(" "))
    };
    assert_eq!(admitted(&state), (false, "198.51.100.0/24".into()));
    let addresses = facts().addresses;
    let changes = state.set_addresses(addresses.clone(), vec!["198.51.100.7".parse().unwrap()]);
    assert_eq!(changes.len(), 1);
    assert_eq!(admitted(&state), (true, "198.51.100.0/24 203.0.113.1/32".into()));
    assert_eq!(state.set_addresses(addresses.clone(), addresses).len(), 1);
    assert_eq!(admitted(&state), (false, "198.51.100.0/24".into()));
}

#[test]
fn service_networks_are_those_of_all_service_cidrs() {
    let cidr = |name: &str, cidrs: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\n\
             spec: {{cidrs: {cidrs}}}\n"
        )
    };
    let mut state = state();
    let networks = |state: &State| {
        let networks = state.service_networks();
        networks.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(state.apply(puts(&cidr("a", "[10.96.0.7/16, 'fd00::/112']"))), []);
    assert_eq!(state.apply(puts(&cidr("b", "[10.97.0.0/16]"))), []);
    assert_eq!(networks(&state), ["10.96.0.0/16", "10.97.0.0/16", "fd00::/112"]);
    state.apply(puts(&cidr("a", "[10.98.0.0/16]")));
    assert_eq!(networks(&state), ["10.97.0.0/16", "10.98.0.0/16"]);
    state.apply(delete(&cidr("a", "[10.98.0.0/16]")));
    assert_eq!(networks(&state), ["10.97.0.0/16"]);
}

#[test]
fn a_new_zone_chooses_anew() {
    let mut state = state();
    let node = |zone: &str| {
        puts(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: here, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        ))
    };
    let hinted = "[{addresses: [10.1.0.1], hints: {forZones: [{name: a}]}}, {addresses: [10.1.0.2], hints: {forZones: [{name: b}]}}]";
    state.apply(puts(&service("s", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")));
    state.apply(puts(&slice("s", "s", hinted)));
    let count = |state: &State| match &state.desired().values().next().unwrap().cluster {
        DesiredSet::Backends(backends) => backends.len(),
        _ => 0,
    };
    assert_eq!(count(&state), 2);
    assert_eq!(state.apply(node("a")).len(), 1);
    assert_eq!(count(&state), 1);
    assert_eq!(state.apply(node("a")), []);
    assert_eq!(state.apply(node("b")).len(), 1);
    assert_eq!(state.node().and_then(|node| node.zone.as_deref()), Some("b"));
}

#[test]
fn a_slice_can_change_its_service() {
    let mut state = state();
    for name in ["s", "t"] {
        let number = u32::from(name == "t");
        state.apply(puts(&service(
            name,
            &format!("{{clusterIP: 10.0.0.{}, ports: [{{port: 80}}]}}", number + 1),
        )));
    }
    state.apply(puts(&slice("x", "s", "[{addresses: [10.1.0.1]}]")));
    let changes = state.apply(puts(&slice("x", "t", "[{addresses: [10.1.0.1]}]")));
    let rejects: Vec<_> = changes
        .iter()
        .map(|(key, row)| (key.name.as_str(), row.as_ref().unwrap().cluster == DesiredSet::Reject))
        .collect();
    assert_eq!(rejects, [("s", true), ("t", false)]);
}

/// Addresses of the endpoints that the only Service has.
fn endpoints(state: &State) -> Vec<String> {
    match &state.desired().values().next().unwrap().cluster {
        DesiredSet::Backends(backends) => {
            backends.iter().map(|backend| backend.address.to_string()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Whatever the controller writes first, and however much of it comes at once.
#[test]
fn an_endpoint_that_moves_between_slices_never_goes() {
    let of = |name: &str, addresses: &[&str]| {
        let all = addresses.iter().map(|address| format!("{{addresses: [{address}]}}"));
        puts(&slice(name, "s", &format!("[{}]", all.collect::<Vec<_>>().join(", "))))
    };
    let before = || {
        let mut state = state();
        state.apply(puts(&service("s", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")));
        state.apply(of("a", &["10.1.0.1", "10.1.0.2"]));
        state.apply(of("b", &["10.1.0.3"]));
        state
    };
    let (came, went) = (of("b", &["10.1.0.2", "10.1.0.3"]), of("a", &["10.1.0.1"]));
    let all = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    let mut stepwise = before();
    for step in [&came, &went] {
        assert_eq!(stepwise.apply(step.clone()), [], "it is the same set in each step");
        assert_eq!(endpoints(&stepwise), all);
    }
    for batch in [[came.clone(), went.clone()].concat(), [went, came].concat()] {
        let mut at_once = before();
        assert_eq!(at_once.apply(batch), []);
        assert_eq!(endpoints(&at_once), all);
    }
}

#[test]
fn other_nodes_are_not_this_one() {
    let mut state = state();
    let node = |name: &str| {
        let labels = "labels: {topology.kubernetes.io/zone: a}";
        puts(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, {labels}}}\n"))
    };
    state.apply(puts(&service("s", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}")));
    state.apply(puts(&slice(
        "s",
        "s",
        "[{addresses: [10.1.0.1], hints: {forZones: [{name: a}]}}, {addresses: [10.1.0.2], hints: {forZones: [{name: b}]}}]",
    )));
    assert_eq!(state.apply(node("there")), []);
    assert_eq!(endpoints(&state), ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(state.apply(node("here")).len(), 1);
    assert_eq!(endpoints(&state), ["10.1.0.1"]);
}

#[test]
fn what_changes_nothing_gives_nothing() {
    let mut state = state();
    let text = service("s", "{clusterIP: 10.0.0.1, ports: [{port: 80}]}");
    assert_eq!(state.apply(puts(&text)).len(), 1);
    assert_eq!(state.apply(puts(&text)), []);
    // Endpoints of a Service that is not there wait for it.
    assert_eq!(state.apply(puts(&slice("x", "t", "[{addresses: [10.1.0.1]}]"))), []);
    let endpoints = slice("s", "s", "[{addresses: [10.1.0.2]}, {addresses: [10.1.0.1]}]");
    assert_eq!(state.apply(puts(&endpoints)).len(), 1);
    assert_eq!(state.apply(puts(&endpoints)), []);
    let turned = slice("s", "s", "[{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]");
    assert_eq!(state.apply(puts(&turned)), [], "in another order");
    assert_eq!(state.apply(delete(&slice("unknown", "s", "[]"))), []);
    // Changed and changed back at once.
    let other = service("s", "{clusterIP: 10.0.0.1, ports: [{port: 81}]}");
    assert_eq!(state.apply([puts(&other), puts(&text)].concat()), []);
}

/// A small world, so that batches often meet: few names, addresses and ports.
fn object() -> impl Strategy<Value = String> {
    let name = select(vec!["a", "b", "c"]);
    let ports = select(vec![
        "[{port: 80}]",
        "[{port: 80, nodePort: 30000}]",
        "[{name: x, port: 81}, {name: y, port: 80, nodePort: 30001}]",
    ]);
    let addresses = select(vec!["[10.0.0.1]", "['2001:db8:1::1', 10.0.0.2]", "[10.0.0.3]"]);
    let external = select(vec!["[]", "[192.0.2.9]", "[192.0.2.1]"]);
    let policy = select(vec!["Cluster", "Local"]);
    let services = (name.clone(), ports, addresses, external, policy.clone(), policy).prop_map(
        |(name, ports, addresses, external, internal_policy, external_policy)| {
            service(name, &format!("{{clusterIPs: {addresses}, ports: {ports}, externalIPs: {external}, internalTrafficPolicy: {internal_policy}, externalTrafficPolicy: {external_policy}}}"))
        },
    );
    let endpoint = (1..5_u8, any::<bool>(), any::<bool>(), select(vec!["here", "there"])).prop_map(
        |(number, ready, terminating, node)| {
            format!("{{addresses: [10.1.0.{number}], nodeName: {node}, conditions: {{ready: {ready}, terminating: {terminating}}}}}")
        },
    );
    let slices = (select(vec!["p", "q", "r"]), name, vec(endpoint, 0..4)).prop_map(
        |(name, owner, endpoints)| slice(name, owner, &format!("[{}]", endpoints.join(", "))),
    );
    let nodes = select(vec!["a", "b"]).prop_map(|zone| {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n")
    });
    prop_oneof![4 => services, 4 => slices, 1 => nodes]
}

fn batches() -> impl Strategy<Value = Vec<Vec<(String, bool)>>> {
    vec(vec((object(), prop::bool::weighted(0.7)), 1..5), 1..12)
}

fn changes(batch: &[(String, bool)]) -> Vec<Change> {
    batch.iter().flat_map(|(text, put)| if *put { puts(text) } else { delete(text) }).collect()
}

/// What is left of all objects after the batches.
fn objects(batches: &[Vec<(String, bool)>]) -> BTreeMap<ObjectKey, Object> {
    let mut objects = BTreeMap::new();
    for change in batches.iter().flat_map(|batch| changes(batch)) {
        match change {
            Change::Put(key, object) => objects.insert(key, object),
            Change::Delete(key) => objects.remove(&key),
        };
    }
    objects
}

fn put_all(objects: &BTreeMap<ObjectKey, Object>) -> Vec<Change> {
    objects.iter().map(|(key, object)| Change::Put(key.clone(), object.clone())).collect()
}

/// Rows without frontends, of which history decides who holds them.
fn without_frontends(state: &State) -> Desired {
    let rows = state.desired().iter();
    rows.map(|(key, row)| (key.clone(), DesiredService { frontends: Vec::new(), ..row.clone() }))
        .collect()
}

fn is_free_of_conflicts(state: &State) -> bool {
    state.problems().is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn step_by_step_or_at_once_is_the_same(batches in batches()) {
        let mut stepwise = state();
        let mut told = Desired::new();
        for batch in &batches {
            for (key, row) in stepwise.apply(changes(batch)) {
                match row {
                    Some(row) => told.insert(key, row),
                    None => told.remove(&key),
                };
            }
        }
        prop_assert_eq!(&told, stepwise.desired());
        let mut at_once = state();
        at_once.apply(put_all(&objects(&batches)));
        prop_assert_eq!(without_frontends(&stepwise), without_frontends(&at_once));
        prop_assert_eq!(is_free_of_conflicts(&stepwise), is_free_of_conflicts(&at_once));
        // Every claimed frontend has one holder, whoever it is.
        let places = |state: &State| -> Vec<String> {
            frontends(state).iter().map(|line| line.split(' ').next().unwrap().into()).collect()
        };
        prop_assert_eq!(places(&stepwise), places(&at_once));
        if is_free_of_conflicts(&at_once) {
            prop_assert_eq!(stepwise.desired(), at_once.desired());
        }
    }

    #[test]
    fn order_within_a_batch_does_not_matter(
        (forth, back) in batches().prop_flat_map(|batches| {
            let changes = put_all(&objects(&batches));
            (Just(changes.clone()), Just(changes).prop_shuffle())
        })
    ) {
        let (mut first, mut second) = (state(), state());
        first.apply(forth);
        second.apply(back);
        prop_assert_eq!(first.desired(), second.desired());
        prop_assert_eq!(first.problems(), second.problems());
    }

    #[test]
    fn without_objects_nothing_is_left(batches in batches()) {
        let mut state = state();
        for batch in &batches {
            state.apply(changes(batch));
        }
        for key in objects(&batches).into_keys() {
            state.apply([Change::Delete(key)]);
        }
        prop_assert_eq!(state.desired(), &Desired::new());
        prop_assert_eq!(state.problems(), []);
        prop_assert!(state.sets.is_empty() && state.owners.is_empty());
    }
}

#[test]
fn a_node_that_is_deleted_or_about_to_be_leaves() {
    let node = |rest: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: here}}\n{rest}");
    let mut state = State::new(facts());
    assert!(!state.is_node_leaving(), "nobody tells of Nodes");
    state.apply(delete(&node("")));
    assert!(!state.is_node_leaving(), "there never was one");
    state.apply(puts(&node("")));
    assert!(!state.is_node_leaving());
    state.apply(puts(&node("spec: {taints: [{key: ToBeDeletedByClusterAutoscaler}]}")));
    assert!(state.is_node_leaving());
    state.apply(puts(&node("")));
    assert!(!state.is_node_leaving());
    state.apply(delete(&node("")));
    assert!(state.is_node_leaving());
    state.apply(puts(&node("")));
    assert!(!state.is_node_leaving());
}
