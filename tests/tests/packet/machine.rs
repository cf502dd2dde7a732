//! The programs in the kernel, as the machine that cases run on.

use std::{
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    ops::{Deref, DerefMut},
};

use agent_kit::table::{MapTable, Table};
use datapath::{
    address::{Ipv4, Ipv6, Mac, protocol},
    affinity::{Affinity, AffinityKey},
    backend::{Backend, load_key},
    counter::{Hook, Reason, drop_index},
    device::Device,
    flow::{Flow, FlowKey, TICK_NS, Walk},
    fragment::{FragmentKey, Ports},
    frontend::{AddressUse, Frontend, FrontendKey, address_mark, kind, mark, port_mark},
    host::frame::Sample,
    maps::{MARKS_LEN, PORTMARKS_LEN},
    packet::Verdict,
    policy::{Policed, Policy},
    service::{Service, ServiceCounters},
    service_network::Cover,
    settings::Settings,
    source_range::{ADMITTED, RangeKey},
    tables::Store,
    tunnel::{NetworkKey, Tunnel, Vtep},
};

pub(crate) use datapath::host::memory::Sizes;

use crate::{
    object::{ETHERNET, Loaded, Object, Row, test_run},
    plan,
    sender::Runs,
};

/// What a test needs of a family, wherever it runs.
pub(crate) trait Side: Sample + Policed {}

impl<F: Sample + Policed> Side for F {}

/// A table of one family.
pub(crate) type Rows<K, V> = MapTable<Row<K>, Row<V>>;
type Flows<F> = Rows<
    FlowKey<<F as datapath::address::Family>::Address>,
    Flow<<F as datapath::address::Family>::Address>,
>;

/// `TCX_NEXT`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
pub(crate) const NEXT: i32 = -1;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

/// The interface index of a namespace's `lo`, on which test runs take place.
pub(crate) const LOOPBACK: u32 = 1;
pub(crate) static NO_MARKS: [u8; MARKS_LEN] = [0; MARKS_LEN];
static NO_PORTS: [u8; PORTMARKS_LEN] = [0; PORTMARKS_LEN];
/// Rows of `SERVICES` and `STATS` that cases use.
const SERVICES: u32 = 64;

/// One of the objects with its tables of flows.
pub(crate) struct Node<F: Sample> {
    loaded: Option<Loaded>,
    flows: Flows<F>,
    pending: Flows<F>,
    fragments: Rows<FragmentKey<F::Address>, Ports>,
    devices: Rows<u32, Device>,
    marks: Rows<u32, [u8; MARKS_LEN]>,
    walks: Rows<u32, Walk>,
    sockets: Vec<UdpSocket>,
    counted_before: Vec<Vec<u64>>,
}

/// The proxy object, with the tables of Services.
pub(crate) struct Machine<F: Sample> {
    node: Node<F>,
    frontends: Rows<FrontendKey<F::Address>, Frontend>,
    addresses: Rows<F::Address, AddressUse>,
    backends: Rows<u32, Backend<F::Address>>,
    services: Rows<u32, Service>,
    stats: Rows<u32, ServiceCounters>,
    affinity: Rows<AffinityKey<F::Address>, Affinity<F::Address>>,
    ranges: Rows<RangeKey<F::Address>, u32>,
    loads: Rows<u32, u64>,
    rates: Rows<u64, u64>,
    service_networks: Rows<NetworkKey<F::Address>, u32>,
    vteps: Rows<NetworkKey<F::Address>, Vtep<F::Address>>,
    tunnels: Rows<u32, Tunnel>,
    service_cover: Rows<u32, Cover>,
    settings: Rows<u32, Settings>,
    address_marks: Rows<u32, [u8; MARKS_LEN]>,
    port_marks: Rows<u32, [u8; PORTMARKS_LEN]>,
}

/// The overlay object, with its policy.
pub(crate) struct Overlay<F: Sample> {
    node: Node<F>,
    policies: Rows<u32, Policy>,
}

pub(crate) fn clear<K: Copy + 'static, V: Copy + 'static>(table: &mut Rows<K, V>) {
    for (key, _) in table.rows().expect("rows") {
        let _ = table.remove(&key);
    }
}

pub(crate) fn write<K: Copy + 'static, V: Copy + 'static>(
    table: &mut Rows<K, V>,
    key: K,
    value: V,
) {
    table.insert(&Row(key), &Row(value)).expect("room");
}

