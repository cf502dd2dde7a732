//! A node with Services to send packets through: tables filled by hand.

use std::ops::{Deref, DerefMut};

use datapath::{
    address::Be16,
    backend::Backend,
    counter::Hook,
    device::Device,
    flow::Place,
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    header::tcp::SYN,
    host::frame::Datagram,
    packet::Verdict,
    service::{Service, SetRef, service_flags},
    settings::Settings,
    source_range::{RangeKey, SERVICE_BITS, Source},
    source_rate,
};

use crate::{
    machine::{Machine, Side, Sizes},
    plan,
    sender::{Sender, ports},
};

/// First and last port to masquerade with.
pub(crate) const NAT_PORTS: (u16, u16) = (59_000, 59_999);

pub(crate) struct Bed<F: Side> {
    sender: Sender<F, Machine<F>>,
    settings: Settings,
    services: u32,
    blocks: u32,
    generation: u16,
}

impl<F: Side> Deref for Bed<F> {
    type Target = Sender<F, Machine<F>>;

    fn deref(&self) -> &Self::Target {
        &self.sender
    }
}

impl<F: Side> DerefMut for Bed<F> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.sender
    }
}

impl<F: Side> Bed<F> {
    pub(crate) fn new() -> Self {
        Self::sized(Sizes::default())
    }

    pub(crate) fn sized(sizes: Sizes) -> Self {
        let mut bed = Self {
            sender: Sender::new(Machine::new(sizes)),
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
        self.sender.machine.set_settings(self.settings);
    }

    pub(crate) fn foreign_proxy(&mut self, is_there: bool) {
        self.settings.foreign_proxy = is_there.into();
        self.sender.machine.set_settings(self.settings);
    }

    /// Has each source outside begin so many flows a second.
    pub(crate) fn new_flows(&mut self, per_second: u32) {
        self.settings.new_flow_interval = source_rate::interval(per_second);
        self.sender.machine.set_settings(self.settings);
    }

    /// Has a pod's node, and this one, answer clients themselves.
    pub(crate) fn node_answers(&mut self, pod: F::Address) {
        self.settings.dsr = 1;
        self.sender.machine.set_settings(self.settings);
        self.machine.put_answering(plan::node::<F>(0).addr, pod);
    }

    pub(crate) fn node_answers_no_more(&mut self) {
        self.settings.dsr = 0;
        self.sender.machine.set_settings(self.settings);
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
        self.put(index, Service { cluster, local, flags, affinity: 0 });
    }

    /// Writes a row, with the flags that all have.
    pub(crate) fn put(&mut self, index: u32, row: Service) {
        let family = if F::V6 { service_flags::IPV6 } else { 0 };
        let flags = row.flags | family | service_flags::USED;
        self.machine.put_service(index, Service { flags, ..row });
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
        let balancer = if kind == kind::LOAD_BALANCER { address_use::LOAD_BALANCER } else { 0 };
        let masquerade =
            if place.addr == plan::node::<F>(0).addr { address_use::MASQUERADE } else { 0 };
        self.address(place.addr, usage | balancer | masquerade);
        let key = FrontendKey::new(place.addr, place.port, proto);
        self.machine.put_frontend(key, Frontend { service, kind, pad: [0; 3] });
    }

    /// Admits sources to a Service's load balancer.
    pub(crate) fn admit(&mut self, service: u32, addr: F::Address, bits: u32) {
        self.machine.put_range(range(service, addr, bits));
    }

    /// Takes back what [`Bed::admit`] did.
    pub(crate) fn forbid(&mut self, service: u32, addr: F::Address, bits: u32) {
        self.machine.remove_range(range(service, addr, bits));
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

    /// The port of the backend that a new connection goes to.
    #[track_caller]
    pub(crate) fn chosen(
        &mut self,
        hook: Hook,
        from: Place<F::Address>,
        to: Place<F::Address>,
    ) -> Be16 {
        let outcome = self.run(hook, &Datagram::<F>::tcp(from, to, SYN).bytes());
        assert_eq!(outcome.verdict, Verdict::Pass);
        ports::<F>(&outcome.bytes).1
    }
}

fn range<A>(service: u32, addr: A, bits: u32) -> RangeKey<A> {
    RangeKey { prefix_len: SERVICE_BITS + bits, source: Source { service, addr } }
}
