//! `deploy/prometheus` and `deploy/grafana`: alerts say what they shall of figures as promtool makes
//! them up, and each name in them is one that a running agent tells.
//!
//! Needs root, `etcd`, `promtool`, `target/dist/{proxy-agent,flannel-agent}` (`cargo xtask build`):
//! `cargo xtask test --tier lab`.

use std::{
    collections::BTreeSet,
    fmt::{Debug, Display},
    fs,
    path::PathBuf,
    process::Command,
};

use lab::{
    Lab, LabSpec,
    agent::{Agent, AgentOptions},
    overlay::Overlay,
};
use serde_json::Value;

/// What a network must have for a node to be joined.
const NETWORK: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// What agents' names begin with.
const PREFIXES: [&str; 2] = ["millrace_", "kubeproxy_"];

fn ok<T, E: Debug + Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|err| panic!("{err}"))
}

fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn rules() -> Value {
    ok(yaml_serde::from_str(&ok(fs::read_to_string(deploy().join("prometheus/rules.yaml")))))
}

fn dashboard() -> Value {
    ok(serde_json::from_str(&ok(fs::read_to_string(deploy().join("grafana/millrace.json")))))
}

/// The text of every field of that name, wherever it stands.
fn fields<'a>(value: &'a Value, name: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| fields(value, name, found)),
        Value::Object(map) => {
            found.extend(map.get(name).and_then(Value::as_str));
            map.values().for_each(|value| fields(value, name, found));
        }
        _ => {}
    }
}

/// The names of agents' metrics in expressions.
fn metrics(expressions: &[&str]) -> BTreeSet<String> {
    let words = expressions
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':'));
    words
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
        .map(String::from)
        .collect()
}

/// The names of samples that a text in OpenMetrics' format can have.
fn told(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

fn promtool(arguments: &[&str]) {
    let mut promtool = Command::new("promtool");
    let output = ok(promtool.current_dir(deploy().join("prometheus")).args(arguments).output());
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn promtool_takes_the_rules() {
    promtool(&["check", "rules", "rules.yaml"]);
}

#[test]
fn alerts_are_raised_by_what_they_are_about_and_nothing_else() {
    promtool(&["test", "rules", "rules.test.yaml"]);
    // None is left untried.
    let rules = rules();
    let mut alerts = Vec::new();
    fields(&rules, "alert", &mut alerts);
    let tests = ok(fs::read_to_string(deploy().join("prometheus/rules.test.yaml")));
    let tests: Value = ok(yaml_serde::from_str(&tests));
    let mut tried = BTreeSet::new();
    for test in tests["tests"].as_array().into_iter().flatten() {
        for case in test["alert_rule_test"].as_array().into_iter().flatten() {
            if case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty()) {
                tried.extend(case["alertname"].as_str());
            }
        }
    }
    assert_eq!(alerts.iter().copied().collect::<BTreeSet<_>>(), tried);
}

#[test]
fn agents_tell_every_name_that_is_looked_at() {
    let lab = ok(Lab::up(LabSpec { overlay: true, ..LabSpec::default() }));
    let Overlay { mut agents, etcd: _etcd } = ok(Overlay::prepare(&lab, NETWORK, &["--ip-masq"]));
    for agent in &mut agents {
        ok(agent.launch());
        ok(agent.wait_ready());
    }
    let proxy = ok(Agent::start(&lab, "node1", AgentOptions::default()));
    // Answers are counted once there was one, as the kubelet's probes have it.
    ok(proxy.health("/livez"));
    let mut names = told(&ok(proxy.metrics()));
    names.extend(told(&ok(agents[0].metrics())));
    let (rules, dashboard) = (rules(), dashboard());
    for source in [&rules, &dashboard] {
        let mut expressions = Vec::new();
        fields(source, "expr", &mut expressions);
        let used = metrics(&expressions);
        assert!(used.len() > 10, "{used:?}");
        let unknown: Vec<&String> = used.difference(&names).collect();
        assert_eq!(unknown, [] as [&String; 0], "agents tell {names:?}");
    }
}

#[test]
fn a_dashboard_has_a_place_for_each_panel() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{}: its id is another's", panel["title"]);
        let at = |name: &str| panel["gridPos"][name].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{}: out of the grid", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
        assert!(panel["type"] == "row" || panel["targets"].is_array(), "{}", panel["title"]);
    }
}
