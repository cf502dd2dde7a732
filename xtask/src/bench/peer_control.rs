//! The control plane of kube-proxy, measured as that of the agent is.

use std::{thread, time::Duration};

use anyhow::Result;
use lab::{bench::clock, manifests};

use super::{
    api_control::cpu_beyond_idle,
    control::{SETTLED, process_memory, seconds, tell, until_all_answer},
    proxy::Mode,
    stage::Stage,
};

/// How much is measured, of Services that the API server knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) starts: usize,
    pub(super) changes: usize,
}

/// Seconds, unless another unit is named.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// From the start of the process, where the API server knew everything and the node held no
    /// rules, to the last Service that answered.
    pub(super) cold: Vec<f64>,
    /// From the API server's answer to traffic that follows.
    pub(super) changed: Vec<f64>,
    /// Processor time of one change, of what writes the rules too.
    pub(super) cpu: f64,
    /// In bytes. What its rules take of the kernel's memory is not in it.
    pub(super) resident: u64,
}

/// Between two questions whether a change is in force: each leaves a tracked connection behind.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn measure(plan: Plan, mode: Mode, stage: &mut Stage) -> Result<Found> {
    let mut found = Found::default();
    stage.prepare_peer()?;
    for _ in 0..plan.starts {
        stage.peer()?.remove_proxy()?;
        stage.await_silence()?;
        found.cold.push(until_all_answer(stage, |stage| stage.peer()?.launch(mode))?);
        tell("cold start", &found.cold);
    }
    thread::sleep(SETTLED);
    let pid = stage.peer()?.id()?;
    found.resident = process_memory(pid, "Rss:")?;
    found.cpu = cpu_beyond_idle(pid, plan.changes, || {
        for number in 0..plan.changes {
            found.changed.push(change(stage, number)?);
            tell("change by API", &found.changed);
        }
        Ok(())
    })?;
    tell("processor time of a change", &[found.cpu]);
    stage.peer()?.remove_proxy().map(|()| found)
}

/// Points the measured Service at its other backend; the time until traffic goes there.
fn change(stage: &mut Stage, number: usize) -> Result<f64> {
    stage.turn_over()?;
    let slice = manifests::read(&stage.bench_slice())?;
    // Apart from each other, as changes of a cluster mostly are: what follows another within
    // the period of --min-sync-period (1 s) waits for its end. And not in step with it.
    thread::sleep(Duration::from_millis(1_500 + number as u64 * 137 % 1_000));
    // A question from a port that was used before is answered by the backend of that time until
    // the kernel forgets it; and kube-proxy looks through all of them at each change.
    stage.peer()?.forget()?;
    stage.begin_follow(stage.backend(), PAUSE)?;
    stage.peer()?.replace(&slice)?;
    // The change is made by now; what the API server took for it is not kube-proxy's.
    let began = clock();
    Ok(seconds(began, stage.end_follow()?.at))
}