impl<F: Side> Node<F> {
    fn new(object: Object, sizes: Sizes) -> Self {
        let loaded = Loaded::take(object, sizes);
        let of_family = |name: &str| loaded.map(&format!("{name}{}", F::SUFFIX));
        let mut node = Self {
            flows: MapTable::new(of_family("FLOWS")).expect("sizes"),
            pending: MapTable::new(of_family("PENDING")).expect("sizes"),
            fragments: MapTable::new(of_family("FRAGMENTS")).expect("sizes"),
            devices: MapTable::new(loaded.map("DEVICES")).expect("sizes"),
            marks: MapTable::new(loaded.map("MARKS")).expect("sizes"),
            walks: MapTable::new(loaded.map("WALKS")).expect("sizes"),
            sockets: Vec::new(),
            counted_before: Vec::new(),
            loaded: Some(loaded),
        };
        // What an earlier case has left.
        clear(&mut node.devices);
        node.clear_flows();
        node.counted_before = Hook::ALL.iter().map(|hook| node.counted(*hook)).collect();
        node
    }

    /// Forgets all flows.
    pub(crate) fn clear_flows(&mut self) {
        clear(&mut self.flows);
        clear(&mut self.pending);
        clear(&mut self.fragments);
        write(&mut self.marks, 0, NO_MARKS);
        write(&mut self.walks, u32::from(F::V6), Walk::default());
    }

    /// Sets what the programs know of their last walk over the flows.
    pub(crate) fn set_walk(&mut self, walk: Walk) {
        write(&mut self.walks, u32::from(F::V6), walk);
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("given back at the end only")
    }

    pub(crate) fn set_device(&mut self, device: Option<Device>) {
        match device {
            Some(device) => write(&mut self.devices, LOOPBACK, device),
            None => drop(self.devices.remove(&Row(LOOPBACK))),
        }
    }

    pub(crate) fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_frame(hook, ETHERNET, &mut 0, bytes)
    }

    /// Sends a packet that has a mark, and tells the one that it has then.
    pub(crate) fn run_marked(
        &mut self,
        hook: Hook,
        mark: &mut u32,
        bytes: &[u8],
    ) -> (Verdict, Vec<u8>) {
        self.run_frame(hook, ETHERNET, mark, bytes)
    }

    /// Sends a packet behind the link layer's two addresses.
    pub(crate) fn run_frame(
        &mut self,
        hook: Hook,
        ethernet: [u8; 12],
        mark: &mut u32,
        bytes: &[u8],
    ) -> (Verdict, Vec<u8>) {
        // The kernel runs nothing on a frame without a whole network header.
        if bytes.len() < F::HEADER as usize {
            return (Verdict::Pass, bytes.to_vec());
        }
        let mut frame = ethernet.to_vec();
        frame.extend(F::ETHERTYPE.to_be_bytes());
        frame.extend(bytes);
        let mut out = vec![0; frame.len() + 256];
        let (returned, length) = test_run(self.loaded().program(hook), mark, &frame, &mut out);
        out.truncate(length);
        let verdict = match returned {
            NEXT => Verdict::Pass,
            SHOT => Verdict::Drop,
            REDIRECT => Verdict::Answer,
            other => panic!("the program returned {other}"),
        };
        let (head, rest) = out.split_at(14);
        if verdict == Verdict::Answer {
            assert_eq!((&head[..6], &head[6..12]), (&ethernet[6..], &ethernet[..6]));
        } else {
            assert_eq!(head[..12], ethernet);
        }
        assert_eq!(head[12..], F::ETHERTYPE.to_be_bytes());
        (verdict, rest.to_vec())
    }

    /// What a hook has counted since the machine was made, by reason.
    pub(crate) fn drops(&mut self, hook: Hook) -> Vec<u64> {
        let counted = self.counted(hook);
        counted
            .iter()
            .zip(&self.counted_before[hook as usize])
            .map(|(now, then)| now - then)
            .collect()
    }

    fn counted(&self, hook: Hook) -> Vec<u64> {
        let count = |reason: &Reason| {
            let index = drop_index(hook, *reason);
            self.loaded().drops.get(&index, 0).expect("a counter").iter().sum()
        };
        Reason::ALL.iter().map(count).collect()
    }

    fn table(&mut self, store: Store) -> &mut Flows<F> {
        match store {
            Store::Answered => &mut self.flows,
            Store::Pending => &mut self.pending,
        }
    }

    pub(crate) fn rows(&mut self, store: Store) -> Vec<plan::Row<F>> {
        let rows = self.table(store).rows().expect("rows");
        rows.into_iter().map(|(Row(key), Row(value))| (key, value)).collect()
    }

    /// Writes a row of `FLOWS`.
    pub(crate) fn put_flow(&mut self, key: FlowKey<F::Address>, row: Flow<F::Address>) {
        write(&mut self.flows, key, row);
    }

    pub(crate) fn remove_row(&mut self, store: Store, key: &FlowKey<F::Address>) {
        self.table(store).remove(&Row(*key)).expect("a row");
    }

    /// Lets time pass, in ticks, by setting back what tells when something was.
    pub(crate) fn pass(&mut self, ticks: u32) {
        for store in [Store::Answered, Store::Pending] {
            for (key, mut row) in self.rows(store) {
                row.last = row.last.wrapping_sub(ticks);
                write(self.table(store), key, row);
            }
        }
        let at = u32::from(F::V6);
        let Row(mut walk) = self.walks.get(&Row(at)).expect("a row").expect("a row");
        walk.in_vain = walk.in_vain.wrapping_sub(ticks);
        write(&mut self.walks, at, walk);
    }

    pub(crate) fn sweep(&mut self) {
        self.loaded().sweep();
    }

    /// Opens a UDP socket that would take packets with this tuple, for as long as the machine
    /// is there.
    pub(crate) fn hold(&mut self, key: &FlowKey<F::Address>) {
        assert_eq!(key.proto, protocol::UDP);
        let port = key.dst_port.get();
        let socket = if F::V6 {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        } else {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        };
        let socket = socket.expect("a free port");
        self.sockets.push(socket);
    }
}

