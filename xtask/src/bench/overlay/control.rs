//! The control plane of flannel-agent in a large network: from its start to all peers programmed,
//! from a lease to its row, and the memory that it takes.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Lab,
    agent::Agent,
    bench::{Driver, Seen, clock},
    etcd::Etcd,
    overlay::{self, PREFIX},
};

use super::{
    bed::{self, NODES},
    crowd,
};
use crate::bench::control::{SETTLED, process_memory, seconds, tell};

const NODE: &str = NODES[0];

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Leases of other nodes.
    pub(super) peers: u32,
    pub(super) starts: usize,
    /// Leases added one by one.
    pub(super) leases: u32,
}

/// Seconds, unless another unit is named.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) peers: u32,
    /// From the start of the process, on a node that has nothing, to `subnet.env`.
    pub(super) subnet: Vec<f64>,
    /// The same to the last peer's row.
    pub(super) programmed: Vec<f64>,
    /// From a put to etcd, before it is sent, to the row.
    pub(super) leases: Vec<f64>,
    /// In bytes.
    pub(super) resident: u64,
    pub(super) proportional: u64,
}

pub(super) fn measure(plan: Plan) -> Result<Found> {
    let lab = bed::lab(&[(NODE, false)])?;
    let etcd = overlay::etcd(&lab, &crowd::config())?;
    etcd.put_all(&crowd::leases(0..plan.peers))?;
    let mut agent = overlay::agents(&lab, &etcd, &[])?.remove(0);
    // On any processor, and before nobody: it waits beside what it waits for.
    let mut driver = Driver::start(&lab.place(NODE)?, None)?;
    let mut found = Found { peers: plan.peers, ..Found::default() };
    for _ in 0..plan.starts {
        remove(&lab, &mut agent, &etcd, plan)?;
        let (subnet, programmed) = start(&lab, &mut agent, &mut driver, plan)?;
        found.subnet.push(subnet);
        found.programmed.push(programmed);
        tell("start to subnet.env", &found.subnet);
        tell("start to all peers programmed", &found.programmed);
    }
    thread::sleep(SETTLED);
    let pid = agent.id().context("the agent is not running")?;
    found.resident = process_memory(pid, "Rss:")?;
    found.proportional = process_memory(pid, "Pss:")?;
    for number in plan.peers..plan.peers + plan.leases {
        found.leases.push(add(&lab, &etcd, &mut driver, number)?);
    }
    tell("lease to row", &found.leases);
    Ok(found)
}

/// Ends the agent and removes all it left, its lease too: the node is a new one.
fn remove(lab: &Lab, agent: &mut Agent, etcd: &Etcd, plan: Plan) -> Result<()> {
    agent.kill()?;
    let file = format!("--subnet-file={}", lab.subnet_file(NODE).display());
    let bpffs = format!("--bpffs={}", lab.bpffs(NODE).display());
    let output = agent.ask(&["cleanup", &file, &bpffs])?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "flannel-agent cleanup failed: {}", errors.trim());
    let others: Vec<String> =
        crowd::leases(0..plan.peers).into_iter().map(|(key, _)| key).collect();
    for key in etcd.keys(&format!("{PREFIX}/subnets/"))? {
        if !others.contains(&key) {
            etcd.ctl(&["del", &key])?;
        }
    }
    Ok(())
}

/// Starts the agent; seconds until `subnet.env` is there, and until all peers have their rows.
fn start(lab: &Lab, agent: &mut Agent, driver: &mut Driver, plan: Plan) -> Result<(f64, f64)> {
    driver.order(&bed::rows(lab, NODE, 0..plan.peers, true))?;
    let began = clock();
    agent.launch()?;
    let written = await_file(&lab.subnet_file(NODE));
    let seen: Seen = driver.report()?;
    ensure!(seen.complete, "{} peers have no row\n{}", seen.silent, agent.log_tail());
    let written = written.with_context(|| format!("no subnet.env\n{}", agent.log_tail()))?;
    agent.wait_ready()?;
    Ok((seconds(began, written), seconds(began, seen.at)))
}

/// When a file came to be, on the clock; none if it does not.
fn await_file(path: &Path) -> Option<u64> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        if path.exists() {
            return Some(clock());
        }
        thread::sleep(Duration::from_micros(200));
    }
    None
}

/// Adds a lease; seconds until its row is there.
fn add(lab: &Lab, etcd: &Etcd, driver: &mut Driver, number: u32) -> Result<f64> {
    // Not in step with anything that the agent does at regular times.
    thread::sleep(Duration::from_millis(20 + u64::from(number) * 7 % 41));
    driver.order(&bed::rows(lab, NODE, number..number + 1, true))?;
    // The watcher is looking by then.
    thread::sleep(Duration::from_millis(2));
    let began = etcd.put_timed(&crowd::lease(number))?;
    let seen: Seen = driver.report()?;
    ensure!(seen.complete, "lease {number} has no row");
    Ok(seconds(began, seen.at))
}
