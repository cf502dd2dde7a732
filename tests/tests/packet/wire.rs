//! The program on the wire, beside the engine on plain memory: the same frames and the same tables,
//! with ways that the kernel tells; and what becomes of each must be the same to the byte.

use std::collections::{BTreeMap, HashMap};

use agent_kit::table::{MapTable, Table};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use datapath::{
    address::{Address, Be16, Mac, V4, V6, protocol},
    algorithm::Algorithm,
    backend::{Backend, backend_flags},
    both,
    counter::{Hook, Reason, drop_index},
    egress::egress,
    flow::{Flow, FlowKey, Parties, Place, flow_flags, hook, role, seen, timeout_sec},
    flow_cache::{self, Common, FRESH, Line, UNUSED, WAYS},
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind, mark},
    host::{
        buffer::Buffer,
        frame::{Datagram, Sample, Sum, icmp},
        verify::{describe, difference},
    },
    ingress::ingress,
    maps::{MARKS_LEN, PORTMARKS_LEN},
    nexthop::{NEXTHOPS_LEN, NextHop, SEENSENDERS_LEN, SeenSender, Uplink, mode, place},
    packet::Verdict,
    service::{Service, ServiceCounters, SetRef, service_flags},
    settings::Settings,
    source_rate,
    tunnel::{NetworkKey, Sender, Tunnel, Vtep},
    wire::Fate,
};

use crate::{
    machine::{self, Rows, Sizes, clear, write},
    object::{self, Loaded, Object, Row, test_run, test_run_wire},
    twins::{Dice, mangle, packets, tick},
    uplinks::{Uplinks, run},
    wire_scene::{
        ETHERNET, Key, Kind, MTU, PEER, PORT, ROUTER, ROUTER2, SERVICE, Scene, Side, UP, UP2,
        arriving, at, from_peer, network, reply, request, set_congestion,
    },
};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;

pub(crate) trait Family: Side + machine::Side {}

impl Family for V4 {}
impl Family for V6 {}

type Ways<F> = PerCpuArray<MapData, Row<NextHop<<F as datapath::address::Family>::Address>>>;

