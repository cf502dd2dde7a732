//! Packets of pods that programs put into the tunnel and take out of it themselves, on the host's
//! engine, to the byte.

use datapath::{
    address::{Address, Be16, Ipv4, Mac, V4, V6, protocol},
    counter::{Hook, Reason},
    encapsulation::{Fate, decapsulate, intercept, shortcut},
    flow::Place,
    hash,
    header::tcp,
    home::{HOME_TICKS, Home},
    host::{
        frame::{Datagram, Sample, icmp},
        tunnel::{Framed, MemoryTunnels, Refusal},
        verify::{Expect, checksums},
    },
    packet::Packet,
    tunnel::{NetworkKey, Sender, Traffic, Tunnel, Vtep, fast_path},
    vxlan::{self, OVERHEAD, SOURCE_PORTS},
};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const POD: Mac = Mac([2, 0, 0, 0, 1, 1]);
const BRIDGE: Mac = Mac([2, 0, 0, 0, 1, 0]);
const ROUTER: Mac = Mac([2, 0, 0, 0, 2, 0]);
const UPLINK_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
/// Interface indices.
const VETH: u32 = 7;
const UPLINK: u32 = 2;
const PORT: u16 = 8472;
const VNI: u32 = 0x0001_0203;
const MTU: u32 = 200;

/// Pods of this node are in 1, those of the peer in 2; underlays in 9.
fn place(net: u8, host: u16) -> Place<Ipv4> {
    Place::new(V4::address(net, host), Be16::new(1000 + host))
}

fn tables() -> MemoryTunnels<V4> {
    let network = |net| NetworkKey { prefix_len: 16, network: V4::address(net, 0) };
    let tunnel = Tunnel {
        vni: VNI,
        device: 3,
        mtu: MTU,
        mac4: OWN,
        mac6: OWN,
        fast_path: fast_path::STRAIGHT,
        underlay4: V4::address(9, 1),
        pods4: network(1),
        uplink: UPLINK,
        port: Be16::new(PORT),
        first_source_port: SOURCE_PORTS[0],
        last_source_port: SOURCE_PORTS[1],
        ..Tunnel::default()
    };
    let mut tables = MemoryTunnels { tunnel, now: 1000, ..MemoryTunnels::default() };
    let vtep = Vtep { underlay: V4::address(9, 2), mac: PEER, by_uplink: 1, answers: 0 };
    tables.vteps.push((network(2), vtep));
    tables.senders.push(Sender { mac: PEER, pad: 0 });
    let home = Home { device: VETH, last: 1000, mac: POD, pad: 0 };
    tables.homes.insert(V4::address(1, 1), home);
    tables
}

fn segment(payload: usize) -> Datagram<V4> {
    Datagram::tcp(place(1, 1), place(2, 1), tcp::ACK).with_payload(&vec![7; payload])
}

/// What a pod sends.
fn sent(packet: &Datagram<V4>) -> Framed {
    let frame = Framed::new(packet.bytes(), BRIDGE, POD);
    // Of the random number, one half is taken.
    let random = 1 << 16 | u32::from(0xabcd_u16.to_be());
    Framed { hash: 0xaaaa_5555, random, ..frame }
}

/// What a peer would have made of a pod's packet: outer addresses the other way round.
fn arriving(packet: &Datagram<V4>) -> Framed {
    let inner = packet.clone().from(place(2, 1)).to(place(1, 1)).bytes();
    let mut bytes = outer(inner.len(), V4::address(9, 2), V4::address(9, 1), 0x2a);
    bytes.extend(OWN.0);
    bytes.extend(PEER.0);
    bytes.extend([8, 0]);
    bytes.extend(inner);
    Framed::new(bytes, UPLINK_MAC, ROUTER)
}

/// Outer headers by the RFCs, from nothing that the engine has.
fn outer(inner: usize, src: Ipv4, dst: Ipv4, id: u16) -> Vec<u8> {
    let total = (inner + OVERHEAD as usize) as u16;
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 0, 64, 17, 0, 0]);
    bytes.extend(src.bytes());
    bytes.extend(dst.bytes());
    fill_checksum(&mut bytes);
    bytes.extend([0xc0, 0x01]);
    bytes.extend(PORT.to_be_bytes());
    bytes.extend((total - 20).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend([8, 0, 0, 0, 1, 2, 3, 0]);
    bytes
}

