//! The first process of a virtual machine that runs another kernel: loads the eBPF object,
//! attaches every program, sends real traffic through them, runs the packet tier, and powers
//! the machine off. What it finds goes to the console, one line a check; the test `kernels`
//! reads it there. Told `without-ipv6`, it runs the agents on a kernel that has none.

mod agents;
mod machine;
mod place;
mod programs;
mod tables;
mod traffic;

use std::{fmt::Display, process::Command};

use agent_kit::{
    kernel,
    netdev::{self, Features},
};
use anyhow::{Result, bail, ensure};

/// The packet tier's test binary, if it is on board.
const PACKET: &str = "/packet";
/// Random packets of the packet tier's comparison: an emulated processor is slow.
const RANDOM_PACKETS: &str = "500";

fn main() {
    if std::process::id() != 1 {
        eprintln!("kernel-init is the first process of a virtual machine, and nothing else");
        std::process::exit(2);
    }
    // The packet tier's cases keep objects loaded, each with all of its tables.
    agent_kit::descriptor::raise_limit();
    let mut report = Report::default();
    if std::env::args().any(|argument| argument == "without-ipv6") {
        agents::run(&mut report);
    } else {
        run(&mut report);
    }
    println!("kernel-init: {} passed, {} failed", report.passed, report.failed);
    machine::power_off();
}

/// What was checked so far.
#[derive(Debug, Default)]
struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    /// Prints a check's line; gives what it gave.
    fn check<T>(&mut self, name: impl Display, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                println!("check {name}: ok");
                self.passed += 1;
                Some(value)
            }
            Err(err) => {
                println!("check {name}: FAILED: {err:#}");
                self.failed += 1;
                None
            }
        }
    }
}

/// All checks, in order; those that later ones need stop it when they fail.
fn run(report: &mut Report) {
    let Some(()) = report.check("file systems", machine::mount()) else { return };
    report.check("modules", machine::insert_modules());
    let Some(()) = report.check("addresses of lo", machine::raise_loopback()) else { return };
    report.check("what drivers say", drivers());
    let Some(mut object) = programs::load(report, "proxy") else { return };
    let Some(mut tables) = report.check("tables", tables::Tables::open(&object.maps)) else {
        return;
    };
    programs::attach_proxy(report, &mut object);
    traffic::over_sockets(report, &mut tables);
    traffic::over_packets(report, &mut tables);
    report.check("flow_sweep", programs::sweep(&object));
    drop(object);
    overlay(report);
    report.check("packet tier", packet_tier());
}

/// Kernels tell since 6.3 what drivers can do with XDP.
fn drivers() -> Result<()> {
    let tells = kernel::version()? >= (6, 3);
    let told = netdev::features()?;
    ensure!(told.is_some() == tells, "{told:?}");
    // The loopback device has no driver that runs programs.
    ensure!(
        told.is_none_or(|told| told.get(&1) == Some(&Features(0))),
        "of lo: other than nothing"
    );
    Ok(())
}

/// The overlay's programs, beside those that are there.
fn overlay(report: &mut Report) {
    let Some(mut object) = programs::load(report, "overlay") else { return };
    programs::attach_overlay(report, &mut object);
    report.check("flow_sweep of overlay", programs::sweep(&object));
}

/// Runs the packet tier's cases, but for those that only measure time.
fn packet_tier() -> Result<()> {
    ensure!(std::path::Path::new(PACKET).exists(), "no {PACKET} on board");
    let status = Command::new(PACKET)
        .args(["--test-threads=1", "--skip=swap"])
        .env("MILLRACE_BPF_OBJECTS", programs::OBJECTS)
        .env("MILLRACE_PACKETS", RANDOM_PACKETS)
        // Where `ip` is.
        .env("PATH", "/")
        .status()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
