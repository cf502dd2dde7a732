//! What an operator sees: the agent's own commands and metrics, and those of stock tools.

use std::{net::TcpListener, thread::sleep, time::Duration};

use lab::{
    agent::{Agent, SocketLb},
    manifests::{self, Port, Service},
    peer::{Protocol, Question},
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, Plan, backends, eventually, ok, show},
    exposition,
    service::{FAMILIES, Target, cluster_ips, expose, name, node_port},
};

both! {
    bpftool_prints_named_fields,
    status_ids_are_those_of_bpftool_link_show,
    no_netfilter_rules,
    metrics_are_valid_and_count_what_was_sent,
    services_backends_and_flows_show_what_was_done,
    paths_of_kube_proxy_answer,
    a_server_whose_port_is_taken_answers_once_it_is_free,
    an_sctp_service_loads_no_module,
}

fn json(cluster: &Cluster, place: &str, line: &str) -> Value {
    let text = ok(cluster.lab.shell(place, line));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{line}: {err}: {text}"))
}

fn bpftool_prints_named_fields(mode: SocketLb) {
    let cluster = Plan::new(mode).up(&[expose(10, &["pod1b"]), expose(11, &["pod2a"])]);
    for family in FAMILIES {
        let to = Target::NodePort("node1", 10).address(&cluster.lab, family);
        assert!(cluster.ask("client", Protocol::Tcp, to).answer.is_some());
    }
    let maps = cluster.lab.bpffs("node1").join("proxy/maps");
    for (map, fields) in [
        ("FRONTENDS4", &["addr", "port", "proto"][..]),
        ("FRONTENDS6", &["addr", "port", "proto"]),
        ("SERVICES", &["cluster", "local", "flags"]),
        ("BACKENDS4", &["addr", "port", "flags"]),
        ("BACKENDS6", &["addr", "port", "flags"]),
        ("FLOWS4", &["src", "dst", "src_port", "dst_port", "proto", "to", "service", "last"]),
        ("FLOWS6", &["src", "dst", "src_port", "dst_port", "proto", "to", "service", "last"]),
        ("DEVICES", &["masquerade4", "masquerade6"]),
        ("SETTINGS", &["nat_port_first", "socket_lb"]),
    ] {
        let pin = maps.join(map);
        let rows =
            json(&cluster, "node1", &format!("bpftool -j map dump pinned {}", pin.display()));
        let first = &rows.as_array().and_then(|rows| rows.first()).cloned().unwrap_or_default();
        let formatted = first["formatted"].to_string();
        assert!(formatted.len() > 20, "{map} has no rows with names: {first}");
        for field in fields {
            assert!(formatted.contains(&format!("\"{field}\"")), "{map}: {field}: {formatted}");
        }
    }
}

fn status_ids_are_those_of_bpftool_link_show(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b"])]);
    let by_id = cluster.links();
    for agent in &cluster.agents {
        let status = show(agent, &["status"]);
        let attachments = status["attachments"].as_array().expect("a list");
        // Those of sockets, the uplink's, the bridge's, and one of each pod.
        assert_eq!(attachments.len(), 9 + 2 + 1 + 2, "{status}");
        for attachment in attachments {
            let id = attachment["link_id"].as_u64().expect("a number");
            assert_eq!(by_id.get(&id), attachment["program_id"].as_u64().as_ref(), "{attachment}");
            let pin = attachment["pin"].as_str().expect("a path");
            assert!(std::path::Path::new(pin).exists(), "{pin}");
        }
        assert_eq!(status["running"], true);
        assert_eq!(status["source"]["is_synced"], true, "{status}");
        assert_eq!(status["problems"], Value::Array(Vec::new()), "{status}");
    }
}

fn no_netfilter_rules(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b", "pod2a"])]);
    cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b", "pod2a"]);
    cluster.answers("client", Target::NodePort("node1", 10), &["pod1b", "pod2a"]);
    for node in ["node1", "node2"] {
        for line in ["iptables-save", "ip6tables-save", "nft list ruleset"] {
            assert_eq!(ok(cluster.lab.shell(node, line)), "", "{line} on {node}");
        }
        let ipvs = ok(cluster.lab.shell(node, "cat /proc/net/ip_vs 2>/dev/null || true"));
        assert!(ipvs.lines().count() <= 3, "{ipvs}");
    }
}

