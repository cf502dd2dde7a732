//! What each program costs, as the kernel counts it: runs and time, for every kind of traffic.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, ensure};
use lab::{Place, agent::SocketLb, bench};
use serde_json::Value;

use super::{
    kind::Kind,
    stage::Stage,
    traffic::{self, KINDS, Way},
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

/// What a program did while something happened.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ran {
    pub(super) program: String,
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
    for kind in KINDS {
        for way in Way::MEASURED {
            let ran = counted(&place, &names, || traffic::single(stage, kind, way))?;
            let found: Vec<Cost> = ran
                .into_iter()
                .map(|Ran { program, runs, nanos }| Cost {
                    kind,
                    way,
                    socket_lb,
                    program,
                    runs: runs / kind.units(),
                    nanos,
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

/// Does something with the kernel counting runs of the programs with these ids. Those of one name
/// are taken together; those that did not run are left out.
pub(super) fn counted(
    place: &Place,
    programs: &BTreeMap<u64, String>,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<Ran>> {
    let counting = bench::count_runs(place)?;
    let before = runs()?;
    work()?;
    let after = runs()?;
    drop(counting);
    let mut found: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (id, program) in programs {
        if let Some((runs, nanos)) = difference(&before, &after, *id) {
            let sum = found.entry(program).or_default();
            sum.0 += runs;
            sum.1 += nanos;
        }
    }
    let ran = found.into_iter().map(|(program, (runs, nanos))| Ran {
        program: program.to_owned(),
        runs,
        nanos: nanos / runs,
    });
    Ok(ran.collect())
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
