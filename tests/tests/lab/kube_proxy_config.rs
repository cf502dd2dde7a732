//! The agent in kube-proxy's place: its arguments in kubeadm's DaemonSet, its configuration file.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use lab::{
    agent::{Agent, SocketLb},
    manifests,
    peer::{self, Protocol},
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, eventually, ok},
    service::{Target, expose, node_port},
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
    with_file(&config(OTHERS), &["--proxy-mode=iptables"])
}

fn with_file(text: &str, extra: &[&str]) -> (Cluster, PathBuf) {
    let plan = Plan::single(SocketLb::Host).extra(extra);
    let mut options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1a"])]);
    let path = cluster.lab.directory("node1").join("config.conf");
    ok(fs::write(&path, text));
    options.extra.push(format!("--config={}", path.display()));
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    cluster.wait_programmed(&expose(10, &["pod1a"]));
    (cluster, path)
}

/// What kubeadm writes, in short: nothing of where NodePorts answer, which in this mode is everywhere.
const IPTABLES: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
                        kind: KubeProxyConfiguration\nmode: \"\"\nnodePortAddresses: null\n";

#[test]
fn node_ports_answer_where_those_of_kube_proxys_mode_do() {
    let (mut cluster, path) = with_file(IPTABLES, &[]);
    let [v4, v6] = ok(cluster.lab.addresses("node1")).both();
    let bridge = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));
    let at = |address: IpAddr| SocketAddr::from((address, node_port(10)));
    let (localhost4, localhost6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let served = |cluster: &Cluster, from: &str, to: IpAddr| {
        let answers = [Protocol::Tcp, Protocol::Udp].map(|proto| cluster.ask(from, proto, at(to)));
        let is_served = answers.each_ref().map(|answer| answer.name() == Some("pod1a"));
        assert_eq!(is_served[0], is_served[1], "{from} asks {to}: {answers:?}");
        is_served[0]
    };
    for from in ["client", "pod1b", "node1"] {
        assert!([v4, v6].into_iter().all(|to| served(&cluster, from, to)), "{from}");
    }
    for from in ["pod1b", "node1"] {
        assert!(served(&cluster, from, bridge), "{from}");
    }
    // As with kube-proxy, ::1 never is, nor is anybody else's loopback.
    assert!(served(&cluster, "node1", localhost4));
    assert!(!served(&cluster, "node1", localhost6));
    assert!(!served(&cluster, "pod1b", localhost4));
    let told = "NodePorts answer at all,127.0.0.0/8, as those of a kube-proxy in mode iptables do";
    assert!(cluster.agents[0].log().contains(told), "{}", cluster.agents[0].log());

    // With nftables it is the node's own addresses.
    ok(cluster.agents[0].kill());
    ok(fs::write(&path, IPTABLES.replace("mode: \"\"", "mode: nftables")));
    ok(cluster.agents[0].restart());
    cluster.wait_programmed(&expose(10, &["pod1a"]));
    assert!(served(&cluster, "client", v4) && served(&cluster, "node1", v6));
    assert!(!served(&cluster, "node1", bridge) && !served(&cluster, "node1", localhost4));
}

#[test]
fn a_taken_address_ends_the_agent_that_must_have_it() {
    let file = |text: &str| IPTABLES.replace("mode: \"\"", &format!("mode: \"\"\n{text}"));
    let (mut cluster, path) = with_file(&file("metricsBindAddress: 127.0.0.1:10249"), &[]);
    let taken = "127.0.0.1:10259";
    let _server = ok(peer::serve(&cluster.place("node1"), &["--tcp=10259"]));
    let is_taken = || ok(cluster.lab.shell("node1", "ss -Hlnt sport = :10259"));
    eventually("somebody listens", || (!is_taken().is_empty()).then_some(()));
    ok(cluster.agents[0].kill());

    // It is tried again, unless it is asked for.
    ok(fs::write(&path, file(&format!("metricsBindAddress: {taken}"))));
    ok(cluster.agents[0].restart());
    let complaint = format!("--metrics-bind-address: cannot listen at {taken}");
    eventually("it complains", || cluster.agents[0].log().contains(&complaint).then_some(()));
    assert!(cluster.agents[0].ended().is_none());
    ok(cluster.agents[0].kill());
    let hard = format!("metricsBindAddress: {taken}\nbindAddressHardFail: true");
    ok(fs::write(&path, file(&hard)));
    ok(cluster.agents[0].launch());
    let status = eventually("it ends", || cluster.agents[0].ended());
    assert_eq!(status.code(), Some(1));
    let log = cluster.agents[0].log();
    assert!(log.contains(&format!("proxy-agent: {complaint}")), "{log}");
    // What it had programmed serves on.
    cluster.answers("node1", Target::ClusterIp(10), &["pod1a"]);
}

#[test]
fn what_is_done_in_place_of_running() {
    let plan = Plan::single(SocketLb::Host).extra(&["--oom-score-adj=321"]);
    let mut cluster = plan.up(&[expose(10, &["pod1a"])]);
    let id = cluster.agents[0].id().expect("it runs");
    let score = ok(fs::read_to_string(format!("/proc/{id}/oom_score_adj")));
    assert_eq!(score.trim(), "321");
    let ask = |cluster: &Cluster, arguments: &[&str]| {
        let output = ok(cluster.agents[0].ask(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let path = cluster.lab.directory("node1").join("written.conf");
    let flag = format!("--write-config-to={}", path.display());
    let told = ask(&cluster, &["--proxy-mode=nftables", "--conntrack-min=7", &flag]);
    assert!(told.contains(&path.display().to_string()), "{told}");
    let written = ok(fs::read_to_string(&path));
    let written: Value = ok(yaml_serde::from_str(&written));
    assert_eq!(written["kind"], "KubeProxyConfiguration");
    assert_eq!(written["mode"], "nftables");
    assert_eq!(written["conntrack"]["min"], 7);
    assert_eq!(written["healthzBindAddress"], "0.0.0.0:10256");

    let ready = ask(&cluster, &["--init-only"]);
    assert!(ready.contains("ports 50000-59999 are set aside"), "{ready}");
    // While an agent runs, only kube-proxy's leftovers are removed.
    let told = ask(&cluster, &["--cleanup"]);
    assert!(told.contains("an agent is running"), "{told}");
    cluster.answers("pod1b", Target::ClusterIp(10), &["pod1a"]);
    ok(cluster.agents[0].kill());
    let told = ask(&cluster, &["--cleanup"]);
    assert!(told.contains("gave back ports 50000-59999"), "{told}");
    assert_eq!(cluster.show(&["status"])["attachments"], Value::Array(Vec::new()));
}

#[test]
fn servers_that_are_left_out_do_not_listen() {
    let plan = Plan::single(SocketLb::Host).extra(&["--metrics-port=0"]);
    let cluster = plan.up(&[expose(10, &["pod1a"])]);
    let listening = |port: u16| {
        ok(cluster.lab.shell("node1", &format!("ss -Hlnt sport = :{port}"))).trim().to_owned()
    };
    assert_eq!(listening(10_249), "");
    assert_ne!(listening(10_256), "");
    assert_eq!(ok(cluster.agents[0].health("/healthz")).0, 200);
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
        format!("{file}: mode: ipvs is not used, it is eBPF in each mode"),
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