/// What a case changes in a row, and in words.
type Change<A> = (&'static str, fn(&mut Flow<A>));

/// The loaded program and the engine in memory, with the same tables.
pub(crate) struct Pair<F: Family> {
    pub(crate) scene: Scene<F>,
    flows: Rows<Key<F>, Flow<F::Address>>,
    copies: Rows<u32, Line<F::Address>>,
    commons: Rows<u32, Common<F::Address>>,
    uplinks: Rows<u32, Uplink>,
    tunnels: Rows<u32, Tunnel>,
    vteps: Rows<NetworkKey<F::Address>, Vtep<F::Address>>,
    senders: Rows<Sender, u32>,
    stats: Rows<u32, ServiceCounters>,
    pending: Rows<Key<F>, Flow<F::Address>>,
    frontends: Rows<FrontendKey<F::Address>, Frontend>,
    addresses: Rows<F::Address, AddressUse>,
    rates: Rows<u64, u64>,
    services: Rows<u32, Service>,
    backends: Rows<u32, Backend<F::Address>>,
    settings: Rows<u32, Settings>,
    ways: Ways<F>,
    seen_senders: PerCpuArray<MapData, Row<SeenSender>>,
    processors: usize,
    dropped_before: u64,
    loaded: Option<Loaded>,
    /// Left last: descriptors know of no namespace.
    _uplinks: Uplinks,
}

impl<F: Family> Drop for Pair<F> {
    fn drop(&mut self) {
        self.loaded.take().into_iter().for_each(Loaded::give_back);
    }
}

impl<F: Family> Pair<F> {
    pub(crate) fn new() -> Self {
        let loaded = Loaded::take(Object::Proxy, Sizes::default());
        let uplinks = Uplinks::new();
        let of_family = |name: &str| loaded.map(&format!("{name}{}", F::SUFFIX));
        let ways = MapData::from_fd(of_family("NEXTHOPS")).and_then(Map::from_map_data);
        let seen = MapData::from_fd(loaded.map("SEENSENDERS")).and_then(Map::from_map_data);
        let scene = Scene::new(uplinks.devices, tick());
        let mut pair = Self {
            flows: MapTable::new(of_family("FLOWS")).expect("sizes"),
            copies: MapTable::new(of_family("FLOWCACHE")).expect("sizes"),
            commons: MapTable::new(of_family("FLOWCOMMON")).expect("sizes"),
            uplinks: MapTable::new(loaded.map("UPLINKS")).expect("sizes"),
            tunnels: MapTable::new(loaded.map("TUNNELS")).expect("sizes"),
            vteps: MapTable::new(of_family("VTEPS")).expect("sizes"),
            senders: MapTable::new(loaded.map("SENDERS")).expect("sizes"),
            stats: MapTable::new(loaded.map("STATS")).expect("sizes"),
            pending: MapTable::new(of_family("PENDING")).expect("sizes"),
            frontends: MapTable::new(of_family("FRONTENDS")).expect("sizes"),
            addresses: MapTable::new(of_family("ADDRESSES")).expect("sizes"),
            rates: MapTable::new(loaded.map("RATES")).expect("sizes"),
            services: MapTable::new(loaded.map("SERVICES")).expect("sizes"),
            backends: MapTable::new(of_family("BACKENDS")).expect("sizes"),
            settings: MapTable::new(loaded.map("SETTINGS")).expect("sizes"),
            ways: ways.and_then(PerCpuArray::try_from).expect("ways"),
            seen_senders: seen.and_then(PerCpuArray::try_from).expect("senders"),
            processors: aya::util::nr_cpus().expect("processors"),
            dropped_before: 0,
            loaded: Some(loaded),
            _uplinks: uplinks,
            scene,
        };
        // What an earlier case has left, and what this one begins with.
        clear(&mut pair.flows);
        clear(&mut pair.vteps);
        clear(&mut pair.senders);
        clear(&mut pair.pending);
        clear(&mut pair.frontends);
        clear(&mut pair.addresses);
        clear(&mut pair.rates);
        write(&mut pair.settings, 0, Settings::default());
        for index in 0..datapath::nexthop::UPLINKS_LEN {
            write(&mut pair.uplinks, index, Uplink::default());
        }
        write(&mut pair.stats, SERVICE, ServiceCounters::default());
        pair.dropped_before = pair.dropped();
        pair.forget_ways();
        pair.store_rows();
        pair.store_marks();
        pair.set_uplink(pair.scene.devices.up, UP, 1);
        pair.set_uplink(pair.scene.devices.up2, UP2, 1);
        pair.set_tunnel(pair.scene.wires.tunnel);
        let vtep = |host| Vtep { underlay: host, mac: PEER, by_uplink: 1, answers: 0 };
        write(&mut pair.vteps, network::<F>(2), vtep(F::address(9, 2)));
        write(&mut pair.vteps, network::<F>(25), vtep(F::address(26, 1)));
        write(&mut pair.senders, Sender { mac: PEER, pad: 0 }, 1);
        pair
    }

    pub(crate) fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("given back at the end only")
    }

    /// Has the program ask the kernel anew.
    fn forget_ways(&mut self) {
        let empty = vec![Row(NextHop::default()); self.processors];
        for index in 0..NEXTHOPS_LEN {
            let empty = PerCpuValues::try_from(empty.clone()).expect("one for each");
            self.ways.set(index, empty, 0).expect("a row");
        }
        let empty = vec![Row(SeenSender::default()); self.processors];
        for index in 0..SEENSENDERS_LEN {
            let empty = PerCpuValues::try_from(empty.clone()).expect("one for each");
            self.seen_senders.set(index, empty, 0).expect("a row");
        }
    }

    /// Writes all flows of the scene.
    fn store_rows(&mut self) {
        for (key, row) in &self.scene.memory.flows {
            write(&mut self.flows, *key, *row);
        }
        for key in self.scene.memory.flows.keys().copied().collect::<Vec<_>>() {
            self.forget_copy(&key);
        }
    }

    fn store_marks(&mut self) {
        let loaded = self.loaded.as_ref().expect("given back at the end only");
        let row = |bytes: &[u8]| <[u8; MARKS_LEN]>::try_from(bytes).expect("as long as that");
        const { assert!(MARKS_LEN == PORTMARKS_LEN) };
        let wires = &self.scene.wires;
        for (name, bytes) in
            [("ADDRESSMARKS", &wires.uses), ("PORTMARKS", &wires.ports), ("MARKS", &wires.marks)]
        {
            let mut table: Rows<u32, [u8; MARKS_LEN]> =
                MapTable::new(loaded.map(name)).expect("sizes");
            write(&mut table, 0, row(bytes));
        }
    }

    fn set_uplink(&mut self, device: u32, mac: Mac, sends: u16) {
        let row = Uplink { device, mac, sends, mode: mode::NATIVE };
        write(&mut self.uplinks, place(device), row);
        if device == self.scene.devices.up {
            self.scene.wires.uplink = Some(row);
        }
        self.forget_ways();
    }

    fn remove_uplink(&mut self, device: u32) {
        write(&mut self.uplinks, place(device), Uplink::default());
        if device == self.scene.devices.up {
            self.scene.wires.uplink = None;
        }
        self.forget_ways();
    }

    fn set_tunnel(&mut self, tunnel: Tunnel) {
        write(&mut self.tunnels, 0, tunnel);
        self.scene.wires.tunnel = tunnel;
        self.forget_ways();
    }

    /// Changes a row.
    pub(crate) fn change(&mut self, key: &Key<F>, change: impl FnOnce(&mut Flow<F::Address>)) {
        let row = self.scene.row(key);
        change(row);
        write(&mut self.flows, *key, *row);
        self.forget_copy(key);
    }

    /// Has the flow of a kind another backend, in both.
    fn put(&mut self, parties: &datapath::flow::Parties<F::Address>) {
        let last = self.scene.wires.now;
        self.scene.put(parties, true, last);
        self.store_rows();
        self.store_marks();
    }

    /// Of whatever flow they are.
    fn forget_copy(&mut self, key: &Key<F>) {
        for way in 0..WAYS {
            let place = flow_cache::beside(flow_cache::place(key), way);
            write(&mut self.copies, place, Line::default());
        }
    }

    /// The copy of a flow's row, and its place.
    fn copy(&self, key: &Key<F>) -> Option<(u32, Line<F::Address>)> {
        let places = (0..WAYS).map(|way| flow_cache::beside(flow_cache::place(key), way));
        let mut copies = places.filter_map(|place| {
            let Row(line) = self.copies.get(&Row(place)).expect("a row").expect("of an array");
            let common = self.commons.get(&Row(line.common.into()));
            let Row(common) = common.expect("a row").expect("of an array");
            let is_its = line.key(&common) == *key && common.is_meant(line.since);
            is_its.then_some((place, line))
        });
        let found = copies.next();
        assert_eq!(copies.next(), None, "two copies of {key:?}");
        found
    }

    /// A row with what its copy knows.
    fn whole(&self, key: &Key<F>, Row(mut row): Row<Flow<F::Address>>) -> Flow<F::Address> {
        if let Some((_, line)) = self.copy(key) {
            line.bring_home(line.since, &mut row);
        }
        row
    }

    fn dropped(&self) -> u64 {
        let counted = |reason: &Reason| -> u64 {
            let counter = drop_index(Hook::XdpIngress, *reason);
            self.loaded().drops.get(&counter, 0).expect("a counter").iter().sum()
        };
        Reason::ALL.iter().map(counted).sum()
    }

    /// Sends a frame through both.
    #[track_caller]
    fn run(&mut self, bytes: &[u8]) -> (Fate, Vec<u8>) {
        self.scene.set_now(tick());
        let device = self.scene.devices.up;
        let (returned, out) = test_run_wire(self.loaded().wire(), device, bytes);
        let (fate, host) = self.scene.run(bytes);
        let expected = match fate {
            Fate::Pass => XDP_PASS,
            Fate::Drop => XDP_DROP,
            Fate::Send(to) if to == device => XDP_TX,
            Fate::Send(_) => XDP_REDIRECT,
        };
        let about = |frame: &[u8]| describe::<F>(frame.get(ETHERNET..).unwrap_or_default());
        assert_eq!(returned, expected, "{fate:?} of {}", about(bytes));
        if out != host {
            let packets = difference::<F>(&host[ETHERNET..], &out[ETHERNET..]);
            let link = [&host[..ETHERNET], &out[..ETHERNET]];
            panic!("{fate:?} of {}\nlink {link:x?}: {packets:?}", about(bytes));
        }
        (fate, host)
    }

    /// The tables of both are the same.
    #[track_caller]
    fn same_tables(&mut self) {
        let rows = self.flows.rows().expect("rows").into_iter();
        let rows: HashMap<_, _> =
            rows.map(|(Row(key), row)| (key, self.whole(&key, row))).collect();
        let mut host = self.scene.memory.flows.clone();
        for (key, row) in &mut host {
            // Of a copy, other rows are told later, and its own is told when it is made, even if the frame
            // then passes: one that is stale since then seems older than it is.
            let is_made = |found: &Flow<F::Address>| {
                self.copy(key).is_some_and(|(_, line)| found.last.wrapping_sub(line.since) <= FRESH)
            };
            let is_told = |found: &Flow<F::Address>| {
                row.last.wrapping_sub(found.last) < FRESH || is_made(found)
            };
            if rows.get(key).is_some_and(is_told) {
                row.last = rows[key].last;
            }
        }
        for (key, row) in &host {
            assert_eq!(rows.get(key), Some(row), "{key:?}");
        }
        assert_eq!(rows.len(), host.len());
        let counted = self.stats.get(&Row(SERVICE)).expect("a row");
        let host = self.scene.memory.stats.get(&SERVICE).copied();
        assert_eq!(counted.expect("a row").0, host.unwrap_or_default());
        let dropped = self.scene.memory.drops.iter().sum::<u64>();
        assert_eq!(self.dropped() - self.dropped_before, dropped);
    }

    /// Sends a frame that must pass as it is.
    #[track_caller]
    fn passes(&mut self, bytes: &[u8], what: &str) {
        let (fate, out) = self.run(bytes);
        assert!(fate == Fate::Pass && out == bytes, "{what}: {fate:?}");
        self.same_tables();
    }

    #[track_caller]
    fn is_sent(&mut self, bytes: &[u8], device: u32) -> Vec<u8> {
        let (fate, out) = self.run(bytes);
        assert_eq!(fate, Fate::Send(device));
        self.same_tables();
        out
    }
}

