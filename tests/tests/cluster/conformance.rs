//! What makes a network conformant: Kubernetes' own tests of it, with both agents and nobody else.

use crate::{
    bed,
    e2e::{self, Selection},
    manifest::ok,
};

/// Of Kubernetes 1.35.4. Another number is another selection, or tests that could not run here.
const TESTS: usize = 47;

/// Two nodes and all that is asked of them share the machine: tests mostly wait.
const AT_ONCE: u8 = 4;

#[test]
fn kubernetes_finds_the_network_conformant() {
    let cluster = bed::deployed(2, &["e2e.tar"]);
    ok(cluster.apply(&bed::dns()));
    ok(cluster.rolled_out("kube-system", "deployment/coredns"));
    let selection =
        Selection { name: "conformance", focus: r"\[sig-network\].*\[Conformance\]", skip: None };
    let outcome = e2e::run(&cluster, &selection, AT_ONCE);
    assert_eq!(outcome.failures().count(), 0, "{outcome}");
    assert_eq!(outcome.tests().count(), TESTS, "{outcome}");
    assert!(outcome.tests().all(|test| test.state == e2e::State::Passed), "{outcome}");
}
