//! Tables, devices and frames of the cases.

use std::{marker::PhantomData, os::fd::AsFd, process::Command, time::Duration};

use agent_kit::{
    Pod,
    table::{MapTable, Table, TableError},
};
use anyhow::{Context, Result, bail, ensure};
use aya::{Ebpf, maps::Map};
use datapath::{
    address::{Be16, Mac, V4, V6, protocol},
    algorithm::Algorithm,
    backend::{Backend, backend_flags},
    flow::{Flow, FlowKey, Parties, Place, TICK_NS, flow_flags, role, seen},
    frontend::{
        AddressUse, Frontend, FrontendKey, address_mark, address_use, kind, mark, port_mark,
    },
    hash,
    header::tcp,
    host::frame::{Datagram, Sample},
    maps::{MARKS_LEN, PORTMARKS_LEN},
    nexthop::{NextHop, Uplink, mode, place},
    service::{Service, SetRef, service_flags},
    tables::Opening,
    tunnel::{NetworkKey, Sender, Tunnel, Vtep},
    underlay::Underlay,
    vxlan::SOURCE_PORTS,
};

/// `XDP_PASS` and `XDP_TX`.
pub(crate) const PASS: u32 = 2;
const SEND: u32 = 3;
/// `TCX_NEXT`.
pub(crate) const NEXT: u32 = u32::MAX;

const OWN: Mac = Mac([2, 0, 0, 0, 9, 1]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 9, 2]);
const TUNNEL: Mac = Mac([2, 0, 0, 0, 8, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 8, 2]);
const PORT: u16 = 8472;
const VNI: u32 = 1;
const NODE_PORT: u16 = 30_080;
const SERVICES: u32 = 10_000;
/// Backends of the Service that is asked, and places of its table; others have two backends.
const BACKENDS: u32 = 64;
const PLACES: u32 = 6_421;
/// Clients are in 2, this node's pods in 3, other nodes' pods by a route in 4 and by a tunnel in 5,
/// cluster IPs in 6, what is none of ours in 7; nodes in 9.
const CLIENTS: u8 = 2;
const LOCAL: u8 = 3;
const ROUTED: u8 = 4;
const TUNNELLED: u8 = 5;
const CLUSTER: u8 = 6;
const FOREIGN: u8 = 7;
const NODES: u8 = 9;

static NO_MARKS: [u8; MARKS_LEN] = [0; MARKS_LEN];
static NO_PORTS: [u8; PORTMARKS_LEN] = [0; PORTMARKS_LEN];

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Case {
    NotOurs,
    Local,
    Remote,
    RemoteTunnel,
    Reply,
    ReplyTunnel,
    New,
}

impl Case {
    pub(crate) const ALL: [Self; 7] = [
        Self::NotOurs,
        Self::Local,
        Self::Remote,
        Self::RemoteTunnel,
        Self::Reply,
        Self::ReplyTunnel,
        Self::New,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not ours",
            Self::Local => "established, local backend",
            Self::Remote => "established, remote backend",
            Self::RemoteTunnel => "established, remote backend, tunnel",
            Self::Reply => "reply",
            Self::ReplyTunnel => "reply, tunnel",
            Self::New => "new flow",
        }
    }

    /// Where its backends are.
    const fn net(self) -> u8 {
        match self {
            Self::NotOurs | Self::Local | Self::New => LOCAL,
            Self::Remote | Self::Reply => ROUTED,
            Self::RemoteTunnel | Self::ReplyTunnel => TUNNELLED,
        }
    }

    pub(crate) const fn verdict(self) -> u32 {
        match self {
            Self::NotOurs | Self::Local | Self::New => PASS,
            Self::Remote | Self::RemoteTunnel | Self::Reply | Self::ReplyTunnel => SEND,
        }
    }
}

/// A family that frames are made of.
pub(crate) trait Family: Sample + Underlay {
    const NAME: &'static str;
    /// Bits of one of the networks above.
    const BITS: u8;
    fn own(tunnel: &mut Tunnel);
}

impl Family for V4 {
    const NAME: &'static str = "IPv4";
    const BITS: u8 = 16;

    fn own(tunnel: &mut Tunnel) {
        tunnel.underlay4 = Self::address(NODES, 1);
    }
}

impl Family for V6 {
    const NAME: &'static str = "IPv6";
    const BITS: u8 = 112;

    fn own(tunnel: &mut Tunnel) {
        tunnel.underlay6 = Self::address(NODES, 1);
    }
}

/// A key or value as it lies in a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Row<T>(T);

