//! The engine's tables in memory. Clock, entropy, and what the kernel's socket look-up would
//! find are set by hand.

use std::collections::{HashMap, HashSet};

use crate::{
    address::Address,
    affinity::{Affinity, AffinityKey},
    backend::{Backend, LOAD},
    counter::{DROPS_LEN, Hook, Reason, drop_index},
    device::Device,
    flow::{Flow, FlowKey, Parties, TICK_NS, Walk},
    fragment::{FragmentKey, Ports},
    frontend::{AddressUse, Frontend, FrontendKey},
    header::Network,
    host::lru::Lru,
    ipmasq::PolicyTables,
    maps::{
        AFFINITY_CAPACITY, FLOWS_CAPACITY, FRAGMENTS_CAPACITY, MARKS_LEN, PENDING_CAPACITY,
        RATES_CAPACITY,
    },
    policy::{Policed, Policy},
    service::{Service, ServiceCounters, ServicePolicy, SetRef},
    settings::Settings,
    socket::{Peer, PeerKey},
    source_range::{RangeKey, SERVICE_BITS},
    source_rate,
    tables::{FlowTables, KeepError, Opening, Scope, Store, Tables},
    track,
    tunnel::NetworkKey,
    wire::CARRIED_LEN,
};

/// Rows that the tables of flows may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    pub flows: usize,
    pub pending: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { flows: FLOWS_CAPACITY, pending: PENDING_CAPACITY }
    }
}

/// The tables of one family: those of the proxy, or with `BARE` those of the overlay, where
/// [`FlowTables::BARE_MASQUERADE`] holds.
#[derive(Clone, Debug)]
pub struct Memory<F: Network, const BARE: bool = false> {
    pub settings: Settings,
    pub policy: Policy,
    /// In units of [`crate::flow::TICK_NS`].
    pub now: u32,
    /// State of the generator behind [`FlowTables::random`].
    pub seed: u64,
    pub addresses: HashMap<F::Address, AddressUse>,
    pub frontends: HashMap<FrontendKey<F::Address>, Frontend>,
    pub services: HashMap<u32, Service>,
    pub backends: HashMap<u32, Backend<F::Address>>,
    pub flows: HashMap<FlowKey<F::Address>, Flow<F::Address>>,
    pub pending: Lru<FlowKey<F::Address>, Flow<F::Address>>,
    pub fragments: Lru<FragmentKey<F::Address>, Ports>,
    pub peers: HashMap<PeerKey<F::Address>, Peer<F::Address>>,
    /// `RATES`, by [`Address::origin`].
    pub rates: Lru<u64, u64>,
    pub affinity: Lru<AffinityKey<F::Address>, Affinity<F::Address>>,
    pub ranges: HashSet<RangeKey<F::Address>>,
    pub service_networks: HashSet<NetworkKey<F::Address>>,
    pub marks: Vec<bool>,
    pub walk: Walk,
    pub device: Option<Device>,
    /// Tuples that sockets of this node would take.
    pub sockets: HashSet<FlowKey<F::Address>>,
    pub drops: Vec<u64>,
    pub stats: HashMap<u32, ServiceCounters>,
    /// By [`crate::wire::Leg`].
    pub carried: [u64; CARRIED_LEN],
    /// By slot.
    pub loads: HashMap<u32, u32>,
    /// Pods whose node answers clients itself.
    pub answering: HashSet<F::Address>,
    /// This node's address in the overlay, and that of the node which sent the next packet.
    pub underlay: F::Address,
    pub sender: Option<F::Address>,
    /// What another processor does once, between a look at an unanswered flow and its keeping.
    pub meanwhile: Option<fn(&mut Self)>,
    capacity: usize,
    parties: Parties<F::Address>,
}

