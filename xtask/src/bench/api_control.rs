//! The control plane with a real API server as the source: from a started process to Services
//! that answer, beside what a plain client needs to fetch the same lists; from a change there to
//! tables and to traffic; processor time and memory.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{agent::Agent, bench::clock, manifests};
use serde_json::Value;

use super::{
    control::{Maps, PAUSE, Plan, SETTLED, maps, process_memory, seconds, tell, until_all_answer},
    fleet,
    stage::Stage,
};

/// Seconds, unless another unit is named.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    /// From the start of the process, nothing pinned, to the last Service that answered.
    pub(super) cold: Vec<f64>,
    /// From the start of the plain client to its end, before each of these starts.
    pub(super) plain: Vec<f64>,
    /// From word of a change to its being in the tables, as the agent counts it.
    pub(super) programmed: Vec<f64>,
    /// From the API server's answer to traffic that follows.
    pub(super) followed: Vec<f64>,
    /// Processor time of one change.
    pub(super) cpu: f64,
    /// Of the agent, in bytes.
    pub(super) resident: u64,
    pub(super) maps: Maps,
}

/// As long as this, what a process does without a change is counted.
const IDLE: Duration = Duration::from_secs(20);
/// Between two changes whose processor time is counted.
const BETWEEN: Duration = Duration::from_millis(20);
/// Longer than a change takes to be counted.
const COUNTED: Duration = Duration::from_secs(5);

pub(super) fn measure(plan: Plan, stage: &mut Stage) -> Result<Found> {
    let endpoints = stage.fleet() * fleet::LARGE.endpoints + 1;
    let mut found = Found { services: plan.services, endpoints, ..Found::default() };
    for _ in 0..plan.starts {
        found.plain.push(plain(stage)?);
        tell("plain client", &found.plain);
        found.cold.push(cold(stage)?);
        tell("cold start", &found.cold);
    }
    thread::sleep(SETTLED);
    let pid = stage.agent_id()?;
    found.resident = process_memory(pid, "Rss:")?;
    found.maps = maps(pid)?;
    println!("  memory: {:.1} MB", found.resident as f64 / 1e6);
    for number in 0..plan.changes {
        let (programmed, followed) = change(stage, number)?;
        found.programmed.push(programmed);
        found.followed.push(followed);
    }
    tell("change by API, to tables", &found.programmed);
    found.cpu = cpu_of_change(stage, plan.changes)?;
    tell("processor time of a change", &[found.cpu]);
    stage.remove_agent()?;
    Ok(found)
}

/// What proxy-agent lists and watches, by the same selectors.
const LISTS: [&str; 4] = [
    "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name%2C\
     %21service.kubernetes.io%2Fheadless&fieldSelector=spec.clusterIP%21%3DNone",
    "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=\
     %21service.kubernetes.io%2Fservice-proxy-name%2C%21service.kubernetes.io%2Fheadless",
    "/api/v1/nodes?fieldSelector=metadata.name%3Dnode1",
    "/apis/networking.k8s.io/v1/servicecidrs",
];

/// Fetches the lists from the node, all at once and each as a whole; the time that it took. The
/// plain client is `curl`: it reads nothing of what it fetches, which the agent must.
fn plain(stage: &mut Stage) -> Result<f64> {
    let place = stage.lab.place(Stage::node())?;
    let began = clock();
    let lists = stage.peer()?.api.fetch(&place, &LISTS)?;
    let seconds = seconds(began, clock());
    // Or its time would be that of other lists.
    let text = fs::read_to_string(&lists[1])?;
    let slices: Value = serde_json::from_str(&text).context("a list is no JSON")?;
    let found = slices["items"].as_array().map_or(0, Vec::len);
    let wanted = stage.fleet() as usize + 1;
    ensure!(found >= wanted, "the plain client was told {found} slices of {wanted}");
    Ok(seconds)
}

/// Starts an agent where there is nothing.
fn cold(stage: &mut Stage) -> Result<f64> {
    stage.remove_agent()?;
    stage.await_silence()?;
    stage.prepare_agent_of_api()?;
    let seconds = until_all_answer(stage, |stage| Ok(stage.agent()?.launch()?))?;
    stage.agent()?.wait_ready()?;
    Ok(seconds)
}