// SAFETY: only used with keys and values of the crate `datapath`, which are `Pod` themselves; generic
// code cannot say so.
unsafe impl<T: Copy + 'static> Pod for Row<T> {}

fn table<K: Copy + 'static, V: Copy + 'static>(
    ebpf: &Ebpf,
    name: &str,
) -> Result<MapTable<Row<K>, Row<V>>> {
    let map = match ebpf.map(name).with_context(|| format!("no map {name}"))? {
        Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) | Map::LpmTrie(map) => map,
        other => bail!("{name} is {other:?}"),
    };
    MapTable::new(map.fd().as_fd().try_clone_to_owned()?)
        .with_context(|| format!("the sizes of {name}"))
}

/// The device of this network namespace that frames come in by: where it leads, and to whom.
pub(crate) fn make_devices() -> Result<u32> {
    let lines = [
        "link set lo up".to_owned(),
        format!("link add up0 address {OWN} type veth peer name up1"),
        "link set up1 up".into(),
        "link set up0 up".into(),
        "addr add 10.9.0.1/16 dev up0".into(),
        "addr add fd00::9:1/112 dev up0 nodad".into(),
        format!("neigh add 10.9.0.2 lladdr {ROUTER} dev up0 nud permanent"),
        format!("neigh add fd00::9:2 lladdr {ROUTER} dev up0 nud permanent"),
        "route add 10.0.0.0/8 via 10.9.0.2".into(),
        "route add fd00::/64 via fd00::9:2".into(),
    ];
    for line in lines {
        let done = Command::new("ip").args(line.split(' ')).output().context("ip")?;
        ensure!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    Ok(nix::net::if_::if_nametoindex("up0")?)
}

/// `struct xdp_md`.
pub(crate) fn context(length: usize, device: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(length as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&device.to_ne_bytes());
    context
}

/// `struct __sk_buff`, of a packet that came in by the device.
pub(crate) fn skb(device: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&device.to_ne_bytes());
    context
}

/// The tables of a node with 10,000 Services, and the flows of a case.
pub(crate) struct Bed<F: Family> {
    case: Case,
    flows: usize,
    /// A frame of each flow, in random order, one behind the other, as they are read: so reading them takes
    /// little of the processor's caches from what programs read.
    frames: Vec<u8>,
    family: PhantomData<F>,
}

