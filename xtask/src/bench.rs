//! `cargo xtask bench`: finds benchmarks by name and runs them.

// Counts and times of a measurement have fewer digits than a float keeps.
#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss)]

mod api_control;
mod control;
mod cost;
mod files;
mod fleet;
mod host;
mod kind;
mod node_port;
mod overlay;
mod peer;
mod peer_control;
mod proxy;
mod report;
mod row;
mod service;
mod slices;
mod stage;
mod statistics;
mod traffic;
mod xdp;

use anyhow::{Result, ensure};
use clap::{ValueEnum, builder::PossibleValuesParser};

use crate::{machine::Machine, setup};

/// A benchmark, in a module of its own below this one.
struct Bench {
    name: &'static str,
    about: &'static str,
    parts: &'static [Part],
    run: fn(&Machine, &Options) -> Result<()>,
}

/// How benchmarks are run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// A few rounds that show whether it works.
    pub(crate) quick: bool,
    /// Nothing but this part.
    pub(crate) only: Option<Part>,
    /// Numbers of Services beside which traffic is measured; the usual ones if empty.
    pub(crate) services: Vec<u32>,
    /// Beside the real programs that the agents stand in for.
    pub(crate) peers: bool,
}

/// A part of a benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Part {
    /// What a Service, or the way between nodes, costs traffic.
    DataPath,
    /// What a NodePort costs traffic from outside, which the data path has too.
    NodePort,
    /// How soon a change is in force, and memory.
    ControlPlane,
    /// The same, told by a real kube-apiserver, which is built for it; the control plane has it too with
    /// `--peers`.
    ApiServer,
    /// What a frame costs at XDP, without anything around it.
    Frames,
    /// How many frames a node passes on by its driver, by the packet path and by the kernel.
    Rate,
}

impl Options {
    fn includes(&self, part: Part) -> bool {
        match self.only {
            None => true,
            Some(Part::DataPath) => {
                matches!(part, Part::DataPath | Part::NodePort | Part::Frames | Part::Rate)
            }
            Some(Part::ControlPlane) => matches!(part, Part::ControlPlane | Part::ApiServer),
            Some(only) => only == part,
        }
    }
}

/// Every benchmark there is, in the order they run.
const BENCHES: &[Bench] = &[
    Bench {
        name: "service",
        about: "what Services cost traffic, and how soon a change is in force",
        parts: &[Part::DataPath, Part::NodePort, Part::ControlPlane, Part::ApiServer],
        run: service::run,
    },
    Bench {
        name: "overlay",
        about: "what the way to other nodes' pods costs, and how soon a node is known",
        parts: &[Part::DataPath, Part::ControlPlane],
        run: overlay::run,
    },
    Bench {
        name: "xdp",
        about: "what a frame costs before the kernel makes a socket buffer of it, and how many pass",
        parts: &[Part::DataPath, Part::Frames, Part::Rate],
        run: xdp::run,
    },
];

/// The names that the command line may give.
pub(crate) fn names() -> PossibleValuesParser {
    BENCHES.iter().map(|bench| bench.name).into()
}

/// Runs those named, or all.
pub(crate) fn run(machine: &Machine, names: &[String], options: &Options) -> Result<()> {
    let is_wanted = |bench: &&Bench| {
        (names.is_empty() || names.contains(&bench.name.into()))
            && options.only.is_none_or(|part| bench.parts.contains(&part))
    };
    let wanted: Vec<&Bench> = BENCHES.iter().filter(is_wanted).collect();
    ensure!(!wanted.is_empty(), "--only: `bench {}` has no such part", names.join(" "));
    setup::root("benchmarks run in a lab")?;
    machine.provide(&setup::lab())?;
    for bench in wanted {
        println!("== {} == {}", bench.name, bench.about);
        (bench.run)(machine, options)?;
    }
    Ok(())
}
