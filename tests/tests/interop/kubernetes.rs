//! flannel-agent, alone and beside flanneld, in a cluster of Kubernetes.

use std::{thread::sleep, time::Duration};

use serde_json::{Value, json};

use crate::{
    bed::{eventually, ok},
    cluster::{Cluster, PREFIX, condition},
    mixed::PROGRAMS,
    shared::assert_everything_passes,
};

/// Both nodes with agents, which know each other.
fn of_agents() -> Cluster {
    let mut cluster = Cluster::furnished_with_api(&[], PROGRAMS);
    cluster.bed.launch();
    cluster
}

/// What a node's agent says: its annotations, and of the condition what is no time.
fn said(cluster: &Cluster, nth: usize) -> (Vec<String>, [Value; 3]) {
    let condition = eventually(&format!("node {nth} is available\n{}", cluster.logs()), || {
        cluster.available(nth)
    });
    let annotations = cluster.annotations(nth).into_iter();
    let annotations = annotations.map(|(name, value)| format!("{name}={value}")).collect();
    (annotations, ["status", "reason", "message"].map(|field| condition[field].clone()))
}

/// Waits until a node's tables say where the pods of a network are, and by which MAC.
fn wait_row(cluster: &Cluster, node: &str, row: &str) {
    eventually(&format!("{node}: {row}\n{}", cluster.logs()), || {
        cluster.bed.vteps(node).iter().any(|known| known == row).then_some(())
    });
}

/// The MAC in `backend-data` of a node.
fn mac(cluster: &Cluster, nth: usize) -> Option<String> {
    let data: Value = serde_json::from_str(&cluster.annotation(nth, "backend-data")?).ok()?;
    Some(data["VtepMAC"].as_str()?.to_owned())
}

#[test]
fn nodes_say_what_flanneld_has_them_say() {
    let mut cluster = Cluster::furnished_with_api(&[], PROGRAMS);
    for nth in 0..2 {
        cluster.start_flanneld(nth);
    }
    cluster.wait_joined();
    let of_flanneld = [0, 1].map(|nth| said(&cluster, nth));
    assert_eq!(of_flanneld[0].0.len(), 6, "{of_flanneld:?}");
    for nth in 0..2 {
        assert!(ok(cluster.flannelds[nth].end()).success());
        cluster.silence(nth);
        cluster.start_agent(nth);
    }
    cluster.wait_joined();
    for (nth, before) in of_flanneld.into_iter().enumerate() {
        assert_eq!(said(&cluster, nth), before);
        let node = cluster.node(nth);
        // What others say of the Node is left alone.
        assert_eq!(condition(&node, "Ready")["status"], "True");
        assert_eq!(
            node["metadata"]["labels"]["topology.kubernetes.io/zone"],
            format!("zone{}", nth + 1)
        );
        let times = condition(&node, "NetworkUnavailable");
        for time in ["lastHeartbeatTime", "lastTransitionTime"] {
            assert!(times[time].as_str().is_some_and(|time| time.ends_with('Z')), "{times}");
        }
    }
}

#[test]
fn everything_passes_between_flanneld_and_programs_under_another_prefix() {
    let prefix = ["-kube-annotation-prefix=example.com/second"];
    let mut cluster = Cluster::furnished_with_api(&prefix, PROGRAMS);
    cluster.start_flanneld(1);
    cluster.start_agent(0);
    assert_everything_passes(&cluster);
    for nth in 0..2 {
        let names = cluster.annotations(nth).into_keys();
        let others: Vec<_> =
            names.filter(|name| !name.starts_with("example.com/second-")).collect();
        assert!(others.is_empty(), "{others:?}");
    }
}

