//! What the agent needs to run, and what it says when it lacks it.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, time::Duration};

use lab::{
    Lab,
    agent::{Agent, AgentOptions, SocketLb},
    container::Container,
    peer::{Protocol, Question},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Plan, ok},
    service::{FAMILIES, Target, expose},
};

both! { runs_with_three_capabilities }

/// A command that runs the agent with these capabilities and no others.
fn confined(lab: &Lab, capabilities: &str) -> PathBuf {
    let agent = AgentOptions::default().binary;
    let path = lab.directory("node1").join(format!("agent-{capabilities}"));
    let bounds = format!("--bounding-set=-all{capabilities} --inh-caps=-all");
    let text = format!("#!/bin/sh\nexec setpriv {bounds} -- {} \"$@\"\n", agent.display());
    ok(fs::write(&path, text));
    ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    path
}

fn runs_with_three_capabilities(mode: SocketLb) {
    let plan = Plan::single(mode);
    let options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1b"])]);
    let binary = confined(&cluster.lab, ",+net_admin,+bpf,+perfmon");
    let options = AgentOptions { binary, ..options };
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    cluster.wait_programmed(&expose(10, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
    let status = cluster.show(&["status"]);
    assert_eq!(status["problems"], Value::Array(Vec::new()));
    let attachments = status["attachments"].as_array().map_or(0, Vec::len);
    assert_eq!(
        attachments,
        9 + 2 + 3,
        "nine socket hooks, two of the uplink, one each of bridge and pods"
    );
    let pid = cluster.agents[0].id().expect("it runs");
    let proc = ok(fs::read_to_string(format!("/proc/{pid}/status")));
    assert!(proc.contains("CapEff:\t000000c000001000"), "{proc}");
    // It adopts what it left as well, and lists what it did.
    ok(cluster.agents[0].restart());
    cluster.publish(&expose(10, &["pod1a"]));
    cluster.show(&["flows"]);
    ok(cluster.agents[0].kill());
    let cleaned = ok(cluster.agents[0].ask(&["cleanup"]));
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
}

/// Where the kernel tells which ports it gives to no socket.
const RESERVED: &str = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";

/// What kube-proxy has the kernel's connection tracking do.
const CLOSE_WAIT: &str = "cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

#[test]
fn runs_as_its_daemon_set_has_it() {
    let plan = Plan::single(SocketLb::On);
    let options = plan.options();
    let mut cluster = plan.without_agents(&[expose(10, &["pod1b"])]);
    let manifest = manifests().join("proxy-agent/base/daemonset.yaml");
    let container = ok(Container::of(&manifest, "proxy-agent"));
    assert_eq!(container.capabilities(), ["cap_net_admin", "cap_bpf", "cap_perfmon"]);
    let binary = ok(container.confine(&cluster.lab, "node1", &options.binary));
    let options = AgentOptions { binary, patience: Duration::from_mins(1), ..options };
    cluster.agents.push(ok(Agent::start(&cluster.lab, "node1", options)));
    cluster.wait_programmed(&expose(10, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.reaches("client", Target::NodePort("node1", 10), &["pod1b"], "client");
    // Its ports are reserved, although it may not write /proc/sys.
    assert_eq!(cluster.show(&["status"])["problems"], json!([]));
    assert_eq!(ok(cluster.lab.shell("node1", RESERVED)).trim(), "50000-59999");
    assert_eq!(ok(cluster.lab.shell("node1", CLOSE_WAIT)).trim(), "3600");
    ok(cluster.agents[0].restart());
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    ok(cluster.agents[0].kill());
    let cleaned = ok(cluster.agents[0].ask(&["cleanup"]));
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert_eq!(ok(cluster.lab.shell("node1", RESERVED)).trim(), "");
}

/// The repository's manifests.
fn manifests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize")
}

#[test]
fn check_names_what_is_missing() {
    let cluster = Plan::single(SocketLb::On).without_agents(&[]);
    let bpffs = cluster.lab.bpffs("node1");
    let check = |binary: PathBuf| {
        let mut check = Command::new(binary);
        check.args(["check", "-o", "json", "--bpffs"]).arg(&bpffs);
        let output = ok(cluster.lab.run("node1", check));
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|err| panic!("{err}: {output:?}"));
        (output.status.success(), findings)
    };
    let (fit, findings) = check(AgentOptions::default().binary);
    assert!(fit, "{findings:?}");
    assert!(findings.iter().all(|finding| finding["verdict"] != "missing"), "{findings:?}");
    let (fit, findings) = check(confined(&cluster.lab, ",+net_admin,+bpf,+perfmon"));
    assert!(fit, "three capabilities are enough: {findings:?}");
    for (left, missing) in [
        (",+net_admin,+perfmon", "CAP_BPF"),
        (",+bpf,+perfmon", "CAP_NET_ADMIN"),
        (",+net_admin,+bpf", "CAP_PERFMON"),
    ] {
        let (fit, findings) = check(confined(&cluster.lab, left));
        assert!(!fit, "{left} is not enough");
        let finding = findings.iter().find(|finding| finding["subject"] == missing);
        let finding = finding.unwrap_or_else(|| panic!("{missing}: {findings:?}"));
        assert_eq!(finding["verdict"], "missing", "{finding}");
        assert!(finding["advice"].as_str().is_some_and(|advice| !advice.is_empty()), "{finding}");
    }
}

#[test]
fn without_the_socket_path_it_says_what_that_costs() {
    let cluster = Plan::single(SocketLb::Off).up(&[expose(10, &["pod1b"])]);
    let findings = cluster.show(&["check"]);
    let mut all = findings.as_array().into_iter().flatten();
    let finding = all.find(|finding| finding["subject"] == "socket path");
    let finding = finding.unwrap_or_else(|| panic!("{findings}"));
    assert_eq!((&finding["verdict"], &finding["found"]), (&json!("warning"), &json!("off")));
    let advice = finding["advice"].as_str().expect("advice");
    assert!(advice.contains("ClusterIP") && advice.contains("--socket-lb host"), "{advice}");
    let log = cluster.agents[0].log();
    assert!(log.contains(&format!("--socket-lb off: {advice}")), "{log}");
    // And so it is.
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    let question = Question { timeout: Some(Duration::from_millis(400)), ..Question::default() };
    for family in FAMILIES {
        let to = Target::ClusterIp(10).address(&cluster.lab, family);
        let answer = cluster.ask_with("node1", Protocol::Tcp, to, &question).remove(0);
        assert!(answer.answer.is_none(), "{answer:?}");
    }
}

#[test]
fn wrong_flags_exit_2_and_are_named() {
    let agent = AgentOptions::default().binary;
    for (arguments, named) in [
        (&["--socket-lb", "sometimes"][..], "--socket-lb"),
        (&["run", "--node-ip", "10.0.0"], "--node-ip"),
        (&["--nat-ports", "9-1"], "--nat-ports"),
        (&["--cluster-cidr", "10.0.0.0/99"], "--cluster-cidr"),
        (&["--source", "ftp:x"], "--source"),
        (&["--source", "etcd:"], "--source"),
        (&["--source", "dir:/tmp", "--algorithm", "fastest"], "--algorithm"),
        (&["--source", "dir:/tmp", "--xdp", "fast"], "--xdp"),
        (&["--source", "dir:/tmp", "--new-flows-per-source", "some"], "--new-flows-per-source"),
        (&["--source", "dir:/tmp", "--new-flows-per-source", "2000000"], "--new-flows-per-source"),
        (&["--source", "dir:/tmp", "--node-ip", "10.0.0.1,10.0.0.2"], "--node-ip"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["status", "-o", "yaml"], "--output"),
        (&["flows", "--bpffs"], "--bpffs"),
        (&["--source", "dir:/tmp", "--config", "/no/such/file"], "--config"),
        (&["--source", "dir:/tmp", "--conntrack-min", "many"], "--conntrack-min"),
    ] {
        // One that began to run nevertheless would meet no network, nor pins of others, and end.
        let mut command = Command::new("timeout");
        command.args(["60", "unshare", "--net", "--mount"]).arg(&agent).args(arguments);
        let output = ok(command.env("MILLRACE_BPFFS", "/nowhere").output());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(named), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?} writes errors to standard output");
    }
    for subcommand in ["", "run", "status", "services", "backends", "flows", "check", "cleanup"] {
        let mut help = Command::new(&agent);
        help.args([subcommand, "--help"].iter().filter(|argument| !argument.is_empty()));
        let output = ok(help.output());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("Example"), "{subcommand}: {text}");
    }
}
