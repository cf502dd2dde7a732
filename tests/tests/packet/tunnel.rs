//! The overlay's programs that carry packets of pods, beside the engine on plain memory: the same
//! frames and the same tables, and what becomes of each must be the same to the byte.

use agent_kit::table::MapTable;
use datapath::{
    address::{Be16, Ipv4, Mac, V4, V6},
    both,
    counter::{Hook, Reason, drop_index},
    encapsulation::{Fate, encapsulate, intercept, shortcut},
    flow::Place,
    hash,
    header::tcp,
    home::Home,
    host::{
        frame::{Datagram, Sample},
        tunnel::{Framed, MemoryTunnels, Refusal},
    },
    maps::MARKS_LEN,
    tunnel::{Inner, NetworkKey, Sender, Traffic, Tunnel, Vtep, fast_path},
    vxlan::OVERHEAD,
};

use crate::{
    machine::{LOOPBACK, NEXT, NO_MARKS, REDIRECT, Rows, SHOT, Side, Sizes, clear, write},
    object::{Loaded, Object, test_run_segmented},
    twins::tick,
};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const POD: Mac = Mac([2, 0, 0, 0, 1, 1]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 2, 0]);
/// Of `lo`, on which test runs take place: what is sent there is for this node.
const LO: Mac = Mac([0; 6]);
const PORT: u16 = 8472;
const SOURCE_PORTS: [u16; 2] = [5_000, 5_999];
const VNI: u32 = 0x0001_0203;
const MTU: u32 = 1450;
const ETHERNET: usize = 14;

/// Pods of this node are in 1, those of the peer in 2, and in 3 nobody's; underlays in 9.
fn place<F: Sample>(net: u8) -> Place<F::Address> {
    Place::new(F::address(net, 1), Be16::new(1000))
}

trait Bed: Side + Inner {
    fn own(tunnel: &mut Tunnel);
}

fn network<F: Sample>(net: u8) -> NetworkKey<F::Address> {
    NetworkKey { prefix_len: if F::V6 { 112 } else { 16 }, network: F::address(net, 0) }
}

impl Bed for V4 {
    fn own(tunnel: &mut Tunnel) {
        tunnel.pods4 = network::<Self>(1);
        tunnel.underlay4 = Self::address(9, 1);
    }
}

impl Bed for V6 {
    fn own(tunnel: &mut Tunnel) {
        tunnel.pods6 = network::<Self>(1);
        tunnel.underlay6 = Self::address(9, 1);
    }
}

/// The loaded programs and the engine in memory, with the same tables.
struct Pair<F: Bed> {
    loaded: Option<Loaded>,
    tunnels: Rows<u32, Tunnel>,
    vteps: Rows<NetworkKey<F::Address>, Vtep<F::Address>>,
    senders: Rows<Sender, u32>,
    homes: Rows<F::Address, Home>,
    marks: Rows<u32, [u8; MARKS_LEN]>,
    host: MemoryTunnels<F>,
    counted_before: u64,
    carried_before: Traffic,
}

impl<F: Bed> Drop for Pair<F> {
    fn drop(&mut self) {
        self.loaded.take().into_iter().for_each(Loaded::give_back);
    }
}

impl<F: Bed> Pair<F> {
    fn new() -> Self {
        let loaded = Loaded::take(Object::Overlay, Sizes::default());
        let of_family = |name: &str| loaded.map(&format!("{name}{}", F::SUFFIX));
        let mut pair = Self {
            tunnels: MapTable::new(loaded.map("TUNNELS")).expect("sizes"),
            vteps: MapTable::new(of_family("VTEPS")).expect("sizes"),
            senders: MapTable::new(loaded.map("SENDERS")).expect("sizes"),
            homes: MapTable::new(of_family("HOMES")).expect("sizes"),
            marks: MapTable::new(loaded.map("PROXYMARKS")).expect("sizes"),
            host: MemoryTunnels::default(),
            counted_before: 0,
            carried_before: Traffic::default(),
            loaded: Some(loaded),
        };
        clear(&mut pair.vteps);
        clear(&mut pair.senders);
        clear(&mut pair.homes);
        write(&mut pair.marks, 0, NO_MARKS);
        pair.counted_before = pair.counted();
        pair.carried_before = pair.carried();
        let mut tunnel = Tunnel {
            vni: VNI,
            device: LOOPBACK,
            mtu: MTU,
            mac4: OWN,
            mac6: OWN,
            fast_path: fast_path::STRAIGHT,
            uplink: LOOPBACK,
            port: Be16::new(PORT),
            first_source_port: SOURCE_PORTS[0],
            last_source_port: SOURCE_PORTS[1],
            ..Tunnel::default()
        };
        F::own(&mut tunnel);
        pair.set_tunnel(tunnel);
        pair.set_vtep(1);
        write(&mut pair.senders, Sender { mac: PEER, pad: 0 }, 1);
        pair.host.senders.push(Sender { mac: PEER, pad: 0 });
        pair
    }

    fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("given back at the end only")
    }

    fn set_tunnel(&mut self, tunnel: Tunnel) {
        write(&mut self.tunnels, 0, tunnel);
        self.host.tunnel = tunnel;
    }

    fn set_vtep(&mut self, by_uplink: u8) {
        let vtep = Vtep { underlay: F::address(9, 2), mac: PEER, by_uplink, answers: 0 };
        write(&mut self.vteps, network::<F>(2), vtep);
        self.host.vteps = vec![(network::<F>(2), vtep)];
    }

    fn settle(&mut self) {
        let home = Home { device: LOOPBACK, last: tick(), mac: POD, pad: 0 };
        write(&mut self.homes, F::address(1, 1), home);
        self.host.homes.insert(F::address(1, 1), home);
    }

    fn translate(&mut self, way: u32) {
        let mut marks = NO_MARKS;
        marks[way as usize % MARKS_LEN] = 1;
        write(&mut self.marks, 0, marks);
        self.host.translated.push(way);
    }

    /// All refusals.
    fn counted(&self) -> u64 {
        let all = Hook::ALL.into_iter().flat_map(|hook| Reason::ALL.map(|reason| (hook, reason)));
        let drops = &self.loaded().drops;
        let count = |(hook, reason)| drops.get(&drop_index(hook, reason), 0).expect("a counter");
        all.flat_map(|at| count(at).to_vec()).sum()
    }

    fn carried(&self) -> Traffic {
        let mut sum = Traffic::default();
        for row in self.loaded().traffic() {
            sum.received_packets += row.received_packets;
            sum.received_bytes += row.received_bytes;
            sum.sent_packets += row.sent_packets;
            sum.sent_bytes += row.sent_bytes;
        }
        sum
    }

    /// Runs a frame through a program, and what it came to through the engine; they must agree.
    fn run(
        &mut self,
        program: &str,
        frame: Framed,
        engine: fn(&mut Framed, &mut MemoryTunnels<F>) -> Fate,
    ) -> (Fate, Framed) {
        let bytes = to_bytes::<F>(&frame);
        let mut out = vec![0; bytes.len() + 256];
        let classifier = self.loaded().classifier(program);
        let (returned, length) =
            test_run_segmented(classifier, &mut 0, frame.segment, &bytes, &mut out);
        out.truncate(length);
        let mut frame = frame;
        // What chance and the kernel have chosen, the engine is told.
        if out.len() == bytes.len() + OVERHEAD as usize {
            frame.random = u16::from_ne_bytes([out[18], out[19]]).into();
            let port = u16::from_be_bytes([out[34], out[35]]);
            let [first, last] = SOURCE_PORTS;
            assert!((first..=last).contains(&port), "{port}");
            let ports = u32::from(last - first) + 1;
            frame.hash = (u32::from(port - first) << 16).div_ceil(ports) << 16;
        }
        self.host.now = tick();
        let fate = engine(&mut frame, &mut self.host);
        let expected = match fate {
            Fate::Pass => NEXT,
            Fate::Drop => SHOT,
            _ => REDIRECT,
        };
        assert_eq!(returned, expected, "{program}: {fate:?}");
        let host = match fate {
            // Between the two ends of a pod's pair there is no header yet to be compared; nor is
            // that of the underlay written.
            Fate::Underlay(_) => [&bytes[..12], &to_bytes::<F>(&frame)[12..]].concat(),
            _ => to_bytes::<F>(&frame),
        };
        assert_eq!(out, host, "{program}: {fate:?}");
        let counted = self.counted() - self.counted_before;
        assert_eq!(counted, self.host.drops.len() as u64, "{:?}", self.host.drops);
        let (carried, before) = (self.carried(), self.carried_before);
        let carried = Traffic {
            received_packets: carried.received_packets - before.received_packets,
            received_bytes: carried.received_bytes - before.received_bytes,
            sent_packets: carried.sent_packets - before.sent_packets,
            sent_bytes: carried.sent_bytes - before.sent_bytes,
        };
        assert_eq!(carried, self.host.traffic, "{program}");
        (fate, frame)
    }

    fn shortcut(&mut self, frame: Framed) -> Fate {
        let engine =
            |frame: &mut Framed, tables: &mut _| shortcut::<F, _, _>(frame, tables, LOOPBACK);
        self.run("bypass_ingress", frame, engine).0
    }
}

fn to_bytes<F: Sample>(frame: &Framed) -> Vec<u8> {
    let mut bytes = frame.to.0.to_vec();
    bytes.extend(frame.from.0);
    bytes.extend(F::ETHERTYPE.to_be_bytes());
    bytes.extend(&frame.packet.bytes);
    bytes
}

