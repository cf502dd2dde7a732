//! Who is who in the cases of frames on uplinks: two uplinks, flows of each kind that have been
//! answered, and the frames of them, put together from nothing that the engine has.

use datapath::{
    address::{Be16, Family, Mac, V4, V6, protocol},
    algorithm::Algorithm,
    backend::Backend,
    flow::{Flow, FlowKey, Parties, Place, flow_flags, role, seen},
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind, mark},
    host::{
        frame::{Datagram, Sample, Sum},
        memory::{Memory, Sizes},
        wire::{MemoryWires, RawFrame},
    },
    nexthop::{NextHop, Uplink, mode},
    service::{Service, SetRef, service_flags},
    tables::Opening,
    tunnel::{NetworkKey, Sender, Tunnel},
    underlay::Underlay,
    vxlan::SOURCE_PORTS,
    wire::{Fate, receive},
};

/// Of the uplink that frames come in by, of another, and of the router on both.
pub(crate) const UP: Mac = Mac([2, 0, 0, 0, 2, 1]);
pub(crate) const UP2: Mac = Mac([2, 0, 0, 0, 3, 1]);
pub(crate) const ROUTER: Mac = Mac([2, 0, 0, 0, 2, 0xfe]);
pub(crate) const ROUTER2: Mac = Mac([2, 0, 0, 0, 3, 0xfe]);
/// The other node: its uplink, and its tunnel device; and this node's tunnel device.
pub(crate) const NODE: Mac = Mac([2, 0, 0, 0, 2, 2]);
pub(crate) const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
pub(crate) const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub(crate) const PORT: u16 = 8472;
pub(crate) const VNI: u32 = 0x0001_0203;
pub(crate) const MTU: u32 = 1500;
pub(crate) const NOW: u32 = 5_000;
/// When rows were last touched.
pub(crate) const BEFORE: u32 = NOW - 7;
/// Index of the flows' Service.
pub(crate) const SERVICE: u32 = 3;
pub(crate) const ETHERNET: usize = 14;

/// The devices' interface indices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) up: u32,
    pub(crate) up2: u32,
}

pub(crate) trait Side: Sample + Underlay {
    fn set_underlay(tunnel: &mut Tunnel);
}

impl Side for V4 {
    fn set_underlay(tunnel: &mut Tunnel) {
        tunnel.underlay4 = Self::address(9, 1);
        tunnel.pods4 = network::<Self>(1);
    }
}

impl Side for V6 {
    fn set_underlay(tunnel: &mut Tunnel) {
        tunnel.underlay6 = Self::address(9, 1);
        tunnel.pods6 = network::<Self>(1);
    }
}

pub(crate) type Row<F> = Flow<<F as Family>::Address>;
pub(crate) type Key<F> = FlowKey<<F as Family>::Address>;

/// Pods of this node are in 1, those of the other in 2, those that a route leads to in 3; this node
/// is 9:1, the other 9:2; clients are in 8, and behind the other uplink in 7; cluster IPs in 96.
pub(crate) fn at<F: Sample>(net: u8, host: u16, port: u16) -> Place<F::Address> {
    Place::new(F::address(net, host), Be16::new(port))
}

pub(crate) fn network<F: Sample>(net: u8) -> NetworkKey<F::Address> {
    NetworkKey { prefix_len: if F::V6 { 112 } else { 16 }, network: F::address(net, 0) }
}

