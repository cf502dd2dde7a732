//! `cargo xtask bench`: finds benchmarks by name and runs them.

use anyhow::Result;
use clap::builder::PossibleValuesParser;

use crate::{machine::Machine, setup};

/// A benchmark, in a module of its own below this one.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Machine) -> Result<()>,
}

/// Every benchmark there is, in the order they run.
const BENCHES: &[Bench] = &[];

/// The names that the command line may give.
pub(crate) fn names() -> PossibleValuesParser {
    BENCHES.iter().map(|bench| bench.name).into()
}

/// Runs those named, or all.
pub(crate) fn run(machine: &Machine, names: &[String]) -> Result<()> {
    setup::root("benchmarks run in a lab")?;
    machine.provide(&setup::lab())?;
    for bench in BENCHES.iter().filter(|b| names.is_empty() || names.contains(&b.name.into())) {
        println!("== {} == {}", bench.name, bench.about);
        (bench.run)(machine)?;
    }
    if BENCHES.is_empty() {
        println!("there is no benchmark yet");
    }
    Ok(())
}
