//! The agent in kube-proxy's place: its arguments in kubeadm's DaemonSet, its configuration file.

use std::{fs, path::PathBuf};

use lab::{
    agent::{Agent, SocketLb},
    manifests,
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose},
};

/// Where NodePorts answer is said, so that the file shows in what the agent does.
/// All that the node has of IPv6, and nothing of IPv4.
const OTHERS: &str = "fd00::/8, 203.0.113.0/24";

fn config(nodeport_addresses: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clientConnection: {{burst: 0, kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}\n\
         clusterCIDR: 10.244.0.0/16\nmode: ipvs\nconntrack: {{min: null, maxPerCore: 1000, tcpCloseWaitTimeout: 7m}}\n\
         nodePortAddresses: [{nodeport_addresses}]\nnoSuchField: 1\n"
    )
}

/// A node whose agent has this file; the pod of Service 10 is there.
fn configured() -> (Cluster, PathBuf) {
    let plan = Plan::single(SocketLb::Host);
    let mut options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1a"])]);
    let path = cluster.lab.directory("node1").join("config.conf");
    ok(fs::write(&path, config(OTHERS)));
    options.extra = vec![format!("--config={}", path.display()), "--proxy-mode=iptables".into()];
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    cluster.wait_programmed(&expose(10, &["pod1a"]));
    (cluster, path)
}

#[test]
fn what_the_file_says_is_in_force_and_what_it_says_in_vain_is_named() {
    let (cluster, path) = configured();
    let shown = cluster.show(&["services", "web10"]);
    let frontends = shown.to_string();
    let [v4, v6] = ok(cluster.lab.addresses("node1")).both();
    assert!(frontends.contains(&v6.to_string()), "{frontends}");
    assert!(!frontends.contains(&v4.to_string()), "{frontends}");
    let log = cluster.agents[0].log();
    let file = path.display();
    for line in [
        format!("{file}: noSuchField is not known, and left out"),
        format!("{file}: mode: \"ipvs\" has no meaning here"),
        format!("{file}: conntrack.maxPerCore: 1000 has no meaning here"),
        "--proxy-mode does not count beside --config".to_owned(),
    ] {
        assert!(log.contains(&line), "{line}: {log}");
    }
    // As kubeadm writes it, that is nothing.
    assert!(!log.contains("conntrack.min") && !log.contains("burst"), "{log}");
    let (code, text) = ok(cluster.agents[0].status("/configz"));
    let told: Value = ok(serde_json::from_str(&text));
    let told = &told["kubeproxy.config.k8s.io"];
    assert_eq!(code, 200);
    assert_eq!(told["nodePortAddresses"][0], "fd00::/8");
    assert_eq!(told["hostnameOverride"], "node1");
    assert_eq!(told["conntrack"]["maxPerCore"], 1_000);
    assert_eq!(told["conntrack"]["min"], 131_072);
    for (sysctl, seconds) in [("close_wait", "420"), ("established", "86400")] {
        let file = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{sysctl}");
        assert_eq!(ok(cluster.lab.shell("node1", &format!("cat {file}"))).trim(), seconds);
    }
}

#[test]
fn a_changed_file_ends_the_agent_and_is_in_force_with_the_next() {
    let (mut cluster, path) = configured();
    // The same again is no change, nor are manifests.
    ok(fs::write(&path, config(OTHERS)));
    ok(cluster.lab.publish("nodes.yaml", &manifests::nodes(&cluster.lab)));
    ok(fs::write(&path, config("192.168.0.0/16")));
    let status = eventually("the agent ends", || cluster.agents[0].ended());
    assert_eq!(status.code(), Some(1));
    let log = cluster.agents[0].log();
    assert!(
        log.contains(&format!("--config: {} says something else now", path.display())),
        "{log}"
    );
    // Traffic goes on without it, and as the file says now with the next.
    cluster.answers("node1", Target::ClusterIp(10), &["pod1a"]);
    ok(cluster.agents[0].restart());
    eventually("NodePorts answer by IPv4", || {
        let [v4, _] = ok(cluster.lab.addresses("node1")).both();
        cluster.show(&["services", "web10"]).to_string().contains(&v4.to_string()).then_some(())
    });
}
