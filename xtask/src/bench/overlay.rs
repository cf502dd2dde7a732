//! `cargo xtask bench overlay`: what the way from a node's pods to another's costs, and how soon
//! a node is known to the others.

mod bed;
mod control;
mod crowd;
mod report;
mod rules;
mod traffic;
mod way;

use anyhow::Result;
use report::Report;
use way::Way;

use super::{Options, Part, host::Host};
use crate::{
    agents,
    machine::{Machine, Need},
    object, peers, setup,
};

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    machine.provide(&[Need::program("bpftool", "counts runs of programs", &["bpftool"])])?;
    machine.provide(&setup::overlay_bench())?;
    // Binaries that somebody has put there by hand are taken as they are.
    if std::env::var_os("MILLRACE_DIST").is_none() {
        let object = object::build(machine)?;
        agents::build_with_load(machine, &object)?;
    }
    if options.peers {
        machine.provide(&[setup::iptables()])?;
        peers::provide(machine, &["flanneld"])?;
    }
    let (traffic_plan, control_plan) = plans(options);
    let mut report = Report {
        host: Host::new(),
        quick: options.quick,
        peers: options.peers,
        crowd: traffic_plan.crowd,
        traffic: None,
        control: None,
    };
    if options.includes(Part::DataPath) {
        println!("data path: ratios to the same traffic between the nodes themselves");
        report.traffic = Some(traffic::measure(&traffic_plan)?);
    }
    if options.includes(Part::ControlPlane) {
        println!("control plane: {} leases of other nodes in etcd", control_plan.peers);
        report.control = Some(control::measure(control_plan)?);
    }
    report.host.finish();
    let directory = machine.target().join("bench");
    println!("\n{}", report.write(&directory)?);
    println!("written to {}", directory.join("overlay.{json,md}").display());
    Ok(())
}

fn plans(options: &Options) -> (traffic::Plan, control::Plan) {
    let mut ways = vec![Way::Nodes, Way::FastPath, Way::SlowPath, Way::Classic];
    if options.peers {
        ways.push(Way::Flanneld);
    }
    let crowd = 999;
    let (least, most, rounds) = if options.quick { (2, 2, 1) } else { (6, 16, 3) };
    let traffic = traffic::Plan { ways, least, most, rounds, crowd };
    let control = if options.quick {
        control::Plan { peers: 1_000, starts: 2, leases: 10 }
    } else {
        control::Plan { peers: 1_000, starts: 7, leases: 100 }
    };
    (traffic, control)
}
