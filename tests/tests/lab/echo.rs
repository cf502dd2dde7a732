//! Pings to Services' own addresses.

use datapath::wire::Leg;
use lab::agent::SocketLb;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{FAMILIES, Target, expose},
    xdp::carried,
};

/// True if all of three pings are answered, by who was asked.
fn is_answered(cluster: &Cluster, from: &str, target: Target) -> bool {
    FAMILIES.into_iter().all(|family| {
        let to = target.address(&cluster.lab, family).ip();
        cluster.lab.shell(from, &format!("ping -n -c 3 -i 0.2 -W 2 {to}")).is_ok()
    })
}

const ASKED: [(&str, Target); 4] = [
    ("client", Target::ClusterIp(10)),
    ("client", Target::LoadBalancer(10)),
    ("pod1a", Target::ClusterIp(10)),
    ("node1", Target::ClusterIp(10)),
];

#[test]
fn services_answer_pings_if_they_are_to() {
    let service = expose(10, &["pod2a"]).balanced(&[]);
    let mut cluster = Plan::new(SocketLb::On).up(&[service]);
    // A load balancer's, the node would send on, and tell the client of a shorter way.
    for from in ["client", "pod1a", "node1"] {
        let is_answered = is_answered(&cluster, from, Target::ClusterIp(10));
        assert!(!is_answered, "{from}, without the option");
    }
    for xdp in ["off", "generic"] {
        let agent = &mut cluster.agents[0];
        agent.change_argument("--answer-pings");
        agent.change_argument(&format!("--xdp={xdp}"));
        ok(agent.restart());
        eventually("pings are answered", || {
            is_answered(&cluster, "client", Target::ClusterIp(10)).then_some(())
        });
        let before = carried(&cluster, 0)[Leg::Echo as usize];
        for (from, target) in ASKED {
            assert!(is_answered(&cluster, from, target), "{from} {target:?}, XDP {xdp}");
        }
        // The node's own address is the kernel's, as ever.
        assert!(is_answered(&cluster, "client", Target::NodePort("node1", 10)));
        let by_xdp = carried(&cluster, 0)[Leg::Echo as usize] - before;
        assert_eq!(by_xdp, if xdp == "off" { 0 } else { 12 });
    }
}
