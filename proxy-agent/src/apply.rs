//! Brings the tables to what `compile` wants: difference by the [`ledger`], ordered writes,
//! and the wait for running programs before anything is used again.

pub mod adopt;
pub mod audit;
pub mod blocks;
pub mod indices;
pub mod ledger;
pub mod op;
mod plan;
pub mod quarantine;
mod ranges;
pub mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use agent_kit::{barrier::Barrier, table::TableError};

use self::{
    ledger::{Ledger, Shortage},
    op::{Hash, Op, RangeAt},
    tables::Tables,
};
use crate::{
    desired::{Desired, DesiredService, IpFamily, ServicePortKey},
    loads::Counted,
    slots::LONGEST_SET,
};

/// The wait for programs that run now.
pub trait Wait: Send + Sync {
    fn wait(&self) -> io::Result<()>;
}

impl Wait for Barrier {
    fn wait(&self) -> io::Result<()> {
        Barrier::wait(self)
    }
}

/// Why a table is not as it should be. It stays in the difference and is tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub table: &'static str,
    pub writes: usize,
    pub reason: String,
    /// It has no room: more rows would help.
    pub is_full: bool,
}

/// How full a table is, of those that the agent fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    pub table: &'static str,
    pub entries: u32,
    pub capacity: u32,
}

/// The tables and what is to stand in them.
pub struct Applier {
    ledger: Ledger,
    tables: Tables,
    barrier: Arc<dyn Wait>,
    refusals: BTreeMap<&'static str, Refusal>,
    is_waiting: bool,
}

impl Applier {
    /// Goes on with what the tables hold.
    pub fn adopt(tables: Tables, barrier: Arc<dyn Wait>) -> Result<Self, TableError> {
        let ledger = adopt::adopt(&tables)?;
        Ok(Self { ledger, tables, barrier, refusals: BTreeMap::new(), is_waiting: false })
    }

    /// What the tables held at the start, as far as it is whole and has a name.
    pub fn adopted(&self) -> Desired {
        self.ledger.adopted()
    }

    /// Takes note of what a Service's port should be; `None` that it should not be.
    pub fn want(&mut self, key: ServicePortKey, wanted: Option<DesiredService>) {
        self.ledger.want(key, wanted);
    }

    /// The sets in force whose connections count.
    pub fn counted(&self) -> Vec<Counted> {
        self.ledger.counted()
    }

    /// Takes note of the addresses that masqueraded connections come from.
    pub fn masquerade(&mut self, addresses: BTreeSet<IpAddr>) {
        self.ledger.masquerade(addresses);
    }

    /// Has Services' own addresses answer pings, or not.
    pub fn answer_pings(&mut self, answers: bool) {
        self.ledger.answer_pings(answers);
    }

    /// The source has told everything once.
    pub fn complete(&mut self) {
        self.ledger.complete();
    }

    pub fn is_complete(&self) -> bool {
        self.ledger.is_complete()
    }

    /// True if some write failed, or there was no room.
    pub fn is_behind(&self) -> bool {
        self.ledger.is_behind()
    }

    /// Rows of `SERVICES` in use.
    pub fn services(&self) -> u32 {
        self.ledger.indices.used()
    }

    /// Writes the difference. What fails is in [`Applier::refusals`] and in the next difference.
    pub fn sync(&mut self) {
        self.refusals.clear();
        self.write();
        // Space may come free: that of the sets just replaced.
        if !self.ledger.shortages().is_empty() && self.ledger.has_quarantine() && self.wait() {
            self.refusals.clear();
            self.write();
        }
    }

    fn write(&mut self) {
        // Policies are planned by which ranges stand, and ranges removed by which policies do.
        for op in self.ledger.stale_ranges() {
            self.run(op);
        }
        for op in self.ledger.missing_ranges() {
            self.run(op);
        }
        for op in self.ledger.plan() {
            if matches!(op, Op::Wait) {
                if !self.wait() {
                    break;
                }
            } else {
                self.run(op);
            }
        }
        for op in self.ledger.stale_ranges() {
            self.run(op);
        }
        for op in self.ledger.close() {
            self.run(op);
        }
        let names: Vec<u32> = self.ledger.stale_names.iter().copied().collect();
        for index in names {
            self.run(Op::RemoveName { index });
        }
    }

