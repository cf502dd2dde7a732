//! `cargo xtask bench service`: what a Service costs traffic, and how soon a change is in
//! force.

use std::path::PathBuf;

use anyhow::Result;
use lab::agent::SocketLb;

use super::{
    Options, Part, control,
    host::Host,
    peer_control,
    proxy::Proxy,
    report::{self, Report},
    stage::Stage,
    traffic,
};
use crate::{
    agents,
    machine::{Machine, Need},
    object, peers, setup,
};

pub(super) fn run(machine: &Machine, options: &Options) -> Result<()> {
    machine.provide(&[Need::program("bpftool", "counts runs of programs", &["bpftool"])])?;
    // Binaries that somebody has put there by hand are taken as they are.
    if std::env::var_os("MILLRACE_DIST").is_none() {
        let object = object::build(machine)?;
        agents::build_with_load(machine, &object)?;
    }
    let peers = options.peers.then(|| provide_peers(machine)).transpose()?;
    let mut report = Report {
        host: Host::new(),
        quick: options.quick,
        peers: options.peers,
        rows: Vec::new(),
        traffic: Vec::new(),
        costs: Vec::new(),
        control: None,
        peer_control: None,
    };
    let Plans { traffic: traffic_plan, control: control_plan, peer: peer_plan } = plans(options);
    let raise = || Stage::raise(CPUS, peers.as_deref());
    let mut stages = [raise()?, raise()?];
    if options.includes(Part::DataPath) {
        println!("data path: ratios to the same traffic on a node without an agent");
        if options.peers {
            println!("  kube-proxy takes its turns as the agent does");
        }
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
        if options.peers {
            println!(
                "control plane of kube-proxy: {} starts, {} changes",
                peer_plan.starts, peer_plan.changes
            );
            report.peer_control = Some(peer_control::measure(peer_plan, &mut stage)?);
        }
        report.rows.extend(report::control(&found, report.peer_control.as_ref()));
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

/// How much of everything is measured.
struct Plans {
    traffic: traffic::Plan,
    control: control::Plan,
    peer: peer_control::Plan,
}

fn plans(options: &Options) -> Plans {
    let mut proxies = vec![Proxy::Agent(SocketLb::On), Proxy::Agent(SocketLb::Host)];
    if options.peers {
        proxies.push(Proxy::KubeProxy);
    }
    let mut plans = if options.quick {
        Plans {
            traffic: traffic::Plan { sizes: vec![10, 1_000], proxies, batch: 2, most: 4 },
            control: control::Plan { services: 1_000, starts: 2, changes: 10 },
            peer: peer_control::Plan { services: 1_000, starts: 1, changes: 3 },
        }
    } else {
        Plans {
            traffic: traffic::Plan { sizes: vec![10, 1_000, 10_000], proxies, batch: 5, most: 40 },
            control: control::Plan { services: 10_000, starts: 7, changes: 200 },
            // Each takes seconds.
            peer: peer_control::Plan { services: 10_000, starts: 3, changes: 20 },
        }
    };
    if !options.services.is_empty() {
        plans.traffic.sizes.clone_from(&options.services);
    }
    plans
}

/// Builds what is not built yet; returns where it is.
fn provide_peers(machine: &Machine) -> Result<PathBuf> {
    machine.provide(&setup::peers())?;
    peers::provide(machine, &["kube-proxy", "kube-apiserver"])
}
