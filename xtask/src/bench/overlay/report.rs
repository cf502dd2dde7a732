//! What was measured between nodes, as a table for people and as JSON for programs.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    control,
    traffic::{Comparison, Found, Outcome},
    way::Way,
};
use crate::bench::{
    files,
    host::Host,
    kind::Kind,
    row::{Goal, Row, Unit},
};

/// Everything that was found.
pub(super) struct Report {
    pub(super) host: Host,
    pub(super) quick: bool,
    /// Whether the real flanneld was measured too.
    pub(super) peers: bool,
    /// Peers that were added to the one.
    pub(super) crowd: u32,
    pub(super) traffic: Option<Outcome>,
    pub(super) control: Option<control::Found>,
}

/// What flanneld with its rules came to as a ratio to the nodes themselves, elsewhere.
fn elsewhere(kind: Kind) -> &'static str {
    match kind {
        Kind::Connections => "0.57",
        Kind::Latency => "1.74",
        Kind::Datagrams => "0.34",
        Kind::Bulk => "0.43",
    }
}

/// Of the fast path, which is used where nothing on a node forbids it.
fn goal(kind: Kind) -> Goal {
    match kind {
        Kind::Connections => Goal::AtLeast(0.74),
        Kind::Latency => Goal::AtMost(1.42),
        Kind::Datagrams => Goal::AtLeast(0.50),
        Kind::Bulk => Goal::AtLeast(0.75),
    }
}

fn traffic_row(found: &Found) -> Row {
    let row = Row::ratio(found.kind.name().into(), found.ratio, found.rounds).by(found.way.name());
    let row = row.beside(None, Some(elsewhere(found.kind)));
    if found.way == Way::FastPath { row.goal(goal(found.kind)) } else { row }
}

fn comparison_row(found: &Comparison) -> Row {
    let figure = format!("{}, as a ratio to {}", found.kind.name(), found.over.name());
    Row::ratio(figure, found.ratio, found.rounds).by(found.way.name())
}

/// Lines about the control plane.
fn control_rows(found: &control::Found) -> Vec<Row> {
    let peers = found.peers;
    let time = |figure: &str, values: &[f64], part| {
        Row::measured(&format!("{figure}, {peers} peers"), Unit::Seconds, values, part).by("")
    };
    let bytes = |figure: &str, bytes: u64| {
        let bytes = [bytes as f64];
        Row::measured(&format!("{figure}, {peers} peers"), Unit::Bytes, &bytes, 0.5).by("")
    };
    vec![
        time("start of a new node's agent to subnet.env", &found.subnet, 0.5),
        time("start of a new node's agent to all peers programmed", &found.programmed, 0.5),
        time("one lease added to its row, median", &found.leases, 0.5),
        time("one lease added to its row, 99th percentile", &found.leases, 0.99)
            .goal(Goal::AtMost(0.05)),
        bytes("memory of flannel-agent, resident", found.resident).goal(Goal::AtMost(30e6)),
        bytes("memory of flannel-agent, proportional", found.proportional),
    ]
}

const TABLE: &str = "| figure | way | value | interval or spread | rounds | goal | flanneld with \
    its rules, measured elsewhere | verdict |\n|---|---|--:|--:|--:|--:|--:|---|\n";

/// What a reader must know of the figures.
const NOTE: &str = "Every figure of traffic is a ratio to the same traffic between the nodes \
    themselves, in slices of 20 to 130 ms that alternate; a round is eleven slices of each way. \
    Each way has nodes of its own, all up at once, and all are raised anew several times: the \
    interval (95 %) is that of raisings, not of rounds. IPv4, one client and one server on one \
    processor. On all nodes bridged packets pass netfilter (`bridge-nf-call-iptables`), as \
    Kubernetes asks for. With eBPF, flannel-agent masquerades, as flanneld does, and proxy-agent \
    runs on the nodes too, with ten Services and its socket path. A datagram carries 64 bytes, \
    and those are counted that arrive. flanneld elsewhere was measured on this kind of machine at \
    another time.\n\n";

impl Report {
    /// Writes `overlay.md` and `overlay.json`; returns the former's text.
    pub(super) fn write(&self, directory: &Path) -> Result<String> {
        files::write(directory, "overlay", self.markdown(), &self.json())
    }