/// A flow of each kind. Several are of one client: ports differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Its backend is on this node.
    Local,
    /// The client is behind an alias besides.
    LocalAlias,
    /// Masqueraded, to where a route leads.
    Routed,
    RoutedAlias,
    /// Masqueraded, to a pod in the tunnel.
    Tunnelled,
    TunnelledAlias,
    /// The client is behind the other uplink.
    Across,
    /// The client is a pod of the other node.
    Around,
    /// Goes through the tunnel as it came: the other node answers.
    Direct,
    /// Comes through it: this one answers.
    Arrived,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Local,
        Self::LocalAlias,
        Self::Routed,
        Self::RoutedAlias,
        Self::Tunnelled,
        Self::TunnelledAlias,
        Self::Across,
        Self::Around,
        Self::Direct,
        Self::Arrived,
    ];

    pub(crate) const fn is_local(self) -> bool {
        matches!(self, Self::Local | Self::LocalAlias | Self::Arrived)
    }

    /// True if its replies come in by an uplink.
    pub(crate) const fn has_replies(self) -> bool {
        !self.is_local() && !matches!(self, Self::Direct)
    }

    /// True if the backend is behind the tunnel.
    pub(crate) const fn is_tunnelled(self) -> bool {
        matches!(
            self,
            Self::Tunnelled | Self::TunnelledAlias | Self::Across | Self::Around | Self::Direct
        )
    }

    const fn has_alias(self) -> bool {
        matches!(self, Self::LocalAlias | Self::RoutedAlias | Self::TunnelledAlias)
    }

    pub(crate) fn parties<F: Sample>(self, proto: u8) -> Parties<F::Address> {
        let number = self as u16 + if proto == protocol::TCP { 0 } else { 100 };
        let (net, host) = match self {
            Self::Across => (7, 5),
            Self::Around => (2, 9),
            _ => (8, 5),
        };
        let backend = if self.is_local() {
            at::<F>(1, 3, 8080)
        } else if self.is_tunnelled() {
            at::<F>(2, 3, 8080)
        } else {
            at::<F>(3, 3, 8080)
        };
        // A cluster IP, or this node's address; or that of the node that it came by.
        let frontend = match self {
            Self::Arrived => at::<F>(9, 2, 30_080),
            _ if number.is_multiple_of(2) => at::<F>(96, 1, 80),
            _ => at::<F>(9, 1, 30_080),
        };
        let source = match self {
            Self::Direct => frontend,
            _ if self.is_local() => Place::default(),
            _ if self.is_tunnelled() => at::<F>(1, 0x100, 50_000 + number),
            _ => at::<F>(9, 1, 50_000 + number),
        };
        Parties {
            client: at::<F>(net, host, 40_000 + number),
            frontend,
            backend,
            source,
            alias: if self.has_alias() { Be16::new(0x1234) } else { Be16::ZERO },
            proto,
            pad: [0; 5],
        }
    }
}

/// The tables of a node with a flow of each kind, of TCP and UDP.
#[derive(Clone, Debug)]
pub(crate) struct Scene<F: Side> {
    pub(crate) memory: Memory<F>,
    pub(crate) wires: MemoryWires<F>,
    pub(crate) devices: Devices,
}

impl<F: Side> Scene<F> {
    pub(crate) fn new(devices: Devices, now: u32) -> Self {
        let mut tunnel = Tunnel {
            vni: VNI,
            device: 77,
            mtu: MTU - F::OVERHEAD,
            mac4: OWN,
            mac6: OWN,
            uplink: devices.up,
            port: Be16::new(PORT),
            first_source_port: SOURCE_PORTS[0],
            last_source_port: SOURCE_PORTS[1],
            ..Tunnel::default()
        };
        F::set_underlay(&mut tunnel);
        let uplink = Uplink { device: devices.up, mac: UP, sends: 1, mode: mode::NATIVE };
        let senders = vec![Sender { mac: PEER, pad: 0 }];
        let wires = MemoryWires { tunnel, uplink: Some(uplink), senders, ..MemoryWires::default() };
        let mut scene = Self { memory: Memory::new(Sizes::default()), wires, devices };
        scene.set_now(now);
        scene.wires.mark_address(F::address(96, 1), mark::WHOLE);
        scene.wires.mark_address(F::address(9, 1), mark::PORTS);
        scene.wires.mark_address(F::address(1, 0x100), mark::PORTS);
        for proto in [protocol::TCP, protocol::UDP] {
            scene.wires.mark_port(Be16::new(30_080), proto);
            for kind in Kind::ALL {
                scene.put(&kind.parties::<F>(proto), !kind.is_local(), now.wrapping_sub(7));
                if kind == Kind::Direct {
                    scene.make_direct(&kind.parties::<F>(proto));
                }
            }
        }
        for (net, host) in [(8, 5), (3, 3)] {
            scene.route(F::address(net, host), devices.up, ROUTER);
        }
        scene.route(F::address(7, 5), devices.up2, ROUTER2);
        for host in [3, 9] {
            scene.enter(F::address(2, host));
        }
        scene
    }

