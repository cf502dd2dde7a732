//! Which writes are due, and in which order: the pure heart of `apply`.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use datapath::{
    frontend::kind,
    service::{ServicePolicy, SetRef, service_flags},
};

use super::{
    ledger::{Ledger, Row, Shortage},
    op::{FrontendAt, FrontendTo, Hash, Op, Scope},
    ranges::{allowed, is_guarded},
};
use crate::{
    desired::{DesiredService, DesiredSet, IpFamily, ServicePortKey},
    slots::{LONGEST_SET, once_each},
};

impl Ledger {
    /// The writes that are due, in an order in which a reader at any point sees each Service as
    /// it was or as it should be: sets before the words that name them, rows before the
    /// frontends that lead to them, removals last.
    pub fn plan(&mut self) -> Vec<Op> {
        if !self.is_complete {
            return Vec::new();
        }
        self.shortages.clear();
        let mut ops = Vec::new();
        self.house();
        for index in self.dirty.clone() {
            self.plan_row(index, &mut ops);
        }
        let mut put = Puts::default();
        self.plan_frontends(&mut put);
        self.plan_addresses(&mut put);
        self.order(put, &mut ops);
        ops
    }

    /// Gives rows to those that have none. One that asks for the frontends of a row that is to
    /// go takes over that row: a Service whose port was renamed, or that was made anew, keeps
    /// its frontends as they are.
    pub(super) fn house(&mut self) {
        let homeless = std::mem::take(&mut self.homeless);
        let claimed = self.claimed(&homeless);
        for (key, wanted) in homeless {
            let heir_of = wanted.frontends.iter().find_map(|frontend| {
                let index = self.frontends.get(&FrontendAt::new(frontend, key.proto))?.service;
                let row = self.rows.get(&index)?;
                // The row's other frontends may go on to nobody else: they would lead to the
                // heir for a moment.
                let is_free = row.wanted.is_none() && row.key.family == key.family;
                let inherits = |at: &FrontendAt| {
                    !claimed.contains(at)
                        || wanted.frontends.iter().any(|f| FrontendAt::new(f, key.proto) == *at)
                };
                (is_free && row.frontends.iter().all(inherits)).then_some(index)
            });
            let Some(index) = heir_of.or_else(|| self.indices.allocate()) else {
                self.shortages.insert(Shortage::Services);
                self.homeless.insert(key, wanted);
                continue;
            };
            let key = Arc::new(key);
            let row = self.rows.entry(index).or_insert_with(|| Row::new(Arc::clone(&key)));
            if row.key != key {
                self.keys.remove(&row.key);
                row.key = Arc::clone(&key);
            }
            row.is_named = false;
            row.wanted = Some(wanted);
            self.stale_names.remove(&index);
            self.stray_ranges.remove(&index);
            self.keys.insert(key, index);
            self.dirty.insert(index);
        }
    }

    /// Frontends that changed Services want.
    fn claimed(&self, homeless: &BTreeMap<ServicePortKey, DesiredService>) -> HashSet<FrontendAt> {
        let rows = self.dirty.iter().filter_map(|index| {
            let row = self.rows.get(index)?;
            Some((row.key.proto, row.wanted.as_ref()?))
        });
        rows.chain(homeless.iter().map(|(key, wanted)| (key.proto, wanted)))
            .flat_map(|(proto, wanted)| {
                wanted.frontends.iter().map(move |frontend| FrontendAt::new(frontend, proto))
            })
            .collect()
    }

    /// The writes to a row's sets, policies and name. Policies that are to go are taken away
    /// before the sets change and those that come are set after, so that a set is in use only
    /// while it is one of the old ones or of the new.
    fn plan_row(&mut self, index: u32, ops: &mut Vec<Op>) {
        let Some(row) = self.rows.get_mut(&index) else { return };
        let Some(wanted) = row.wanted.clone() else { return };
        let family = row.key.family;
        let ipv6 = if family == IpFamily::V6 { service_flags::IPV6 } else { 0 };
        let flags = allowed(row, &wanted, self.ranges.get(&index)) | service_flags::USED | ipv6;
        let policy = ServicePolicy { flags, affinity: wanted.affinity };
        let kept = row.policy.flags & flags;
        if kept != row.policy.flags {
            row.policy.flags = kept;
            ops.push(Op::Policy { index, policy: row.policy });
        }
        if row.cluster.set.is_none() && row.local.set.is_none() && row.frontends.is_empty() {
            ops.push(Op::ResetCounters { index });
        }
        let blocks = &mut self.blocks[family as usize];
        for (scope, placed, wanted) in [
            (Scope::Cluster, &mut row.cluster, &wanted.cluster),
            (Scope::Local, &mut row.local, &wanted.local),
        ] {
            if placed.holds(wanted) {
                continue;
            }
            let (set, backends) = match wanted {
                DesiredSet::Reject => (SetRef::REJECT, Vec::new()),
                DesiredSet::Drop => (SetRef::DROP, Vec::new()),
                DesiredSet::Backends(backends) if backends.len() > LONGEST_SET => {
                    self.shortages.insert(Shortage::SetTooLong(ServicePortKey::clone(&row.key)));
                    continue;
                }
                DesiredSet::Backends(backends) => {
                    let mut backends = backends.clone();
                    let block = blocks.allocate(backends.len() as u32).or_else(|| {
                        self.shortages.insert(Shortage::Backends(family));
                        // Rather served without weights or Maglev's table than not at all.
                        backends = once_each(&backends);
                        let is_there = placed.holds(&DesiredSet::Backends(backends.clone()));
                        if is_there { None } else { blocks.allocate(backends.len() as u32) }
                    });
                    let Some(block) = block else { continue };
                    let (first, generation) = (block.first, block.generation);
                    let count = backends.len() as u16;
                    let written = backends.clone();
                    ops.push(Op::Block { family, first, generation, backends: written });
                    (SetRef { block: first, count, generation }, backends)
                }
            };
            ops.push(Op::Set { index, scope, set });
            if let Some(old) = placed.set.replace(set)
                && old.count > 0
            {
                blocks.release(old.block, u32::from(old.count));
            }
            placed.backends = Some(backends);
        }
        if row.policy != policy {
            row.policy = policy;
            ops.push(Op::Policy { index, policy });
        }
        if !row.is_named {
            ops.push(Op::Name { index, name: Arc::clone(&row.key) });
        }
    }

