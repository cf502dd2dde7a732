//! What stands in the tables, what should, and the writes that lead from one to the other.
//!
//! Pure: it reads no table and no clock. Writes to arrays cannot fail and are booked when they
//! are planned; writes to hash tables are booked once they are done, so that one that failed
//! is planned again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use datapath::{
    frontend::{address_use, kind},
    service::{SetRef, service_flags},
};

use super::{
    blocks::Blocks,
    indices::Indices,
    op::{FrontendAt, FrontendTo, Hash, Op, Scope},
};
use crate::desired::{DesiredBackend, DesiredService, DesiredSet, IpFamily, ServicePortKey};

/// Longest set: its count is 16 bits wide, and each slot may bear another generation.
pub const LONGEST_SET: usize = 65_000;

/// One of a row's sets, as it stands in the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placed {
    /// `None` if what stands there is not to be relied on.
    pub(super) set: Option<SetRef>,
    /// `None` if they are those that the row wants, so that they are kept once.
    pub(super) backends: Option<Vec<DesiredBackend>>,
}

impl Placed {
    fn holds(&self, wanted: &DesiredSet) -> bool {
        match (self.set, &self.backends, wanted) {
            (Some(_), None, _) => true,
            (Some(set), Some(placed), DesiredSet::Backends(backends)) => {
                set.count > 0 && placed == backends
            }
            (Some(set), _, DesiredSet::Reject) => set == SetRef::REJECT,
            (Some(set), _, DesiredSet::Drop) => set == SetRef::DROP,
            (None, ..) => false,
        }
    }

    /// The row is about to want something else than `before`.
    fn keep(&mut self, before: &DesiredSet) {
        if self.set.is_some() && self.backends.is_none() {
            self.backends = Some(match before {
                DesiredSet::Backends(backends) => backends.clone(),
                DesiredSet::Reject | DesiredSet::Drop => Vec::new(),
            });
        }
    }
}

/// One row of `SERVICES`.
#[derive(Clone, Debug)]
pub struct Row {
    pub(super) key: Arc<ServicePortKey>,
    pub(super) wanted: Option<DesiredService>,
    pub(super) cluster: Placed,
    pub(super) local: Placed,
    pub(super) flags: u32,
    pub(super) is_named: bool,
    /// Those in the tables that lead here.
    pub(super) frontends: Vec<FrontendAt>,
}

impl Row {
    pub(super) fn new(key: Arc<ServicePortKey>) -> Self {
        Self {
            key,
            wanted: None,
            cluster: Placed::default(),
            local: Placed::default(),
            flags: 0,
            is_named: false,
            frontends: Vec::new(),
        }
    }

    fn forget_frontend(&mut self, at: &FrontendAt) {
        self.frontends.retain(|held| held != at);
    }
}

/// How often wanted frontends use an address.
#[derive(Clone, Copy, Default, Debug)]
struct Users {
    cluster_ip: u32,
    other: u32,
}

/// Why a row is not as it should be, beside writes that failed.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Shortage {
    Services,
    Backends(IpFamily),
    SetTooLong(ServicePortKey),
}

/// The two sides of the difference.
#[derive(Debug)]
pub struct Ledger {
    pub(super) rows: HashMap<u32, Row>,
    pub(super) keys: HashMap<Arc<ServicePortKey>, u32>,
    /// Wanted, and without a row as yet.
    homeless: BTreeMap<ServicePortKey, DesiredService>,
    dirty: BTreeSet<u32>,
    pub(super) frontends: HashMap<FrontendAt, FrontendTo>,
    pub(super) addresses: HashMap<IpAddr, u32>,
    users: HashMap<IpAddr, Users>,
    masquerade: BTreeSet<IpAddr>,
    dirty_addresses: BTreeSet<IpAddr>,
    /// Names in the table that belong to no row.
    pub(super) stale_names: BTreeSet<u32>,
    pub(super) blocks: [Blocks; 2],
    pub(super) indices: Indices,
    /// Hash tables out of which something was taken since the last wait: what is inserted now
    /// may be put into memory that a program still reads as the row that was there.
    restless: HashSet<Hash>,
    /// As `restless`, for a wait under way.
    settling: HashSet<Hash>,
    /// The source has told everything once, so what it did not name may go.
    is_complete: bool,
    shortages: BTreeSet<Shortage>,
    /// By [`Hash::place`].
    hash_rows: [u32; 4],
}