/// RFC 1071, over the first twenty bytes.
fn fill_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let words =
        header[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn shortcut4(frame: &mut Framed, tables: &mut MemoryTunnels<V4>) -> Fate {
    shortcut::<V4, _, _>(frame, tables, VETH)
}

#[test]
fn a_packet_for_a_peer_gets_its_headers() {
    let (mut tables, mut frame) = (tables(), sent(&segment(40)));
    let mut inner = frame.packet.bytes.clone();
    assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Underlay(UPLINK));
    let mut expected = outer(inner.len(), V4::address(9, 1), V4::address(9, 2), 0xabcd);
    // The hash's halves, folded: nearly the largest there is.
    expected[20..22].copy_from_slice(&u16::MAX.to_be_bytes());
    expected.extend(PEER.0);
    expected.extend(OWN.0);
    expected.extend([8, 0]);
    // One hop less, and its checksum.
    inner[8] -= 1;
    fill_checksum(&mut inner);
    expected.extend(inner);
    assert_eq!(frame.packet.bytes, expected);
    checksums::<V4>(&frame.packet.bytes[OVERHEAD as usize..], Expect::Full).unwrap();
    assert_eq!((frame.sent, frame.is_marked), (None, false), "the tunnel device has no part in it");
    let length = u64::from(frame.packet.len() - OVERHEAD);
    let counted = Traffic { sent_packets: 1, sent_bytes: length, ..Traffic::default() };
    assert_eq!(tables.traffic, counted);
    assert_eq!(tables.homes[&V4::address(1, 1)].last, 1000);
}

#[test]
fn what_one_node_sends_the_other_takes() {
    let (mut here, mut frame) = (tables(), sent(&segment(40)));
    assert_eq!(shortcut4(&mut frame, &mut here), Fate::Underlay(UPLINK));
    let mut there = tables();
    there.tunnel.mac4 = PEER;
    there.tunnel.underlay4 = V4::address(9, 2);
    there.senders = vec![Sender { mac: OWN, pad: 0 }];
    let home = Home { device: 5, last: 1000, mac: BRIDGE, pad: 0 };
    there.homes.insert(V4::address(2, 1), home);
    assert_eq!(intercept(&mut frame, &mut there), Fate::Pod(5));
    assert_eq!((frame.to, frame.from), (BRIDGE, PEER));
    let mut expected = segment(40);
    expected.hops -= 2;
    assert_eq!(frame.packet.bytes, expected.bytes());
}

#[test]
fn ports_are_those_of_the_range_and_spread() {
    let [first, last] = SOURCE_PORTS;
    assert_eq!((first, last), (49_152, 65_535), "RFC 7348 §5");
    for (first, last) in
        [(first, last), (5000, 5999), (1024, u16::MAX), (7, 8), (9, 9), (0, u16::MAX)]
    {
        let hashes = (0..65_536_u32).map(|number| number << 16);
        let ports = hashes.map(|hash| vxlan::source_port(first, last, hash));
        let ports: std::collections::BTreeSet<u16> = ports.map(Be16::get).collect();
        assert_eq!((ports.first(), ports.last()), (Some(&first), Some(&last)));
        assert_eq!(ports.len(), usize::from(last - first) + 1);
    }
    // Each half of the hash counts.
    for bit in [31, 15] {
        assert_ne!(vxlan::source_port(first, last, 1 << bit), vxlan::source_port(first, last, 0));
    }
}

/// RFC 6040 §4.1 and figure 4: what the outer header says, and what becomes of it.
#[test]
fn congestion_is_carried() {
    let with_ecn = |frame: &mut Framed, at: usize, bits: u8| {
        let bytes = &mut frame.packet.bytes[at..];
        // Of the other bits, nothing goes outside.
        bytes[1] = 0xb8 | bits;
        fill_checksum(bytes);
    };
    for (inner, outer) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
        let (mut tables, mut frame) = (tables(), sent(&segment(40)));
        with_ecn(&mut frame, 0, inner);
        assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Underlay(UPLINK));
        assert_eq!(frame.packet.bytes[1], outer);
        let mut header = frame.packet.bytes[..20].to_vec();
        fill_checksum(&mut header);
        assert_eq!(frame.packet.bytes[..20], header);
        assert_eq!(frame.packet.bytes[OVERHEAD as usize + 1], 0xb8 | inner);
    }
    for inner in 0..4 {
        for outer in 0..4 {
            let (mut tables, mut frame) = (tables(), arriving(&segment(40)));
            with_ecn(&mut frame, 0, outer);
            with_ecn(&mut frame, OVERHEAD as usize, inner);
            let before = frame.clone();
            let fate = intercept(&mut frame, &mut tables);
            // What would change the inner header, or end the packet, is the kernel's to do.
            if matches!(outer, 0 | 2) || outer == inner {
                assert_eq!((fate, frame.packet.bytes[1]), (Fate::Pod(VETH), 0xb8 | inner));
            } else {
                assert_eq!((fate, frame), (Fate::Pass, before), "{outer} over {inner}");
            }
        }
    }
}