both! {
    frames_of_all_flows_become_the_same,
    what_the_flow_has_to_learn_of_passes,
    what_a_frame_is_told_by_passes,
    ways_are_the_kernels,
    uplinks_are_those_of_the_table,
    packets_are_as_long_as_the_way_takes,
    packets_are_as_long_as_the_tunnel_takes,
    the_way_is_asked_for_anew,
    tunnels_are_judged_alike,
    pods_networks_without_a_tunnel_have_no_way,
    where_the_device_alone_encapsulates_it_does,
    every_bit_of_the_headers_is_judged_alike,
    nothing_is_read_that_is_not_there,
    large_frames_lie_in_pieces,
    what_would_begin_a_flow_too_many_is_dropped,
    pings_are_answered_alike,
    connections_begin_alike,
    a_row_that_goes_takes_its_copy_with_it,
    where_its_place_is_anothers_a_flow_goes_by_its_row,
    differential,
}

fn what_would_begin_a_flow_too_many_is_dropped<F: Family>() {
    let mut pair = Pair::<F>::new();
    let settings = Settings { new_flow_interval: source_rate::interval(1), ..Settings::default() };
    let frontend = Frontend { service: 0, kind: kind::NODE_PORT, pad: [0; 3] };
    let source = Place::new(F::elsewhere(8, 7), Be16::new(2000));
    for proto in [TCP, UDP] {
        let packet = Datagram::<F>::of(proto, source, at::<F>(9, 1, 30_080), 0x02);
        let (bytes, inner) = (arriving::<F>(&packet.bytes()), from_peer::<F>(&packet.bytes()));
        let answer = arriving::<F>(&Datagram { flags: 0x12, ..packet.clone() }.bytes());
        let key = FlowKey::new(packet.src, packet.dst, proto, hook::INGRESS);
        pair.passes(&bytes, "no frontend");
        let to = FrontendKey::new(packet.dst.addr, packet.dst.port, proto);
        write(&mut pair.frontends, to, frontend);
        pair.scene.memory.frontends.insert(to, frontend);
        pair.passes(&bytes, "any number");
        write(&mut pair.settings, 0, settings);
        pair.scene.memory.settings = settings;
        pair.passes(&bytes, "a source that nobody knows");
        for (number, is_over) in [(1, false), (u64::MAX >> 1, true)] {
            write(&mut pair.rates, source.addr.origin(), number);
            pair.scene.memory.rates.insert(source.addr.origin(), number);
            let expected = if is_over { Fate::Drop } else { Fate::Pass };
            assert_eq!(pair.run(&bytes), (expected, bytes.clone()));
            pair.same_tables();
            pair.passes(&inner, "out of a tunnel");
            if proto == TCP {
                pair.passes(&answer, "begins nothing");
            }
        }
        let row = Flow { role: role::ORIGINAL, ..Flow::default() };
        write(&mut pair.pending, key, row);
        pair.scene.memory.pending.insert(key, row);
        pair.passes(&bytes, "begun, and not answered yet");
        // Nobody writes there.
        let numbers = pair.rates.rows().expect("rows").into_iter();
        let numbers: Vec<_> = numbers.map(|(Row(origin), Row(number))| (origin, number)).collect();
        assert_eq!(numbers, [(source.addr.origin(), u64::MAX >> 1)]);
        clear(&mut pair.rates);
        pair.scene.memory.rates.clear();
        write(&mut pair.settings, 0, Settings::default());
        pair.scene.memory.settings = Settings::default();
    }
}