/// flanneld follows an agent whose devices were made anew, and an agent follows flanneld.
#[test]
fn flanneld_and_programs_follow_each_others_new_macs() {
    let mut cluster = Cluster::furnished_with_api(&[], PROGRAMS);
    cluster.start_flanneld(1);
    cluster.start_agent(0);
    cluster.wait_joined();
    for nth in 0..2 {
        let before = mac(&cluster, nth);
        if nth == 0 {
            ok(cluster.bed.agents[nth].kill());
        } else {
            assert!(ok(cluster.flannelds[nth].end()).success());
        }
        let (place, line) = [
            ("node1", "ip link del flannel.1"),
            ("node2", "ip link del flannel.1; ip link del flannel-v6.1"),
        ][nth];
        cluster.bed.shell(place, line);
        // Or the MAC would be what it was.
        cluster.silence(nth);
        if nth == 0 {
            cluster.start_agent(nth);
        } else {
            cluster.start_flanneld(nth);
        }
        cluster.wait_joined();
        assert_ne!(mac(&cluster, nth), before);
    }
}

#[test]
fn agents_follow_a_peers_macs_and_addresses() {
    let mut cluster = of_agents();
    cluster.wait_joined();
    let row = |address: &str, mac: &str| format!("10.244.2.0/24 to {address} {mac}");
    // A MAC: the device is made anew, and nobody remembers what it was.
    let before = mac(&cluster, 1).expect("node2 says its MAC");
    wait_row(&cluster, "node1", &row("192.168.78.12", &before));
    ok(cluster.bed.agents[1].kill());
    cluster.bed.shell("node2", "ip link del flannel.1");
    cluster.silence(1);
    cluster.start_agent(1);
    let now = mac(&cluster, 1).expect("node2 says its MAC");
    assert_ne!(now, before);
    wait_row(&cluster, "node1", &row("192.168.78.12", &now));
    cluster.wait_joined();
    // An address that an operator wants to be told.
    cluster.bed.shell("node2", "ip addr add 192.168.78.112/24 dev eth0");
    let overwrite = format!("{PREFIX}public-ip-overwrite");
    cluster.annotate(1, &json!({ overwrite.as_str(): "192.168.78.112" }));
    ok(cluster.bed.agents[1].restart());
    assert_eq!(cluster.annotation(1, "public-ip").as_deref(), Some("192.168.78.112"));
    wait_row(&cluster, "node1", &row("192.168.78.112", &now));
    cluster.wait_joined();
    // And an address that changes while the agent runs.
    cluster.annotate(1, &json!({ overwrite.as_str(): null }));
    cluster.bed.shell("node2", "ip addr flush dev eth0 scope global && ip addr add 192.168.78.22/24 dev eth0 && ip addr add fd00:78::22/64 dev eth0 nodad && ip route replace default via 192.168.78.1 && ip route replace ::/0 via fd00:78::1");
    wait_row(&cluster, "node1", &row("192.168.78.22", &now));
    wait_row(&cluster, "node1", &format!("fd00:10:244:2::/64 to fd00:78::22 {now}"));
    assert_eq!(cluster.annotation(1, "public-ipv6").as_deref(), Some("fd00:78::22"));
    cluster.wait_joined();
}

/// The API server lets nobody change a podCIDR; a Node is removed, and comes back with another.
#[test]
fn agents_follow_a_node_that_comes_back_with_other_pod_cidrs() {
    let cluster = of_agents();
    cluster.wait_joined();
    cluster.remove(1);
    eventually("node2 is no peer any more", || cluster.bed.vteps("node1").is_empty().then_some(()));
    cluster.register(1);
    // Long enough for the agent to have asked in vain.
    sleep(Duration::from_secs(2));
    let problems = cluster.bed.show(1, "status")["problems"].to_string();
    assert!(problems.contains("node2 has no podCIDR"), "{problems}\n{}", cluster.logs());
    let cidrs = ["10.244.12.0/24", "fd00:10:244:12::/64"];
    cluster.merge(1, &json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } }));
    let now = eventually(&format!("node2 says so\n{}", cluster.logs()), || mac(&cluster, 1));
    for (cidr, address) in cidrs.into_iter().zip(["192.168.78.12", "fd00:78::12"]) {
        wait_row(&cluster, "node1", &format!("{cidr} to {address} {now}"));
    }
    assert_eq!(cluster.bed.vteps("node1").len(), 2, "{:?}", cluster.bed.vteps("node1"));
    assert_eq!(cluster.bed.show(1, "status")["subnet"], json!(cidrs));
    let env = ok(std::fs::read_to_string(cluster.bed.lab.subnet_file("node2")));
    assert!(env.contains("FLANNEL_SUBNET=10.244.12.1/24\n"), "{env}");
    // A pod of the new subnet.
    for line in ["ip addr add 10.244.12.1/24 dev cni0", "ip addr add fd00:10:244:12::1/64 dev cni0"]
    {
        cluster.bed.shell("node2", line);
    }
    cluster.bed.shell("pod2a", "ip addr flush dev eth0 scope global && ip addr add 10.244.12.10/24 dev eth0 && ip addr add fd00:10:244:12::10/64 dev eth0 nodad && ip route replace default via 10.244.12.1 && ip route replace ::/0 via fd00:10:244:12::1");
    for (from, to) in [
        ("pod1a", "10.244.12.10"),
        ("pod1a", "fd00:10:244:12::10"),
        ("pod2a", "10.244.1.10"),
        ("pod2a", "fd00:10:244:1::10"),
    ] {
        let line = format!("ping -c2 -i0.2 -W2 {to}");
        assert!(cluster.bed.lab.shell(from, &line).is_ok(), "{from}: {line}\n{}", cluster.logs());
    }
}