impl<F: Family> Bed<F> {
    pub(crate) fn fill(ebpf: &Ebpf, device: u32, case: Case, flows: u32) -> Result<Self> {
        let of_family = |name: &str| format!("{name}{}", F::SUFFIX);
        let (mut address_marks, mut port_marks, mut marks) =
            (Box::new(NO_MARKS), Box::new(NO_PORTS), Box::new(NO_MARKS));
        let node = F::address(NODES, 1);
        address_marks[address_mark(node)] |= mark::PORTS;
        let mut frontends =
            table::<FrontendKey<F::Address>, Frontend>(ebpf, &of_family("FRONTENDS"))?;
        let mut addresses = table::<F::Address, AddressUse>(ebpf, &of_family("ADDRESSES"))?;
        let mut backends = Backends::<F>::of(ebpf)?;
        for service in 0..SERVICES {
            let (host, port) = (service as u16, 30_000 + (service % 2_768) as u16);
            let cluster = F::address(CLUSTER, host);
            address_marks[address_mark(cluster)] |= mark::WHOLE;
            port_marks[port_mark(Be16::new(port))] |= mark::of_protocol(protocol::TCP);
            let row = |kind| Frontend { service, kind, pad: [0; 3] };
            if port == NODE_PORT + u16::from(case.net()) {
                backends.give_places(service, case.net(), BACKENDS.min(flows))?;
            } else {
                backends.give_two(service)?;
            }
            let places = [(cluster, 80, kind::CLUSTER_IP), (node, port, kind::NODE_PORT)];
            for (address, port, kind) in places {
                let key = FrontendKey::new(address, Be16::new(port), protocol::TCP);
                frontends.insert(&Row(key), &Row(row(kind)))?;
            }
            let usage = AddressUse { flags: address_use::CLUSTER_IP };
            addresses.insert(&Row(cluster), &Row(usage))?;
        }
        let mut rows = table::<FlowKey<F::Address>, Flow<F::Address>>(ebpf, &of_family("FLOWS"))?;
        let now = now();
        for nth in 0..flows {
            let parties = parties::<F>(case.net(), nth);
            let (flags, roles): (_, &[u8]) = match case.net() {
                LOCAL => (0, &[role::ORIGINAL, role::REPLY]),
                _ => (
                    flow_flags::MASQUERADE,
                    &[role::ORIGINAL, role::REPLY, role::ORIGINAL_SOURCE, role::REPLY_TARGET],
                ),
            };
            for &role in roles.iter().filter(|_| case != Case::New) {
                let opening = Opening { role, service: 7, flags, now, replace: true };
                let row = Flow { seen: seen::PACKET, ..parties.row(opening) };
                rows.insert(&Row(parties.key(role)), &Row(row))?;
            }
            let Parties { client, backend, source, .. } = parties;
            for (from, to) in [(backend, client), (client, backend), (backend, source)] {
                marks[hash::way(from.addr, to.addr) as usize % MARKS_LEN] = 1;
            }
        }
        table(ebpf, "ADDRESSMARKS")?.insert(&Row(0_u32), &Row(*address_marks))?;
        table(ebpf, "PORTMARKS")?.insert(&Row(0_u32), &Row(*port_marks))?;
        table(ebpf, "MARKS")?.insert(&Row(0_u32), &Row(*marks))?;
        let uplink = Uplink { device, mac: OWN, sends: 0, mode: mode::NATIVE };
        table(ebpf, "UPLINKS")?.insert(&Row(place(device)), &Row(uplink))?;
        let mut tunnel = Tunnel {
            vni: VNI,
            mtu: 1_450,
            mac4: TUNNEL,
            mac6: TUNNEL,
            port: Be16::new(PORT),
            first_source_port: SOURCE_PORTS[0],
            last_source_port: SOURCE_PORTS[1],
            uplink: device,
            ..Tunnel::default()
        };
        F::own(&mut tunnel);
        table(ebpf, "TUNNELS")?.insert(&Row(0_u32), &Row(tunnel))?;
        table(ebpf, "SENDERS")?.insert(&Row(Sender { mac: PEER, pad: 0 }), &Row(1_u32))?;
        let network = NetworkKey::<F::Address>::new(F::address(TUNNELLED, 0), F::BITS);
        let vtep = Vtep { underlay: F::address(NODES, 2), mac: PEER, by_uplink: 0, answers: 0 };
        table(ebpf, &of_family("VTEPS"))?.insert(&Row(network), &Row(vtep))?;
        let frame = |flow| frame::<F>(case, &parties::<F>(case.net(), flow));
        let frames = shuffled(flows).into_iter().flat_map(frame).collect();
        Ok(Self { case, flows: flows as usize, frames, family: PhantomData })
    }

    /// What has to be done after each packet so that the next one begins a flow: nothing where there are
    /// more flows than the table for those without an answer holds.
    pub(crate) fn forgets(&self, ebpf: &Ebpf) -> Result<Option<Forgets<F>>> {
        if self.flows > 1 || self.case != Case::New {
            return Ok(None);
        }
        let flow = parties::<F>(self.case.net(), 0);
        let pending = table(ebpf, &format!("PENDING{}", F::SUFFIX))?;
        Ok(Some(Forgets { pending, reply: flow.reply(), original: flow.original() }))
    }

    pub(crate) const fn flows(&self) -> usize {
        self.flows
    }

    /// The frame of a turn, each of another flow until all have had one.
    pub(crate) fn frame(&self, turn: usize) -> &[u8] {
        let length = self.frames.len() / self.flows;
        &self.frames[turn % self.flows * length..][..length]
    }
}

/// The numbers below a number, in random order.
fn shuffled(count: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..order.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        order.swap(at, (random % (at as u64 + 1)) as usize);
    }
    order
}

/// The rows of Services and of their backends.
struct Backends<F: Family> {
    services: MapTable<Row<u32>, Row<Service>>,
    slots: MapTable<Row<u32>, Row<Backend<F::Address>>>,
    written: u32,
}

impl<F: Family> Backends<F> {
    fn of(ebpf: &Ebpf) -> Result<Self> {
        let slots = table(ebpf, &format!("BACKENDS{}", F::SUFFIX))?;
        Ok(Self { services: table(ebpf, "SERVICES")?, slots, written: 0 })
    }

    /// A Service with two backends, each of which new flows go to by chance.
    fn give_two(&mut self, service: u32) -> Result<()> {
        let pair = [0, 1].map(|nth| (F::address(LOCAL, service as u16), 8_080 + nth));
        self.give(service, Algorithm::Random, pair.into_iter())
    }

    /// A Service with Maglev's table, as the agent programs it where XDP serves. Which backend has which
    /// of its places does not matter here.
    fn give_places(&mut self, service: u32, net: u8, backends: u32) -> Result<()> {
        let places = (0..PLACES).map(|place| (F::address(net, (place % backends) as u16), 8_080));
        self.give(service, Algorithm::Maglev, places)
    }