/// Cases that go by the tunnel device as ever.
#[test]
fn what_programs_do_not_wrap_goes_by_the_device() {
    type Change = fn(&mut MemoryTunnels<V4>, &mut Framed);
    let changes: [(&str, Change); 7] = [
        ("no uplink", |tables, _| tables.tunnel.uplink = 0),
        ("another way to the peer", |tables, _| tables.vteps[0].1.by_uplink = 0),
        ("the proxy sees all", |tables, _| tables.tunnel.fast_path = fast_path::ONE_WAY),
        ("the proxy's flow", |tables, _| {
            tables.translated.push(hash::way(V4::address(1, 1), V4::address(2, 1)));
        }),
        ("too long for one header", |tables, frame| {
            tables.tunnel.mtu = u32::MAX;
            frame.packet.bytes.resize(65_536 - OVERHEAD as usize, 0);
        }),
        ("a frame for many", |_, frame| frame.to = Mac([0xff; 6])),
        ("the kernel makes no room", |_, frame| frame.refusal = Some(Refusal::Room)),
    ];
    for (what, change) in changes {
        let (mut tables, mut frame) = (tables(), sent(&segment(40)));
        change(&mut tables, &mut frame);
        let length = frame.packet.len();
        assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Tunnel, "{what}");
        let (vni, remote, local) = frame.sent.expect(what);
        assert_eq!(vni, VNI, "{what}");
        assert_eq!(remote, V4::address(9, 2).words(), "{what}");
        assert_eq!(local, V4::address(9, 1).words(), "{what}");
        assert_eq!((frame.packet.len(), frame.is_marked), (length, true), "{what}");
        assert_eq!(tables.traffic, Traffic::default(), "{what}");
    }
    // The longest that one header can tell of.
    let (mut tables, mut frame) = (tables(), sent(&segment(40)));
    tables.tunnel.mtu = u32::MAX;
    frame.packet.bytes.resize(65_535 - OVERHEAD as usize, 0);
    assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Underlay(UPLINK));
    assert_eq!(frame.packet.bytes[2..4], [0xff, 0xff]);
}

#[test]
fn what_is_left_for_the_stack_is_not_touched() {
    let mut tables = tables();
    tables.homes.clear();
    let long = segment(MTU as usize - 40 + 1);
    let mut spent = segment(40);
    spent.hops = 1;
    let mut options = segment(40);
    options.options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    for packet in [long, spent, options] {
        let mut frame = sent(&packet);
        let before = frame.clone();
        assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Pass);
        assert_eq!(frame, before);
    }
    let mut fits = sent(&segment(MTU as usize - 40));
    assert_eq!(shortcut4(&mut fits, &mut tables), Fate::Underlay(UPLINK));
}

#[test]
fn segments_of_a_large_packet_count() {
    // Twenty bytes each of the two headers are before each part.
    for (size, fate) in [(MTU - 40, Fate::Underlay(UPLINK)), (MTU - 39, Fate::Pass)] {
        let mut frame = Framed { segment: size, ..sent(&segment(4000)) };
        assert_eq!(shortcut4(&mut frame, &mut tables()), fate);
    }
    for (size, fate) in [(MTU - 40, Fate::Pod(VETH)), (MTU - 39, Fate::Pass)] {
        let mut frame = Framed { segment: size, ..arriving(&segment(4000)) };
        assert_eq!(intercept(&mut frame, &mut tables()), fate);
    }
    // Of UDP, the way out is that of TCP; in the pod, the kernel would take segments for what is
    // in a tunnel still.
    let datagrams = Datagram::udp(place(1, 1), place(2, 1)).with_payload(&[7; 4000]);
    let mut frame = Framed { segment: 100, ..sent(&datagrams) };
    assert_eq!(shortcut4(&mut frame, &mut tables()), Fate::Underlay(UPLINK));
    let mut frame = Framed { segment: 100, ..arriving(&datagrams) };
    assert_eq!(intercept(&mut frame, &mut tables()), Fate::Pass);
}

