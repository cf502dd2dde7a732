//! The control plane: from a started process to Services that answer, from a changed file to
//! traffic that follows, and the memory that it takes.

use std::{collections::BTreeMap, fs, io, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result};
use lab::{agent::SocketLb, bench::clock};
use serde_json::Value;

use super::stage::Stage;
use crate::command;

/// Names and bytes of maps, by their ids.
pub(super) type Maps = BTreeMap<u64, (String, u64)>;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) services: u32,
    pub(super) starts: usize,
    /// Of each way to change a file.
    pub(super) changes: usize,
}

/// Seconds, unless another unit is named.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) services: u32,
    /// From the start of the process to the last Service that answered, nothing pinned.
    pub(super) cold: Vec<f64>,
    /// From the start of the process to traffic that follows what changed while it was away.
    pub(super) warm: Vec<f64>,
    pub(super) renamed: Vec<f64>,
    pub(super) written: Vec<f64>,
    /// Of the agent, in bytes.
    pub(super) resident: u64,
    pub(super) proportional: u64,
    pub(super) maps: Maps,
}

/// Between two questions whether a change is in force.
pub(super) const PAUSE: Duration = Duration::from_micros(100);

/// So many Services are watched while they come to be served.
const WATCHED: u32 = 250;

/// Memory that a start took is given back by then, if it ever is.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

pub(super) fn measure(plan: Plan, stage: &mut Stage) -> Result<Found> {
    let mut found = Found { services: plan.services, ..Found::default() };
    stage.grow(plan.services)?;
    for _ in 0..plan.starts {
        found.cold.push(cold(stage)?);
        tell("cold start", &found.cold);
        found.warm.push(warm(stage)?);
        tell("start with pinned state", &found.warm);
    }
    thread::sleep(SETTLED);
    let pid = stage.agent_id()?;
    found.resident = process_memory(pid, "Rss:")?;
    found.proportional = process_memory(pid, "Pss:")?;
    found.maps = maps(pid)?;
    for number in 0..plan.changes {
        found.renamed.push(change(stage, number, rename)?);
        found.written.push(change(stage, number, write)?);
    }
    tell("change by rename", &found.renamed);
    tell("change by write", &found.written);
    stage.remove_agent()?;
    Ok(found)
}

pub(super) fn tell(what: &str, seconds: &[f64]) {
    let last = seconds.last().copied().unwrap_or_default();
    println!("  {what}: {:.1} ms ({} times)", last * 1e3, seconds.len());
}

pub(super) fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

/// Starts an agent where there is nothing.
fn cold(stage: &mut Stage) -> Result<f64> {
    stage.remove_agent()?;
    stage.await_silence()?;
    stage.prepare_agent(SocketLb::On)?;
    let seconds = until_all_answer(stage, |stage| Ok(stage.agent()?.launch()?))?;
    stage.agent()?.wait_ready()?;
    Ok(seconds)
}

/// From a start to the last Service answering. Watching all Services would take the processor
/// of what is started, so some are, and when they have answered the rest must do so at once.
pub(super) fn until_all_answer(
    stage: &mut Stage,
    launch: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<f64> {
    stage.begin_scan((stage.fleet() / WATCHED).max(1))?;
    let began = clock();
    launch(stage)?;
    let mut last = stage.end_scan()?.at;
    stage.begin_scan(1)?;
    let all = stage.end_scan()?;
    if all.silent > 0 {
        last = all.at;
    }
    Ok(seconds(began, last))
}

/// Kills the agent, changes a file, and starts the agent again.
fn warm(stage: &mut Stage) -> Result<f64> {
    stage.agent()?.kill()?;
    let (file, text, next) = stage.turn()?;
    fs::write(file, text)?;
    stage.begin_follow(next, PAUSE)?;
    let began = clock();
    stage.agent()?.launch()?;
    let seen = stage.end_follow()?;
    stage.agent()?.wait_ready()?;
    Ok(seconds(began, seen.at))
}

/// Points the measured Service at its other backend; the time until traffic goes there.
fn change(stage: &mut Stage, number: usize, put: Put) -> Result<f64> {
    let (file, text, next) = stage.turn()?;
    // Not in step with anything that the agent does at regular times.
    thread::sleep(Duration::from_millis(20 + number as u64 * 7 % 41));
    stage.begin_follow(next, PAUSE)?;
    // The watcher is asking by then.
    thread::sleep(Duration::from_millis(2));
    let began = put(&file, &text).context("cannot change the slice")?;
    Ok(seconds(began, stage.end_follow()?.at))
}

/// Puts a text into a file; returns when the clock began.
type Put = fn(&Path, &str) -> io::Result<u64>;

/// The clock begins at the rename: before that there is no change to be seen.
fn rename(file: &Path, text: &str) -> io::Result<u64> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)?;
    let began = clock();
    fs::rename(&fresh, file)?;
    Ok(began)
}

fn write(file: &Path, text: &str) -> io::Result<u64> {
    let began = clock();
    fs::write(file, text)?;
    Ok(began)
}

/// Name and bytes of kernel memory of each map that a process holds, by its id.
pub(super) fn maps(pid: u32) -> Result<Maps> {
    let names = map_names()?;
    let mut maps = Maps::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be gone by now.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        if let (Some(id), Some(bytes)) = (number(&info, "map_id:"), number(&info, "memlock:")) {
            let name = names.get(&id).cloned().unwrap_or_default();
            maps.insert(id, (name, bytes));
        }
    }
    Ok(maps)
}

/// A process's memory in bytes, by its name in `smaps`. Pages of eBPF maps that the process has
/// mapped are left out: they are the kernel's memory, and told with the maps.
pub(super) fn process_memory(pid: u32, word: &str) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    own_memory(&smaps, word).with_context(|| format!("no {word} in smaps"))
}

fn own_memory(smaps: &str, word: &str) -> Option<u64> {
    let mut is_own = true;
    let mut kibibytes = None;
    for line in smaps.lines() {
        // A mapping begins with its range, what is told of it with a capital.
        if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_ascii_uppercase())
        {
            is_own = !line.ends_with("anon_inode:bpf-map");
        } else if let (true, Some(more)) = (is_own, number(line, word)) {
            kibibytes = Some(kibibytes.unwrap_or(0) + more);
        }
    }
    kibibytes.map(|kibibytes| kibibytes * 1024)
}

fn map_names() -> Result<BTreeMap<u64, String>> {
    let bpftool = command::find("bpftool").context("bpftool is missing")?;
    let text = command::read(Command::new(bpftool).args(["-j", "map", "show"]))?;
    let maps: Value = serde_json::from_str(&text).context("bpftool printed no JSON")?;
    let maps = maps.as_array().context("bpftool lists maps")?;
    let name = |map: &Value| Some((map["id"].as_u64()?, map["name"].as_str()?.to_owned()));
    Ok(maps.iter().filter_map(name).collect())
}

/// The number behind a word at the begin of a line.
fn number(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_maps_are_not_the_processs_own() {
        let smaps = "\
7f00-7f01 r-xp 00000000 fe:00 1 /usr/bin/agent
Size:                  8 kB
Rss:                   4 kB
VmFlags: rd ex
7f02-7f03 rw-s 00000000 00:0e 9 anon_inode:bpf-map
Rss:                 100 kB
a000-b000 rw-p 00000000 00:00 0
Rss:                   8 kB
";
        assert_eq!(own_memory(smaps, "Rss:"), Some(12 * 1024));
        assert_eq!(own_memory(smaps, "Pss:"), None);
    }
}