/// Has a port of the node served by a backend of its own, and tells a SYN to it, and whereto that goes.
fn serves<F: Family>(pair: &mut Pair<F>) -> (Datagram<F>, Parties<F::Address>) {
    let mut parties = Kind::Local.parties::<F>(TCP);
    parties.frontend = at::<F>(9, 1, 30_080);
    let Parties { client, frontend, backend, .. } = parties;
    let row = Backend {
        addr: backend.addr,
        port: backend.port,
        generation: 0,
        flags: backend_flags::LOCAL,
    };
    pair.scene.serve(frontend, Algorithm::Maglev, &[row]);
    let memory = &pair.scene.memory;
    for (key, row) in &memory.frontends {
        write(&mut pair.frontends, *key, *row);
    }
    for (slot, row) in &memory.backends {
        write(&mut pair.backends, *slot, *row);
    }
    for (index, row) in &memory.services {
        write(&mut pair.services, *index, *row);
    }
    for key in [parties.original(), parties.reply()] {
        pair.scene.memory.flows.remove(&key);
        let _ = pair.flows.remove(&Row(key));
    }
    (Datagram::of(TCP, client, frontend, 0x02), parties)
}

/// What the packet path at the uplink makes of a packet, in the loaded program and in memory.
fn on_the_packet_path<F: Family>(
    pair: &mut Pair<F>,
    hook: Hook,
    packet: &Datagram<F>,
) -> [Vec<u8>; 2] {
    let kind = <F as Sample>::ETHERTYPE.to_be_bytes();
    let frame = [&object::ETHERNET[..], &kind, &packet.bytes()].concat();
    let mut out = vec![0; frame.len() + 64];
    let (returned, length) = test_run(pair.loaded().program(hook), &mut 0, &frame, &mut out);
    assert_eq!(returned, -1, "{hook:?}");
    let memory = &mut pair.scene.memory;
    let mut buffer = Buffer::new(packet.bytes());
    let verdict = if hook == Hook::UplinkIngress {
        ingress::<F, _, _>(&mut buffer, memory, hook)
    } else {
        egress::<F, _, _>(&mut buffer, memory, hook)
    };
    assert_eq!(verdict, Verdict::Pass);
    [out[ETHERNET..length].to_vec(), buffer.bytes]
}

/// All of the rows that were not answered yet but when they were written.
fn timeless<F: Family>(
    rows: impl Iterator<Item = (Key<F>, Flow<F::Address>)>,
) -> BTreeMap<Key<F>, Flow<F::Address>> {
    rows.map(|(key, row)| (key, Flow { last: 0, since: 0, ..row })).collect()
}

fn same_beginnings<F: Family>(pair: &mut Pair<F>) -> usize {
    let loaded = pair.pending.rows().expect("rows").into_iter();
    let loaded = timeless::<F>(loaded.map(|(Row(key), Row(row))| (key, row)));
    let memory = timeless::<F>(pair.scene.memory.pending.iter().map(|(key, row)| (*key, *row)));
    assert_eq!(loaded, memory);
    loaded.len()
}

fn connections_begin_alike<F: Family>() {
    let mut pair = Pair::<F>::new();
    let (syn, parties) = serves(&mut pair);
    let bytes = arriving::<F>(&syn.bytes());
    // The second is the same again.
    for _ in 0..2 {
        let (fate, out) = pair.run(&bytes);
        assert_eq!(
            (fate, &out),
            (Fate::Pass, &arriving::<F>(&syn.clone().to(parties.backend).bytes()))
        );
        assert_eq!(same_beginnings(&mut pair), 1);
        pair.same_tables();
    }
    let answer = Datagram::<F>::of(TCP, parties.backend, parties.client, 0x12);
    let expected = answer.clone().from(parties.frontend).bytes();
    assert_eq!(on_the_packet_path(&mut pair, Hook::UplinkEgress, &answer), [&expected[..]; 2]);
    assert_eq!(same_beginnings(&mut pair), 2);
    pair.passes(&bytes, "answered, and not kept yet");
    let ack = Datagram { flags: 0x10, ..syn };
    let bytes = arriving::<F>(&ack.bytes());
    pair.passes(&bytes, "kept by the packet path");
    let expected = ack.clone().to(parties.backend).bytes();
    assert_eq!(on_the_packet_path(&mut pair, Hook::UplinkIngress, &ack), [&expected[..]; 2]);
    assert_eq!(same_beginnings(&mut pair), 0);
    assert_eq!(pair.run(&bytes), (Fate::Pass, arriving::<F>(&expected)));
    // What is not for one row alone is the packet path's.
    for change in [
        (|row| row.flags &= !service_flags::ALGORITHM) as fn(&mut Service),
        |row| row.affinity = 10,
        |row| row.flags |= service_flags::SOURCE_RANGES,
        |row| row.cluster = SetRef::REJECT,
    ] {
        let mut pair = Pair::<F>::new();
        let (syn, _) = serves(&mut pair);
        let row = pair.scene.memory.services.get_mut(&SERVICE).expect("a Service");
        change(row);
        write(&mut pair.services, SERVICE, *row);
        pair.passes(&arriving::<F>(&syn.bytes()), "not by the tuple alone");
        assert_eq!(same_beginnings(&mut pair), 0);
    }
}

/// A flow that was reset goes after ten seconds, and may have had frames just before that.
fn a_row_that_goes_takes_its_copy_with_it<F: Family>() {
    let mut pair = Pair::<F>::new();
    let parties = Kind::Local.parties::<F>(TCP);
    let key = parties.original();
    let bytes = arriving::<F>(&request::<F>(Kind::Local, TCP).bytes());
    for _ in 0..2 {
        assert_ne!(pair.run(&bytes).1, bytes);
    }
    let then = pair.scene.wires.now.wrapping_sub(timeout_sec::TCP_RESET + 2);
    let (place, mut line) = pair.copy(&key).expect("a copy");
    (line.since, line.last) = (then, then as u8);
    for (key, seen) in [(key, seen::PACKET), (parties.reply(), seen::PACKET | seen::RST)] {
        pair.change(&key, |row| (row.last, row.seen) = (then, seen));
    }
    write(&mut pair.copies, place, line);
    let counted = line.packets;
    assert_ne!(pair.run(&bytes).1, bytes);
    assert_eq!(pair.copy(&key).expect("still there").1.packets, counted + 1);
    write(&mut pair.copies, place, line);
    pair.loaded().sweep();
    pair.scene.memory.flows.retain(|key, _| *key != parties.original() && *key != parties.reply());
    assert!(pair.flows.get(&Row(key)).expect("a table").is_none());
    pair.passes(&bytes, "of no flow");
}

