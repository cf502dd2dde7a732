//! `cargo xtask bench xdp`: what a frame costs before the kernel makes a socket buffer of it, and how
//! many a node passes on.

mod frames;
mod rate;

use anyhow::Result;

use super::{Options, Part};
use crate::machine::Machine;

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    if options.includes(Part::Frames) {
        frames::run(machine, options)?;
    }
    if options.includes(Part::Rate) {
        rate::run(machine, options)?;
    }
    Ok(())
}