fn metrics_are_valid_and_count_what_was_sent(mode: SocketLb) {
    const COUNT: u32 = 25;
    let cluster = Cluster::up(mode, &[expose(10, &["pod2a"])]);
    let text = ok(cluster.agents[0].metrics());
    let samples = exposition::parse(&text).unwrap_or_else(|err| panic!("{err}"));
    for wanted in [
        "millrace_service_packets_total",
        "millrace_service_bytes_total",
        "millrace_service_connections_total",
        "millrace_drops_total",
        "millrace_table_entries",
        "millrace_table_capacity",
        "millrace_sync_duration_seconds_count",
        "millrace_change_to_programmed_seconds_count",
        "millrace_problems",
        "millrace_build_info",
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    ] {
        assert!(samples.iter().any(|sample| sample.name == wanted), "{wanted} is missing:\n{text}");
    }
    let connections = |path| {
        let name = name(10);
        let labels =
            [("namespace", "default"), ("service", name.as_str()), ("port", "tcp"), ("path", path)];
        cluster.metric("millrace_service_connections_total", &labels)
    };
    let (socket, packet) = (connections("socket"), connections("packet"));
    let question = Question { count: Some(COUNT), ..Question::default() };
    for family in FAMILIES {
        for (from, target) in
            [("pod1a", Target::ClusterIp(10)), ("client", Target::NodePort("node1", 10))]
        {
            let to = target.address(&cluster.lab, family);
            cluster.ask_with(from, Protocol::Tcp, to, &question);
        }
    }
    let each = f64::from(2 * COUNT);
    let expected = if mode == SocketLb::On { (each, each) } else { (0.0, 2.0 * each) };
    let counted = (connections("socket") - socket, connections("packet") - packet);
    assert_eq!(counted, expected, "connections of the socket path and the packet path");
    let labels = [("service", "web10"), ("port", "tcp")];
    let packets = cluster.metric("millrace_service_packets_total", &labels);
    // Handshake, greeting, line and echo, and the end: no fewer than eight for a connection.
    assert!(packets >= expected.1 * 8.0, "{packets} packets");
    assert!(cluster.metric("millrace_service_bytes_total", &labels) >= packets * 40.0);
}

fn services_backends_and_flows_show_what_was_done(mode: SocketLb) {
    let cluster = Cluster::up(mode, &[expose(10, &["pod1b", "pod2a"]), expose(11, &[])]);
    let shown = cluster.show(&["services", "default/web10:tcp"]);
    let shown = shown.as_array().expect("a list");
    assert_eq!(shown.len(), 2, "one for each family: {shown:?}");
    for (service, (family, v6)) in shown.iter().zip([("IPv4", false), ("IPv6", true)]) {
        assert_eq!(service["family"], family);
        assert_eq!(service["protocol"], "TCP");
        let frontends = service["frontends"].to_string();
        let ip = cluster_ips(10)[usize::from(v6)].to_string();
        assert!(frontends.contains(&ip) && frontends.contains(&node_port(10).to_string()));
        assert_eq!(service["backends"].as_array().map(Vec::len), Some(2));
        let local = service["backends"].as_array().into_iter().flatten();
        assert_eq!(local.filter(|backend| backend["local"] == true).count(), 1, "{service}");
    }
    let empty = cluster.show(&["services", "web11"]);
    assert!(
        empty.as_array().is_some_and(|all| {
            all.iter().all(|service| service["without_backends"] == "reject")
        })
    );
    let missing = ok(cluster.agents[0].ask(&["services", "no-such-service"]));
    assert_eq!(missing.status.code(), Some(1));
    let backends = cluster.show(&["backends"]);
    assert_eq!(backends.as_array().map(Vec::len), Some(8), "2 pods, 2 families, 2 protocols");

    for family in FAMILIES {
        let to = Target::NodePort("node1", 10).address(&cluster.lab, family);
        let question = Question { source_port: Some(40_123), ..Question::default() };
        let answer = cluster.ask_with("client", Protocol::Udp, to, &question).remove(0);
        let greeting = answer.answer.as_ref().unwrap_or_else(|| panic!("{answer:?}"));
        let flows = cluster.show(&["flows"]);
        let client = std::net::SocketAddr::new(cluster.address("client", family), 40_123);
        let flow = flows.as_array().into_iter().flatten().find(|flow| {
            flow["client"] == client.to_string() && flow["frontend"] == to.to_string()
        });
        let flow = flow.unwrap_or_else(|| panic!("{client} to {to} is not in {flows}"));
        let backend = std::net::SocketAddr::new(cluster.address(&greeting.name, family), 8080);
        assert_eq!(flow["backend"], backend.to_string());
        assert_eq!(flow["service"], "default/web10:udp");
        assert_eq!(flow["state"], "answered");
        assert_eq!(flow["protocol"], "UDP");
        assert_eq!(flow["packets"], 2, "{flow}");
        let source = flow["source"].as_str();
        assert_eq!(
            source,
            (greeting.name == "pod2a").then(|| greeting.source.to_string()).as_deref()
        );
    }
}