#[test]
fn a_packet_out_of_the_tunnel_goes_to_its_pod() {
    for packet in [segment(40), Datagram::udp(place(1, 1), place(2, 1))] {
        let (mut tables, mut frame) = (tables(), arriving(&packet));
        assert_eq!(intercept(&mut frame, &mut tables), Fate::Pod(VETH));
        let mut expected = packet.from(place(2, 1)).to(place(1, 1));
        expected.hops -= 1;
        assert_eq!((frame.to, frame.from), (POD, OWN));
        assert_eq!(frame.packet.bytes, expected.bytes());
        let received_bytes = u64::from(frame.packet.len());
        let counted = Traffic { received_packets: 1, received_bytes, ..Traffic::default() };
        assert_eq!(tables.traffic, counted);
    }
}

/// Changes of the bytes of one that would be taken, of which each is for the kernel to judge.
#[test]
fn what_is_no_plain_packet_of_the_tunnel_is_not_touched() {
    let changes: [(&str, usize, u8); 16] = [
        ("options", 0, 0x46),
        ("another version", 0, 0x65),
        ("more fragments", 6, 0x20),
        ("a later fragment", 6, 0x01),
        ("a later fragment", 7, 0x01),
        ("TCP", 9, protocol::TCP),
        ("another node", 19, 0x09),
        ("another port", 22, 0x12),
        ("a UDP checksum", 26, 1),
        ("a UDP checksum", 27, 1),
        ("a flag that is not set", 28, 0),
        ("a flag that we do not know", 28, 0x88),
        ("reserved bits", 30, 1),
        ("another network", 34, 4),
        ("more reserved bits", 35, 1),
        ("IPv6", 48, 0x86),
    ];
    let inner = OVERHEAD as usize;
    let more = [
        ("another device", 41, 9),
        ("a sender that no lease tells of", 47, 9),
        ("no IPv4 within", inner, 0x65),
        ("no hop left", inner + 8, 1),
        ("another pod", inner + 19, 9),
    ];
    for (what, at, byte) in changes.into_iter().chain(more) {
        let (mut tables, mut frame) = (tables(), arriving(&segment(40)));
        assert_ne!(frame.packet.bytes[at], byte, "{what}: nothing is changed");
        frame.packet.bytes[at] = byte;
        let before = frame.clone();
        assert_eq!(intercept(&mut frame, &mut tables), Fate::Pass, "{what}");
        assert_eq!(frame, before, "{what}");
        assert_eq!((tables.traffic, tables.drops), (Traffic::default(), vec![]), "{what}");
    }
    // Routers may be told not to divide it.
    let (mut tables, mut frame) = (tables(), arriving(&segment(40)));
    frame.packet.bytes[6] = 0x40;
    assert_eq!(intercept(&mut frame, &mut tables), Fate::Pod(VETH));
    // Of any length, nothing is read that is not there.
    let whole = arriving(&segment(40)).packet.bytes;
    for length in 0..OVERHEAD as usize + 40 {
        let mut frame = Framed::new(whole[..length].to_vec(), UPLINK_MAC, ROUTER);
        let before = frame.clone();
        let fate = intercept(&mut frame, &mut tables);
        assert!(fate == Fate::Pass && frame == before || length >= OVERHEAD as usize + 20);
    }
}