impl<F: Side> Machine<F> {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let node = Node::new(Object::Proxy, sizes);
        let loaded = node.loaded();
        let of_family = |name: &str| loaded.map(&format!("{name}{}", F::SUFFIX));
        let mut machine = Self {
            frontends: MapTable::new(of_family("FRONTENDS")).expect("sizes"),
            addresses: MapTable::new(of_family("ADDRESSES")).expect("sizes"),
            backends: MapTable::new(of_family("BACKENDS")).expect("sizes"),
            services: MapTable::new(loaded.map("SERVICES")).expect("sizes"),
            stats: MapTable::new(loaded.map("STATS")).expect("sizes"),
            affinity: MapTable::new(of_family("AFFINITY")).expect("sizes"),
            ranges: MapTable::new(of_family("RANGES")).expect("sizes"),
            loads: MapTable::new(loaded.map("LOADS")).expect("sizes"),
            rates: MapTable::new(loaded.map("RATES")).expect("sizes"),
            service_networks: MapTable::new(of_family("SERVICENETS")).expect("sizes"),
            vteps: MapTable::new(of_family("VTEPS")).expect("sizes"),
            tunnels: MapTable::new(loaded.map("TUNNELS")).expect("sizes"),
            service_cover: MapTable::new(loaded.map("SERVICECOVER")).expect("sizes"),
            settings: MapTable::new(loaded.map("SETTINGS")).expect("sizes"),
            address_marks: MapTable::new(loaded.map("ADDRESSMARKS")).expect("sizes"),
            port_marks: MapTable::new(loaded.map("PORTMARKS")).expect("sizes"),
            node,
        };
        machine.clear();
        machine
    }

    /// Takes away what an earlier case has left.
    fn clear(&mut self) {
        clear(&mut self.frontends);
        clear(&mut self.addresses);
        clear(&mut self.affinity);
        clear(&mut self.ranges);
        clear(&mut self.loads);
        clear(&mut self.rates);
        clear(&mut self.service_networks);
        clear(&mut self.vteps);
        write(&mut self.tunnels, 0, Tunnel::default());
        for index in 0..SERVICES {
            write(&mut self.services, index, Service::default());
            write(&mut self.stats, index, ServiceCounters::default());
        }
        write(&mut self.settings, 0, Settings::default());
        write(&mut self.service_cover, u32::from(F::V6), Cover::NONE);
        write(&mut self.address_marks, 0, NO_MARKS);
        write(&mut self.port_marks, 0, NO_PORTS);
    }

    pub(crate) fn put_address(&mut self, address: F::Address, usage: AddressUse) {
        let Row(mut marks) = self.address_marks.get(&Row(0)).expect("a row").expect("a row");
        marks[address_mark(address)] |= mark::of_use(usage.flags);
        write(&mut self.address_marks, 0, marks);
        write(&mut self.addresses, address, usage);
    }

    pub(crate) fn put_frontend(&mut self, key: FrontendKey<F::Address>, row: Frontend) {
        if row.kind != kind::CLUSTER_IP {
            let Row(mut marks) = self.port_marks.get(&Row(0)).expect("a row").expect("a row");
            marks[port_mark(key.port)] |= mark::of_protocol(key.proto);
            write(&mut self.port_marks, 0, marks);
        }
        write(&mut self.frontends, key, row);
    }

    pub(crate) fn put_service(&mut self, index: u32, row: Service) {
        write(&mut self.services, index, row);
    }

    pub(crate) fn put_backend(&mut self, index: u32, row: Backend<F::Address>) {
        write(&mut self.backends, index, row);
    }

    pub(crate) fn put_load(&mut self, slot: u32, load: u32) {
        write(&mut self.loads, load_key(slot, F::V6), load.into());
    }

    pub(crate) fn load(&mut self, slot: u32) -> u32 {
        let row = self.loads.get(&Row(load_key(slot, F::V6))).expect("a row").expect("a row");
        row.0 as u32
    }

    /// This node's address in the overlay, and a pod elsewhere whose node answers clients itself.
    pub(crate) fn put_answering(&mut self, underlay: F::Address, pod: F::Address) {
        let octets = F::octets(underlay);
        let mut tunnel = Tunnel::default();
        if let Ok(octets) = octets.as_slice().try_into() {
            tunnel.underlay4 = Ipv4::from_bytes(octets);
        } else {
            tunnel.underlay6 = Ipv6::from_bytes(octets.try_into().expect("sixteen bytes"));
        }
        write(&mut self.tunnels, 0, tunnel);
        let network = NetworkKey { prefix_len: if F::V6 { 128 } else { 32 }, network: pod };
        let underlay = <F::Address>::default();
        write(
            &mut self.vteps,
            network,
            Vtep { underlay, mac: Mac::default(), by_uplink: 0, answers: 1 },
        );
    }

    /// The networks that cluster IPs are given out of.
    pub(crate) fn put_service_networks(&mut self, networks: &[NetworkKey<F::Address>]) {
        clear(&mut self.service_networks);
        for network in networks {
            write(&mut self.service_networks, *network, 1);
        }
        let networks: Vec<_> = networks.iter().map(|key| (key.network, key.prefix_len)).collect();
        write(&mut self.service_cover, u32::from(F::V6), Cover::of(&networks));
    }

    pub(crate) fn put_range(&mut self, key: RangeKey<F::Address>) {
        write(&mut self.ranges, key, ADMITTED);
    }

    pub(crate) fn remove_range(&mut self, key: RangeKey<F::Address>) {
        self.ranges.remove(&Row(key)).expect("a row");
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) {
        write(&mut self.settings, 0, settings);
    }

    /// Lets time pass, in ticks, for flows and for what is known of clients.
    pub(crate) fn pass(&mut self, ticks: u32) {
        self.node.pass(ticks);
        for (Row(key), Row(mut row)) in self.affinity.rows().expect("rows") {
            row.last = row.last.wrapping_sub(ticks);
            write(&mut self.affinity, key, row);
        }
        for (Row(origin), Row(number)) in self.rates.rows().expect("rows") {
            // The machine may be younger than that.
            write(&mut self.rates, origin, number.saturating_sub(u64::from(ticks) * TICK_NS));
        }
    }

    pub(crate) fn counters(&mut self, service: u32) -> ServiceCounters {
        self.stats.get(&Row(service)).expect("a row").expect("a row").0
    }
}

