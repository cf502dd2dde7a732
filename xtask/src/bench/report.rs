//! What was measured, as a table for people and as JSON for programs.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{
    control,
    cost::Cost,
    statistics::{Ratio, median, quantile},
    traffic::{self, Kind, Way},
};

/// Where a figure must get to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// The interval holds 1.
    Same,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Unit {
    Ratio,
    Seconds,
    Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Holds,
    Missed,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    figure: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_lb: Option<&'static str>,
    unit: Unit,
    value: f64,
    /// The 95 % interval of a ratio; the smallest and the largest of anything else.
    low: f64,
    high: f64,
    /// Rounds or times.
    rounds: usize,
    goal: Option<Goal>,
    /// What kube-proxy 1.35 in nftables mode came to.
    kube_proxy: Option<&'static str>,
    verdict: Option<Verdict>,
}

/// The machine it was measured on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Host {
    cpu: String,
    cores: usize,
    kernel: String,
    /// Load averages of a minute, before and after.
    load: [f64; 2],
}

impl Goal {
    /// A goal holds if the interval reaches it.
    fn verdict(self, low: f64, high: f64) -> Verdict {
        let holds = match self {
            Self::AtLeast(goal) => high >= goal,
            Self::AtMost(goal) => low <= goal,
            Self::Same => low <= 1.0 && high >= 1.0,
        };
        if holds { Verdict::Holds } else { Verdict::Missed }
    }
}

impl Row {
    fn ratio(figure: String, ratio: Ratio, rounds: usize) -> Self {
        Self {
            figure,
            services: None,
            socket_lb: None,
            unit: Unit::Ratio,
            value: ratio.value,
            low: ratio.low,
            high: ratio.high,
            rounds,
            goal: None,
            kube_proxy: None,
            verdict: None,
        }
    }

    /// A quantile of what was measured several times.
    fn measured(figure: &str, unit: Unit, values: &[f64], part: f64, services: u32) -> Self {
        let value = quantile(values, part);
        let ratio = Ratio {
            value,
            low: quantile(values, 0.0),
            high: quantile(values, 1.0),
            pairs: values.len(),
        };
        let row = Self::ratio(figure.into(), ratio, values.len());
        Self { unit, services: Some(services), ..row }
    }

    fn goal(mut self, goal: Goal, kube_proxy: &'static str) -> Self {
        let (low, high) =
            if self.unit == Unit::Ratio { (self.low, self.high) } else { (self.value, self.value) };
        self.verdict = Some(goal.verdict(low, high));
        self.goal = Some(goal);
        self.kube_proxy = Some(kube_proxy);
        self
    }
}

