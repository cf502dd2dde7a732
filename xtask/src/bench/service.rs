//! `cargo xtask bench service`: what a Service costs traffic, and how soon a change is in
//! force.

use std::path::PathBuf;

use anyhow::Result;
use lab::agent::SocketLb;

use super::{
    Options, Part, api_control, control,
    host::Host,
    node_port, peer_control,
    proxy::{Mode, Proxy},
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
    let has_api = options.includes(Part::ApiServer)
        && (options.peers || options.only == Some(Part::ApiServer));
    let peers = (options.peers || has_api).then(|| provide_peers(machine, options.peers));
    let peers = peers.transpose()?;
    let mut report = Report {
        host: Host::new(),
        quick: options.quick,
        peers: options.peers,
        rows: Vec::new(),
        traffic: Vec::new(),
        costs: Vec::new(),
        node_port: Vec::new(),
        control: None,
        api_control: None,
        peer_control: Vec::new(),
    };
    let plans = plans(options);
    let raise = || Stage::raise(CPUS, peers.as_deref());
    if options.includes(Part::DataPath) {
        let mut stages = [raise()?, raise()?];
        println!("data path: ratios to the same traffic on a node without an agent");
        if options.peers {
            println!("  kube-proxy takes its turns as the agent does");
        }
        (report.traffic, report.costs) = traffic::measure(&plans.traffic, &mut stages)?;
        report.rows.extend(report::traffic(&report.traffic));
    }
    if options.includes(Part::NodePort) {
        println!("NodePort from outside: ratios to the same pod routed directly");
        report.node_port = node_port::measure(&plans.node_port, peers.as_deref())?;
        report.rows.extend(report::node_port(&report.node_port));
    }
    if options.includes(Part::ControlPlane) {
        let plan = plans.control;
        println!("control plane: {} Services, a file for each and for each slice", plan.services);
        let found = control::measure(plan, &mut raise()?)?;
        report.rows.extend(report::control(&found));
        report.control = Some(found);
    }
    if has_api {
        measure_api(&plans, &mut raise()?, &mut report)?;
    }
    report.host.finish();
    let directory = machine.target().join("bench");
    println!("\n{}", report.write(&directory)?);
    println!("written to {}", directory.join("service.{json,md}").display());
    Ok(())
}

/// The agent, then with peers kube-proxy in its modes, told of the same by the same API server.
fn measure_api(plans: &Plans, stage: &mut Stage, report: &mut Report) -> Result<()> {
    let plan = plans.api_control;
    println!("control plane, told by an API server: {} Services", plan.services);
    stage.prepare_large(plan.services)?;
    let found = api_control::measure(plan, stage)?;
    for (mode, plan) in plans.peer.into_iter().filter(|_| report.peers) {
        println!("control plane of kube-proxy, {}:", mode.name());
        report.peer_control.push((mode, peer_control::measure(plan, mode, stage)?));
    }
    report.rows.extend(report::api_control(&found, &report.peer_control));
    report.api_control = Some(found);
    Ok(())
}

/// Client and server share a processor: then a round has no wait for another processor to
/// wake up in it, which on virtual machines is most of the time and all of the noise.
pub(super) const CPUS: [Option<usize>; 2] = [Some(1), Some(1)];

/// How much of everything is measured.
struct Plans {
    traffic: traffic::Plan,
    node_port: node_port::Plan,
    control: control::Plan,
    api_control: control::Plan,
    peer: [(Mode, peer_control::Plan); 2],
}

fn plans(options: &Options) -> Plans {
    let mut proxies = vec![Proxy::Agent(SocketLb::On), Proxy::Agent(SocketLb::Host)];
    // What comes from outside meets no socket of the node.
    let mut from_outside = vec![Proxy::Agent(SocketLb::On)];
    if options.peers {
        for to in [&mut proxies, &mut from_outside] {
            to.extend(Mode::ALL.map(Proxy::KubeProxy));
        }
    }
    // kube-proxy takes seconds for each change, and in iptables mode the longer the more it serves.
    let of_peers = |starts, changes, slow| {
        let plan = peer_control::Plan { starts, changes };
        [(Mode::Nftables, plan), (Mode::Iptables, peer_control::Plan { starts: 1, changes: slow })]
    };
    let mut plans = if options.quick {
        Plans {
            traffic: traffic::Plan { sizes: vec![10, 1_000], proxies, batch: 2, most: 4 },
            node_port: node_port::Plan { proxies: from_outside, batch: 2, most: 4 },
            control: control::Plan { services: 1_000, starts: 2, changes: 10 },
            api_control: control::Plan { services: 1_000, starts: 2, changes: 10 },
            peer: of_peers(1, 3, 3),
        }
    } else {
        Plans {
            traffic: traffic::Plan { sizes: vec![10, 1_000, 10_000], proxies, batch: 5, most: 40 },
            node_port: node_port::Plan { proxies: from_outside, batch: 5, most: 40 },
            control: control::Plan { services: 10_000, starts: 7, changes: 200 },
            api_control: control::Plan { services: 10_000, starts: 7, changes: 200 },
            peer: of_peers(2, 10, 5),
        }
    };
    if let Some(&most) = options.services.iter().max() {
        plans.traffic.sizes.clone_from(&options.services);
        plans.api_control.services = most;
    }
    plans
}

/// Builds what is not built yet, the API server alone unless kube-proxy is measured too; returns where
/// it is.
fn provide_peers(machine: &Machine, has_proxies: bool) -> Result<PathBuf> {
    machine.provide(&setup::peers())?;
    machine.provide(&[setup::iptables()])?;
    let names: &[&str] =
        if has_proxies { &["kube-proxy", "kube-apiserver"] } else { &["kube-apiserver"] };
    peers::provide(machine, names)
}