impl<F: Side> Overlay<F> {
    pub(crate) fn new(sizes: Sizes) -> Self {
        let node = Node::new(Object::Overlay, sizes);
        let policies = MapTable::new(node.loaded().map("POLICIES")).expect("sizes");
        let mut overlay = Self { node, policies };
        overlay.set_policy(Policy::default());
        overlay
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        write(&mut self.policies, 0, policy);
    }
}

/// Machines are nodes, and packets are sent through them as such.
macro_rules! is_a_node {
    ($($machine:ident)*) => {$(
        impl<F: Sample> Deref for $machine<F> {
            type Target = Node<F>;

            fn deref(&self) -> &Node<F> {
                &self.node
            }
        }

        impl<F: Sample> DerefMut for $machine<F> {
            fn deref_mut(&mut self) -> &mut Node<F> {
                &mut self.node
            }
        }

        impl<F: Side> Runs<F> for $machine<F> {
            fn run(&mut self, hook: Hook, bytes: &[u8]) -> (Verdict, Vec<u8>) {
                self.node.run(hook, bytes)
            }

            fn drops(&mut self, hook: Hook) -> Vec<u64> {
                self.node.drops(hook)
            }

            fn rows(&mut self, store: Store) -> Vec<plan::Row<F>> {
                self.node.rows(store)
            }
        }
    )*};
}

is_a_node!(Machine Overlay);

impl<F: Sample> Drop for Node<F> {
    fn drop(&mut self) {
        if let Some(loaded) = self.loaded.take() {
            loaded.give_back();
        }
    }
}
