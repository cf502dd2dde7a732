//! What a real kube-proxy leaves, in its nftables and iptables modes, `proxy-agent cleanup
//! --kube-proxy` removes; what others made stays.

use std::process::Command;

use lab::{
    Lab, LabSpec,
    api_server::{ApiServer, Verb},
    dist,
    kube_proxy::KubeProxy,
    manifests::{self, Port, Service},
    peers,
};
use serde_json::Value;

use crate::bed::{eventually, ok};

const NODE: &str = "node1";

/// Rules by all tools, without counters and times.
fn rules(lab: &Lab) -> Vec<String> {
    let tools = ["iptables-save", "ip6tables-save", "nft list ruleset"];
    tools
        .into_iter()
        .flat_map(|tool| {
            ok(lab.shell(NODE, tool)).lines().map(ToOwned::to_owned).collect::<Vec<_>>()
        })
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| line.split(['[', '{']).next().unwrap_or_default().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn is_kube_proxys(line: &str) -> bool {
    line.contains("kube-proxy") || line.contains("KUBE-")
}

/// kube-proxy makes a copy of it, and `kube-proxy --cleanup` leaves it, too.
fn is_kubelets(line: &str) -> bool {
    line.contains("KUBE-FIREWALL")
}

#[test]
fn what_a_real_kube_proxy_leaves_is_removed_and_nothing_else() {
    let lab = ok(Lab::up(LabSpec::default()));
    let api = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
    let ports = [Port::tcp("tcp", 80, 8080)];
    let service = Service::new("web")
        .cluster_ip("10.96.0.10".parse().expect("an address"))
        .port(ports[0])
        .node_port(30_080);
    let mut objects = manifests::nodes(&lab);
    objects.push(service.build());
    objects.extend(ok(manifests::slices(&lab, "web", &ports, &["pod1a", "pod2a"])));
    ok(api.send(Verb::Create, &objects));
    for line in [
        "iptables -N MINE",
        "iptables -A INPUT -p tcp --dport 9 -m comment --comment 'of KUBE SERVICES' -j MINE",
        "ip6tables -t nat -A POSTROUTING -p udp --dport 9 -j ACCEPT",
        "nft 'table inet mine { chain c { type filter hook input priority 0; accept; }; }'",
    ] {
        ok(lab.shell(NODE, line));
    }
    let own: Vec<String> = rules(&lab);
    assert!(own.len() > 10 && !own.iter().any(|line| is_kube_proxys(line)), "{own:?}");
    let bpffs = lab.bpffs(NODE);
    for (mode, ask, marks) in [
        ("nftables", "nft list ruleset", ["10.96.0.10", "table ip6 kube-proxy"]),
        ("iptables", "iptables-save; ip6tables-save -t nat", ["KUBE-SEP-", ":KUBE-SERVICES"]),
    ] {
        let proxy = KubeProxy::prepare(&lab, NODE, &peers().join("kube-proxy"), &api.kubeconfig());
        let mut proxy = ok(proxy).mode(mode);
        ok(proxy.launch());
        eventually("kube-proxy has made its rules", || {
            let text = ok(lab.shell(NODE, ask));
            marks.iter().all(|mark| text.contains(mark)).then_some(())
        });
        ok(proxy.kill());
        let left = rules(&lab).iter().filter(|line| is_kube_proxys(line)).count();
        assert!(left >= 2, "{mode}: {left}");

        let mut cleanup = Command::new(dist().join("proxy-agent"));
        cleanup.args(["cleanup", "--kube-proxy", "-o", "json", "--bpffs"]).arg(&bpffs);
        let output = ok(ok(lab.place(NODE)).run(cleanup));
        assert!(output.status.success(), "{mode}: {output:?}");
        let told: Value = ok(serde_json::from_slice(&output.stdout));
        let removed = told["kube_proxy"].as_array().map_or(0, Vec::len);
        assert!(removed >= 2, "{mode}: {told}");
        let now = rules(&lab);
        let stayed: Vec<_> =
            now.iter().filter(|line| is_kube_proxys(line) && !is_kubelets(line)).collect();
        assert!(stayed.is_empty(), "{mode}: {stayed:?}");
        // Chains that tools made on the way may be left empty.
        let lost: Vec<_> = own.iter().filter(|line| !now.contains(line)).collect();
        assert!(lost.is_empty(), "{mode}: {lost:?}");
    }
}
