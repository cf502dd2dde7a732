//! How many small frames a node passes on, from a NodePort to a pod on another node, and what each
//! costs its processor: by the driver, by the packet path, and by the kernel.

mod bed;
mod way;

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context, Result};
use bed::{Bed, FEW, MANY};
use serde::Serialize;
use serde_json::json;
use way::Way;

use crate::{
    agents,
    bench::{
        Options, files,
        host::Host,
        proxy::Mode,
        statistics::{Ratio, median, quantile},
    },
    machine::Machine,
    object, peers, setup,
};

/// What the driver's program must reach, as a multiple of the kernel's rate.
const GOAL: f64 = 3.0;
/// Below what any way passes on.
const LOAD: u32 = 100_000;

/// What came of one way, a number for each round.
#[derive(Clone, Debug, Default, Serialize)]
struct Found {
    way: &'static str,
    /// Frames that left the node, for each second that making them and all the node's work took their
    /// processor.
    rate: Vec<f64>,
    /// The same with many flows.
    rate_of_many: Vec<f64>,
    /// At a fixed load: nanoseconds of the processor for each frame, with what it costs to make it.
    cost: Vec<f64>,
    /// The part of the frames of the fixed load that left the node.
    passed: Vec<f64>,
}

const NOTE: &str = "Frames of 60 bytes (UDP, of flows that have been answered) from a client outside to \
    a node's NodePort, whose only endpoint is a pod on another node, behind a VXLAN tunnel. Frames are \
    made by the kernel (BPF_PROG_TEST_RUN with live frames) at the far end of the node's link, which is \
    a veth, and are counted and dropped where they have left the node, in a tunnel and to the pod; \
    one processor makes 64 frames, does all that the node does with them, and makes the next 64. Time is \
    that of this thread alone. `frames/s`: as fast as it goes, with what it takes to make them. `cost`: \
    at 100,000 frames a second of 64 flows, the time a frame takes, less what it takes if the node's \
    driver drops it. Medians of rounds in which all ways take turns; spread is from the 10th to the 90th percentile, \
    ± the 95 % interval of the ratio of rounds.\n\n";

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    machine.provide(&setup::overlay_bench())?;
    // Binaries that somebody has put there by hand are taken as they are.
    if std::env::var_os("MILLRACE_DIST").is_none() {
        let object = object::build(machine)?;
        agents::build_with_load(machine, &object)?;
    }
    let peers = options.peers.then(|| provide_peers(machine)).transpose()?;
    let mut ways = vec![Way::Dropped, Way::Native, Way::PacketPath, Way::Forwarded, Way::Rules];
    if options.peers {
        ways.extend(Mode::ALL.map(Way::KubeProxy));
    }
    let (rounds, millis) = if options.quick { (2, 200) } else { (15, 400) };
    println!("rate: small frames from a NodePort to another node's pod, {rounds} rounds");
    let mut host = Host::new();
    let mut beds = Vec::new();
    for &way in &ways {
        beds.push(Bed::raise(way, peers.as_deref())?);
    }
    let name = |way: &Way| Found { way: way.name(), ..Found::default() };
    let mut found: Vec<Found> = ways.iter().map(name).collect();
    for _ in 0..rounds {
        for (bed, found) in beds.iter_mut().zip(&mut found) {
            measure(bed, millis, found)?;
        }
    }
    for (way, found) in ways.iter().zip(&found) {
        let [few, many, cost] =
            [&found.rate, &found.rate_of_many, &found.cost].map(|values| median(values));
        println!(
            "  {:<12} {few:>9.0} frames/s, {many:>9.0} of many flows, {cost:>6.0} ns a frame",
            way.short()
        );
    }
    drop(beds);
    host.finish();
    let reference = if options.peers { Way::KubeProxy(Mode::Nftables) } else { Way::Rules };
    let mut report = format!("# How many small frames a node passes on\n\n{host}\n\n{NOTE}");
    report += &tables(&ways, &found, reference)?;
    if options.quick {
        let _ = writeln!(report, "\nA quick run: the figures mean nothing.");
    }
    let directory = machine.target().join("bench");
    let value = json!({
        "host": host, "quick": options.quick, "load": LOAD, "kernel_path": reference.name(), "ways": found,
    });
    println!("\n{}", files::write(&directory, "xdp-rate", report, &value)?);
    println!("written to {}", directory.join("xdp-rate.{json,md}").display());
    Ok(())
}

