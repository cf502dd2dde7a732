//! Whether the tables still hold what the ledger says. The agent alone writes them, so what
//! differs was done by another's hand (`bpftool map delete`, say). It is booked as it was
//! found; the next difference then contains what repairs it, in the order that all writes have.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use agent_kit::{
    audit::{Damage, Difference, compare},
    table::TableError,
};
use datapath::service::{ServiceName, ServicePolicy, SetRef};

use super::{
    Applier,
    adopt::backend,
    ledger::{Ledger, Placed},
    op::{FrontendAt, FrontendTo, Hash, RangeAt, Scope},
    ranges_name, table_name,
    tables::{Tables, is_name_of},
};
use crate::desired::{DesiredBackend, DesiredSet, IpFamily};

/// What is looked at in one go: the agent does nothing else meanwhile. With 10,000 Services of
/// two families a part takes 3 to 25 ms, all of them 60 ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Frontends(IpFamily),
    Addresses(IpFamily),
    Ranges(IpFamily),
    Names,
    /// `SERVICES` and the sets in force of `BACKENDS4` and `BACKENDS6`.
    Services,
}

impl Part {
    pub const ALL: [Self; 8] = [
        Self::Frontends(IpFamily::V4),
        Self::Frontends(IpFamily::V6),
        Self::Addresses(IpFamily::V4),
        Self::Addresses(IpFamily::V6),
        Self::Ranges(IpFamily::V4),
        Self::Ranges(IpFamily::V6),
        Self::Names,
        Self::Services,
    ];
}

/// Tables that are audited, as metrics and logs name them. Those behind `BACKENDS6` are not the
/// ledger's, and compared beside it.
pub const TABLES: [&str; 18] = [
    "FRONTENDS4",
    "FRONTENDS6",
    "ADDRESSES4",
    "ADDRESSES6",
    "ADDRESSMARKS",
    "PORTMARKS",
    "RANGES4",
    "RANGES6",
    "NAMES",
    "SERVICES",
    "BACKENDS4",
    "BACKENDS6",
    "SERVICENETS4",
    "SERVICENETS6",
    "SERVICECOVER",
    "BYPASSCGROUPS",
    "DEVICES",
    "SETTINGS",
];

impl Applier {
    /// Compares a part of the tables with what was written. What differs is repaired by the
    /// next [`Applier::sync`]. Finds nothing before the source has told everything, as until
    /// then what the tables hold is the truth.
    pub fn audit(&mut self, part: Part) -> Result<Vec<Difference>, TableError> {
        if !self.is_complete() {
            return Ok(Vec::new());
        }
        let Self { ledger, tables, .. } = self;
        Ok(match part {
            Part::Frontends(family) => {
                let rows = tables.frontends(family)?;
                let mut differences = remark_ports(ledger, tables, family);
                differences.extend(ledger.audit_frontends(family, rows));
                differences
            }
            Part::Addresses(family) => {
                let rows = tables.addresses(family)?;
                let mut differences = remark_addresses(ledger, tables, family);
                differences.extend(ledger.audit_addresses(family, rows));
                differences
            }
            Part::Ranges(family) => ledger.audit_ranges(family, tables.ranges(family)?),
            Part::Names => ledger.audit_names(&tables.names.rows()?),
            Part::Services => audit_services(ledger, tables),
        })
    }
}

impl Ledger {
    fn audit_frontends(
        &mut self,
        family: IpFamily,
        rows: Vec<(FrontendAt, FrontendTo)>,
    ) -> Vec<Difference> {
        let written = self.frontends.keys().copied().filter(|at| at.family() == family);
        let damaged = compare(written, rows.into_iter().collect(), |at, to| {
            Some(self.frontends.get(at)? == to)
        });
        let table = table_name(Hash::Frontends(family));
        let book = |(at, to, damage): (FrontendAt, Option<FrontendTo>, Damage)| {
            self.dirty.extend(self.frontends.get(&at).map(|to| to.service));
            match to {
                Some(to) => {
                    self.dirty.insert(to.service);
                    self.frontend_put(at, to);
                    if !self.rows.contains_key(&to.service) {
                        self.strays.insert(at);
                    }
                }
                None => self.frontend_removed(at),
            }
            let key = format!("{} protocol {}", SocketAddr::new(at.address, at.port), at.proto);
            Difference { table, key, damage }
        };
        damaged.into_iter().map(book).collect()
    }

    fn audit_addresses(&mut self, family: IpFamily, rows: Vec<(IpAddr, u32)>) -> Vec<Difference> {
        let written = self.addresses.keys().copied().filter(|at| IpFamily::of(at) == family);
        let damaged = compare(written, rows.into_iter().collect(), |address, flags| {
            Some(self.addresses.get(address)? == flags)
        });
        let table = table_name(Hash::Addresses(family));
        let book = |(address, flags, damage)| {
            self.dirty_addresses.insert(address);
            match flags {
                Some(flags) => self.address_put(address, flags),
                None => self.address_removed(address),
            }
            Difference { table, key: address.to_string(), damage }
        };
        damaged.into_iter().map(book).collect()
    }