    fn run(&mut self, op: Op) {
        let Self { ledger, tables, .. } = self;
        match op {
            Op::Block { family, first, generation, backends } => {
                tables.write_block(family, first, generation, &backends);
            }
            Op::Set { index, scope, set } => tables.write_set(index, scope, set),
            Op::Policy { index, policy } => tables.write_policy(index, policy),
            Op::ResetCounters { index } => tables.reset_counters(index),
            Op::Name { index, name } => match tables.write_name(index, &name) {
                Ok(()) => ledger.named(index),
                Err(err) => self.refuse("NAMES", 1, &err),
            },
            Op::RemoveName { index } => match tables.names.remove(&index) {
                Ok(()) | Err(TableError::Missing) => ledger.name_removed(index),
                Err(err) => self.refuse("NAMES", 1, &err),
            },
            Op::PutFrontends(rows) => {
                let family = rows.first().map_or(IpFamily::V4, |(at, _)| at.family());
                let (written, result) = tables.put_frontends(&rows);
                for (at, to) in &rows[..written] {
                    ledger.frontend_put(*at, *to);
                }
                if let Err(err) = result {
                    self.refuse(table_name(Hash::Frontends(family)), rows.len() - written, &err);
                }
            }
            Op::PutAddresses(rows) => {
                let family = rows.first().map_or(IpFamily::V4, |(ip, _)| IpFamily::of(ip));
                let (written, result) = tables.put_addresses(&rows);
                for (address, flags) in &rows[..written] {
                    ledger.address_put(*address, *flags);
                }
                if let Err(err) = result {
                    self.refuse(table_name(Hash::Addresses(family)), rows.len() - written, &err);
                }
            }
            Op::RemoveFrontend(at) => match tables.remove_frontend(&at) {
                Ok(()) | Err(TableError::Missing) => ledger.frontend_removed(at),
                Err(err) => self.refuse(table_name(Hash::Frontends(at.family())), 1, &err),
            },
            Op::RemoveAddress(address) => match tables.remove_address(&address) {
                Ok(()) | Err(TableError::Missing) => ledger.address_removed(address),
                Err(err) => {
                    self.refuse(table_name(Hash::Addresses(IpFamily::of(&address))), 1, &err);
                }
            },
            Op::PutRanges(rows) => {
                let family = rows.first().map_or(IpFamily::V4, RangeAt::family);
                let (written, result) = tables.put_ranges(&rows);
                for at in &rows[..written] {
                    ledger.range_put(*at);
                }
                if let Err(err) = result {
                    self.refuse(ranges_name(family), rows.len() - written, &err);
                }
            }
            Op::RemoveRange(at) => match tables.remove_range(&at) {
                Ok(()) | Err(TableError::Missing) => ledger.range_removed(at),
                Err(err) => self.refuse(ranges_name(at.family()), 1, &err),
            },
            Op::Wait => {}
        }
    }

    fn refuse(&mut self, table: &'static str, writes: usize, err: &TableError) {
        let refusal = self.refusals.entry(table).or_insert_with(|| Refusal {
            table,
            writes: 0,
            reason: err.to_string(),
            is_full: matches!(err, TableError::Full),
        });
        refusal.writes += writes;
    }

    /// Waits here and now; false if that failed.
    fn wait(&mut self) -> bool {
        self.ledger.wait_begins();
        match self.barrier.wait() {
            Ok(()) => {
                self.ledger.wait_ended();
                true
            }
            Err(err) => {
                self.refuse("wait for running programs", 1, &TableError::Kernel(err));
                false
            }
        }
    }

    /// Begins a wait if one is due, which the caller carries out elsewhere, so that no change
    /// has to wait for it; then it calls [`Applier::wait_ended`].
    pub fn begin_wait(&mut self) -> Option<Arc<dyn Wait>> {
        if self.is_waiting || !self.ledger.needs_wait() {
            return None;
        }
        self.is_waiting = true;
        self.ledger.wait_begins();
        Some(Arc::clone(&self.barrier))
    }

    /// The wait that was begun is over. If it failed, what it was for goes on waiting.
    pub fn wait_ended(&mut self, result: &io::Result<()>) {
        self.is_waiting = false;
        if result.is_ok() {
            self.ledger.wait_ended();
        }
    }

    /// What could not be written, for want of room or otherwise.
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut refusals: Vec<Refusal> = self.refusals.values().cloned().collect();
        for shortage in self.ledger.shortages() {
            refusals.push(match shortage {
                Shortage::Services => full("SERVICES"),
                Shortage::Backends(IpFamily::V4) => full("BACKENDS4"),
                Shortage::Backends(IpFamily::V6) => full("BACKENDS6"),
                Shortage::SetTooLong(key) => Refusal {
                    table: "BACKENDS",
                    writes: 1,
                    reason: format!(
                        "{}/{}:{} has more than {} endpoints",
                        key.namespace, key.name, key.port, LONGEST_SET
                    ),
                    is_full: false,
                },
            });
        }
        refusals
    }

    pub fn fill(&self) -> Vec<Fill> {
        let Self { ledger, tables, .. } = self;
        let rows = |hash| ledger.hash_rows(hash);
        let (v4, v6) = (IpFamily::V4, IpFamily::V6);
        let fill = |table, entries, capacity| Fill { table, entries, capacity };
        let [backends4, backends6] = &ledger.blocks;
        let [ranges4, ranges6] = ledger.range_rows;
        vec![
            fill("SERVICES", ledger.indices.used(), ledger.indices.capacity()),
            fill("BACKENDS4", backends4.used(), backends4.capacity()),
            fill("BACKENDS6", backends6.used(), backends6.capacity()),
            fill("FRONTENDS4", rows(Hash::Frontends(v4)), tables.frontends4.capacity()),
            fill("FRONTENDS6", rows(Hash::Frontends(v6)), tables.frontends6.capacity()),
            fill("ADDRESSES4", rows(Hash::Addresses(v4)), tables.addresses4.capacity()),
            fill("ADDRESSES6", rows(Hash::Addresses(v6)), tables.addresses6.capacity()),
            fill("RANGES4", ranges4, tables.ranges4.capacity()),
            fill("RANGES6", ranges6, tables.ranges6.capacity()),
        ]
    }
}

fn full(table: &'static str) -> Refusal {
    Refusal { table, writes: 1, reason: TableError::Full.to_string(), is_full: true }
}

fn ranges_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "RANGES4",
        IpFamily::V6 => "RANGES6",
    }
}

fn table_name(hash: Hash) -> &'static str {
    match hash {
        Hash::Frontends(IpFamily::V4) => "FRONTENDS4",
        Hash::Frontends(IpFamily::V6) => "FRONTENDS6",
        Hash::Addresses(IpFamily::V4) => "ADDRESSES4",
        Hash::Addresses(IpFamily::V6) => "ADDRESSES6",
    }
}