/// Two pairs of addresses may have one place, of which one pair's flows go by their rows.
fn where_its_place_is_anothers_a_flow_goes_by_its_row<F: Family>() {
    for kind in [Kind::Local, Kind::Tunnelled] {
        let mut pair = Pair::<F>::new();
        let parties = kind.parties::<F>(TCP);
        let (key, row) = (parties.original(), *pair.scene.row(&parties.original()));
        let place = flow_cache::common_place(key.dst, row.other);
        let now = tick();
        let taken = Common { used: now, since: now, dst: key.src, other: key.src };
        write(&mut pair.commons, place, taken);
        let bytes = arriving::<F>(&request::<F>(kind, TCP).bytes());
        for _ in 0..2 {
            assert_ne!(pair.run(&bytes).1, bytes, "{kind:?}");
            assert_eq!(pair.copy(&key), None, "{kind:?}");
            pair.same_tables();
        }
        // Nobody has used it for long.
        write(&mut pair.commons, place, Common { used: now.wrapping_sub(UNUSED), ..taken });
        for _ in 0..2 {
            assert_ne!(pair.run(&bytes).1, bytes, "{kind:?}");
            pair.same_tables();
        }
        assert_eq!(pair.copy(&key).expect("a copy").1.packets, 2, "{kind:?}");
    }
}

fn pings_are_answered_alike<F: Family>() {
    let mut pair = Pair::<F>::new();
    let (client, address) = (F::elsewhere(8, 7), F::elsewhere(96, 1));
    let kinds: [u8; 2] = if F::V6 { [128, 129] } else { [8, 0] };
    let frames = kinds.map(|kind| {
        let echo = icmp::<F>(client, address, [kind, 0], [1, 2, 3, 4], &[0x61; 57]);
        arriving::<F>(&Datagram { hops: 1, ..echo }.bytes())
    });
    for flags in [address_use::CLUSTER_IP, address_use::FRONTEND | address_use::ECHO] {
        let usage = AddressUse { flags };
        write(&mut pair.addresses, address, usage);
        pair.scene.memory.addresses.insert(address, usage);
        pair.scene.wires.mark_address(address, mark::of_use(flags));
        pair.store_marks();
        let [asked, answer] = &frames;
        if flags & address_use::ECHO == 0 {
            pair.passes(asked, "pings are refused");
        } else {
            let up = pair.scene.devices.up;
            pair.is_sent(asked, up);
            for length in ETHERNET..asked.len() {
                let _ = pair.run(&asked[..length]);
            }
        }
        pair.passes(answer, "no request");
    }
    pair.addresses.remove(&Row(address)).expect("it is there");
}

fn packet_of<F: Family>(kind: Kind, proto: u8, is_request: bool) -> Datagram<F> {
    if is_request { request(kind, proto) } else { reply(kind, proto) }
}

/// Replies come out of the tunnel where the backend is behind it.
fn enters<F: Family>(kind: Kind, is_request: bool, packet: &[u8]) -> Vec<u8> {
    let is_within = if is_request { kind == Kind::Arrived } else { kind.is_tunnelled() };
    if is_within { from_peer::<F>(packet) } else { arriving::<F>(packet) }
}

fn all() -> impl Iterator<Item = (Kind, u8, bool)> {
    let both = |kind| {
        [TCP, UDP].into_iter().flat_map(move |proto| [(kind, proto, true), (kind, proto, false)])
    };
    let comes = |(kind, _, is_request): &(Kind, u8, bool)| *is_request || kind.has_replies();
    Kind::ALL.into_iter().flat_map(both).filter(comes)
}

fn frames_of_all_flows_become_the_same<F: Family>() {
    let mut pair = Pair::<F>::new();
    for (kind, proto, is_request) in all() {
        let packet = packet_of::<F>(kind, proto, is_request);
        for payload in [0, 1, 27, 998] {
            let packet = packet.clone().with_payload(&vec![7; payload]);
            let bytes = enters::<F>(kind, is_request, &packet.bytes());
            let (fate, out) = pair.run(&bytes);
            let to = if !is_request && kind == Kind::Across {
                pair.scene.devices.up2
            } else {
                pair.scene.devices.up
            };
            let expected = if kind.is_local() { Fate::Pass } else { Fate::Send(to) };
            assert_eq!(fate, expected, "{kind:?} of {proto}, request: {is_request}");
            assert_ne!(out, bytes);
            pair.same_tables();
        }
        if proto == UDP {
            let packet = Datagram { sum: Sum::Zero, ..packet };
            let _ = pair.run(&enters::<F>(kind, is_request, &packet.bytes()));
        }
    }
}

fn what_the_flow_has_to_learn_of_passes<F: Family>() {
    let mut pair = Pair::<F>::new();
    for (kind, proto, is_request) in all() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let key = FlowKey::new(packet.src, packet.dst, proto, hook::INGRESS);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        for flags in [0x02, 0x12, 0x11, 0x14, 0x04] {
            let packet = Datagram { flags, ..packet.clone() };
            let bytes = enters::<F>(kind, is_request, &packet.bytes());
            if proto == TCP {
                pair.passes(&bytes, "news");
            }
        }
        let changes: [Change<F::Address>; 5] = [
            ("the first", |row| row.seen = 0),
            ("its endpoint is gone", |row| row.flags |= flow_flags::RESET),
            ("another role", |row| row.role = role::REPLY),
            ("another role", |row| row.role = role::ORIGINAL_SOURCE),
            ("no role", |row| row.role = 0),
        ];
        let before = *pair.scene.row(&key);
        for (what, change) in changes {
            pair.change(&key, change);
            pair.passes(&bytes, what);
            pair.change(&key, |row| *row = before);
        }
        if !kind.is_local() {
            pair.change(&key, |row| row.other_port = Be16::ZERO);
            pair.passes(&bytes, "without a source as yet");
        }
        let long_ago = tick().wrapping_sub(130);
        pair.change(&key, |row| *row = Flow { last: long_ago, ..before });
        let (_, out) = pair.run(&bytes);
        assert_eq!(out == bytes, proto == UDP, "idle for long");
        pair.change(&key, |row| *row = Flow { seen: seen::PACKET | seen::FIN, ..before });
        let packet = Datagram { flags: 0x11, ..packet };
        let (_, out) = pair.run(&enters::<F>(kind, is_request, &packet.bytes()));
        assert_ne!(out, bytes, "another FIN");
        pair.change(&key, |row| *row = before);
        pair.same_tables();
        // Without a row.
        pair.flows.remove(&Row(key)).expect("a row");
        pair.forget_copy(&key);
        let row = pair.scene.memory.flows.remove(&key).expect("a row");
        pair.passes(&bytes, "no row");
        pair.scene.memory.flows.insert(key, row);
        pair.change(&key, |_| {});
    }
}

