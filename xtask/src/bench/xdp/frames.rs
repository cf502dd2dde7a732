//! What a frame costs before the kernel makes a socket buffer of it, as a ratio to a program that passes
//! every frame and does nothing else.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    bench::{
        Options, files,
        host::Host,
        statistics::{Ratio, median},
    },
    command,
    machine::Machine,
    object,
};

/// One case as `frame-bench` prints it; times are those of rounds, in nanoseconds a frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    #[serde(rename = "case")]
    name: String,
    family: String,
    flows: u32,
    runs: u64,
    /// Of each flow's first frame, where there are many.
    first_pass_ns: Vec<f64>,
    first_xdp_ns: Vec<f64>,
    pass_ns: Vec<f64>,
    xdp_ns: Vec<f64>,
    /// Of the rounds that the packet path takes turns with.
    packet_path_pass_ns: Vec<f64>,
    packet_path_ns: Vec<f64>,
}

/// What Katran reaches when it is measured so, as a ratio to the same program.
struct Goal {
    case: &'static str,
    one: f64,
    many: Option<f64>,
}

const GOALS: [Goal; 3] = [
    Goal { case: "not ours", one: 1.9, many: None },
    Goal { case: "new flow", one: 10.0, many: None },
    // What is established, by the beginning of its name.
    Goal { case: "", one: 3.55, many: Some(7.65) },
];

impl Case {
    fn goal(&self) -> Option<f64> {
        let goal = GOALS.iter().find(|goal| self.name.starts_with(goal.case))?;
        if self.flows == 1 { Some(goal.one) } else { goal.many }
    }

    fn line(&self) -> Option<String> {
        let xdp = ratio(&self.xdp_ns, &self.pass_ns)?;
        let beside = ratio(&self.packet_path_ns, &self.packet_path_pass_ns)?;
        let first = ratio(&self.first_xdp_ns, &self.first_pass_ns);
        let first = first.map_or_else(String::new, |ratio| format!("{:.1}", ratio.value));
        let (goal, verdict) = match self.goal() {
            Some(goal) if xdp.low <= goal => (format!("≤ {goal:.2}"), "holds"),
            Some(goal) => (format!("≤ {goal:.2}"), "**missed**"),
            None => (String::new(), ""),
        };
        Some(format!(
            "| {} | {} | {} | {:.2} | {:.2} – {:.2} | {goal} | {verdict} | {:.0} ns | {:.0} ns | {first} | {:.2} |\n",
            self.name,
            self.family,
            self.flows,
            xdp.value,
            xdp.low,
            xdp.high,
            median(&self.xdp_ns),
            median(&self.pass_ns),
            beside.value,
        ))
    }
}

fn ratio(times: &[f64], pass: &[f64]) -> Option<Ratio> {
    let logs: Vec<f64> = times.iter().zip(pass).map(|(time, pass)| (time / pass).ln()).collect();
    Ratio::of_logs(&logs)
}

const NOTE: &str = "Every figure is a ratio to an XDP program of two instructions that passes every \
    frame, by the kernel's count of run time (`kernel.bpf_stats_enabled`), in rounds that take turns, \
    the packet path's by themselves; each frame is a test run (BPF_PROG_TEST_RUN) by itself, because a program that is run again would \
    meet its own work. 10,000 Services are programmed. With many flows, the frames of 64,000 come in \
    random order, when each flow has had one: what that one cost stands under `first`. `packet path` is the first of the two programs that the same frame meets there, \
    which leaves the kernel all the rest to do. A new flow is a SYN to a backend of this node; where \
    there is one, its rows are removed after each.\n\n";

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    let objects = object::build(machine)?;
    let mut cargo = machine.cargo();
    command::run(cargo.args(["build", "--release", "--package", "tests", "--bin", "frame-bench"]))?;
    let mut host = Host::new();
    let runs = if options.quick { "20000" } else { "1000000" };
    println!("{runs} test runs of each program for each case");
    let bench = machine.target().join("release/frame-bench");
    let mut bench = command::clean(bench);
    let text = command::read(bench.arg(objects.join("proxy.o")).arg(runs))?;
    let cases: Vec<Case> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a case: {line}")))
        .collect::<Result<_>>()?;
    host.finish();
    let mut report = format!("# What a frame costs at XDP\n\n{host}\n\n{NOTE}");
    report += "| frame | family | flows | ratio | interval | goal | verdict | itself | pass | first, \
               ratio | packet path, ratio |\n|---|---|--:|--:|--:|--:|---|--:|--:|--:|--:|\n";
    report.extend(cases.iter().filter_map(Case::line));
    if options.quick {
        let _ = writeln!(report, "\nA quick run: the figures mean nothing.");
    }
    let directory = machine.target().join("bench");
    let value = json!({ "host": host, "quick": options.quick, "cases": cases });
    println!("\n{}", files::write(&directory, "xdp", report, &value)?);
    println!("written to {}", directory.join("xdp.{json,md}").display());
    Ok(())
}
