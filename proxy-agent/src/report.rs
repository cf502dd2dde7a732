//! What the parts of the agent found, in words for people.

use agent_kit::attach::AttachError;

use crate::{
    apply::{Fill, Refusal},
    config::CapacityOf,
    devices::Roles,
    status::{Problem, TableStatus},
};

/// Tables are reported from this fill on, before they are full.
const NEARLY_FULL_PERCENT: u64 = 80;

/// Devices that are not attached to, and why.
pub fn devices(roles: &Roles, errors: &[AttachError]) -> Vec<Problem> {
    let problem = |object: &str, message: String| Problem::new(Problem::DEVICE, object, message);
    let foreign = roles.not_ethernet.iter().map(|device| {
        let message = "carries no Ethernet frames, which the programs need; name other devices \
                       with --uplink or --pod-link";
        problem(device, message.into())
    });
    let missing = roles
        .missing
        .iter()
        .map(|device| problem(device, "is named by --uplink and does not exist (yet)".into()));
    let failed = errors.iter().map(|err| problem("attach", err.to_string()));
    let none = roles.missing.is_empty() && !roles.has_uplink;
    let lonely = none.then(|| {
        problem(
            "--uplink",
            "no device holds a node address or a default route, so Services do not answer to \
             the outside; name one"
                .into(),
        )
    });
    foreign.chain(missing).chain(failed).chain(lonely).collect()
}

/// Tables that could not be written, or soon cannot.
pub fn tables(refusals: &[Refusal], fill: &[Fill]) -> Vec<Problem> {
    let refused = refusals.iter().map(|refusal| {
        let remedy = if refusal.is_full { remedy(refusal.table, fill) } else { String::new() };
        let message = format!("{} rows not written: {}{remedy}", refusal.writes, refusal.reason);
        Problem::new(Problem::TABLE, refusal.table, message)
    });
    let is_refused = |table: &str| refusals.iter().any(|refusal| refusal.table == table);
    let nearly = fill.iter().filter(|fill| {
        !is_refused(fill.table)
            && u64::from(fill.entries) * 100 >= u64::from(fill.capacity) * NEARLY_FULL_PERCENT
    });
    let nearly = nearly.map(|held| {
        let percent = u64::from(held.entries) * 100 / u64::from(held.capacity.max(1));
        let message = format!("{percent} % full{}", remedy(held.table, fill));
        Problem::new(Problem::TABLE, held.table, message)
    });
    refused.chain(nearly).collect()
}

fn remedy(table: &str, fill: &[Fill]) -> String {
    let held = fill.iter().find(|fill| fill.table == table);
    let rows =
        held.map_or(String::new(), |held| format!(" ({} of {})", held.entries, held.capacity));
    match (CapacityOf::of_map(table), held) {
        (Some(capacity), Some(held)) => format!(
            "{rows}; restart the agent with --capacity {}={}",
            capacity.name(),
            u64::from(held.capacity) * 2
        ),
        _ => rows,
    }
}

/// How full tables are.
pub fn fill(fill: &[Fill]) -> Vec<TableStatus> {
    let status = |fill: &Fill| TableStatus {
        table: fill.table.into(),
        entries: fill.entries,
        capacity: fill.capacity,
    };
    fill.iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_reported_before_it_is_full() {
        let fill = |entries| [Fill { table: "BACKENDS4", entries, capacity: 100 }];
        assert!(tables(&[], &fill(79)).is_empty());
        let [problem] = &tables(&[], &fill(80))[..] else { panic!("one problem") };
        assert_eq!(problem.object, "BACKENDS4");
        assert_eq!(
            problem.message,
            "80 % full (80 of 100); restart the agent with --capacity backends=200"
        );
    }
}