    fn ratios(&self) -> Vec<Row> {
        let Some(outcome) = &self.traffic else { return Vec::new() };
        let found = outcome.found.iter().filter(|found| found.way != Way::Nodes);
        found.map(traffic_row).collect()
    }

    fn comparisons(&self) -> Vec<Row> {
        let Some(outcome) = &self.traffic else { return Vec::new() };
        let mut rows: Vec<Row> = outcome.comparisons.iter().map(comparison_row).collect();
        rows.extend(outcome.crowd.map(|ratio| {
            let peers = self.crowd + 1;
            let figure = format!("round trip time at {peers} peers as a ratio to that at 1");
            let row = Row::ratio(figure, ratio, 2 * outcome.raised);
            row.by(Way::FastPath.name()).goal(Goal::Same)
        }));
        rows
    }

    fn control(&self) -> Vec<Row> {
        self.control.as_ref().map_or_else(Vec::new, control_rows)
    }

    fn json(&self) -> Value {
        let rows: Vec<Row> =
            [self.ratios(), self.comparisons(), self.control()].into_iter().flatten().collect();
        let found = self.traffic.iter().flat_map(|outcome| &outcome.found);
        let traffic = found.map(|found| {
            json!({
                "figure": found.kind.name(),
                "way": found.way.name(),
                "unit": found.kind.absolute_unit(),
                "value": found.value,
                "lost": found.lost,
            })
        });
        let costs = self.traffic.iter().flat_map(|outcome| &outcome.costs);
        let costs = costs.map(|cost| {
            json!({
                "figure": cost.kind.name(),
                "way": cost.way.name(),
                "program": cost.ran.program,
                "runs_each": cost.ran.runs,
                "nanoseconds_each_run": cost.ran.nanos,
            })
        });
        let control = self.control.as_ref().map(|found| {
            json!({
                "peers": found.peers,
                "subnet_seconds": found.subnet,
                "programmed_seconds": found.programmed,
                "lease_seconds": found.leases,
                "resident_bytes": found.resident,
                "proportional_bytes": found.proportional,
            })
        });
        json!({
            "benchmark": "overlay",
            "quick": self.quick,
            "peers": self.peers,
            "host": self.host,
            "raised": self.traffic.as_ref().map(|outcome| outcome.raised),
            "rows": rows,
            "traffic": traffic.collect::<Vec<_>>(),
            "programs": costs.collect::<Vec<_>>(),
            "control": control,
        })
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.host);
        if self.quick {
            text += "A smoke run (`--quick`): too few rounds for a verdict that counts.\n\n";
        }
        if let Some(outcome) = &self.traffic {
            text += NOTE;
            let _ = writeln!(text, "Raised {} times.\n", outcome.raised);
        }
        text += TABLE;
        for row in self.ratios().iter().chain(&self.control()) {
            let _ = writeln!(text, "{}", row.line());
        }
        let Some(outcome) = &self.traffic else { return text };
        let _ = write!(text, "\nThe ways beside each other, from the same rounds:\n\n{TABLE}");
        for row in self.comparisons() {
            let _ = writeln!(text, "{}", row.line());
        }
        text += "\nThe same traffic in absolute numbers, medians:\n\n\
                 | traffic | way | value | lost |\n|---|---|--:|--:|\n";
        for found in &outcome.found {
            let lost = match found.kind {
                Kind::Datagrams => format!("{:.2} %", found.lost * 100.0),
                _ => String::new(),
            };
            let value = found.kind.absolute(found.value);
            let (kind, way) = (found.kind.name(), found.way.name());
            let _ = writeln!(text, "| {kind} | {way} | {value} | {lost} |");
        }
        text += "\nWhat the programs of both agents cost on both nodes together, as the kernel \
                 counts it:\n\n| traffic | way | program | runs | ns a run | ns in all |\n\
                 |---|---|---|--:|--:|--:|\n";
        for cost in &outcome.costs {
            let _ = writeln!(
                text,
                "| {} | {} | `{}` | {:.2} {} | {:.0} | {:.0} |",
                cost.kind.name(),
                cost.way.name(),
                cost.ran.program,
                cost.ran.runs,
                cost.kind.unit(),
                cost.ran.nanos,
                cost.ran.runs * cost.ran.nanos,
            );
        }
        text
    }
}