impl Ledger {
    /// Of empty tables with room for so many rows.
    pub fn new(services: u32, backends: [u32; 2]) -> Self {
        Self {
            rows: HashMap::new(),
            keys: HashMap::new(),
            homeless: BTreeMap::new(),
            dirty: BTreeSet::new(),
            frontends: HashMap::new(),
            addresses: HashMap::new(),
            users: HashMap::new(),
            masquerade: BTreeSet::new(),
            dirty_addresses: BTreeSet::new(),
            stale_names: BTreeSet::new(),
            blocks: backends.map(Blocks::new),
            indices: Indices::new(services),
            restless: HashSet::new(),
            settling: HashSet::new(),
            is_complete: false,
            shortages: BTreeSet::new(),
            hash_rows: [0; 4],
        }
    }

    /// Takes note of what should be.
    pub fn want(&mut self, key: ServicePortKey, wanted: Option<DesiredService>) {
        if let Some(wanted) = &wanted {
            self.use_addresses(&wanted.frontends.iter().map(|f| (f.address, f.kind)).collect(), 1);
        }
        let before = match self.keys.get(&key) {
            Some(&index) => {
                self.dirty.insert(index);
                self.rows.get_mut(&index).and_then(|row| {
                    if let Some(before) = &row.wanted {
                        row.cluster.keep(&before.cluster);
                        row.local.keep(&before.local);
                    }
                    std::mem::replace(&mut row.wanted, wanted)
                })
            }
            None => match wanted {
                Some(wanted) => self.homeless.insert(key, wanted),
                None => self.homeless.remove(&key),
            },
        };
        if let Some(before) = before {
            let users = before.frontends.iter().map(|f| (f.address, f.kind)).collect();
            self.use_addresses(&users, -1);
        }
    }

    fn use_addresses(&mut self, frontends: &Vec<(IpAddr, u8)>, by: i32) {
        for &(address, kind) in frontends {
            let users = self.users.entry(address).or_default();
            let count = match kind {
                kind::CLUSTER_IP => &mut users.cluster_ip,
                _ => &mut users.other,
            };
            *count = count.saturating_add_signed(by);
            if users.cluster_ip == 0 && users.other == 0 {
                self.users.remove(&address);
            }
            self.dirty_addresses.insert(address);
        }
    }

    /// Takes note of the addresses that masqueraded connections come from.
    pub fn masquerade(&mut self, addresses: BTreeSet<IpAddr>) {
        self.dirty_addresses.extend(self.masquerade.symmetric_difference(&addresses));
        self.masquerade = addresses;
    }

    /// The source has told everything once: what it did not name is to go.
    pub fn complete(&mut self) {
        if !self.is_complete {
            self.is_complete = true;
            self.dirty.extend(self.rows.keys());
            self.dirty_addresses.extend(self.addresses.keys());
        }
    }

    /// False before the source has told everything once: nothing is to be written yet.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// True if something is not as it should be, or not known to be.
    pub fn is_behind(&self) -> bool {
        !self.dirty.is_empty()
            || !self.homeless.is_empty()
            || !self.dirty_addresses.is_empty()
            || !self.stale_names.is_empty()
    }

    /// Rows in a hash table.
    pub fn hash_rows(&self, hash: Hash) -> u32 {
        self.hash_rows[hash.place()]
    }

    pub fn shortages(&self) -> &BTreeSet<Shortage> {
        &self.shortages
    }

