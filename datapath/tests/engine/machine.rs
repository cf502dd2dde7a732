//! The engine over plain memory, as the machine that cases run on.

use datapath::{
    backend::Backend,
    counter::{Hook, Reason, drop_index},
    device::Device,
    egress::egress,
    flow::{Flow, FlowKey},
    frontend::{AddressUse, Frontend, FrontendKey},
    host::{buffer::Buffer, frame::Sample, memory::Memory},
    ingress::ingress,
    ipmasq,
    packet::Verdict,
    policy::{Policed, Policy},
    refusal::refuse,
    service::{Service, ServiceCounters},
    settings::Settings,
    source_range::RangeKey,
    tables::Store,
    tunnel::NetworkKey,
};

pub(crate) use datapath::host::memory::Sizes;

use crate::{plan::Row, sender::Runs};

/// What a test needs of a family, wherever it runs.
pub(crate) trait Side: Sample + Policed {}

impl<F: Sample + Policed> Side for F {}

/// With the tables and programs of the proxy, or of the overlay.
pub(crate) struct Machine<F: Sample, const OVERLAY: bool = false> {
    pub(crate) memory: Memory<F, OVERLAY>,
}

pub(crate) type Overlay<F> = Machine<F, true>;

impl<F: Side> Machine<F> {
    pub(crate) fn put_address(&mut self, address: F::Address, usage: AddressUse) {
        self.memory.addresses.insert(address, usage);
    }

    pub(crate) fn put_frontend(&mut self, key: FrontendKey<F::Address>, row: Frontend) {
        self.memory.frontends.insert(key, row);
    }

    pub(crate) fn put_service(&mut self, index: u32, row: Service) {
        self.memory.services.insert(index, row);
    }

    pub(crate) fn put_backend(&mut self, index: u32, row: Backend<F::Address>) {
        self.memory.backends.insert(index, row);
    }

    pub(crate) fn put_load(&mut self, slot: u32, load: u32) {
        self.memory.loads.insert(slot, load);
    }

    pub(crate) fn load(&mut self, slot: u32) -> u32 {
        self.memory.loads[&slot]
    }

    /// This node's address in the overlay, and a pod elsewhere whose node answers clients itself.
    pub(crate) fn put_answering(&mut self, underlay: F::Address, pod: F::Address) {
        self.memory.underlay = underlay;
        self.memory.answering.insert(pod);
    }

    /// The networks that cluster IPs are given out of.
    pub(crate) fn put_service_networks(&mut self, networks: &[NetworkKey<F::Address>]) {
        self.memory.service_networks = networks.iter().copied().collect();
    }

    pub(crate) fn put_range(&mut self, key: RangeKey<F::Address>) {
        self.memory.ranges.insert(key);
    }

    pub(crate) fn remove_range(&mut self, key: RangeKey<F::Address>) {
        self.memory.ranges.remove(&key);
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) {
        self.memory.settings = settings;
    }

    pub(crate) fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_buffer(hook, Buffer::new(bytes.to_vec()))
    }

    /// Sends a packet that has a mark, and tells the one that it has then.
    pub(crate) fn run_marked(
        &mut self,
        hook: Hook,
        mark: &mut u32,
        bytes: &[u8],
    ) -> (Verdict, Vec<u8>) {
        marked(mark, bytes, |buffer| self.decide(hook, buffer))
    }

    pub(crate) fn run_buffer(&mut self, hook: Hook, mut buffer: Buffer) -> (Verdict, Vec<u8>) {
        let verdict = self.decide(hook, &mut buffer);
        (verdict, buffer.bytes)
    }

    /// What the program of a hook decides.
    pub(crate) fn decide(&mut self, hook: Hook, buffer: &mut Buffer) -> Verdict {
        if matches!(hook, Hook::PodIngress | Hook::UplinkIngress | Hook::TunnelIngress) {
            return ingress::<F, _, _>(buffer, &mut self.memory, hook);
        }
        if matches!(hook, Hook::UplinkEgress) {
            let verdict = refuse::<F, _, _>(buffer, &mut self.memory, hook);
            if verdict != Verdict::Pass {
                return verdict;
            }
        }
        egress::<F, _, _>(buffer, &mut self.memory, hook)
    }

    pub(crate) fn counters(&mut self, service: u32) -> ServiceCounters {
        self.memory.stats.get(&service).copied().unwrap_or_default()
    }
}