/// Points the measured Service at its other backend; the times until the tables have it, and
/// until traffic goes there.
fn change(stage: &mut Stage, number: usize) -> Result<(f64, f64)> {
    stage.turn_over()?;
    let slice = manifests::read(&stage.bench_slice())?;
    // Not in step with anything that the agent does at regular times.
    thread::sleep(Duration::from_millis(20 + number as u64 * 7 % 41));
    let before = programmed(stage.agent()?)?;
    stage.begin_follow(stage.backend(), PAUSE)?;
    stage.peer()?.replace(&slice)?;
    let began = clock();
    // May be before the answer: then it took no time that anybody could have seen.
    let followed = seconds(began, stage.end_follow()?.at);
    let waited = Instant::now();
    loop {
        let now = programmed(stage.agent()?)?;
        if now.count > before.count {
            // Had anything else changed meanwhile, this were its time too.
            return Ok((now.sum - before.sum, followed));
        }
        ensure!(waited.elapsed() < COUNTED, "the agent has counted no change");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the agent has counted of the time from word of a change to its being in force.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Programmed {
    count: u64,
    sum: f64,
}

fn programmed(agent: &Agent) -> Result<Programmed> {
    let text = agent.metrics()?;
    read_programmed(&text).context("the agent does not tell millrace_change_to_programmed_seconds")
}

fn read_programmed(text: &str) -> Option<Programmed> {
    let value = |suffix: &str| {
        let name = format!("millrace_change_to_programmed_seconds_{suffix} ");
        text.lines().find_map(|line| line.strip_prefix(name.as_str()))
    };
    Some(Programmed { count: value("count")?.parse().ok()?, sum: value("sum")?.parse().ok()? })
}

/// Processor time that a change takes, beyond what the agent does without one. Nobody asks it for
/// anything meanwhile.
fn cpu_of_change(stage: &mut Stage, changes: usize) -> Result<f64> {
    let pid = stage.agent_id()?;
    cpu_beyond_idle(pid, changes, || {
        for _ in 0..changes {
            stage.turn_over()?;
            let slice = manifests::read(&stage.bench_slice())?;
            stage.peer()?.replace(&slice)?;
            thread::sleep(BETWEEN);
        }
        Ok(())
    })
}

/// Processor time of a process and of its children that have ended, for each of so many things
/// that it has to do while `work` is done, beyond what it does anyway.
pub(super) fn cpu_beyond_idle(
    pid: u32,
    count: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    let before = cpu(pid)?;
    thread::sleep(IDLE);
    let idle = (cpu(pid)? - before) / IDLE.as_secs_f64();
    let (before, began) = (cpu(pid)?, Instant::now());
    work()?;
    let whole = cpu(pid)? - before - idle * began.elapsed().as_secs_f64();
    Ok(whole.max(0.0) / count.max(1) as f64)
}

/// Seconds of processor time, of the process and of its children that have ended.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu_ticks(&stat).map(|ticks| ticks as f64 / TICKS).context("/proc/PID/stat has another form")
}

/// USER_HZ, which is the same on all processors that agents are built for.
const TICKS: f64 = 100.0;

/// utime, stime, cutime and cstime of proc_pid_stat(5), fields 14 to 17: the name before may hold
/// anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: Option<Vec<u64>> =
        fields.split(' ').skip(11).take(4).map(|field| field.parse().ok()).collect();
    ticks.filter(|ticks| ticks.len() == 4).map(|ticks| ticks.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 3 1 20 0 4 0 9 1 2";
        assert_eq!(cpu_ticks(stat), Some(304));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn the_agents_own_times_are_read() {
        let text = "# TYPE x histogram\nmillrace_change_to_programmed_seconds_sum 1.5\n\
                    millrace_change_to_programmed_seconds_count 3\n";
        assert_eq!(read_programmed(text), Some(Programmed { count: 3, sum: 1.5 }));
        assert_eq!(read_programmed(""), None);
    }
}