fn paths_of_kube_proxy_answer(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    let agent = &cluster.agents[0];
    let mut eligible = Vec::new();
    for (path, answer) in [
        ("/healthz", agent.health("/healthz")),
        ("/livez", agent.health("/livez")),
        ("/healthz of the other server", agent.status("/healthz")),
    ] {
        let (code, text) = ok(answer);
        let body: Value = ok(serde_json::from_str(&text));
        assert_eq!((code, &body["healthy"]), (200, &Value::Bool(true)), "{path}: {text}");
        assert_eq!(body["lastUpdated"], body["currentTime"], "{path}");
        for family in ["IPv4", "IPv6"] {
            assert_eq!(body["status"][family]["healthy"], true, "{path}: {text}");
        }
        eligible.push(body["nodeEligible"].clone());
    }
    assert_eq!(eligible, [Value::Bool(true), Value::Null, Value::Bool(true)]);
    assert_eq!(ok(agent.status("/proxyMode")), (200, "millrace".to_owned()));
    assert!(ok(agent.health("/metrics")).0 == 404, "they are at the other address alone");
}

/// Traffic does not wait for it.
fn a_server_whose_port_is_taken_answers_once_it_is_free(mode: SocketLb) {
    let plan = Plan::single(mode);
    let options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1b"])]);
    let taken = ok(ok(cluster.lab.enter("node1", || TcpListener::bind("0.0.0.0:10256"))));
    cluster.agents.push(ok(Agent::prepare(&cluster.lab, "node1", options)));
    ok(cluster.agents[0].launch());
    let problems = || {
        let (_, text) = cluster.agents[0].status("/status").ok()?;
        let status: Value = ok(serde_json::from_str(&text));
        Some(status["problems"].to_string())
    };
    // It has its programs verified first, which takes as long as it takes.
    while problems().is_none() {
        sleep(Duration::from_millis(20));
    }
    eventually("the taken port is told", || {
        let told = problems()?;
        (told.contains("--healthz-bind-address") && told.contains("cannot listen")).then_some(())
    });
    cluster.wait_programmed(&expose(10, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    drop(taken);
    eventually("it answers", || {
        let (code, _) = cluster.agents[0].health("/healthz").ok()?;
        (code == 200 && problems()? == "[]").then_some(())
    });
}

/// Who may make a Service shall not have nodes load what nothing there uses.
fn an_sctp_service_loads_no_module(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    // Protocols that sockets speak, and modules where the kernel has such.
    let known = || {
        let line = "cat /proc/net/protocols /proc/modules 2>/dev/null; true";
        let text = ok(cluster.lab.shell("node1", line)).to_lowercase();
        assert!(text.contains("udp"), "{text}");
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        names.filter(|name| name.contains("sctp")).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let before = known();
    let port = Port { name: "signals", protocol: "SCTP", port: 38_412, target: 38_412 };
    let [v4, v6] = cluster_ips(20);
    let service = Service::new(&name(20)).cluster_ip(v4).cluster_ip(v6).port(port);
    let mut documents = vec![service.node_port(node_port(20)).build()];
    documents.extend(ok(manifests::slices(&cluster.lab, &name(20), &[port], &["pod1b"])));
    ok(cluster.lab.publish("web20.yaml", &documents));
    eventually("it is programmed", || {
        let count = backends(&cluster.agents[0], 20)?.len();
        (count == 2).then_some(())
    });
    assert_eq!(known(), before);
}