    /// One that is foreign admits somebody, one that is missing refuses somebody, until the next
    /// difference is written.
    fn audit_ranges(&mut self, family: IpFamily, rows: Vec<RangeAt>) -> Vec<Difference> {
        let found = rows.into_iter().map(|at| (at, ())).collect();
        let damaged = compare(self.ranges_of(family), found, |at, ()| {
            self.ranges.get(&at.service)?.contains(&at.range).then_some(true)
        });
        let table = ranges_name(family);
        let book = |(at, found, damage): (RangeAt, Option<()>, Damage)| {
            if self.rows.contains_key(&at.service) {
                self.dirty.insert(at.service);
            }
            match found {
                Some(()) => self.range_put(at),
                None => self.range_removed(at),
            }
            Difference { table, key: format!("{} {}", at.service, at.range), damage }
        };
        damaged.into_iter().map(book).collect()
    }

    fn audit_names(&mut self, rows: &[(u32, ServiceName)]) -> Vec<Difference> {
        let mut damaged = Vec::new();
        let mut found = HashSet::with_capacity(rows.len());
        for (index, name) in rows {
            found.insert(*index);
            match self.rows.get(index) {
                Some(row) if row.is_named && !is_name_of(name, &row.key) => {
                    damaged.push((*index, Damage::Changed));
                }
                None if self.stale_names.insert(*index) => damaged.push((*index, Damage::Foreign)),
                Some(_) | None => {}
            }
        }
        let named = self.rows.iter().filter(|(_, row)| row.is_named).map(|(&index, _)| index);
        let missing = named.filter(|index| !found.contains(index));
        damaged.extend(missing.map(|index| (index, Damage::Missing)));
        let book = |(index, damage)| {
            if let Some(row) = self.rows.get_mut(&index) {
                row.is_named = false;
                self.dirty.insert(index);
            }
            Difference { table: "NAMES", key: index.to_string(), damage }
        };
        damaged.into_iter().map(book).collect()
    }
}

/// Marks are only ever set, and one that is missing hides its address: set here and now.
fn remark_addresses(ledger: &Ledger, tables: &mut Tables, family: IpFamily) -> Vec<Difference> {
    let addresses = ledger.addresses.iter().filter(|(address, _)| IpFamily::of(address) == family);
    let lost = addresses.filter(|(address, flags)| tables.mark_address(address, **flags));
    lost.map(|(address, _)| unmarked("ADDRESSMARKS", address.to_string())).collect()
}

/// The same of ports.
fn remark_ports(ledger: &Ledger, tables: &mut Tables, family: IpFamily) -> Vec<Difference> {
    let frontends = ledger.frontends.iter().filter(|(at, _)| IpFamily::of(&at.address) == family);
    let lost = frontends.filter(|(at, to)| tables.mark_port(at, to.kind));
    lost.map(|(at, _)| unmarked("PORTMARKS", at.port.to_string())).collect()
}

fn unmarked(table: &'static str, key: String) -> Difference {
    Difference { table, key, damage: Damage::Missing }
}

/// A row's words are put right here and now, each by one store. A set with a damaged slot is
/// left as it is for its readers, and written anew elsewhere.
fn audit_services(ledger: &mut Ledger, tables: &mut Tables) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut differ = |table, key: u32, damage| {
        differences.push(Difference { table, key: key.to_string(), damage });
    };
    let used: HashSet<u32> = ledger.rows.keys().copied().collect();
    for (&index, row) in &mut ledger.rows {
        let found = tables.services.read(index).unwrap_or_default();
        let mut is_changed = false;
        for (scope, placed, word) in
            [(Scope::Cluster, &row.cluster, found.cluster), (Scope::Local, &row.local, found.local)]
        {
            if let Some(set) = placed.set.filter(|set| *set != word) {
                tables.write_set(index, scope, set);
                is_changed = true;
            }
        }
        if found.policy() != row.policy {
            tables.write_policy(index, row.policy);
            is_changed = true;
        }
        if is_changed {
            differ("SERVICES", index, Damage::Changed);
        }
        let Some(wanted) = &row.wanted else { continue };
        let family = row.key.family;
        let table = if family == IpFamily::V4 { "BACKENDS4" } else { "BACKENDS6" };
        for (placed, wanted) in
            [(&mut row.cluster, &wanted.cluster), (&mut row.local, &wanted.local)]
        {
            let Some(slot) = damaged_slot(tables, family, placed, wanted) else { continue };
            // Known not to be what is wanted.
            placed.backends = Some(Vec::new());
            let generation = tables.generation(family, slot);
            ledger.blocks[family as usize].note_generation(slot, generation);
            ledger.dirty.insert(index);
            differ(table, slot, Damage::Changed);
        }
    }
    for index in (0..tables.services.capacity()).filter(|index| !used.contains(index)) {
        let none = ServicePolicy::default();
        if tables.services.read(index).is_some_and(|row| row.policy() != none) {
            tables.write_policy(index, none);
            differ("SERVICES", index, Damage::Foreign);
        }
    }
    differences
}

/// The first slot of a set that does not hold its backend.
fn damaged_slot(
    tables: &Tables,
    family: IpFamily,
    placed: &Placed,
    wanted: &DesiredSet,
) -> Option<u32> {
    let (SetRef { block, generation, .. }, backends) = placed.slots(wanted)?;
    let is_damaged = |slot: u32, wanted: &DesiredBackend| {
        let found = match family {
            IpFamily::V4 => tables.backends4.read(slot).and_then(|row| backend(row, generation)),
            IpFamily::V6 => tables.backends6.read(slot).and_then(|row| backend(row, generation)),
        };
        found.as_ref() != Some(wanted)
    };
    (block..).zip(backends).find(|&(slot, wanted)| is_damaged(slot, wanted)).map(|(slot, _)| slot)
}
