//! Algorithms, weights, and Services that are left out of the socket path, with real sockets.

use std::collections::BTreeMap;

use lab::{
    agent::SocketLb,
    peer::{self, Protocol, Question},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Exposed, FAMILIES, Family, Target, expose},
};

both! {
    backends_take_turns,
    weights_are_shares_of_new_connections,
    one_of_weight_zero_gets_no_new_connections,
    a_source_goes_where_its_address_tells,
    all_nodes_agree_by_maglev,
    connections_are_as_many_everywhere_by_least_conn,
    a_service_is_left_out_of_the_socket_path,
}

const PODS: [&str; 3] = ["pod1b", "pod2a", "pod2b"];

fn web(annotations: Value) -> Exposed {
    expose(10, &PODS).with(|service| service.set("/metadata/annotations", annotations))
}

fn by(algorithm: &str) -> Exposed {
    web(json!({"millrace.io/algorithm": algorithm}))
}

/// How many of so many new connections each pod answers, and in which order they do.
#[track_caller]
fn answers(
    cluster: &Cluster,
    from: &str,
    target: Target,
    family: Family,
    count: u32,
) -> Vec<String> {
    cluster.answerers(from, Protocol::Tcp, target.address(&cluster.lab, family), count)
}

fn counts(answers: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in answers {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

fn even(each: usize) -> BTreeMap<&'static str, usize> {
    PODS.into_iter().map(|pod| (pod, each)).collect()
}

fn backends_take_turns(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[by("round-robin")]);
    for from in ["pod1a", "node1", "client"] {
        for family in FAMILIES {
            let answers = answers(&cluster, from, Target::NodePort("node1", 10), family, 12);
            assert_eq!(counts(&answers), even(4), "{from}");
            for three in answers.windows(4) {
                assert!(three[0] == three[3] && three[0] != three[1], "{from}: {answers:?}");
            }
        }
    }
}

fn weights_are_shares_of_new_connections(mode: SocketLb) {
    let plan = Plan::new(mode).extra(&["--algorithm", "round-robin"]);
    let pod2a = |cluster: &Cluster| {
        let [v4, v6] = ok(cluster.lab.addresses("pod2a")).both();
        json!({"millrace.io/weights": format!("{v4}=2,{v6}=2,node1=3")})
    };
    let cluster = plan.up(&[expose(10, &PODS)]);
    cluster.write(&web(pod2a(&cluster)));
    let wanted = BTreeMap::from([("pod1b", 6), ("pod2a", 4), ("pod2b", 2)]);
    for family in FAMILIES {
        eventually("weights count", || {
            let answers = answers(&cluster, "pod1a", Target::ClusterIp(10), family, 12);
            (counts(&answers) == wanted).then_some(())
        });
        let answers = answers(&cluster, "client", Target::NodePort("node1", 10), family, 12);
        assert_eq!(counts(&answers), wanted);
    }
    let shown = cluster.show(&["services", "web10"]);
    let slots = |row: &Value| -> Vec<u64> {
        let backends = row["backends"].as_array().into_iter().flatten();
        backends.filter_map(|backend| backend["slots"].as_u64()).collect()
    };
    for row in shown.as_array().expect("a list") {
        assert_eq!((slots(row), &row["algorithm"]), (vec![3, 2, 1], &json!("round-robin")));
    }
}

fn one_of_weight_zero_gets_no_new_connections(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[web(json!({}))]);
    cluster.write(&web(json!({"millrace.io/weights": "node2=0"})));
    for family in FAMILIES {
        eventually("nodes of weight zero are spared", || {
            let answers = answers(&cluster, "pod1a", Target::ClusterIp(10), family, 40);
            (counts(&answers) == BTreeMap::from([("pod1b", 40)])).then_some(())
        });
    }
}

fn a_source_goes_where_its_address_tells(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[by("sh")]);
    for from in ["pod1a", "node1", "client"] {
        for family in FAMILIES {
            let target = Target::NodePort("node1", 10);
            let answers = answers(&cluster, from, target, family, 15);
            assert_eq!(counts(&answers).len(), 1, "{from}: {answers:?}");
        }
    }
}

fn all_nodes_agree_by_maglev(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[by("maglev")]);
    for family in FAMILIES {
        let [one, other] = ["node1", "node2"].map(|node| {
            let to = Target::NodePort(node, 10).address(&cluster.lab, family);
            let from_port = |port| {
                let question = Question { source_port: Some(port), ..Question::default() };
                let answers = cluster.ask_with("client", Protocol::Tcp, to, &question);
                answers[0].name().unwrap_or_else(|| panic!("{answers:?}")).to_owned()
            };
            (20_000..20_020).map(from_port).collect::<Vec<_>>()
        });
        assert_eq!(one, other);
        assert!(counts(&one).len() > 1, "{one:?}");
    }
}

/// So many stay open while others begin, and are counted by the programs and by the agent.
fn connections_are_as_many_everywhere_by_least_conn(mode: SocketLb) {
    const LASTING: u64 = 60;
    let plan = Plan::new(mode).extra(&["--algorithm", "lc"]);
    let cluster = plan.up(&[expose(10, &PODS)]);
    let pin = cluster.lab.bpffs("node1").join("proxy/maps/LOADS");
    let loads = || -> Vec<u64> {
        let dump = format!("bpftool -j map dump pinned {}", pin.display());
        let rows: Value =
            serde_json::from_str(&ok(cluster.lab.shell("node1", &dump))).expect("JSON");
        let rows = rows.as_array().into_iter().flatten();
        // Those of IPv6 have the highest bit.
        let rows = rows.filter(|row| row["formatted"]["key"].as_u64() < Some(1 << 31));
        rows.filter_map(|row| row["formatted"]["value"].as_u64()).map(|load| load / 16).collect()
    };
    // Of two ports.
    eventually("all are counted", || (loads().len() == 2 * PODS.len()).then_some(()));
    let to = Target::ClusterIp(10).address(&cluster.lab, Family::V4);
    let arguments = [
        format!("--tcp={to}"),
        format!("--lasting={LASTING}"),
        "--rate=0".into(),
        "--requests=2".into(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let load = ok(peer::load(&ok(cluster.lab.place("pod1a")), &arguments));
    let counted = eventually("connections are counted", || {
        let loads = loads();
        (loads.iter().sum::<u64>() == LASTING).then_some(loads)
    });
    let counted: Vec<u64> = counted.into_iter().filter(|&has| has > 0).collect();
    // How alike, the engine's cases tell: here the agent may count anew while they begin, and what has
    // begun since it looked is then left to chance until it counts again.
    let are_alike = counted.iter().all(|has| (12..=28).contains(has));
    assert!(counted.len() == PODS.len() && are_alike, "{counted:?}");
    assert_eq!(ok(load.stop()).failed, 0);
    eventually("nobody has connections any more", || {
        loads().iter().all(|has| *has == 0).then_some(())
    });
}

fn a_service_is_left_out_of_the_socket_path(mode: SocketLb) {
    let packets = json!({"millrace.io/socket-lb": "off"});
    let cluster = Cluster::up(mode, &[web(packets)]);
    for family in FAMILIES {
        answers(&cluster, "pod1a", Target::ClusterIp(10), family, 5);
    }
    assert_eq!(cluster.connections(10), [0, 10]);
}