fn out<F: Bed>(net: u8, payload: usize) -> Framed {
    let packet = Datagram::<F>::tcp(place::<F>(1), place::<F>(net), tcp::ACK);
    Framed::new(packet.with_payload(&vec![7; payload]).bytes(), LO, POD)
}

both! {
    pods_packets_enter,
    packets_leave_by_the_tunnel,
    what_came_by_no_tunnel_is_refused,
}

fn pods_packets_enter<F: Bed>() {
    let mut pair = Pair::<F>::new();
    let wrapped = if F::V6 { Fate::Tunnel } else { Fate::Underlay(LOOPBACK) };
    let headers = F::HEADER as usize + 20;
    for payload in [0, 1, 40, MTU as usize - headers] {
        assert_eq!(pair.shortcut(out::<F>(2, payload)), wrapped);
    }
    assert_eq!(pair.shortcut(out::<F>(2, MTU as usize - headers + 1)), Fate::Pass);
    assert_eq!(pair.shortcut(out::<F>(3, 40)), Fate::Pass);
    let foreign = Datagram::<F>::tcp(place::<F>(3), place::<F>(2), tcp::ACK);
    assert_eq!(pair.shortcut(Framed::new(foreign.bytes(), LO, POD)), Fate::Pass);
    let mut spent = Datagram::<F>::udp(place::<F>(1), place::<F>(2));
    spent.hops = 1;
    assert_eq!(pair.shortcut(Framed::new(spent.bytes(), LO, POD)), Fate::Pass);
    let datagram = Datagram::<F>::udp(place::<F>(1), place::<F>(2));
    assert_eq!(pair.shortcut(Framed::new(datagram.bytes(), LO, POD)), wrapped);
    // Those of many at once, which the kernel cannot put into a tunnel so: by the device.
    let many = Framed { segment: 100, refusal: Some(Refusal::Room), ..out::<F>(2, 1000) };
    assert_eq!(pair.shortcut(many), Fate::Tunnel);
    let long = Framed { segment: MTU, ..out::<F>(2, 1000) };
    assert_eq!(pair.shortcut(long), Fate::Pass);
    pair.set_vtep(0);
    assert_eq!(pair.shortcut(out::<F>(2, 40)), Fate::Tunnel);
    pair.set_vtep(1);
    let tunnel = pair.host.tunnel;
    pair.set_tunnel(Tunnel { uplink: 0, ..tunnel });
    assert_eq!(pair.shortcut(out::<F>(2, 40)), Fate::Tunnel);
    pair.set_tunnel(Tunnel { fast_path: fast_path::OFF, ..tunnel });
    assert_eq!(pair.shortcut(out::<F>(2, 40)), Fate::Pass);
}

fn packets_leave_by_the_tunnel<F: Bed>() {
    let mut pair = Pair::<F>::new();
    let mut leave = |frame| pair.run("tunnel_egress", frame, encapsulate::<F, _, _>).0;
    assert_eq!(leave(out::<F>(2, 40)), Fate::Pass);
    let many = Datagram::<F>::udp(place::<F>(1), Place::new(F::group(), Be16::new(5353)));
    assert_eq!(leave(Framed::new(many.bytes(), LO, POD)), Fate::Drop);
}

fn what_came_by_no_tunnel_is_refused<F: Bed>() {
    let mut pair = Pair::<F>::new();
    let frame = Framed::new(out::<F>(2, 40).packet.bytes, OWN, PEER);
    let engine = datapath::encapsulation::decapsulate::<F, _, _>;
    assert_eq!(pair.run("tunnel_ingress", frame, engine).0, Fate::Drop);
    assert_eq!(pair.host.drops, [(Hook::TunnelIngress, Reason::WrongVni)]);
}

/// The answer to a packet to a pod network without a node goes back with its addresses swapped,
/// which the engine leaves to the program.
#[test]
fn a_pod_network_without_a_node_is_answered() {
    let pair = Pair::<V4>::new();
    let frame = out::<V4>(3, 40);
    let bytes = to_bytes::<V4>(&frame);
    let mut answer = vec![0; bytes.len() + 256];
    let classifier = pair.loaded().classifier("tunnel_egress");
    let (returned, length) = test_run_segmented(classifier, &mut 0, 0, &bytes, &mut answer);
    assert_eq!(returned, REDIRECT);
    assert_eq!((&answer[..6], &answer[6..12]), (&bytes[6..12], &bytes[..6]));
    // Host unreachable, about the packet.
    assert_eq!((answer[ETHERNET + 9], &answer[34..36]), (1, &[3, 1][..]));
    assert_eq!(answer[42..length.min(42 + 20)], bytes[ETHERNET..ETHERNET + 20]);
    assert_eq!(pair.counted() - pair.counted_before, 1);
}

