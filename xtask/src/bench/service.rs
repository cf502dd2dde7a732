//! `cargo xtask bench service`: what a Service costs traffic, and how soon a change is in
//! force.

use anyhow::Result;
use lab::agent::SocketLb;

use super::{
    Options, Part, control,
    report::{self, Host, Report},
    stage::Stage,
    traffic,
};
use crate::{
    agents,
    machine::{Machine, Need},
    object,
};

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    machine.provide(&[Need::program("bpftool", "counts runs of programs", &["bpftool"])])?;
    // Binaries that somebody has put there by hand are taken as they are.
    if std::env::var_os("MILLRACE_DIST").is_none() {
        let object = object::build(machine)?;
        agents::build_with_load(machine, &object)?;
    }
    let mut report = Report {
        host: Host::new(),
        quick: options.quick,
        rows: Vec::new(),
        traffic: Vec::new(),
        costs: Vec::new(),
        control: None,
    };
    let (traffic_plan, control_plan) = plans(options);
    let mut stages = [Stage::raise(CPUS)?, Stage::raise(CPUS)?];
    if options.includes(Part::DataPath) {
        println!("data path: ratios to the same traffic on a node without an agent");
        (report.traffic, report.costs) = traffic::measure(&traffic_plan, &mut stages)?;
        report.rows.extend(report::traffic(&report.traffic));
    }
    let [mut stage, other] = stages;
    drop(other);
    if options.includes(Part::ControlPlane) {
        println!(
            "control plane: {} Services, a file for each and for each slice",
            control_plan.services
        );
        let found = control::measure(control_plan, &mut stage)?;
        report.rows.extend(report::control(&found));
        report.control = Some(found);
    }
    report.host.finish();
    let directory = machine.target().join("bench");
    println!("\n{}", report.write(&directory)?);
    println!("written to {}", directory.join("service.{json,md}").display());
    Ok(())
}

/// Client and server share a processor: then a round has no wait for another processor to
/// wake up in it, which on virtual machines is most of the time and all of the noise.
const CPUS: [Option<usize>; 2] = [Some(1), Some(1)];

fn plans(options: &Options) -> (traffic::Plan, control::Plan) {
    let modes = vec![SocketLb::On, SocketLb::Host];
    let (mut traffic, control) = if options.quick {
        let traffic = traffic::Plan { sizes: vec![10, 1_000], modes, batch: 2, most: 4 };
        (traffic, control::Plan { services: 1_000, starts: 2, changes: 10 })
    } else {
        let traffic = traffic::Plan { sizes: vec![10, 1_000, 10_000], modes, batch: 5, most: 40 };
        (traffic, control::Plan { services: 10_000, starts: 7, changes: 200 })
    };
    if !options.services.is_empty() {
        traffic.sizes.clone_from(&options.services);
    }
    (traffic, control)
}
