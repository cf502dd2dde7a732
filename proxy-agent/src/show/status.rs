//! `proxy-agent status`: what the running agent answers, or what it left behind.

use std::{net::SocketAddr, path::Path};

use agent_kit::ask;

use super::{ShowError, filled_by_programs, print};
use crate::{
    object,
    status::{NewFlowsStatus, Problem, Status, TableStatus, attachments},
    xdp::XdpStatus,
};

/// Asks the agent; if none answers, tells what is pinned.
pub fn read(agent: SocketAddr, bpffs: &Path) -> Result<Status, ShowError> {
    let mut status = match ask::get(agent, "/status") {
        Ok(status) => status,
        Err(_) => pinned(bpffs, agent)?,
    };
    let filled = filled_by_programs(&object::pins(bpffs).maps());
    status.tables.extend(filled.into_iter().map(|(table, entries, capacity)| TableStatus {
        table,
        entries,
        capacity,
    }));
    Ok(status)
}

fn pinned(bpffs: &Path, agent: SocketAddr) -> Result<Status, ShowError> {
    let is_silent = object::pins(bpffs).is_claimed();
    let silence = || {
        let message = format!(
            "the agent runs and does not answer at {agent}: give the address that it was \
             started with, or end what has taken it"
        );
        Problem::new(Problem::NODE, "--metrics-bind-address", message)
    };
    Ok(Status {
        running: is_silent,
        version: env!("CARGO_PKG_VERSION").into(),
        node: String::new(),
        node_addresses: Vec::new(),
        service_networks: Vec::new(),
        pid: 0,
        uptime_seconds: 0.0,
        source: None,
        last_sync: None,
        pods_without_socket_lb: Vec::new(),
        socket_lb: String::new(),
        nat_ports: String::new(),
        new_flows: NewFlowsStatus::default(),
        pod_egress: String::new(),
        fast_path: String::new(),
        answers: false,
        xdp: Vec::new(),
        attachments: attachments(bpffs)?,
        tables: Vec::new(),
        problems: is_silent.then(silence).into_iter().collect(),
    })
}

/// For people: one screen.
pub fn print(status: &Status) -> String {
    let mut text = head(status);
    text += "\nAttachments\n";
    if status.attachments.is_empty() {
        text += "none\n";
    } else {
        text += &attachments_table(status);
    }
    if !status.tables.is_empty() {
        text += "\nTables\n";
        text += &tables(status);
    }
    if status.running {
        text += "\nProblems\n";
        if status.problems.is_empty() {
            text += "none\n";
        }
        text.extend(status.problems.iter().map(|problem| format!("{problem}\n")));
    }
    text
}

fn attachments_table(status: &Status) -> String {
    let rows = status.attachments.iter().map(|attachment| {
        vec![
            attachment.target.clone(),
            attachment.hook.clone(),
            attachment.order.clone(),
            attachment.program.clone(),
            attachment.program_id.to_string(),
            match &attachment.filter {
                None => attachment.link_id.to_string(),
                Some(_) => "-".into(),
            },
            match &attachment.filter {
                None => attachment.pin.clone(),
                Some(filter) => {
                    format!("filter pref {} handle {:#x}", filter.priority, filter.handle)
                }
            },
        ]
    });
    print::table(&["TARGET", "HOOK", "ORDER", "PROGRAM", "PROG ID", "LINK ID", "HELD BY"], rows)
}

fn tables(status: &Status) -> String {
    let rows = status.tables.iter().map(|table| {
        let percent = u64::from(table.entries) * 100 / u64::from(table.capacity.max(1));
        vec![
            table.table.clone(),
            table.entries.to_string(),
            table.capacity.to_string(),
            format!("{percent} %"),
        ]
    });
    print::table(&["TABLE", "ROWS", "CAPACITY", "FILL"], rows)
}

fn head(status: &Status) -> String {
    if !status.running {
        let what = match (status.attachments.is_empty(), status.tables.is_empty()) {
            (false, _) => "what it programmed is in force",
            (true, false) => "its tables are pinned here, and no program is attached",
            (true, true) => "nothing of it is pinned here",
        };
        return format!("proxy-agent is not running; {what}\n");
    }
    if status.pid == 0 {
        return "proxy-agent runs; what it would tell is not known\n".into();
    }
    let age = print::age;
    let mut lines = vec![
        format!(
            "proxy-agent {}, pid {}, up {}",
            status.version,
            status.pid,
            age(status.uptime_seconds)
        ),
        format!("node       {} ({})", status.node, status.node_addresses.join(", ")),
    ];
    if let Some(source) = &status.source {
        let state = if source.is_synced { "complete" } else { "not complete yet" };
        let last = age(source.age_seconds);
        let silence = source.silent_seconds.map(|silent| format!(", silent for {}", age(silent)));
        lines.push(format!(
            "source     {}, {state}, last change {last} ago{}",
            source.source,
            silence.unwrap_or_default()
        ));
    }
    lines.push(match &status.last_sync {
        Some(sync) => format!(
            "last sync  {} ago, {} changes in {}",
            age(sync.age_seconds),
            sync.changes,
            print::duration(sync.duration_seconds)
        ),
        None => "last sync  never".into(),
    });
    if !status.service_networks.is_empty() {
        lines.push(format!("services   out of {}", status.service_networks.join(", ")));
    }
    let mut without = status.pods_without_socket_lb.join(", ");
    if !without.is_empty() {
        without.insert_str(0, ", without ");
    }
    lines.push(format!("socket-lb  {}{without}", status.socket_lb));
    lines.push(format!("nat-ports  {}", status.nat_ports));
    if status.new_flows.per_source != 0 {
        let NewFlowsStatus { per_source, refused } = status.new_flows;
        lines.push(format!(
            "new flows  {per_source} a second from each source outside, {refused} packets refused"
        ));
    }
    lines.push(format!("to pods    seen {}", status.pod_egress));
    lines.push(format!("fast path  {}", status.fast_path));
    if status.answers {
        lines.push(
            "clients    answered by the nodes of backends, where these do so too; `flannel-agent \
             peers` tells which do"
                .into(),
        );
    }
    for xdp @ XdpStatus { device, mode, reason, driver, .. } in &status.xdp {
        let told = if driver.is_empty() { String::new() } else { format!("; {}", xdp.told()) };
        lines.push(format!("xdp        {device} {mode}: {reason}{told}"));
    }
    lines.join("\n") + "\n"
}