    fn address_flags(&self, address: &IpAddr) -> u32 {
        let users = self.users.get(address).copied().unwrap_or_default();
        let mut flags = 0;
        if users.cluster_ip > 0 {
            flags |= address_use::CLUSTER_IP;
        }
        if users.other > 0 {
            flags |= address_use::FRONTEND;
        }
        if self.masquerade.contains(address) {
            flags |= address_use::MASQUERADE;
        }
        flags
    }

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
    fn house(&mut self) {
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
        let flags = wanted.flags | service_flags::USED | ipv6;
        if row.flags & flags != row.flags {
            row.flags &= flags;
            ops.push(Op::Flags { index, flags: row.flags });
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
                    let count = backends.len() as u32;
                    let Some(block) = blocks.allocate(count) else {
                        self.shortages.insert(Shortage::Backends(family));
                        continue;
                    };
                    let (first, generation) = (block.first, block.generation);
                    let written = backends.clone();
                    ops.push(Op::Block { family, first, generation, backends: written });
                    (SetRef { block: first, count: count as u16, generation }, backends.clone())
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
        if row.flags != flags {
            row.flags = flags;
            ops.push(Op::Flags { index, flags });
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

/// What became of the writes.
impl Ledger {
    pub(super) fn frontend_put(&mut self, at: FrontendAt, to: FrontendTo) {
        if let Some(before) = self.frontends.insert(at, to) {
            self.restless.insert(Hash::Frontends(at.family()));
            if before.service != to.service
                && let Some(row) = self.rows.get_mut(&before.service)
            {
                row.forget_frontend(&at);
            }
        } else {
            self.hash_rows[Hash::Frontends(at.family()).place()] += 1;
        }
        if let Some(row) = self.rows.get_mut(&to.service)
            && !row.frontends.contains(&at)
        {
            row.frontends.push(at);
        }
    }

    pub(super) fn frontend_removed(&mut self, at: FrontendAt) {
        self.restless.insert(Hash::Frontends(at.family()));
        let Some(to) = self.frontends.remove(&at) else { return };
        self.hash_rows[Hash::Frontends(at.family()).place()] -= 1;
        if let Some(row) = self.rows.get_mut(&to.service) {
            row.forget_frontend(&at);
        }
    }

    pub(super) fn address_put(&mut self, address: IpAddr, flags: u32) {
        let hash = Hash::Addresses(IpFamily::of(&address));
        match self.addresses.insert(address, flags) {
            Some(_) => {
                self.restless.insert(hash);
            }
            None => self.hash_rows[hash.place()] += 1,
        }
    }

    pub(super) fn address_removed(&mut self, address: IpAddr) {
        let hash = Hash::Addresses(IpFamily::of(&address));
        self.restless.insert(hash);
        if self.addresses.remove(&address).is_some() {
            self.hash_rows[hash.place()] -= 1;
        }
    }

    pub(super) fn named(&mut self, index: u32) {
        if let Some(row) = self.rows.get_mut(&index) {
            row.is_named = true;
        }
    }

    pub(super) fn name_removed(&mut self, index: u32) {
        self.stale_names.remove(&index);
    }

    /// After the planned writes: frees rows that nothing leads to any more, and strikes off
    /// what is as it should be. Gives the writes that mark freed rows.
    pub fn close(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        for index in std::mem::take(&mut self.dirty) {
            let Some(row) = self.rows.get(&index) else { continue };
            match &row.wanted {
                Some(wanted) => {
                    let is_done = row.is_named
                        && row.cluster.holds(&wanted.cluster)
                        && row.local.holds(&wanted.local)
                        && self.leads(row, wanted, index);
                    if !is_done {
                        self.dirty.insert(index);
                    } else if let Some(row) = self.rows.get_mut(&index) {
                        row.cluster.backends = None;
                        row.local.backends = None;
                    }
                }
                None if row.frontends.is_empty() => {
                    ops.push(Op::Flags { index, flags: 0 });
                    self.free(index);
                }
                None => {
                    self.dirty.insert(index);
                }
            }
        }
        let addresses = std::mem::take(&mut self.dirty_addresses);
        self.dirty_addresses = addresses
            .into_iter()
            .filter(|address| {
                self.addresses.get(address).copied().unwrap_or(0) != self.address_flags(address)
            })
            .collect();
        ops
    }

    fn leads(&self, row: &Row, wanted: &DesiredService, index: u32) -> bool {
        let wants: BTreeMap<_, _> = wanted
            .frontends
            .iter()
            .rev()
            .map(|frontend| (FrontendAt::new(frontend, row.key.proto), frontend.kind))
            .collect();
        wants.len() == row.frontends.len()
            && wants.iter().all(|(at, &kind)| {
                self.frontends.get(at) == Some(&FrontendTo { service: index, kind })
            })
    }

    fn free(&mut self, index: u32) {
        let Some(row) = self.rows.remove(&index) else { return };
        if self.keys.get(&row.key) == Some(&index) {
            self.keys.remove(&row.key);
        }
        for set in [row.cluster.set, row.local.set].into_iter().flatten() {
            if set.count > 0 {
                let blocks = &mut self.blocks[row.key.family as usize];
                blocks.release(set.block, u32::from(set.count));
            }
        }
        self.indices.release(index);
        if row.is_named {
            self.stale_names.insert(index);
        }
    }

    /// True if something was taken out that programs may still read.
    pub fn needs_wait(&self) -> bool {
        !self.restless.is_empty()
            || self.indices.needs_wait()
            || self.blocks.iter().any(Blocks::needs_wait)
    }

    /// True if space comes free with the next wait.
    pub fn has_quarantine(&mut self) -> bool {
        let Self { indices, blocks: [v4, v6], .. } = self;
        !v4.quarantine().is_empty()
            || !v6.quarantine().is_empty()
            || !indices.quarantine().is_empty()
    }

    /// A wait begins, for what was taken out so far.
    pub fn wait_begins(&mut self) {
        self.settling.extend(self.restless.drain());
        self.indices.quarantine().begin();
        self.blocks.iter_mut().for_each(|blocks| blocks.quarantine().begin());
    }

    /// The wait that began last is over.
    pub fn wait_ended(&mut self) {
        self.settling.clear();
        self.indices.settle();
        self.blocks.iter_mut().for_each(Blocks::settle);
    }
}