#[test]
fn what_is_known_of_the_pod_decides() {
    type Change = fn(&mut MemoryTunnels<V4>, &mut Framed);
    let changes: [(&str, Change); 10] = [
        ("off", |tables, _| tables.tunnel.fast_path = fast_path::OFF),
        ("the proxy sees all", |tables, _| tables.tunnel.fast_path = fast_path::ONE_WAY),
        ("no uplink", |tables, _| tables.tunnel.uplink = 0),
        ("an unknown pod", |tables, _| tables.homes.clear()),
        ("a silent pod", |tables, _| tables.now += HOME_TICKS + 1),
        ("two devices with its address", |tables, _| {
            tables.homes.values_mut().for_each(|home| home.device = 0);
        }),
        ("the proxy's flow", |tables, _| {
            tables.translated.push(hash::way(V4::address(2, 1), V4::address(1, 1)));
        }),
        ("too long", |tables, _| tables.tunnel.mtu = 79),
        ("options", |_, frame| frame.packet.bytes[OVERHEAD as usize] = 0x46),
        ("the kernel does not cut it", |_, frame| frame.refusal = Some(Refusal::Room)),
    ];
    for (what, change) in changes {
        let (mut tables, mut frame) = (tables(), arriving(&segment(40)));
        change(&mut tables, &mut frame);
        let before = frame.clone();
        assert_eq!(intercept(&mut frame, &mut tables), Fate::Pass, "{what}");
        assert_eq!(frame, before, "{what}");
        assert_eq!(tables.traffic, Traffic::default(), "{what}");
    }
    let (mut tables, mut frame) = (tables(), arriving(&segment(40)));
    tables.tunnel.mtu = 80;
    tables.now += HOME_TICKS;
    assert_eq!(intercept(&mut frame, &mut tables), Fate::Pod(VETH));
}

#[test]
fn what_cannot_be_written_any_more_is_dropped_and_counted() {
    let (mut tables, mut frame) = (tables(), sent(&segment(40)));
    frame.refusal = Some(Refusal::Write);
    assert_eq!(shortcut4(&mut frame, &mut tables), Fate::Drop);
    let mut frame = Framed { refusal: Some(Refusal::Write), ..arriving(&segment(40)) };
    assert_eq!(intercept(&mut frame, &mut tables), Fate::Drop);
    let reason = Reason::RewriteFailed;
    assert_eq!(tables.drops, [(Hook::PodIngress, reason), (Hook::UplinkIngress, reason)]);
    assert_eq!(tables.traffic, Traffic::default());
}

/// A tunnel over IPv6 has a checksum of its own.
#[test]
fn ipv6_goes_by_the_device() {
    let network = |net| NetworkKey { prefix_len: 112, network: V6::address(net, 0) };
    let tunnel = Tunnel { pods6: network(1), underlay6: V6::address(9, 1), ..tables().tunnel };
    let mut tables = MemoryTunnels::<V6> { tunnel, ..MemoryTunnels::default() };
    let vtep = Vtep { underlay: V6::address(9, 2), mac: PEER, by_uplink: 1, answers: 0 };
    tables.vteps.push((network(2), vtep));
    tables.senders.push(Sender { mac: PEER, pad: 0 });
    let place = |net| Place::new(V6::address(net, 1), Be16::new(1000));
    let packet = Datagram::<V6>::tcp(place(1), place(2), tcp::ACK);
    let mut frame = Framed::new(packet.bytes(), BRIDGE, POD);
    assert_eq!(shortcut::<V6, _, _>(&mut frame, &mut tables, VETH), Fate::Tunnel);
    let answer = packet.from(place(2)).to(place(1)).bytes();
    let mut frame = Framed { vni: Some(VNI), ..Framed::new(answer, OWN, PEER) };
    assert_eq!(decapsulate::<V6, _, _>(&mut frame, &mut tables), Fate::Pod(VETH));
}

/// The proxy translates errors about its flows, whoever sends them; an echo is of no flow of its.
#[test]
fn errors_are_for_the_proxy_to_see() {
    let (here, there) = (place(1, 1).addr, place(2, 1).addr);
    for (kind, is_error) in [(8, false), (0, false), (3, true), (11, true)] {
        let message = |src, dst| icmp::<V4>(src, dst, [kind, 0], [0; 4], &[7; 40]);
        let mut tables = tables();
        let fate = shortcut4(&mut sent(&message(here, there)), &mut tables);
        assert_eq!(fate, if is_error { Fate::Tunnel } else { Fate::Underlay(UPLINK) });
        let mut frame = arriving(&message(there, here));
        let fate = intercept(&mut frame, &mut tables);
        assert_eq!(fate, if is_error { Fate::Pass } else { Fate::Pod(VETH) }, "{kind}");
    }
    // Of which message a later fragment is cannot be told.
    let (mut tables, mut frame) =
        (tables(), arriving(&icmp::<V4>(there, here, [8, 0], [0; 4], &[7; 40])));
    frame.packet.bytes[OVERHEAD as usize + 7] = 1;
    assert_eq!(intercept(&mut frame, &mut tables), Fate::Pass);
}
