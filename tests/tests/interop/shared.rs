//! One network of both: the second node has flanneld, the first flannel-agent.

use std::net::SocketAddr;

use lab::peer::{self, Protocol};

use crate::{
    bed::{KERNEL, eventually, ok},
    mixed::{Mixed, NODES, PROGRAMS},
    word::Word,
};

/// Pods and nodes reach pods of the other node, each way, by each family and protocol.
pub(crate) fn assert_everything_passes<S>(mixed: &Mixed<S>) {
    let lab = &mixed.bed.lab;
    mixed.wait_joined();
    for (node, to) in NODES.into_iter().zip(["pod2a", "pod1a"]) {
        let from = if node == "node1" { "pod1b" } else { "pod2b" };
        for address in ok(lab.addresses(to)).both() {
            for place in [node, from] {
                mixed.bed.shell(place, &format!("ping -c2 -i0.2 -W2 {address}"));
                mixed.bed.shell(place, &format!("ping -c1 -W2 -M dont -s 4000 {address}"));
                let place = ok(lab.place(place));
                for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53)] {
                    let answer = ok(peer::ask(&place, protocol, SocketAddr::new(address, port)));
                    assert_eq!(answer.name(), Some(to), "{} to {address}: {answer:?}", place.name);
                }
                let bytes = 4 << 20;
                let exchange = ok(peer::exchange(&place, (address, 80).into(), bytes));
                assert_eq!(exchange, peer::Exchange::whole(bytes), "{} to {address}", place.name);
            }
        }
    }
    assert!(mixed.alarms(1).is_empty(), "{:?}", mixed.alarms(1));
}

#[test]
fn everything_passes_between_programs_and_flanneld() {
    let mut mixed = Mixed::furnished(PROGRAMS);
    mixed.start_flanneld(1);
    mixed.start_agent(0);
    assert_everything_passes(&mixed);
}

#[test]
fn everything_passes_between_classic_devices_and_flanneld() {
    let mut mixed = Mixed::furnished(&[KERNEL]);
    // The other order: flanneld hears of the agent first.
    mixed.start_agent(0);
    mixed.start_flanneld(1);
    assert_everything_passes(&mixed);
}

/// What flannel's leases do not have: flanneld reads the rest.
#[test]
fn flanneld_reads_a_lease_that_says_who_answers_clients() {
    let mut mixed = Mixed::furnished(PROGRAMS);
    let word = Word::new(&mixed.bed, "node1");
    word.come();
    mixed.start_agent(0);
    assert_eq!(mixed.lease(1).matches(r#""DSR":true"#).count(), 2, "{}", mixed.lease(1));
    mixed.start_flanneld(1);
    assert_everything_passes(&mixed);
    // Published anew without, while flanneld watches; then with it again.
    for is_said in [false, true] {
        word.say(is_said.into());
        eventually(&mixed.lease(1), || (mixed.lease(1).contains("DSR") == is_said).then_some(()));
        assert_everything_passes(&mixed);
    }
}

/// Its lease is put with other MACs: flanneld follows, and so does the agent when flanneld's
/// device was made anew.
#[test]
fn either_follows_the_others_new_device() {
    let mut mixed = Mixed::furnished(PROGRAMS);
    mixed.start_flanneld(1);
    mixed.start_agent(0);
    mixed.wait_joined();
    let before = mixed.lease(2);
    assert!(ok(mixed.flannelds[1].end()).success());
    mixed.bed.shell("node2", "ip link del flannel.1; ip link del flannel-v6.1");
    mixed.start_flanneld(1);
    mixed.wait_joined();
    assert_ne!(mixed.lease(2), before, "flanneld with etcd makes a new MAC");
}
