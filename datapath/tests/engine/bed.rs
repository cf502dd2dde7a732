//! A node to send packets through: tables filled by hand, and what holds of every packet
//! checked at every packet.

use datapath::{
    address::Be16,
    backend::Backend,
    counter::{Hook, Reason},
    device::Device,
    flow::Place,
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    host::verify::{Expect, checksums, describe, difference},
    packet::Verdict,
    service::{Service, SetRef, service_flags},
    settings::Settings,
    tables::Store,
};

use crate::{
    machine::{Machine, Side, Sizes},
    plan::{self, Row},
};

/// First and last port to masquerade with.
pub(crate) const NAT_PORTS: (u16, u16) = (59_000, 59_999);

pub(crate) struct Bed<F: Side> {
    pub(crate) machine: Machine<F>,
    settings: Settings,
    services: u32,
    blocks: u32,
    generation: u16,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: Vec<u8>,
}

impl<F: Side> Bed<F> {
    pub(crate) fn new() -> Self {
        Self::sized(Sizes::default())
    }

    pub(crate) fn sized(sizes: Sizes) -> Self {
        let mut bed = Self {
            machine: Machine::new(sizes),
            settings: Settings::default(),
            services: 1,
            blocks: 16,
            generation: 0,
        };
        bed.settings.ipv6_checksum_flags = 0x10;
        bed.nat_ports(NAT_PORTS.0, NAT_PORTS.1);
        bed.device(Some(plan::node::<F>(0).addr));
        bed.address(plan::node::<F>(0).addr, address_use::FRONTEND | address_use::MASQUERADE);
        bed
    }

    pub(crate) fn nat_ports(&mut self, first: u16, last: u16) {
        (self.settings.nat_port_first, self.settings.nat_port_last) = (first, last);
        self.machine.set_settings(self.settings);
    }

    pub(crate) fn foreign_proxy(&mut self, is_there: bool) {
        self.settings.foreign_proxy = is_there.into();
        self.machine.set_settings(self.settings);
    }

    /// The address that the device under the packets masquerades with.
    pub(crate) fn device(&mut self, address: Option<F::Address>) {
        self.machine.set_device(address.map(|address| plan::device::<F>(address)));
    }

    pub(crate) fn no_device(&mut self) {
        self.machine.set_device(Some(Device::default()));
    }

    pub(crate) fn address(&mut self, address: F::Address, flags: u32) {
        self.machine.put_address(address, AddressUse { flags });
    }

    /// A Service with these backends at both scopes, and its index.
    pub(crate) fn service(&mut self, backends: &[Backend<F::Address>]) -> u32 {
        let set = self.set(backends);
        self.service_of(set, set, 0)
    }

    pub(crate) fn service_of(&mut self, cluster: SetRef, local: SetRef, flags: u32) -> u32 {
        let index = self.services;
        self.services += 1;
        self.update(index, cluster, local, flags);
        index
    }

    pub(crate) fn update(&mut self, index: u32, cluster: SetRef, local: SetRef, flags: u32) {
        let family = if F::V6 { service_flags::IPV6 } else { 0 };
        let flags = flags | family | service_flags::USED;
        self.machine.put_service(index, Service { cluster, local, flags, pad: 0 });
    }

    /// Writes a set; without backends it is the one that refuses.
    pub(crate) fn set(&mut self, backends: &[Backend<F::Address>]) -> SetRef {
        if backends.is_empty() {
            return SetRef::REJECT;
        }
        self.generation += 1;
        let (block, generation) = (self.blocks, self.generation);
        for (index, backend) in (block..).zip(backends) {
            self.machine.put_backend(index, Backend { generation, ..*backend });
        }
        self.blocks += backends.len() as u32;
        SetRef { block, count: backends.len() as u16, generation }
    }

    /// Makes a place a frontend of a Service.
    pub(crate) fn frontend(&mut self, place: Place<F::Address>, proto: u8, service: u32, kind: u8) {
        let usage =
            if kind == kind::CLUSTER_IP { address_use::CLUSTER_IP } else { address_use::FRONTEND };
        let masquerade =
            if place.addr == plan::node::<F>(0).addr { address_use::MASQUERADE } else { 0 };
        self.address(place.addr, usage | masquerade);
        let key = FrontendKey::new(place.addr, place.port, proto);
        self.machine.put_frontend(key, Frontend { service, kind, pad: [0; 3] });
    }