#[test]
fn what_another_hand_takes_from_a_node_is_said_again() {
    let cluster = of_agents();
    cluster.wait_joined();
    let before = said(&cluster, 1).0;
    let manager = format!("{PREFIX}kube-subnet-manager");
    for annotations in [json!({ manager.as_str(): null }), json!({ manager.as_str(): "false" })] {
        cluster.annotate(1, &annotations);
        eventually(&format!("{annotations}\n{}", cluster.logs()), || {
            (said(&cluster, 1).0 == before).then_some(())
        });
    }
    cluster.silence(1);
    eventually(&format!("all of it\n{}", cluster.logs()), || {
        (cluster.annotations(1).len() == before.len()).then_some(())
    });
    cluster.wait_joined();
}

#[test]
fn an_api_server_that_is_away_costs_nothing() {
    let mut cluster = of_agents();
    cluster.wait_joined();
    let loads = cluster.loads();
    cluster.bed.store.stop();
    eventually("the outage is told", || {
        (cluster.bed.show(0, "status")["store_reached"] == false).then_some(())
    });
    // An agent that starts meanwhile waits, and takes nothing away.
    ok(cluster.bed.agents[1].kill());
    ok(cluster.bed.agents[1].launch());
    sleep(Duration::from_secs(3));
    assert!(cluster.bed.agents[1].health("/readyz").is_ok_and(|(status, _)| status == 503));
    cluster.bed.assert_joined();
    ok(cluster.bed.store.resume());
    ok(cluster.bed.agents[1].wait_ready());
    eventually("it is over", || {
        (cluster.bed.show(0, "status")["store_reached"] == true).then_some(())
    });
    cluster.assert_gap("an API server that is away", loads, 0);
    // What happens now is heard again.
    cluster.remove(1);
    eventually("node2 is no peer any more", || cluster.bed.nodes(0).is_empty().then_some(()));
}

/// Nothing of it comes through any more, and nothing says so: no connection is reset.
#[test]
fn an_api_server_that_falls_silent_is_noticed_and_heard_again() {
    let cluster = of_agents();
    cluster.wait_joined();
    let rule = |action: &str| {
        for rule in
            ["INPUT -s 192.168.78.11 -p tcp --dport", "OUTPUT -d 192.168.78.11 -p tcp --sport"]
        {
            cluster.bed.shell("fabric", &format!("iptables {action} {rule} 6443 -j DROP"));
        }
    };
    rule("-I");
    cluster.remove(1);
    eventually("the silence is told", || {
        (cluster.bed.show(0, "status")["store_reached"] == false).then_some(())
    });
    // What is not known to be gone stays.
    assert_eq!(cluster.bed.nodes(0), ["node2"]);
    cluster.bed.assert_joined();
    rule("-D");
    eventually(&format!("node2 is no peer any more\n{}", cluster.logs()), || {
        cluster.bed.nodes(0).is_empty().then_some(())
    });
    assert_eq!(cluster.bed.show(0, "status")["store_reached"], true);
}