fn measure(bed: &mut Bed, millis: u64, found: &mut Found) -> Result<()> {
    for (flows, rates) in [(FEW, &mut found.rate), (MANY, &mut found.rate_of_many)] {
        let (shot, passed) = bed.shoot(flows, millis, None)?;
        rates.push(passed as f64 * 1e9 / shot.cpu_nanos as f64);
    }
    let (shot, passed) = bed.shoot(FEW, millis, Some(LOAD))?;
    found.cost.push(shot.cpu_nanos as f64 / shot.frames as f64);
    found.passed.push(passed as f64 / shot.frames as f64);
    Ok(())
}

/// Two tables: how many, and what each costs.
fn tables(ways: &[Way], found: &[Found], reference: Way) -> Result<String> {
    let of = |way: Way| {
        let at = ways.iter().position(|&other| other == way);
        at.map(|at| &found[at]).context("every way has been measured")
    };
    let (made, kernel) = (of(Way::Dropped)?, of(reference)?);
    let mut text = format!(
        "| way through the node | {FEW} flows, frames/s | spread | over the kernel path | \
         {MANY} flows, frames/s | spread | over the kernel path | goal | verdict |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|---|\n"
    );
    for (&way, found) in ways.iter().zip(found) {
        let rates = [(&found.rate, &kernel.rate), (&found.rate_of_many, &kernel.rate_of_many)];
        let _ = write!(text, "| {}", way.name());
        let mut ratios = Vec::new();
        for (rate, of) in rates {
            let ratio = ratio(rate, of).filter(|_| way != Way::Dropped && way != reference);
            let over = ratio.map_or_else(String::new, |ratio| {
                format!("{:.2} ± {:.1} %", ratio.value, ratio.reach() * 100.0)
            });
            let _ = write!(text, " | {:.0} | {} | {over}", median(rate), spread(rate));
            ratios.extend(ratio);
        }
        let (goal, verdict) = match (way, ratios.iter().all(|ratio| ratio.high >= GOAL)) {
            (Way::Native, true) => (format!("≥ {GOAL:.0}"), "holds"),
            (Way::Native, false) => (format!("≥ {GOAL:.0}"), "**missed**"),
            _ => (String::new(), ""),
        };
        let _ = writeln!(text, " | {goal} | {verdict} |");
    }
    text += "\n| way through the node | cost, ns a frame | spread | of the kernel path's | lost |\n\
             |---|--:|--:|--:|--:|\n";
    let cost = |found: &Found| -> Vec<f64> {
        found.cost.iter().zip(&made.cost).map(|(all, made)| all - made).collect()
    };
    for (&way, found) in ways.iter().zip(found) {
        let (costs, part) = if way == Way::Dropped {
            (found.cost.clone(), String::new())
        } else {
            let costs = cost(found);
            let part = format!("{:.2}", median(&costs) / median(&cost(kernel)));
            (costs, part)
        };
        let lost = 100.0 * (1.0 - median(&found.passed));
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {part} | {lost:.1} % |",
            way.name(),
            median(&costs),
            spread(&costs),
        );
    }
    let _ = writeln!(text, "\nThe kernel path is: {}.", reference.name());
    Ok(text)
}

/// Of rounds that follow each other.
fn ratio(values: &[f64], of: &[f64]) -> Option<Ratio> {
    let logs: Vec<f64> = values.iter().zip(of).map(|(value, of)| (value / of).ln()).collect();
    Ratio::of_logs(&logs)
}

fn spread(values: &[f64]) -> String {
    format!("{:.0} – {:.0}", quantile(values, 0.1), quantile(values, 0.9))
}

/// Builds what is not built yet; returns where it is.
fn provide_peers(machine: &Machine) -> Result<PathBuf> {
    machine.provide(&setup::peers())?;
    machine.provide(&[setup::iptables()])?;
    peers::provide(machine, &["kube-proxy", "kube-apiserver"])
}