    fn plan_frontends(&self, put: &mut Puts) {
        let mut claimed = HashSet::new();
        for index in &self.dirty {
            let Some(row) = self.rows.get(index) else { continue };
            let Some(wanted) = &row.wanted else { continue };
            // A frontend leads to a Service only when that is there.
            if row.cluster.set.is_none() || row.local.set.is_none() {
                continue;
            }
            for frontend in &wanted.frontends {
                let at = FrontendAt::new(frontend, row.key.proto);
                let to = FrontendTo { service: *index, kind: frontend.kind };
                if !claimed.insert(at) {
                    continue;
                }
                // Nor does a load balancer's before its ranges stand.
                if frontend.kind == kind::LOAD_BALANCER && !is_guarded(row, wanted) {
                    continue;
                }
                match self.frontends.get(&at) {
                    None => put.insert_frontends[at.family() as usize].push((at, to)),
                    Some(present) if *present == to => {}
                    Some(_) => put.replace[Hash::Frontends(at.family()).place()]
                        .push(Op::PutFrontends(vec![(at, to)])),
                }
            }
        }
        for index in &self.dirty {
            let Some(row) = self.rows.get(index) else { continue };
            let is_wanted = |at: &FrontendAt| {
                row.wanted.as_ref().is_some_and(|wanted| {
                    wanted.frontends.iter().any(|f| FrontendAt::new(f, row.key.proto) == *at)
                })
            };
            let leave = row.frontends.iter().filter(|at| !claimed.contains(at) && !is_wanted(at));
            put.remove.extend(leave.map(|&at| Op::RemoveFrontend(at)));
        }
        let strays = self.strays.iter().filter(|at| !claimed.contains(at));
        put.remove.extend(strays.map(|&at| Op::RemoveFrontend(at)));
    }

    fn plan_addresses(&self, put: &mut Puts) {
        for address in &self.dirty_addresses {
            let flags = self.address_flags(address);
            let family = IpFamily::of(address);
            match self.addresses.get(address) {
                None if flags == 0 => {}
                None => put.insert_addresses[family as usize].push((*address, flags)),
                Some(present) if *present == flags => {}
                Some(_) if flags == 0 => put.remove_addresses.push(Op::RemoveAddress(*address)),
                Some(_) => put.replace[Hash::Addresses(family).place()]
                    .push(Op::PutAddresses(vec![(*address, flags)])),
            }
        }
    }

    /// Puts writes to hash tables in order, with a wait wherever one would use memory of a row
    /// that a program may still read. A replacement takes its memory first and gives the old
    /// row's back after, so one per table and wait is safe.
    fn order(&self, mut put: Puts, ops: &mut Vec<Op>) {
        let mut restless: HashSet<Hash> = self.restless.union(&self.settling).copied().collect();
        let mut inserts = Vec::new();
        for family in [IpFamily::V4, IpFamily::V6] {
            let rows = std::mem::take(&mut put.insert_frontends[family as usize]);
            if !rows.is_empty() {
                inserts.push((Hash::Frontends(family), Op::PutFrontends(rows)));
            }
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            let rows = std::mem::take(&mut put.insert_addresses[family as usize]);
            if !rows.is_empty() {
                inserts.push((Hash::Addresses(family), Op::PutAddresses(rows)));
            }
        }
        for (hash, op) in inserts {
            if restless.contains(&hash) {
                ops.push(Op::Wait);
                restless.clear();
            }
            ops.push(op);
        }
        let mut replace = put.replace.map(Vec::into_iter);
        loop {
            let round: Vec<(Hash, Op)> = Hash::ALL
                .into_iter()
                .zip(&mut replace)
                .filter_map(|(hash, ops)| Some((hash, ops.next()?)))
                .collect();
            if round.is_empty() {
                break;
            }
            if round.iter().any(|(hash, _)| restless.contains(hash)) {
                ops.push(Op::Wait);
                restless.clear();
            }
            for (hash, op) in round {
                restless.insert(hash);
                ops.push(op);
            }
        }
        ops.append(&mut put.remove);
        ops.append(&mut put.remove_addresses);
    }
}

/// Writes to hash tables, not yet in order.
#[derive(Default)]
struct Puts {
    insert_frontends: [Vec<(FrontendAt, FrontendTo)>; 2],
    insert_addresses: [Vec<(IpAddr, u32)>; 2],
    /// By [`Hash::place`].
    replace: [Vec<Op>; 4],
    remove: Vec<Op>,
    remove_addresses: Vec<Op>,
}