fn what_a_frame_is_told_by_passes<F: Family>() {
    let mut pair = Pair::<F>::new();
    for (kind, proto, is_request) in all() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let enter = |packet: &Datagram<F>| enters::<F>(kind, is_request, &packet.bytes());
        for piece in packet.clone().with_payload(&[7; 64]).fragments(32) {
            pair.passes(&enters::<F>(kind, is_request, &piece), "a fragment");
        }
        let other = if F::V6 {
            Datagram { extensions: vec![(60, vec![0; 8])], ..packet.clone() }
        } else {
            Datagram { options: vec![1; 4], ..packet.clone() }
        };
        pair.passes(&enter(&other), "options");
        pair.passes(&enter(&Datagram { sum: Sum::Partial, ..packet.clone() }), "CHECKSUM_PARTIAL");
        pair.passes(&enter(&Datagram::sctp(packet.src, packet.dst, 0)), "SCTP");
        if !kind.is_local() {
            pair.passes(&enter(&Datagram { hops: 1, ..packet.clone() }), "no hop left");
            let _ = pair.run(&enter(&Datagram { hops: 2, ..packet.clone() }));
        }
        let whole = enter(&packet);
        for to in [Mac([0xff; 6]), Mac([2, 0, 0, 0, 9, 9])] {
            let mut bytes = whole.clone();
            bytes[..6].copy_from_slice(&to.0);
            pair.passes(&bytes, "a frame for others");
        }
        let mut tagged = whole.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        pair.passes(&tagged, "a tag");
    }
}

/// A flow of a masqueraded kind whose backend is elsewhere.
fn toward<F: Family>(pair: &mut Pair<F>, net: u8, proto: u8) -> Vec<u8> {
    let parties = datapath::flow::Parties {
        client: at::<F>(8, 6, 30_000 + u16::from(net)),
        backend: at::<F>(net, 3, 8080),
        ..Kind::Routed.parties::<F>(proto)
    };
    pair.put(&parties);
    let packet = crate::wire_scene::packet::<F>(proto, parties.client, parties.frontend);
    arriving::<F>(&packet.bytes())
}

fn ways_are_the_kernels<F: Family>() {
    let mut pair = Pair::<F>::new();
    for proto in [TCP, UDP] {
        for (net, what) in [
            (20, "no neighbour"),
            (21, "no uplink"),
            (23, "unreachable"),
            (24, "no route"),
            (9, "the other node, of which no address is known"),
        ] {
            let bytes = toward(&mut pair, net, proto);
            pair.passes(&bytes, what);
        }
        let up = pair.scene.devices.up;
        pair.scene.route(F::address(22, 3), up, ROUTER);
        let bytes = toward(&mut pair, 22, proto);
        pair.is_sent(&bytes, up);
        // To this node itself.
        let parties = datapath::flow::Parties {
            client: at::<F>(8, 6, 31_000),
            backend: at::<F>(9, 1, 8080),
            ..Kind::Routed.parties::<F>(proto)
        };
        pair.put(&parties);
        let packet = crate::wire_scene::packet::<F>(proto, parties.client, parties.frontend);
        pair.passes(&arriving::<F>(&packet.bytes()), "this node");
    }
}

fn uplinks_are_those_of_the_table<F: Family>() {
    let mut pair = Pair::<F>::new();
    let (up, up2) = (pair.scene.devices.up, pair.scene.devices.up2);
    let across = from_peer::<F>(&reply::<F>(Kind::Across, TCP).bytes());
    let back = from_peer::<F>(&reply::<F>(Kind::Tunnelled, TCP).bytes());
    let out = pair.is_sent(&across, up2);
    assert_eq!((&out[..6], &out[6..12]), (&ROUTER2.0[..], &UP2.0[..]));
    pair.is_sent(&back, up);
    let to = F::address(7, 5);
    let way = pair.scene.wires.hops[&to];
    for removes in [true, false] {
        if removes {
            pair.remove_uplink(up2);
        } else {
            pair.set_uplink(up2, UP2, 0);
        }
        pair.scene.wires.hops.remove(&to);
        pair.passes(&across, "frames may not be sent out there");
        pair.set_uplink(up2, UP2, 1);
        pair.scene.wires.hops.insert(to, way);
        pair.is_sent(&across, up2);
    }
    // Where they came in, they may always leave.
    pair.set_uplink(up, UP, 0);
    pair.is_sent(&back, up);
    // Another device has the row that this one would.
    pair.remove_uplink(up);
    let other = up + datapath::nexthop::UPLINKS_LEN;
    write(
        &mut pair.uplinks,
        place(other),
        Uplink { device: other, mac: UP, sends: 1, mode: mode::NATIVE },
    );
    pair.passes(&back, "no row");
}