    pub(crate) fn set_now(&mut self, now: u32) {
        (self.memory.now, self.wires.now) = (now, now);
    }

    /// Writes all rows of a flow that has been answered.
    pub(crate) fn put(&mut self, parties: &Parties<F::Address>, is_masqueraded: bool, last: u32) {
        let roles: &[u8] = if is_masqueraded {
            &[role::ORIGINAL, role::REPLY, role::ORIGINAL_SOURCE, role::REPLY_TARGET]
        } else {
            &[role::ORIGINAL, role::REPLY]
        };
        let flags = if is_masqueraded { flow_flags::MASQUERADE } else { 0 };
        for role in roles {
            let key = parties.key(*role);
            let opening =
                Opening { role: *role, service: SERVICE, flags, now: last, replace: true };
            let row =
                Flow { seen: seen::PACKET, packets: 10, bytes: 1_000, ..parties.row(opening) };
            self.memory.flows.insert(key, row);
            self.wires.mark_way(key.src, key.dst);
        }
    }

    /// Has a masqueraded flow be one that the backend's node answers.
    fn make_direct(&mut self, parties: &Parties<F::Address>) {
        self.memory.flows.remove(&parties.reply_target());
        for role in [role::ORIGINAL, role::REPLY, role::ORIGINAL_SOURCE] {
            self.row(&parties.key(role)).flags |= flow_flags::DIRECT;
        }
    }

    /// Has a place served by backends, each of which stands once in its Service's set.
    pub(crate) fn serve(
        &mut self,
        place: Place<F::Address>,
        algorithm: Algorithm,
        backends: &[Backend<F::Address>],
    ) {
        let memory = &mut self.memory;
        let key = FrontendKey::new(place.addr, place.port, protocol::TCP);
        let frontend = Frontend { service: SERVICE, kind: kind::NODE_PORT, pad: [0; 3] };
        memory.frontends.insert(key, frontend);
        let flags = address_use::FRONTEND | address_use::MASQUERADE;
        memory.addresses.insert(place.addr, AddressUse { flags });
        let generation = memory.services.get(&SERVICE).map_or(0, |row| row.cluster.generation) + 1;
        for (slot, backend) in (0..).zip(backends) {
            memory.backends.insert(slot, Backend { generation, ..*backend });
        }
        let set = match backends.len() as u16 {
            0 => SetRef { generation, ..SetRef::REJECT },
            count => SetRef { block: 0, count, generation },
        };
        let family = if F::V6 { service_flags::IPV6 } else { 0 };
        let flags = service_flags::USED | family | algorithm.flags();
        memory.services.insert(SERVICE, Service { cluster: set, local: set, flags, affinity: 0 });
    }

    /// Has an address reached by a router.
    pub(crate) fn route(&mut self, address: F::Address, device: u32, to: Mac) {
        let from = if device == self.devices.up { UP } else { UP2 };
        let hop =
            NextHop { destination: address, device, mtu: MTU, to, from, ..NextHop::default() };
        self.wires.hops.insert(address, hop);
    }

    /// Has an address reached through the tunnel.
    pub(crate) fn enter(&mut self, address: F::Address) {
        let tunnel = self.wires.tunnel;
        let mut hop = NextHop {
            destination: address,
            underlay: F::address(9, 2),
            own: F::underlay(&tunnel),
            device: self.devices.up,
            mtu: MTU - F::OVERHEAD,
            vni: VNI,
            to: NODE,
            from: UP,
            inner_to: PEER,
            inner_from: F::mac(&tunnel),
            port: tunnel.port,
            first_source_port: tunnel.first_source_port,
            last_source_port: tunnel.last_source_port,
            ..NextHop::default()
        };
        hop.constant = F::constant(&hop);
        self.wires.hops.insert(address, hop);
    }

    pub(crate) fn row(&mut self, key: &Key<F>) -> &mut Row<F> {
        self.memory.flows.get_mut(key).expect("a row")
    }

