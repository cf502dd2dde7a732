//! `flannel-agent status` and `peers`: what the running agent answers.

use std::{io, net::SocketAddr};

use agent_kit::{
    ask,
    print::{age, table, whole_age},
};

use crate::{clock::now, peers::Peer, status::Status};

/// Nobody answers.
#[derive(Debug, thiserror::Error)]
#[error(
    "no agent answers at {address}: {source}; what one programmed is in force all the same. Start \
     it, or give the address it was started with by --metrics-bind-address"
)]
pub struct ShowError {
    address: SocketAddr,
    source: io::Error,
}

/// An agent that does not run has no state but that of the kernel, which stays.
pub fn status(agent: SocketAddr) -> Status {
    ask::get(agent, "/status").unwrap_or_default()
}

pub fn peers(agent: SocketAddr) -> Result<Vec<Peer>, ShowError> {
    ask::get(agent, "/peers").map_err(|source| ShowError { address: agent, source })
}

/// For people: one screen.
pub fn print_status(status: &Status) -> String {
    if !status.running {
        return "flannel-agent is not running; what it programmed is in force\n".into();
    }
    let state = if status.ready { "ready" } else { "not ready" };
    let reached = if status.store_reached { "reached" } else { "NOT reached" };
    let lease = match status.lease_expires {
        Some(at) => {
            format!("ends in {}", whole_age(at.saturating_sub(now().as_secs())))
        }
        None => "never ends".into(),
    };
    let mut lines = vec![
        format!(
            "flannel-agent {}, pid {}, up {}, {state}",
            status.version,
            status.pid,
            age(status.uptime_seconds)
        ),
        format!("store      {}, {reached}", status.store),
        format!("network    {}, {}", status.networks.join(" and "), status.backend),
        format!("subnet     {}, lease {lease}", status.subnet.join(" and ")),
        format!(
            "uplink     {} ({}), pods' MTU {}",
            status.uplink,
            status.public_addresses.join(", "),
            status.mtu
        ),
        format!(
            "peers      {}, {} of other kinds; {} repairs",
            status.peers, status.other_leases, status.repairs
        ),
    ];
    if !status.fast_path.is_empty() {
        lines.push(format!("fast path  {}", status.fast_path));
    }
    if status.answers {
        lines.push("clients    answered by this node itself; its lease says so".into());
    }
    if !status.devices.is_empty() {
        lines.push("\nDevices".into());
        let rows = status.devices.iter().map(|device| {
            vec![
                device.name.clone(),
                device.mac.clone(),
                device.mtu.to_string(),
                device.local.clone(),
            ]
        });
        lines.push(table(&["DEVICE", "MAC", "MTU", "LOCAL"], rows).trim_end().into());
    }
    lines.push("\nProblems".into());
    if status.problems.is_empty() {
        lines.push("none".into());
    }
    lines.extend(status.problems.iter().map(ToString::to_string));
    lines.join("\n") + "\n"
}

/// For people.
pub fn print_peers(peers: &[Peer]) -> String {
    if peers.is_empty() {
        return "no peers\n".into();
    }
    let rows = peers.iter().map(|peer| {
        vec![
            peer.subnet.to_string(),
            peer.address.to_string(),
            peer.path.name().into(),
            peer.mac.clone().unwrap_or_else(|| "-".into()),
            if peer.answers { "itself" } else { "-" }.into(),
            peer.name.clone(),
        ]
    });
    table(&["SUBNET", "NODE", "PATH", "MAC", "ANSWERS", "LEASE"], rows)
}
