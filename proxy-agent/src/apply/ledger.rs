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
    algorithm::Algorithm,
    frontend::{address_use, kind},
    service::{ServicePolicy, SetRef},
};

use ipnetwork::IpNetwork;

use super::{
    blocks::Blocks,
    indices::Indices,
    op::{FrontendAt, FrontendTo, Hash, Op},
};
use crate::{
    desired::{DesiredBackend, DesiredService, DesiredSet, IpFamily, ServicePortKey},
    loads::Counted,
};

/// One of a row's sets, as it stands in the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Placed {
    /// `None` if what stands there is not to be relied on.
    pub(super) set: Option<SetRef>,
    /// `None` if they are those that the row wants, so that they are kept once.
    pub(super) backends: Option<Vec<DesiredBackend>>,
}

impl Placed {
    pub(super) fn holds(&self, wanted: &DesiredSet) -> bool {
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

    /// The set if it has slots, and what stands in them; `wanted` is what the row wants.
    pub(super) fn slots<'a>(
        &'a self,
        wanted: &'a DesiredSet,
    ) -> Option<(SetRef, &'a [DesiredBackend])> {
        let set = self.set.filter(|set| set.count > 0)?;
        match (&self.backends, wanted) {
            (Some(backends), _) | (None, DesiredSet::Backends(backends)) => Some((set, backends)),
            (None, DesiredSet::Reject | DesiredSet::Drop) => None,
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
    pub(super) policy: ServicePolicy,
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
            policy: ServicePolicy::default(),
            is_named: false,
            frontends: Vec::new(),
        }
    }

    fn forget_frontend(&mut self, at: &FrontendAt) {
        self.frontends.retain(|held| held != at);
    }
}

/// How often wanted frontends use an address.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Users {
    cluster_ip: u32,
    load_balancer: u32,
    external_ip: u32,
    node_port: u32,
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
    pub(super) homeless: BTreeMap<ServicePortKey, DesiredService>,
    pub(super) dirty: BTreeSet<u32>,
    pub(super) frontends: HashMap<FrontendAt, FrontendTo>,
    pub(super) addresses: HashMap<IpAddr, u32>,
    users: HashMap<IpAddr, Users>,
    answers_pings: bool,
    pub(super) masquerade: BTreeSet<IpAddr>,
    pub(super) dirty_addresses: BTreeSet<IpAddr>,
    /// Frontends in the tables that lead to no row of ours.
    pub(super) strays: BTreeSet<FrontendAt>,
    /// Source ranges in the tables, by index into `SERVICES`; none is empty.
    pub(super) ranges: HashMap<u32, BTreeSet<IpNetwork>>,
    /// Indices that have ranges and no row.
    pub(super) stray_ranges: BTreeSet<u32>,
    /// By family.
    pub(super) range_rows: [u32; 2],
    /// Names in the table that belong to no row.
    pub(super) stale_names: BTreeSet<u32>,
    pub(super) blocks: [Blocks; 2],
    pub(super) indices: Indices,
    /// Hash tables out of which something was taken since the last wait: what is inserted now
    /// may be put into memory that a program still reads as the row that was there.
    pub(super) restless: HashSet<Hash>,
    /// As `restless`, for a wait under way.
    pub(super) settling: HashSet<Hash>,
    /// The source has told everything once, so what it did not name may go.
    pub(super) is_complete: bool,
    pub(super) shortages: BTreeSet<Shortage>,
    /// By [`Hash::place`].
    pub(super) hash_rows: [u32; 4],
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
            answers_pings: false,
            masquerade: BTreeSet::new(),
            dirty_addresses: BTreeSet::new(),
            strays: BTreeSet::new(),
            ranges: HashMap::new(),
            stray_ranges: BTreeSet::new(),
            range_rows: [0; 2],
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
                kind::LOAD_BALANCER => &mut users.load_balancer,
                kind::EXTERNAL_IP => &mut users.external_ip,
                _ => &mut users.node_port,
            };
            *count = count.saturating_add_signed(by);
            if *users == Users::default() {
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

    /// Has Services' own addresses answer pings, or not.
    pub fn answer_pings(&mut self, answers: bool) {
        self.answers_pings = answers;
        self.dirty_addresses.extend(self.addresses.keys());
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
            || !self.strays.is_empty()
            || !self.stray_ranges.is_empty()
            || !self.stale_names.is_empty()
    }

    /// Rows in a hash table.
    pub fn hash_rows(&self, hash: Hash) -> u32 {
        self.hash_rows[hash.place()]
    }

    pub fn shortages(&self) -> &BTreeSet<Shortage> {
        &self.shortages
    }

    /// The sets in force whose connections count.
    pub fn counted(&self) -> Vec<Counted> {
        let by_count = |row: &Row| Algorithm::of(row.policy.flags) == Algorithm::LeastConn;
        let mut counted = Vec::new();
        for (&service, row) in &self.rows {
            let Some(wanted) = row.wanted.as_ref().filter(|_| by_count(row)) else { continue };
            for (placed, wanted) in [(&row.cluster, &wanted.cluster), (&row.local, &wanted.local)] {
                if let Some((set, backends)) = placed.slots(wanted) {
                    let (family, backends) = (row.key.family, backends.to_vec());
                    counted.push(Counted { service, family, first: set.block, backends });
                }
            }
        }
        counted
    }

    pub(super) fn address_flags(&self, address: &IpAddr) -> u32 {
        let users = self.users.get(address).copied().unwrap_or_default();
        let mut flags = 0;
        if users.cluster_ip > 0 {
            flags |= address_use::CLUSTER_IP;
        }
        if users.load_balancer > 0 {
            flags |= address_use::FRONTEND | address_use::LOAD_BALANCER;
        }
        if users.external_ip + users.node_port > 0 {
            flags |= address_use::FRONTEND;
        }
        let is_services = users.cluster_ip + users.load_balancer + users.external_ip > 0;
        if self.masquerade.contains(address) {
            flags |= address_use::MASQUERADE;
        } else if self.answers_pings && is_services {
            // The node's own, the kernel answers.
            flags |= address_use::ECHO;
        }
        flags
    }
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
        let Some(row) = self.rows.get_mut(&to.service) else { return };
        self.strays.remove(&at);
        if !row.frontends.contains(&at) {
            row.frontends.push(at);
        }
    }

    pub(super) fn frontend_removed(&mut self, at: FrontendAt) {
        self.restless.insert(Hash::Frontends(at.family()));
        self.strays.remove(&at);
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
                        && self.is_guarded_as_wanted(index, row, wanted)
                        && self.leads(row, wanted, index);
                    if !is_done {
                        self.dirty.insert(index);
                    } else if let Some(row) = self.rows.get_mut(&index) {
                        row.cluster.backends = None;
                        row.local.backends = None;
                    }
                }
                None if row.frontends.is_empty() => {
                    ops.push(Op::Policy { index, policy: ServicePolicy::default() });
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
        if self.ranges.contains_key(&index) {
            self.stray_ranges.insert(index);
        }
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