    /// What becomes of a frame.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> (Fate, Vec<u8>) {
        let mut frame = RawFrame::new(bytes.to_vec());
        let fate = self.run_frame(&mut frame);
        (fate, frame.bytes().to_vec())
    }

    pub(crate) fn run_frame(&mut self, frame: &mut RawFrame) -> Fate {
        // The program asks for the type of the frame before the engine sees it.
        if frame.bytes()[12..14] != <F as Sample>::ETHERTYPE.to_be_bytes() {
            return Fate::Pass;
        }
        receive::<F, _, _, _>(frame, &mut self.memory, &mut self.wires)
    }
}

/// A packet from the client of a flow to its frontend.
pub(crate) fn request<F: Side>(kind: Kind, proto: u8) -> Datagram<F> {
    let parties = kind.parties::<F>(proto);
    packet::<F>(proto, parties.client, parties.frontend)
}

/// A packet from the backend, to the source that the flow has toward it.
pub(crate) fn reply<F: Side>(kind: Kind, proto: u8) -> Datagram<F> {
    let parties = kind.parties::<F>(proto);
    packet::<F>(proto, parties.backend, parties.source)
}

pub(crate) fn packet<F: Side>(
    proto: u8,
    src: Place<F::Address>,
    dst: Place<F::Address>,
) -> Datagram<F> {
    // PSH and ACK.
    Datagram::of(proto, src, dst, 0x18).with_payload(b"some data of an odd length.")
}

/// One hop on, from and to elsewhere.
pub(crate) fn forwarded<F: Side>(
    packet: &Datagram<F>,
    src: Place<F::Address>,
    dst: Place<F::Address>,
) -> Datagram<F> {
    let packet = packet.clone().from(src).to(dst);
    Datagram { hops: packet.hops - 1, ..packet }
}

pub(crate) fn frame<F: Side>(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = <F as Sample>::ETHERTYPE.to_be_bytes();
    [&to.0[..], &from.0, &kind, packet].concat()
}

/// What the outside sends to this node.
pub(crate) fn arriving<F: Side>(packet: &[u8]) -> Vec<u8> {
    frame::<F>(UP, ROUTER, packet)
}

/// A tunnel's headers before a packet, by RFC 7348.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer<A> {
    pub(crate) src: A,
    pub(crate) dst: A,
    pub(crate) src_port: Be16,
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    pub(crate) id: u16,
}

impl<A: Copy> Outer<A> {
    pub(crate) fn wrap<F: Side<Address = A>>(&self, packet: &[u8]) -> Vec<u8> {
        let mut payload = vec![8, 0, 0, 0, 1, 2, 3, 0];
        payload.extend(frame::<F>(self.to, self.from, packet));
        let src = Place::new(self.src, self.src_port);
        let dst = Place::new(self.dst, Be16::new(PORT));
        let datagram = Datagram::<F> {
            sum: if F::V6 { Sum::Full } else { Sum::Zero },
            hops: 64,
            id: self.id.into(),
            ..Datagram::<F>::udp(src, dst).with_payload(&payload)
        };
        let mut bytes = datagram.bytes();
        if !F::V6 {
            // Routers may divide it.
            bytes[6] = 0;
            fill_checksum(&mut bytes);
        }
        bytes
    }
}

/// Sums up an IPv4 header without options.
pub(crate) fn fill_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let words = header[..20].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// What the other node sends through the tunnel.
pub(crate) fn from_peer<F: Side>(packet: &[u8]) -> Vec<u8> {
    let outer = Outer {
        src: F::address(9, 2),
        dst: F::address(9, 1),
        src_port: Be16::new(0xc001),
        to: OWN,
        from: PEER,
        id: 0x2a,
    };
    frame::<F>(UP, NODE, &outer.wrap::<F>(packet))
}

/// Sets both bits of congestion in a packet's header.
pub(crate) fn set_congestion<F: Side>(packet: &mut [u8], bits: u8) {
    if F::V6 {
        packet[1] = packet[1] & !0x30 | bits << 4;
    } else {
        packet[1] = packet[1] & !3 | bits;
        fill_checksum(packet);
    }
}

pub(crate) fn congestion<F: Side>(packet: &[u8]) -> u8 {
    if F::V6 { packet[1] >> 4 & 3 } else { packet[1] & 3 }
}