impl Host {
    pub(super) fn new() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let models: Vec<&str> = info
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, model)| model)
            .collect();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: models.first().copied().unwrap_or("unknown").into(),
            cores: models.len(),
            kernel: kernel.trim().into(),
            load: [load(), load()],
        }
    }

    pub(super) fn finish(&mut self) {
        self.load[1] = load();
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// The lines about traffic.
pub(super) fn traffic(found: &[traffic::Found]) -> Vec<Row> {
    let mut rows: Vec<Row> = found.iter().map(traffic_row).collect();
    for kind in Kind::ALL {
        for mode in ["on", "host"] {
            let of_mode = || {
                let is_it = |found: &&traffic::Found| {
                    found.kind == kind
                        && found.way == Way::Service
                        && found.socket_lb.name() == mode
                };
                found.iter().filter(is_it)
            };
            let least = of_mode().min_by_key(|found| found.services);
            let most = of_mode().max_by_key(|found| found.services);
            let (Some(least), Some(most)) = (least, most) else { continue };
            if least.services == most.services {
                continue;
            }
            let figure =
                format!("{} as a ratio to that at {}", name(kind, Way::Service), least.services);
            let ratio = most.ratio.over(&least.ratio);
            let mut row = Row::ratio(figure, ratio, most.rounds).goal(Goal::Same, "");
            row.services = Some(most.services);
            row.socket_lb = Some(mode);
            rows.push(row);
        }
    }
    rows
}

fn name(kind: Kind, way: Way) -> String {
    let what = match kind {
        Kind::Connections => "new connections per second",
        Kind::Latency => "round trip time",
        Kind::Bulk => "bulk throughput",
    };
    let way = match way {
        Way::Service => "ClusterIP",
        Way::Backend => "pod to pod beside the agent, pair that a Service joins too",
        _ => "pod to pod beside the agent",
    };
    format!("{what}, {way}")
}

fn traffic_row(found: &traffic::Found) -> Row {
    let (goal, kube_proxy) = match (found.kind, found.way) {
        (Kind::Connections, Way::Service) => (Some(Goal::AtLeast(0.97)), "0.83"),
        (Kind::Latency, Way::Service) => (Some(Goal::AtMost(1.02)), "1.15"),
        (Kind::Bulk, Way::Service) | (_, Way::Backend) => (None, ""),
        (Kind::Latency, _) => (Some(Goal::AtMost(1.02)), "1.10–1.18"),
        (Kind::Connections | Kind::Bulk, _) => (Some(Goal::AtLeast(0.98)), "0.82–0.90"),
    };
    let row = Row::ratio(name(found.kind, found.way), found.ratio, found.rounds);
    let row = match goal {
        Some(goal) => row.goal(goal, kube_proxy),
        None => row,
    };
    Row { services: Some(found.services), socket_lb: Some(found.socket_lb.name()), ..row }
}

/// The lines about the control plane.
pub(super) fn control(found: &control::Found) -> Vec<Row> {
    let services = found.services;
    let time =
        |figure, values: &[f64], part| Row::measured(figure, Unit::Seconds, values, part, services);
    let bytes =
        |figure, bytes: u64| Row::measured(figure, Unit::Bytes, &[bytes as f64], 0.5, services);
    let maps = found.maps.values().map(|(_, bytes)| bytes).sum();
    vec![
        time("start to the last Service answering, nothing pinned", &found.cold, 0.5)
            .goal(Goal::AtMost(1.0), "30 s"),
        time("start to a missed change in force, state pinned", &found.warm, 0.5)
            .goal(Goal::AtMost(1.0), ""),
        time("one file renamed to traffic following, median", &found.renamed, 0.5),
        time("one file renamed to traffic following, 99th percentile", &found.renamed, 0.99)
            .goal(Goal::AtMost(0.02), "0.9–10 s"),
        time("one file written to traffic following, median", &found.written, 0.5),
        time("one file written to traffic following, 99th percentile", &found.written, 0.99)
            .goal(Goal::AtMost(0.02), "0.9–10 s"),
        bytes("memory of the agent, resident", found.resident).goal(Goal::AtMost(60e6), "201 MB"),
        bytes("memory of the agent, proportional", found.proportional),
        bytes("kernel memory of the maps at default sizes", maps).goal(Goal::AtMost(64e6), ""),
    ]
}

/// Everything that was found.
pub(super) struct Report {
    pub(super) host: Host,
    pub(super) quick: bool,
    pub(super) rows: Vec<Row>,
    pub(super) traffic: Vec<traffic::Found>,
    pub(super) costs: Vec<Cost>,
    pub(super) control: Option<control::Found>,
}

impl Report {
    /// Writes `service.md` and `service.json`; returns the former's text.
    pub(super) fn write(&self, directory: &Path) -> Result<String> {
        fs::create_dir_all(directory)?;
        let text = self.markdown();
        let put = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        put("service.md", &text)?;
        put("service.json", &serde_json::to_string_pretty(&self.json())?)?;
        Ok(text)
    }

    fn json(&self) -> serde_json::Value {
        let traffic = self.traffic.iter().map(|found| {
            json!({
                "figure": name(found.kind, found.way),
                "services": found.services,
                "socket_lb": found.socket_lb.name(),
                "unit": absolute_unit(found.kind),
                "value": found.value,
                "reference": found.reference,
                "ratio_of_means": {
                    "value": found.of_means.value,
                    "low": found.of_means.low,
                    "high": found.of_means.high,
                },
            })
        });
        let costs = self.costs.iter().map(|cost| {
            json!({
                "figure": name(cost.kind, cost.way),
                "socket_lb": cost.socket_lb.name(),
                "program": cost.program,
                "runs_each": cost.runs,
                "nanoseconds_each_run": cost.nanos,
            })
        });
        let control = self.control.as_ref().map(|found| {
            let maps = found
                .maps
                .iter()
                .map(|(id, (name, bytes))| json!({"id": id, "name": name, "bytes": bytes}));
            json!({
                "cold_start_seconds": found.cold,
                "pinned_start_seconds": found.warm,
                "rename_seconds": found.renamed,
                "write_seconds": found.written,
                "maps": maps.collect::<Vec<_>>(),
            })
        });
        json!({
            "benchmark": "service",
            "quick": self.quick,
            "host": self.host,
            "rows": self.rows,
            "traffic": traffic.collect::<Vec<_>>(),
            "programs": costs.collect::<Vec<_>>(),
            "control": control,
        })
    }

    fn markdown(&self) -> String {
        let Host { cpu, cores, kernel, load } = &self.host;
        let mut text = format!(
            "Measured on {cpu}, {cores} cores, Linux {kernel}; load average {:.2} before, {:.2} \
             after.\n\n",
            load[0], load[1]
        );
        if self.quick {
            text += "A smoke run (`--quick`): too few rounds for a verdict that counts.\n\n";
        }
        text += "| figure | Services | socket-lb | value | interval or spread | rounds | goal | \
                 kube-proxy | verdict |\n|---|--:|---|--:|--:|--:|--:|--:|---|\n";
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.line());
        }
        if !self.traffic.is_empty() {
            text += "\nThe same traffic in absolute numbers, medians:\n\n\
                     | traffic | Services | socket-lb | value | with no agent |\n\
                     |---|--:|---|--:|--:|\n";
            for found in &self.traffic {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} | {} |",
                    name(found.kind, found.way),
                    found.services,
                    found.socket_lb.name(),
                    absolute(found.kind, found.value),
                    absolute(found.kind, found.reference),
                );
            }
        }
        if !self.costs.is_empty() {
            text += "\nWhat the programs cost, as the kernel counts it:\n\n\
                     | traffic | socket-lb | program | runs | ns a run | ns in all |\n\
                     |---|---|---|--:|--:|--:|\n";
            for cost in &self.costs {
                let each = match cost.kind {
                    Kind::Connections => "a connection",
                    Kind::Latency => "a round trip",
                    Kind::Bulk => "a MiB",
                };
                let _ = writeln!(
                    text,
                    "| {} | {} | `{}` | {:.2} {each} | {:.0} | {:.0} |",
                    name(cost.kind, cost.way),
                    cost.socket_lb.name(),
                    cost.program,
                    cost.runs,
                    cost.nanos,
                    cost.runs * cost.nanos,
                );
            }
        }
        if let Some(found) = &self.control {
            text += "\nKernel memory of the maps:\n\n| map | MB |\n|---|--:|\n";
            let mut maps: Vec<_> = found.maps.values().collect();
            maps.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
            for (name, bytes) in maps.iter().filter(|(_, bytes)| *bytes >= 100_000) {
                let _ = writeln!(text, "| `{name}` | {:.2} |", *bytes as f64 / 1e6);
            }
            let slowest = |values: &[f64]| quantile(values, 1.0) * 1e3;
            let _ = writeln!(
                text,
                "\nSlowest change: {:.1} ms by rename, {:.1} ms by write; median start {:.0} ms \
                 cold, {:.0} ms with pinned state.",
                slowest(&found.renamed),
                slowest(&found.written),
                median(&found.cold) * 1e3,
                median(&found.warm) * 1e3,
            );
        }
        text
    }
}