fn packets_are_as_long_as_the_way_takes<F: Family>() {
    let mut pair = Pair::<F>::new();
    let up = pair.scene.devices.up;
    pair.scene.route(F::address(22, 3), up, ROUTER);
    pair.scene.wires.hops.get_mut(&F::address(22, 3)).expect("a way").mtu = 1_300;
    pair.scene.enter(F::address(25, 3));
    let way = pair.scene.wires.hops.get_mut(&F::address(25, 3)).expect("a way");
    (way.to, way.underlay) = (ROUTER, F::address(26, 1));
    way.mtu = 1_400 - F::OVERHEAD;
    way.constant = F::constant(way);
    let headers = F::HEADER as usize + 20;
    for (net, mtu) in [(3, MTU), (2, MTU - F::OVERHEAD), (22, 1_300), (25, 1_400 - F::OVERHEAD)] {
        toward(&mut pair, net, TCP);
        let parties = datapath::flow::Parties {
            client: at::<F>(8, 6, 30_000 + u16::from(net)),
            ..Kind::Routed.parties::<F>(TCP)
        };
        let packet = crate::wire_scene::packet::<F>(TCP, parties.client, parties.frontend);
        let fits = packet.clone().with_payload(&vec![7; mtu as usize - headers]);
        pair.is_sent(&arriving::<F>(&fits.bytes()), up);
        let long = packet.with_payload(&vec![7; mtu as usize - headers + 1]);
        pair.passes(&arriving::<F>(&long.bytes()), "too long");
    }
}

/// The tunnel's own MTU may be less than its way would take.
fn packets_are_as_long_as_the_tunnel_takes<F: Family>() {
    let mut pair = Pair::<F>::new();
    let tunnel = Tunnel { mtu: 1_280, ..pair.scene.wires.tunnel };
    pair.set_tunnel(tunnel);
    pair.scene.wires.hops.get_mut(&F::address(2, 3)).expect("a way").mtu = tunnel.mtu;
    let headers = F::HEADER as usize + 20;
    let up = pair.scene.devices.up;
    for (length, fits) in [(1_280, true), (1_281, false)] {
        let packet = request::<F>(Kind::Tunnelled, TCP).with_payload(&vec![7; length - headers]);
        let bytes = arriving::<F>(&packet.bytes());
        if fits {
            pair.is_sent(&bytes, up);
        } else {
            pair.passes(&bytes, "too long for the tunnel");
        }
    }
    // Other ways are as they were.
    let packet = request::<F>(Kind::Routed, TCP).with_payload(&[7; 1_400]);
    pair.is_sent(&arriving::<F>(&packet.bytes()), up);
}

/// What is known of a way holds until the tick ends.
fn the_way_is_asked_for_anew<F: Family>() {
    let mut pair = Pair::<F>::new();
    let up = pair.scene.devices.up;
    let bytes = arriving::<F>(&request::<F>(Kind::Routed, TCP).bytes());
    pair.is_sent(&bytes, up);
    let net = if F::V6 { "fd00::3:0/112" } else { "10.3.0.0/16" };
    let by = if F::V6 { "fd00::6:fe" } else { "10.6.0.254" };
    run(&format!("route replace {net} via {by}\n"));
    let before = tick();
    while tick() == before {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let up2 = pair.scene.devices.up2;
    pair.scene.route(F::address(3, 3), up2, ROUTER2);
    pair.is_sent(&bytes, up2);
}

fn tunnels_are_judged_alike<F: Family>() {
    let mut pair = Pair::<F>::new();
    let packet = reply::<F>(Kind::Tunnelled, TCP).bytes();
    let whole = from_peer::<F>(&packet);
    let tunnel = pair.scene.wires.tunnel;
    let other = Mac([2, 0, 0, 0, 9, 9]);
    for changed in [
        Tunnel { vni: tunnel.vni + 1, ..tunnel },
        Tunnel { port: Be16::new(4789), ..tunnel },
        Tunnel { mac4: other, mac6: other, ..tunnel },
        Tunnel::default(),
    ] {
        pair.set_tunnel(changed);
        pair.passes(&whole, &format!("{changed:?}"));
    }
    pair.set_tunnel(tunnel);
    let sender = Sender { mac: PEER, pad: 0 };
    pair.senders.remove(&Row(sender)).expect("a row");
    pair.scene.wires.senders.clear();
    pair.forget_ways();
    pair.passes(&whole, "no sender");
    write(&mut pair.senders, sender, 1);
    pair.scene.wires.senders.push(sender);
    for inner in 0..4 {
        for outer in 0..4 {
            let mut packet = packet.clone();
            set_congestion::<F>(&mut packet, inner);
            let mut bytes = from_peer::<F>(&packet);
            set_congestion::<F>(&mut bytes[ETHERNET..], outer);
            let (fate, _) = pair.run(&bytes);
            assert_eq!(fate != Fate::Pass, matches!(outer, 0 | 2) || outer == inner);
        }
    }
    for kind in Kind::ALL {
        let bytes = from_peer::<F>(&request::<F>(kind, TCP).bytes());
        let (fate, _) = pair.run(&bytes);
        assert_eq!(fate == Fate::Pass, kind.is_local() || kind == Kind::Direct);
    }
    // To the tunnels' port, where there is no tunnel.
    let mut bytes = arriving::<F>(&request::<F>(Kind::Local, UDP).bytes());
    let at = ETHERNET + F::HEADER as usize + 2;
    bytes[at..at + 2].copy_from_slice(&PORT.to_be_bytes());
    pair.passes(&bytes, "to the tunnels' port");
    pair.same_tables();
}

/// The overlay's agent writes one table after the other: what belongs into a tunnel never leaves
/// without one.
fn pods_networks_without_a_tunnel_have_no_way<F: Family>() {
    let mut pair = Pair::<F>::new();
    let tunnel = pair.scene.wires.tunnel;
    let bytes = arriving::<F>(&request::<F>(Kind::Tunnelled, TCP).bytes());
    let ways = pair.scene.wires.hops.clone();
    pair.set_tunnel(Tunnel::default());
    pair.scene.wires.hops.remove(&F::address(2, 3));
    pair.passes(&bytes, "no tunnel as yet");
    pair.set_tunnel(tunnel);
    pair.scene.wires.hops = ways;
    let up = pair.scene.devices.up;
    pair.is_sent(&bytes, up);
}

/// Where there is IPsec, or if somebody wants it so.
fn where_the_device_alone_encapsulates_it_does<F: Family>() {
    let mut pair = Pair::<F>::new();
    pair.set_tunnel(Tunnel { uplink: 0, ..pair.scene.wires.tunnel });
    for proto in [TCP, UDP] {
        let bytes = from_peer::<F>(&reply::<F>(Kind::Tunnelled, proto).bytes());
        pair.passes(&bytes, "out of the tunnel");
        pair.scene.wires.hops.remove(&F::address(2, 3));
        let bytes = arriving::<F>(&request::<F>(Kind::Tunnelled, proto).bytes());
        pair.passes(&bytes, "into the tunnel");
        let up = pair.scene.devices.up;
        let bytes = arriving::<F>(&request::<F>(Kind::Routed, proto).bytes());
        pair.is_sent(&bytes, up);
    }
}

fn every_bit_of_the_headers_is_judged_alike<F: Family>() {
    let mut pair = Pair::<F>::new();
    for (kind, is_request) in
        [(Kind::Tunnelled, false), (Kind::Tunnelled, true), (Kind::Local, true)]
    {
        for proto in [TCP, UDP] {
            let packet = packet_of::<F>(kind, proto, is_request);
            let whole = enters::<F>(kind, is_request, &packet.bytes());
            let end = whole.len() - packet.payload.len();
            for at in 0..end {
                for bit in 0..8 {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 1 << bit;
                    let _ = pair.run(&bytes);
                }
            }
        }
    }
    pair.same_tables();
}

fn nothing_is_read_that_is_not_there<F: Family>() {
    let mut pair = Pair::<F>::new();
    for (kind, proto, is_request) in all() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let whole = enters::<F>(kind, is_request, &packet.bytes());
        for length in ETHERNET..whole.len() {
            let _ = pair.run(&whole[..length]);
        }
    }
    pair.same_tables();
}

