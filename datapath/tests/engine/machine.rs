//! The engine over plain memory, as the machine that cases run on.

use datapath::{
    backend::Backend,
    counter::{Hook, Reason, drop_index},
    device::Device,
    egress::egress,
    flow::FlowKey,
    frontend::{AddressUse, Frontend, FrontendKey},
    host::{buffer::Buffer, frame::Sample, memory::Memory},
    ingress::ingress,
    packet::Verdict,
    refusal::refuse,
    service::{Service, ServiceCounters},
    settings::Settings,
    tables::Store,
};

pub(crate) use datapath::host::memory::Sizes;

use crate::plan::Row;

/// What a test needs of a family, wherever it runs.
pub(crate) trait Side: Sample {}

impl<F: Sample> Side for F {}

pub(crate) struct Machine<F: Sample> {
    pub(crate) memory: Memory<F>,
}

impl<F: Side> Machine<F> {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { memory: Memory::new(sizes) }
    }

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

    pub(crate) fn set_settings(&mut self, settings: Settings) {
        self.memory.settings = settings;
    }

    pub(crate) fn set_device(&mut self, device: Option<Device>) {
        self.memory.device = device;
    }

    pub(crate) fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_buffer(hook, Buffer::new(bytes.to_vec()))
    }

    pub(crate) fn run_buffer(&mut self, hook: Hook, mut buffer: Buffer) -> (Verdict, Vec<u8>) {
        let verdict = self.decide(hook, &mut buffer);
        (verdict, buffer.bytes)
    }

    /// What the program of a hook decides.
    pub(crate) fn decide(&mut self, hook: Hook, buffer: &mut Buffer) -> Verdict {
        if matches!(hook, Hook::PodIngress | Hook::UplinkIngress) {
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

    /// What a hook has counted, by reason.
    pub(crate) fn drops(&mut self, hook: Hook) -> Vec<u64> {
        let count = |reason: &Reason| self.memory.drops[drop_index(hook, *reason) as usize];
        Reason::ALL.iter().map(count).collect()
    }

    pub(crate) fn counters(&mut self, service: u32) -> ServiceCounters {
        self.memory.stats.get(&service).copied().unwrap_or_default()
    }

    pub(crate) fn rows(&mut self, store: Store) -> Vec<Row<F>> {
        match store {
            Store::Answered => self.memory.flows.iter().map(|(k, v)| (*k, *v)).collect(),
            Store::Pending => self.memory.pending.iter().map(|(k, v)| (*k, *v)).collect(),
        }
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