/// What a peer's program makes of a packet to the pod of this node.
fn arriving(packet: &Datagram<V4>) -> Framed {
    let mut there = MemoryTunnels::<V4> {
        tunnel: Tunnel {
            vni: VNI,
            mtu: 65_000,
            mac4: PEER,
            fast_path: fast_path::STRAIGHT,
            underlay4: V4::address(9, 2),
            pods4: network::<V4>(2),
            uplink: 1,
            port: Be16::new(PORT),
            first_source_port: SOURCE_PORTS[0],
            last_source_port: SOURCE_PORTS[1],
            ..Tunnel::default()
        },
        ..MemoryTunnels::default()
    };
    let vtep = Vtep { underlay: V4::address(9, 1), mac: OWN, by_uplink: 1, answers: 0 };
    there.vteps.push((network::<V4>(1), vtep));
    let mut frame = Framed::new(packet.bytes(), LO, ROUTER);
    assert_eq!(shortcut::<V4, _, _>(&mut frame, &mut there, 7), Fate::Underlay(1));
    frame
}

fn segment(payload: usize) -> Datagram<V4> {
    Datagram::tcp(place::<V4>(2), place::<V4>(1), tcp::ACK).with_payload(&vec![7; payload])
}

fn enter(pair: &mut Pair<V4>, frame: Framed) -> Fate {
    pair.run("decap_ingress", frame, intercept).0
}

#[test]
fn packets_leave_the_tunnel_at_the_uplink() {
    let mut pair = Pair::<V4>::new();
    assert_eq!(enter(&mut pair, arriving(&segment(40))), Fate::Pass, "an unknown pod");
    pair.settle();
    for payload in [0, 1, 40, MTU as usize - 40] {
        assert_eq!(enter(&mut pair, arriving(&segment(payload))), Fate::Pod(LOOPBACK));
    }
    let datagram = Datagram::udp(place::<V4>(2), place::<V4>(1));
    assert_eq!(enter(&mut pair, arriving(&datagram)), Fate::Pod(LOOPBACK));
    assert_eq!(enter(&mut pair, arriving(&segment(MTU as usize - 39))), Fate::Pass, "too long");
    for other in [ROUTER, Mac([0xff; 6])] {
        let frame = Framed { to: other, ..arriving(&segment(40)) };
        // For another node, which a program sees before the engine would.
        assert_eq!(pair.run("decap_ingress", frame, |_, _| Fate::Pass).0, Fate::Pass);
    }
    let tunnel = pair.host.tunnel;
    for other in [
        Tunnel { uplink: 0, ..tunnel },
        Tunnel { fast_path: fast_path::ONE_WAY, ..tunnel },
        Tunnel { fast_path: fast_path::OFF, ..tunnel },
        Tunnel { vni: VNI + 1, ..tunnel },
        Tunnel { port: Be16::new(4789), ..tunnel },
        Tunnel { mac4: POD, ..tunnel },
        Tunnel { underlay4: V4::address(9, 3), ..tunnel },
    ] {
        pair.set_tunnel(other);
        assert_eq!(enter(&mut pair, arriving(&segment(40))), Fate::Pass, "{other:?}");
    }
    pair.set_tunnel(tunnel);
    let many = Framed { segment: 100, refusal: Some(Refusal::Room), ..arriving(&segment(1000)) };
    assert_eq!(enter(&mut pair, many), Fate::Pass, "many at once of a kind that it cannot know");
    let ends: [Ipv4; 2] = [2, 1].map(|net| place::<V4>(net).addr);
    pair.translate(hash::way(ends[0], ends[1]));
    assert_eq!(enter(&mut pair, arriving(&segment(40))), Fate::Pass, "the proxy's flow");
}

/// Each byte of the headers of a packet that would be taken, with each of its bits.
#[test]
fn every_bit_of_the_headers_is_judged_alike() {
    let mut pair = Pair::<V4>::new();
    pair.settle();
    let whole = arriving(&segment(40));
    let mut taken = 0;
    for at in 0..OVERHEAD as usize + 20 {
        for bit in 0..8 {
            let mut frame = whole.clone();
            frame.packet.bytes[at] ^= 1 << bit;
            taken += u32::from(enter(&mut pair, frame) != Fate::Pass);
        }
    }
    // Outer length, identification and checksum, hops and source, ports and lengths do not matter
    // to the engine, nor do the inner ones that the pod itself looks at.
    assert!((100..400).contains(&taken), "{taken}");
    for length in 0..OVERHEAD as usize + 40 {
        let mut frame = whole.clone();
        // The kernel runs nothing on a frame without a whole network header.
        frame.packet.bytes.truncate(length.max(20));
        let _ = enter(&mut pair, frame);
    }
}
