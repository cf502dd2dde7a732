//! A node goes from flanneld to flannel-agent and back while its pods are talked to.

use std::{thread::sleep, time::Duration};

use crate::{
    bed::{KERNEL, ok},
    mixed::{Mixed, PROGRAMS},
};

/// Both nodes with flanneld.
fn of_flanneld(arguments: &[&str]) -> Mixed {
    let mut mixed = Mixed::furnished(arguments);
    mixed.start_flanneld(0);
    mixed.start_flanneld(1);
    mixed.wait_joined();
    mixed
}

/// The MAC of the first node's device.
fn mac(mixed: &Mixed) -> String {
    mixed.bed.shell("node1", "ip -o link show flannel.1 | grep -o 'link/ether [^ ]*'")
}

/// Ends flanneld on the first node and starts the agent there.
fn take_over(mixed: &mut Mixed) {
    let (before, heard) = ((mixed.lease(1), mac(mixed)), mixed.flannelds[1].log().len());
    assert!(ok(mixed.flannelds[0].end()).success());
    mixed.start_agent(0);
    mixed.wait_joined();
    assert_eq!((mixed.lease(1), mac(mixed)), before, "peers need not learn anything");
    let said = mixed.flannelds[1].log().split_off(heard);
    for word in ["removing subnet", "Removed", "failed", "Failed", "error"] {
        assert!(!said.contains(word), "{word}: {said}");
    }
    assert!(said.contains("PublicIP: 192.168.78.11"), "the lease was put, and heard: {said}");
    assert!(mixed.alarms(1).is_empty(), "{said}");
}

#[test]
fn programs_take_over_from_flanneld_and_connections_go_on() {
    let mut mixed = of_flanneld(PROGRAMS);
    let loads = mixed.loads();
    sleep(Duration::from_secs(1));
    take_over(&mut mixed);
    sleep(Duration::from_secs(1));
    mixed.assert_gap("flanneld to programs", loads, 1000);
    let ours = ["proto 77", "blackhole", "169.254.1.1", "vxlan external", "60000-65535", "pins"];
    assert_eq!(mixed.traces_of_ours(0), ours);
    assert!(!mixed.bed.shell("node1", "ip -o link").contains("flannel-v6"), "one serves both");
}

#[test]
fn classic_devices_are_taken_over_as_they_are() {
    let mut mixed = of_flanneld(&[KERNEL]);
    let devices = || "ip -o link | grep flannel | cut -d: -f1,2".to_owned();
    let before = mixed.bed.shell("node1", &devices());
    let loads = mixed.loads();
    sleep(Duration::from_secs(1));
    take_over(&mut mixed);
    sleep(Duration::from_secs(1));
    mixed.assert_gap("flanneld to classic devices", loads, 0);
    assert_eq!(mixed.bed.shell("node1", &devices()), before);
}

#[test]
fn cleanup_gives_the_node_back_and_connections_go_on() {
    let mut mixed = of_flanneld(PROGRAMS);
    take_over(&mut mixed);
    let loads = mixed.loads();
    sleep(Duration::from_secs(1));
    ok(mixed.bed.agents[0].kill());
    mixed.clean_up(0);
    mixed.start_flanneld(0);
    mixed.wait_joined();
    sleep(Duration::from_secs(1));
    mixed.assert_gap("programs to flanneld, by cleanup", loads, 1000);
    assert!(mixed.traces_of_ours(0).is_empty(), "{:?}", mixed.traces_of_ours(0));
    // And once more, from what that left.
    take_over(&mut mixed);
}

/// What flanneld makes of our device when nobody ran `cleanup`: it makes its own in its place.
#[test]
fn flanneld_starts_where_cleanup_was_forgotten() {
    let mut mixed = of_flanneld(PROGRAMS);
    take_over(&mut mixed);
    ok(mixed.bed.agents[0].kill());
    mixed.start_flanneld(0);
    mixed.wait_joined();
    let left = mixed.traces_of_ours(0);
    assert_eq!(
        left,
        ["proto 77", "blackhole", "60000-65535", "pins"],
        "only what carries no traffic"
    );
    take_over(&mut mixed);
}

/// The way back with the least gap: by the classic devices, which flanneld keeps.
#[test]
fn classic_devices_are_given_back_as_they_are() {
    let mut mixed = of_flanneld(PROGRAMS);
    take_over(&mut mixed);
    let lease = mixed.lease(1);
    let loads = mixed.loads();
    sleep(Duration::from_secs(1));
    ok(mixed.bed.agents[0].kill());
    for argument in ["--ip-masq=false", KERNEL] {
        mixed.bed.agents[0].change_argument(argument);
    }
    mixed.start_agent(0);
    mixed.wait_joined();
    mixed.assert_gap("programs to classic devices", loads, 1000);
    let loads = mixed.loads();
    sleep(Duration::from_secs(1));
    ok(mixed.bed.agents[0].kill());
    mixed.start_flanneld(0);
    mixed.wait_joined();
    sleep(Duration::from_secs(1));
    mixed.assert_gap("classic devices to flanneld", loads, 0);
    assert_eq!(mixed.lease(1), lease);
    assert!(mixed.traces_of_ours(0).is_empty(), "{:?}", mixed.traces_of_ours(0));
}