/// Has a packet with a mark decided over.
fn marked(
    mark: &mut u32,
    bytes: &[u8],
    decide: impl FnOnce(&mut Buffer) -> Verdict,
) -> (Verdict, Vec<u8>) {
    let mut buffer = Buffer { mark: *mark, ..Buffer::new(bytes.to_vec()) };
    let verdict = decide(&mut buffer);
    *mark = buffer.mark;
    (verdict, buffer.bytes)
}

impl<F: Side> Overlay<F> {
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.memory.policy = policy;
    }

    /// Sends a packet that has a mark, and tells the one that it has then.
    pub(crate) fn run_marked(
        &mut self,
        hook: Hook,
        mark: &mut u32,
        bytes: &[u8],
    ) -> (Verdict, Vec<u8>) {
        marked(mark, bytes, |buffer| self.decide(hook, buffer))
    }

    /// What the program of a hook decides.
    pub(crate) fn decide(&mut self, hook: Hook, buffer: &mut Buffer) -> Verdict {
        if matches!(hook, Hook::UplinkIngress) {
            ipmasq::enter::<F, _, _>(buffer, &mut self.memory)
        } else {
            ipmasq::leave::<F, _, _>(buffer, &mut self.memory)
        }
    }
}

impl<F: Side, const OVERLAY: bool> Machine<F, OVERLAY> {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { memory: Memory::new(sizes) }
    }

    pub(crate) fn set_device(&mut self, device: Option<Device>) {
        self.memory.device = device;
    }

    /// What a hook has counted, by reason.
    pub(crate) fn drops(&mut self, hook: Hook) -> Vec<u64> {
        let count = |reason: &Reason| self.memory.drops[drop_index(hook, *reason) as usize];
        Reason::ALL.iter().map(count).collect()
    }

    pub(crate) fn rows(&mut self, store: Store) -> Vec<Row<F>> {
        match store {
            Store::Answered => self.memory.flows.iter().map(|(k, v)| (*k, *v)).collect(),
            Store::Pending => self.memory.pending.iter().map(|(k, v)| (*k, *v)).collect(),
        }
    }

    /// Writes a row of `FLOWS`.
    pub(crate) fn put_flow(&mut self, key: FlowKey<F::Address>, row: Flow<F::Address>) {
        self.memory.flows.insert(key, row);
    }

    pub(crate) fn remove_row(&mut self, store: Store, key: &FlowKey<F::Address>) {
        match store {
            Store::Answered => self.memory.flows.remove(key),
            Store::Pending => self.memory.pending.remove(key),
        };
    }

    /// Lets time pass, in ticks.
    pub(crate) fn pass(&mut self, ticks: u32) {
        self.memory.now += ticks;
    }

    pub(crate) fn sweep(&mut self) {
        self.memory.sweep();
    }

    /// Opens a UDP socket that would take packets with this tuple, for as long as the machine
    /// is there.
    pub(crate) fn hold(&mut self, key: &FlowKey<F::Address>) {
        self.memory.sockets.insert(*key);
    }
}

impl<F: Side> Runs<F> for Machine<F> {
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        Self::run(self, hook, bytes)
    }

    fn drops(&mut self, hook: Hook) -> Vec<u64> {
        Self::drops(self, hook)
    }

    fn rows(&mut self, store: Store) -> Vec<Row<F>> {
        Self::rows(self, store)
    }
}

impl<F: Side> Runs<F> for Overlay<F> {
    fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_marked(hook, &mut 0, bytes)
    }

    fn drops(&mut self, hook: Hook) -> Vec<u64> {
        Self::drops(self, hook)
    }

    fn rows(&mut self, store: Store) -> Vec<Row<F>> {
        Self::rows(self, store)
    }
}