impl Row {
    fn line(&self) -> String {
        let services = self.services.map_or(String::new(), |services| services.to_string());
        let goal = match self.goal {
            Some(Goal::AtLeast(goal)) => format!("≥ {}", self.unit.text(goal)),
            Some(Goal::AtMost(goal)) => format!("≤ {}", self.unit.text(goal)),
            Some(Goal::Same) => "1".into(),
            None => String::new(),
        };
        let spread = if self.rounds > 1 {
            format!("{} – {}", self.unit.text(self.low), self.unit.text(self.high))
        } else {
            String::new()
        };
        let verdict = match self.verdict {
            Some(Verdict::Holds) => "holds",
            Some(Verdict::Missed) => "**missed**",
            None => "",
        };
        format!(
            "| {} | {services} | {} | {} | {spread} | {} | {goal} | {} | {verdict} |",
            self.figure,
            self.socket_lb.unwrap_or_default(),
            self.unit.text(self.value),
            self.rounds,
            self.kube_proxy.unwrap_or_default(),
        )
    }
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Seconds if value < 0.1 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
        }
    }
}

fn absolute_unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Connections => "connections per second",
        Kind::Latency => "microseconds",
        Kind::Bulk => "bytes per second",
    }
}

fn absolute(kind: Kind, value: f64) -> String {
    match kind {
        Kind::Connections => format!("{value:.0}/s"),
        Kind::Latency => format!("{value:.2} µs"),
        Kind::Bulk => format!("{:.2} GB/s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_holds_if_the_interval_reaches_it() {
        let ratio = Ratio { value: 0.965, low: 0.955, high: 0.975, pairs: 20 };
        let row = Row::ratio("connections".into(), ratio, 40).goal(Goal::AtLeast(0.97), "0.83");
        assert_eq!(row.verdict, Some(Verdict::Holds));
        assert_eq!(
            row.line(),
            "| connections |  |  | 0.965 | 0.955 – 0.975 | 40 | ≥ 0.970 | 0.83 | holds |"
        );
        let row = row.goal(Goal::AtLeast(0.98), "");
        assert_eq!(row.verdict, Some(Verdict::Missed));
        assert_eq!(Goal::Same.verdict(0.99, 0.999), Verdict::Missed);
    }

    #[test]
    fn what_is_no_ratio_is_judged_by_its_value() {
        let values = [0.012, 0.031, 0.009];
        let row = Row::measured("a change", Unit::Seconds, &values, 0.99, 10_000);
        let row = row.goal(Goal::AtMost(0.02), "");
        assert_eq!(row.verdict, Some(Verdict::Missed));
        assert!(row.line().contains("| 31.0 ms | 9.0 ms – 31.0 ms | 3 | ≤ 20.0 ms |"));
    }
}