    /// A Service at its cluster IP.
    pub(crate) fn cluster_ip(
        &mut self,
        place: Place<F::Address>,
        proto: u8,
        backends: &[Backend<F::Address>],
    ) -> u32 {
        let service = self.service(backends);
        self.frontend(place, proto, service, kind::CLUSTER_IP);
        service
    }

    /// A Service at a port of the node.
    pub(crate) fn node_port(
        &mut self,
        port: u16,
        proto: u8,
        backends: &[Backend<F::Address>],
    ) -> u32 {
        let service = self.service(backends);
        self.frontend(plan::node::<F>(port), proto, service, kind::NODE_PORT);
        service
    }

    /// Sends a packet over a hook. What goes on has right checksums if it came with such; what
    /// does not is counted once.
    #[track_caller]
    pub(crate) fn run(&mut self, hook: Hook, bytes: &[u8]) -> Outcome {
        let before: u64 = self.machine.drops(hook).iter().sum();
        let (verdict, out) = self.machine.run(hook, bytes);
        let counted = self.machine.drops(hook).iter().sum::<u64>() - before;
        let expected = u64::from(verdict != Verdict::Pass);
        assert_eq!(counted, expected, "{verdict:?} of {}", describe::<F>(bytes));
        if checksums::<F>(bytes, Expect::Full).is_ok() && verdict != Verdict::Drop {
            let sums = checksums::<F>(&out, Expect::Full);
            assert_eq!(sums, Ok(()), "{}\nbecame {}", describe::<F>(bytes), describe::<F>(&out));
        }
        Outcome { verdict, bytes: out }
    }

    /// Sends a packet that must go on as another.
    #[track_caller]
    pub(crate) fn becomes(&mut self, hook: Hook, bytes: &[u8], expected: &[u8]) {
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Pass, "of {}", describe::<F>(bytes));
        same::<F>(expected, &outcome.bytes);
    }

    /// Sends a packet that must go on as it is.
    #[track_caller]
    pub(crate) fn passes(&mut self, hook: Hook, bytes: &[u8]) {
        self.becomes(hook, bytes, bytes);
    }

    /// Sends a packet that must be dropped for a reason.
    #[track_caller]
    pub(crate) fn drops(&mut self, hook: Hook, bytes: &[u8], reason: Reason) {
        let before = self.dropped(hook, reason);
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Drop, "of {}", describe::<F>(bytes));
        assert_eq!(self.dropped(hook, reason), before + 1, "counted as {reason:?}");
    }

    /// Sends a packet that must be answered for a reason, and returns the answer.
    #[track_caller]
    pub(crate) fn answers(&mut self, hook: Hook, bytes: &[u8], reason: Reason) -> Vec<u8> {
        let before = self.dropped(hook, reason);
        let outcome = self.run(hook, bytes);
        assert_eq!(outcome.verdict, Verdict::Answer, "of {}", describe::<F>(bytes));
        assert_eq!(self.dropped(hook, reason), before + 1, "counted as {reason:?}");
        outcome.bytes
    }

    pub(crate) fn dropped(&mut self, hook: Hook, reason: Reason) -> u64 {
        self.machine.drops(hook)[reason as usize]
    }

    pub(crate) fn pending(&mut self) -> Vec<Row<F>> {
        self.sorted(Store::Pending)
    }

    pub(crate) fn flows(&mut self) -> Vec<Row<F>> {
        self.sorted(Store::Answered)
    }

    fn sorted(&mut self, store: Store) -> Vec<Row<F>> {
        let mut rows = self.machine.rows(store);
        rows.sort_by_key(|(key, _)| *key);
        rows
    }

    /// How many rows there are: pending, answered.
    pub(crate) fn rows(&mut self) -> (usize, usize) {
        (self.pending().len(), self.flows().len())
    }
}

/// Compares packets, and shows them if they differ.
#[track_caller]
pub(crate) fn same<F: Side>(expected: &[u8], found: &[u8]) {
    if let Some(difference) = difference::<F>(expected, found) {
        panic!("{difference}");
    }
}

/// The ports of a packet: source and destination.
pub(crate) fn ports<F: Side>(bytes: &[u8]) -> (Be16, Be16) {
    let buffer = datapath::host::buffer::Buffer::new(bytes.to_vec());
    let header = F::header(&buffer, 0).expect("a header");
    let transport = datapath::header::transport::<F, _>(&buffer, &header).expect("ports");
    (transport.ports.src_port, transport.ports.dst_port)
}