impl<F: Network, const BARE: bool> Memory<F, BARE> {
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        Self {
            settings: Settings::default(),
            policy: Policy::default(),
            now: 1_000_000,
            seed: 1,
            addresses: HashMap::new(),
            frontends: HashMap::new(),
            services: HashMap::new(),
            backends: HashMap::new(),
            flows: HashMap::new(),
            pending: Lru::new(sizes.pending),
            fragments: Lru::new(FRAGMENTS_CAPACITY),
            peers: HashMap::new(),
            rates: Lru::new(RATES_CAPACITY),
            affinity: Lru::new(AFFINITY_CAPACITY),
            ranges: HashSet::new(),
            service_networks: HashSet::new(),
            marks: vec![false; MARKS_LEN],
            walk: Walk::default(),
            device: None,
            sockets: HashSet::new(),
            drops: vec![0; DROPS_LEN],
            stats: HashMap::new(),
            carried: [0; CARRIED_LEN],
            loads: HashMap::new(),
            answering: HashSet::new(),
            underlay: <F::Address>::default(),
            sender: None,
            meanwhile: None,
            parties: Parties::default(),
            capacity: sizes.flows,
        }
    }

    /// Removes expired flows, `enough` at most; says how many.
    fn walk(&mut self, enough: u32) -> u32 {
        let rows: Vec<_> = self.flows.iter().map(|(key, row)| (*key, *row)).collect();
        let now = self.now;
        let is_pressed = self.walk.is_pressed(now);
        let mut removed = 0;
        for (key, row) in rows {
            // An earlier row of the same flow may have taken this one with it.
            if self.flows.contains_key(&key)
                && track::expire::<F, _>(self, &key, &row, now, is_pressed)
            {
                removed += 1;
                if removed >= enough {
                    break;
                }
            }
        }
        removed
    }

    /// In nanoseconds.
    pub const fn clock(&self) -> u64 {
        self.now as u64 * TICK_NS
    }

    /// What the program `flow_sweep` does.
    pub fn sweep(&mut self) {
        self.walk(u32::MAX);
    }
}

impl<F: Network, const BARE: bool> FlowTables<F> for Memory<F, BARE> {
    const BARE_MASQUERADE: bool = BARE;

    fn now(&mut self) -> u32 {
        self.now
    }

    fn random(&mut self) -> u32 {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.seed;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) as u32
    }

    fn flow(&mut self, store: Store, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>> {
        match store {
            Store::Answered => self.flows.get_mut(key),
            Store::Pending => self.pending.get_mut(key),
        }
    }

    fn parties(&mut self) -> &mut Parties<F::Address> {
        &mut self.parties
    }

    fn begin(&mut self, opening: Opening) -> bool {
        let parties = self.parties;
        let key = parties.key(opening.role);
        if !opening.replace && self.pending.contains(&key) {
            return false;
        }
        self.pending.insert(key, parties.row(opening));
        true
    }

    fn keep(&mut self, role: u8) -> Result<(), KeepError> {
        let key = self.parties.key(role);
        let row = *self.pending.get_mut(&key).ok_or(KeepError::Missing)?;
        if !self.flows.contains_key(&key) {
            if self.flows.len() >= self.capacity {
                return Err(KeepError::Full);
            }
            self.flows.insert(key, row);
        }
        self.pending.remove(&key);
        Ok(())
    }

    fn forget(&mut self, key: &FlowKey<F::Address>) {
        self.flows.remove(key);
        self.pending.remove(key);
    }

    fn reclaim(&mut self) -> bool {
        self.walk.full = self.now;
        if self.walk.in_vain == self.now {
            return false;
        }
        let removed = self.walk(Walk::ROOM);
        if removed == 0 {
            self.walk.in_vain = self.now;
        }
        removed != 0
    }

    fn mark(&mut self, hash: u32) {
        self.marks[hash as usize % MARKS_LEN] = true;
    }

    fn is_marked(&mut self, hash: u32) -> bool {
        self.marks[hash as usize % MARKS_LEN]
    }

    fn fragment(&mut self, key: &FragmentKey<F::Address>) -> Option<Ports> {
        self.fragments.get_mut(key).copied()
    }

    fn remember_fragment(&mut self, key: &FragmentKey<F::Address>, ports: Ports) {
        self.fragments.insert(*key, ports);
    }

    fn device(&mut self) -> Option<Device> {
        self.device
    }

    fn nat_ports(&mut self) -> (u16, u16) {
        if BARE {
            (self.policy.nat_port_first, self.policy.nat_port_last)
        } else {
            (self.settings.nat_port_first, self.settings.nat_port_last)
        }
    }

    fn socket_holds(&mut self, key: &FlowKey<F::Address>) -> bool {
        self.sockets.contains(key)
    }

    fn settle<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> Result<(), KeepError> {
        if let Some(act) = self.meanwhile.take() {
            act(self);
        }
        track::settle::<F, Self, ROLE>(self, key)
    }

    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        self.drops[drop_index(hook, reason) as usize] += 1;
    }

    fn count_packet(&mut self, service: u32, bytes: u32) {
        let row = self.stats.entry(service).or_default();
        row.packets += 1;
        row.bytes += u64::from(bytes);
    }
}

