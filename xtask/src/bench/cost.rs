//! What each program costs, as the kernel counts it: runs and time, for every kind of traffic.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use lab::{agent::SocketLb, bench};
use serde_json::Value;

use super::{
    stage::Stage,
    traffic::{self, Kind, Way},
};
use crate::command;

/// A program's part in one kind of traffic.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    pub(super) kind: Kind,
    pub(super) way: Way,
    pub(super) socket_lb: SocketLb,
    pub(super) program: String,
    /// For each connection, round trip or mebibyte.
    pub(super) runs: f64,
    /// Of one run. Counting adds some of it.
    pub(super) nanos: f64,
}

/// Runs and nanoseconds by program id.
type Runs = BTreeMap<u64, (u64, u64)>;

/// Sends each kind of traffic once, with the kernel counting; fails if traffic through a
/// Service met no program, or traffic beside the agent met none.
pub(super) fn measure(stage: &mut Stage, socket_lb: SocketLb) -> Result<Vec<Cost>> {
    let names = stage.programs()?;
    let place = stage.lab.place("node1")?;
    let mut costs = Vec::new();
    for kind in Kind::ALL {
        for way in Way::MEASURED {
            let counting = bench::count_runs(&place)?;
            let before = runs()?;
            traffic::single(stage, kind, way)?;
            let after = runs()?;
            drop(counting);
            let found: Vec<Cost> = names
                .iter()
                .filter_map(|(id, program)| {
                    let (count, nanos) = difference(&before, &after, *id)?;
                    Some(Cost {
                        kind,
                        way,
                        socket_lb,
                        program: program.clone(),
                        runs: count / kind.units(),
                        nanos: nanos / count,
                    })
                })
                .collect();
            ensure!(
                !found.is_empty(),
                "no program ran for {kind:?} ({way:?}): nothing is measured"
            );
            costs.extend(found);
        }
    }
    Ok(costs)
}

fn difference(before: &Runs, after: &Runs, id: u64) -> Option<(f64, f64)> {
    let (runs, nanos) = after.get(&id)?;
    let (runs_before, nanos_before) = before.get(&id).copied().unwrap_or_default();
    let count = (runs - runs_before) as f64;
    (count > 0.0).then(|| (count, (nanos - nanos_before) as f64))
}

/// As `bpftool` tells it of every program that has run.
fn runs() -> Result<Runs> {
    let bpftool = command::find("bpftool").context("bpftool is missing")?;
    let text = command::read(Command::new(bpftool).args(["-j", "prog", "show"]))?;
    let programs: Value = serde_json::from_str(&text).context("bpftool printed no JSON")?;
    let programs = programs.as_array().context("bpftool lists programs")?;
    let entry = |program: &Value| {
        let id = program["id"].as_u64()?;
        let count = program["run_cnt"].as_u64()?;
        Some((id, (count, program["run_time_ns"].as_u64()?)))
    };
    Ok(programs.iter().filter_map(entry).collect())
}