    fn give(
        &mut self,
        service: u32,
        algorithm: Algorithm,
        backends: impl Iterator<Item = (F::Address, u16)>,
    ) -> Result<()> {
        let block = self.written;
        for (addr, port) in backends {
            let port = Be16::new(port);
            let backend = Backend { addr, port, generation: 1, flags: backend_flags::LOCAL };
            self.slots.insert(&Row(self.written), &Row(backend))?;
            self.written += 1;
        }
        let cluster = SetRef { block, count: (self.written - block) as u16, generation: 1 };
        let family = if F::V6 { service_flags::IPV6 } else { 0 };
        let flags = service_flags::USED | family | algorithm.flags();
        let row = Service { cluster, local: cluster, flags, affinity: 0 };
        Ok(self.services.insert(&Row(service), &Row(row))?)
    }
}

type Flows<A> = MapTable<Row<FlowKey<A>>, Row<Flow<A>>>;

/// The rows that a new flow leaves, where there is one that has to begin again and again.
pub(crate) struct Forgets<F: Family> {
    pending: Flows<F::Address>,
    reply: FlowKey<F::Address>,
    original: FlowKey<F::Address>,
}

impl<F: Family> Forgets<F> {
    /// # Errors
    /// If the packet did not begin the flow.
    pub(crate) fn forget(&mut self) -> Result<()> {
        self.pending.remove(&Row(self.reply)).context("no flow was begun")?;
        // Which a frame at XDP leaves to the answer.
        match self.pending.remove(&Row(self.original)) {
            Ok(()) | Err(TableError::Missing) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

/// The flow of a number to a backend in a network.
fn parties<F: Family>(net: u8, nth: u32) -> Parties<F::Address> {
    let place = |addr, port: u32| Place::new(addr, Be16::new(port as u16));
    let port = NODE_PORT + u16::from(net);
    Parties {
        client: place(F::address(CLIENTS, (nth % 251) as u16), 1_024 + nth / 251),
        frontend: place(F::address(NODES, 1), port.into()),
        backend: place(F::address(net, (nth % 64) as u16), 8_080),
        source: place(F::address(NODES, 1), 1_024 + nth % 64_000),
        proto: protocol::TCP,
        ..Parties::default()
    }
}

fn frame<F: Family>(case: Case, flow: &Parties<F::Address>) -> Vec<u8> {
    let ask = |flags| segment::<F>(flow.client, flow.frontend, flags);
    let answer = || segment::<F>(flow.backend, flow.source, tcp::ACK);
    let packet = match case {
        Case::NotOurs => {
            let elsewhere = Place::new(F::address(FOREIGN, 1), Be16::new(80));
            segment::<F>(flow.client, elsewhere, tcp::ACK)
        }
        Case::New => ask(tcp::SYN),
        Case::Local | Case::Remote | Case::RemoteTunnel => ask(tcp::ACK),
        Case::Reply => answer(),
        Case::ReplyTunnel => wrapped::<F>(&answer()),
    };
    let mut frame = Mac::words([OWN, ROUTER]).map(u32::to_ne_bytes).concat();
    frame.extend(<F as Sample>::ETHERTYPE.to_be_bytes());
    frame.extend(packet);
    frame
}

/// The smallest there are: what counts is how many, not how much.
fn segment<F: Family>(from: Place<F::Address>, to: Place<F::Address>, flags: u8) -> Vec<u8> {
    Datagram::<F>::tcp(from, to, flags).with_payload(b"data").bytes()
}

/// A packet in its tunnel from the other node.
fn wrapped<F: Family>(packet: &[u8]) -> Vec<u8> {
    let mut buffer = datapath::host::buffer::Buffer::new(packet.to_vec());
    buffer.bytes.splice(0..0, vec![0; F::OVERHEAD as usize]);
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| packet[at + byte]));
    let mut hop = NextHop {
        own: F::address(NODES, 2),
        underlay: F::address(NODES, 1),
        vni: VNI,
        port: Be16::new(PORT),
        inner_to: TUNNEL,
        inner_from: PEER,
        ..NextHop::default()
    };
    hop.constant = F::constant(&hop);
    let start = [word(0), word(4)];
    let length = packet.len() as u16;
    F::wrap(&mut buffer, &hop, Be16::new(50_000), start, length, 1).expect("room was made");
    buffer.bytes
}

/// As programs have it: `bpf_ktime_get_coarse_ns` in ticks.
fn now() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let now = Duration::from(now.expect("there is this clock"));
    (now.as_nanos() / u128::from(TICK_NS)) as u32
}