impl<F: Network> Tables<F> for Memory<F> {
    fn settings(&mut self) -> Settings {
        self.settings
    }

    fn address_use(&mut self, address: F::Address) -> Option<AddressUse> {
        self.addresses.get(&address).copied()
    }

    fn frontend(&mut self, key: &FrontendKey<F::Address>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn policy(&mut self, service: u32) -> ServicePolicy {
        // A row of an array that was never written is all zero.
        self.services.get(&service).copied().unwrap_or_default().policy()
    }

    fn set(&mut self, service: u32, scope: Scope) -> Option<SetRef> {
        let row = self.services.get(&service).copied().unwrap_or_default();
        Some(if scope == Scope::Local { row.local } else { row.cluster })
    }

    fn backend(&mut self, index: u32) -> Option<Backend<F::Address>> {
        Some(self.backends.get(&index).copied().unwrap_or_default())
    }

    fn is_service_network(&mut self, address: F::Address) -> bool {
        let mut networks = self.service_networks.iter();
        networks.any(|key| key.network.shares(address, key.prefix_len))
    }

    fn is_admitted(&mut self, service: u32, source: F::Address) -> bool {
        self.ranges.iter().any(|range| {
            range.source.service == service
                && range.source.addr.shares(source, range.prefix_len - SERVICE_BITS)
        })
    }

    fn peer(&mut self, key: &PeerKey<F::Address>) -> Option<Peer<F::Address>> {
        self.peers.get(key).copied()
    }

    fn remember_peer(&mut self, key: &PeerKey<F::Address>, peer: &Peer<F::Address>) {
        self.peers.insert(*key, *peer);
    }

    fn affinity(&mut self, key: &AffinityKey<F::Address>) -> Option<Affinity<F::Address>> {
        self.affinity.get_mut(key).copied()
    }

    fn remember_affinity(&mut self, key: &AffinityKey<F::Address>, row: &Affinity<F::Address>) {
        self.affinity.insert(*key, *row);
    }

    fn charge(&mut self, origin: u64, interval: u32) -> bool {
        let number = self.rates.get_mut(&origin).copied().unwrap_or_default();
        let next = source_rate::charge(number, self.clock(), interval);
        if let Some(next) = next {
            self.rates.insert(origin, next);
        }
        next.is_some()
    }

    fn turn(&mut self, service: u32) -> u32 {
        let row = self.stats.entry(service).or_default();
        row.turns += 1;
        (row.turns - 1) as u32
    }

    fn load(&mut self, slot: u32) -> u32 {
        self.loads.get(&slot).copied().unwrap_or_default()
    }

    fn add_load(&mut self, slot: u32) {
        if let Some(load) = self.loads.get_mut(&slot) {
            *load += LOAD;
        }
    }

    fn count_connection(&mut self, service: u32) {
        self.stats.entry(service).or_default().packet_connections += 1;
    }

    fn answers(&mut self, pod: F::Address) -> bool {
        self.answering.contains(&pod)
    }

    fn underlay(&mut self) -> F::Address {
        self.underlay
    }

    fn is_senders(&mut self, destination: F::Address) -> bool {
        self.sender == Some(destination)
    }
}

impl<F: Network + Policed> PolicyTables<F> for Memory<F, true> {
    fn is_masqueraded(&mut self, src: F::Address, dst: F::Address) -> bool {
        F::networks(&self.policy).masquerades(src, dst)
    }
}