/// Of what is longer than a page, some lies elsewhere: headers do not.
fn large_frames_lie_in_pieces<F: Family>() {
    let mut pair = Pair::<F>::new();
    let packet = request::<F>(Kind::Local, TCP).with_payload(&[7; 8_000]);
    let (fate, out) = pair.run(&arriving::<F>(&packet.bytes()));
    assert_eq!(fate, Fate::Pass);
    assert_ne!(out, arriving::<F>(&packet.bytes()));
    let packet = request::<F>(Kind::Routed, TCP).with_payload(&[7; 8_000]);
    pair.passes(&arriving::<F>(&packet.bytes()), "too long");
}

/// Frames of each family that are compared, if `MILLRACE_PACKETS` says nothing else.
const FRAMES: u64 = 60_000;
/// Frames between two looks at the tables.
const ROUND: u64 = 2_000;

fn differential<F: Family>() {
    let seed = if F::V6 { 6 } else { 4 };
    let mut dice = Dice::new(seed);
    let mut pair = Pair::<F>::new();
    let (mut turned, mut sent, mut passed) = (0, 0, 0);
    let frames = packets(FRAMES);
    let rows = pair.scene.memory.flows.clone();
    let keys: Vec<_> = {
        let mut keys: Vec<_> = rows.keys().copied().collect();
        keys.sort_unstable();
        keys
    };
    for index in 0..frames {
        if index % ROUND == 0 {
            pair.same_tables();
            // Flows begin anew, and some are other than they should be.
            for (key, row) in &rows {
                let last = tick().wrapping_sub(3);
                pair.change(key, |found| *found = Flow { last, ..*row });
            }
            for _ in 0..3 {
                let key = keys[dice.below(keys.len())];
                let what = dice.below(6);
                let byte = dice.below(256) as u8;
                pair.change(&key, |row| match what {
                    0 => row.role = byte % 6,
                    1 => row.flags = u16::from(byte) & 3,
                    2 => row.seen = byte & 7,
                    3 => row.other_port = Be16::new(u16::from(byte) / 200),
                    4 => (row.alias, row.turn) = (Be16::new(byte.into()), Be16::new(byte.into())),
                    _ => row.to_port = Be16::new(byte.into()),
                });
            }
        }
        let bytes = any_frame::<F>(&mut dice);
        let (fate, out) = pair.run(&bytes);
        match fate {
            Fate::Pass if out == bytes => passed += 1,
            Fate::Pass => turned += 1,
            _ => sent += 1,
        }
    }
    pair.same_tables();
    let what = format!("turned {turned}, sent {sent}, passed {passed} of {frames}");
    println!("{what}");
    assert!(turned > frames / 50 && sent > frames / 10 && passed > frames / 10, "{what}");
}

/// A frame of a flow, most likely, spoilt more or less.
fn any_frame<F: Family>(dice: &mut Dice) -> Vec<u8> {
    let all: Vec<_> = all().collect();
    let (kind, proto, is_request) = dice.of(&all);
    let mut packet = packet_of::<F>(kind, proto, is_request);
    packet.flags = dice.of(&[0x10, 0x10, 0x18, 0x18, 0x02, 0x11, 0x04]);
    packet.hops = dice.of(&[64, 64, 64, 1, 2, 0]);
    if dice.below(20) == 0 {
        packet.sum = dice.of(&[Sum::Zero, Sum::Partial]);
    }
    if dice.below(20) == 0 {
        let length = 1_380 + dice.below(120);
        packet.payload = vec![7; length];
    }
    let mut bytes = mangle::<F>(dice, packet);
    if dice.below(10) == 0 && bytes.len() > 1 {
        set_congestion_of::<F>(dice, &mut bytes);
    }
    // Nearly always where it belongs.
    let is_request = is_request ^ (dice.below(20) == 0);
    let mut frame = enters::<F>(kind, is_request, &bytes);
    match dice.below(10) {
        0 => {
            for _ in 0..=dice.below(3) {
                let at = dice.below(frame.len().min(160));
                frame[at] ^= 1 << dice.below(8);
            }
        }
        1 => {
            let at = dice.below(frame.len().min(160));
            frame[at] = dice.below(256) as u8;
        }
        2 => frame.truncate(ETHERNET + dice.below(frame.len() - ETHERNET + 1)),
        3 => {
            let length = dice.below(64);
            frame.extend(dice.bytes(length));
        }
        _ => {}
    }
    frame
}

fn set_congestion_of<F: Family>(dice: &mut Dice, packet: &mut [u8]) {
    if packet.len() >= F::HEADER as usize {
        set_congestion::<F>(packet, dice.below(4) as u8);
    }
}
