//! Packets of pods into the tunnel and out of it, on the host's engine, in both families.

use datapath::{
    address::{Be16, Mac, V4, V6},
    both,
    counter::{Hook, Reason},
    encapsulation::{Fate, decapsulate, encapsulate, shortcut},
    flow::Place,
    hash,
    header::tcp,
    home::{HOME_TICKS, Home},
    host::{
        frame::{self, Sample},
        tunnel::{Framed, MemoryTunnels},
        verify::{Expect, checksums},
    },
    packet::Packet,
    tunnel::{Inner, NetworkKey, Sender, Tunnel, Vtep, fast_path},
};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const POD: Mac = Mac([2, 0, 0, 0, 1, 1]);
const BRIDGE: Mac = Mac([2, 0, 0, 0, 1, 0]);
const DEVICE: u32 = 7;

/// Pods of this node are in 1, those of the peer in 2; 3 is nobody's.
fn place<F: Sample>(net: u8, host: u16) -> Place<F::Address> {
    Place::new(F::address(net, host), Be16::new(1000 + host))
}

fn network<F: Sample>(net: u8) -> NetworkKey<F::Address> {
    // `10.net.0.0/16`, and the first fourteen bytes of an IPv6 address.
    let prefix_len = if F::V6 { 112 } else { 16 };
    NetworkKey { prefix_len, network: F::address(net, 0) }
}

trait Bed: Sample + Inner {
    fn own(tunnel: &mut Tunnel);
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

fn tables<F: Bed>() -> MemoryTunnels<F> {
    let tunnel = Tunnel {
        vni: 5,
        device: 3,
        mtu: 200,
        mac4: OWN,
        mac6: OWN,
        fast_path: fast_path::STRAIGHT,
        ..Tunnel::default()
    };
    let mut tables = MemoryTunnels { tunnel, ..MemoryTunnels::default() };
    F::own(&mut tables.tunnel);
    let underlay = F::address(9, 2);
    tables.vteps.push((network::<F>(2), Vtep { underlay, mac: PEER, by_uplink: 0, answers: 0 }));
    tables.senders.push(Sender { mac: PEER, pad: 0 });
    tables.now = 1000;
    tables
}

fn out<F: Bed>(to: Place<F::Address>) -> Framed {
    let bytes =
        frame::Datagram::<F>::tcp(place::<F>(1, 1), to, tcp::ACK).with_payload(&[7; 40]).bytes();
    Framed::new(bytes, BRIDGE, POD)
}

fn entered<F: Bed>() -> Framed {
    let bytes = frame::Datagram::<F>::tcp(place::<F>(2, 1), place::<F>(1, 1), tcp::ACK).bytes();
    Framed { vni: Some(5), ..Framed::new(bytes, OWN, PEER) }
}

fn hops<F: Bed>(frame: &Framed) -> u8 {
    frame.packet.load::<1>(if F::V6 { 7 } else { 8 }).unwrap()[0]
}

both! {
    a_packet_for_a_peer_is_sent_through_the_tunnel,
    a_pod_network_without_a_node_is_unreachable,
    what_nobody_may_answer_is_dropped_without_an_answer,
    what_comes_out_of_the_tunnel_is_looked_at,
    a_device_with_two_addresses_answers_to_both,
    a_pod_is_found_by_what_it_sends,
    two_devices_with_one_address_make_it_the_bridges_business,
    what_is_left_for_the_stack_goes_its_way,
    the_proxys_flows_pass_by_its_programs,
    without_a_fast_path_all_goes_by_the_stack,
}

fn a_packet_for_a_peer_is_sent_through_the_tunnel<F: Bed>() {
    use datapath::address::Address;
    let (mut tables, mut frame) = (tables::<F>(), out::<F>(place::<F>(2, 1)));
    let before = frame.packet.clone();
    assert_eq!(encapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
    assert_eq!((frame.to, frame.from), (PEER, OWN));
    let (vni, remote, local) = frame.sent.unwrap();
    assert_eq!(vni, 5);
    assert_eq!((remote, local), (F::address(9, 2).words(), F::address(9, 1).words()));
    assert_eq!(frame.packet, before, "the stack has counted its hop");
}

fn a_pod_network_without_a_node_is_unreachable<F: Bed>() {
    let (mut tables, mut frame) = (tables::<F>(), out::<F>(place::<F>(3, 1)));
    assert_eq!(encapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Answer);
    assert_eq!(tables.drops, [(Hook::TunnelEgress, Reason::NoPeer)]);
    let header = F::header(&frame, 0).unwrap();
    assert_eq!((header.src, header.dst), (F::address(3, 1), F::address(1, 1)));
    let kind = frame.packet.load::<2>(F::HEADER).unwrap();
    assert_eq!(kind, if F::V6 { [1, 3] } else { [3, 1] });
    checksums::<F>(&frame.packet.bytes, Expect::Full).unwrap();
    // On its way back in, by the same device.
    assert_eq!(decapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
}

fn what_nobody_may_answer_is_dropped_without_an_answer<F: Bed>() {
    let mut tables = tables::<F>();
    let many = frame::Datagram::<F>::udp(place::<F>(1, 1), Place::new(F::group(), Be16::new(5353)));
    let mut frame = Framed::new(many.bytes(), BRIDGE, POD);
    assert_eq!(encapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Drop);
    assert_eq!(tables.drops, [(Hook::TunnelEgress, Reason::NoPeer)]);
}

fn what_comes_out_of_the_tunnel_is_looked_at<F: Bed>() {
    for (change, reason) in [
        ((|frame| frame.vni = Some(6)) as fn(&mut Framed), Reason::WrongVni),
        (|frame| frame.vni = None, Reason::WrongVni),
        (|frame| frame.to = POD, Reason::WrongMac),
        (|frame| frame.from = POD, Reason::UnknownPeer),
    ] {
        let (mut tables, mut frame) = (tables::<F>(), entered::<F>());
        change(&mut frame);
        assert_eq!(decapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Drop);
        assert_eq!(tables.drops, [(Hook::TunnelIngress, reason)]);
    }
    let (mut tables, mut frame) = (tables::<F>(), entered::<F>());
    assert_eq!(decapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
    assert_eq!((&frame, &tables.drops), (&entered::<F>(), &vec![]));
}

fn a_device_with_two_addresses_answers_to_both<F: Bed>() {
    let other = Mac([2, 0, 0, 0, 0, 6]);
    let mut tables = tables::<F>();
    tables.tunnel.mac6 = other;
    let mut frame = Framed { to: if F::V6 { other } else { OWN }, ..entered::<F>() };
    assert_eq!(decapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
    assert_eq!(frame.is_adopted, F::V6);
    let mut frame = out::<F>(place::<F>(2, 1));
    assert_eq!(encapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
    assert_eq!(frame.from, if F::V6 { other } else { OWN });
}

fn a_pod_is_found_by_what_it_sends<F: Bed>() {
    let (mut tables, mut frame) = (tables::<F>(), out::<F>(place::<F>(2, 1)));
    let before = hops::<F>(&frame);
    assert_eq!(shortcut::<F, _, _>(&mut frame, &mut tables, DEVICE), Fate::Tunnel);
    assert_eq!((frame.to, frame.from, hops::<F>(&frame)), (PEER, OWN, before - 1));
    checksums::<F>(&frame.packet.bytes, Expect::Full).unwrap();
    // The tunnel device's own program has nothing left to do.
    let ready = frame.clone();
    assert_eq!(encapsulate::<F, _, _>(&mut frame, &mut tables), Fate::Pass);
    assert_eq!((frame.sent, frame.is_marked), (ready.sent, false));
    let home = Home { device: DEVICE, last: 1000, mac: POD, pad: 0 };
    assert_eq!(tables.homes[&F::address(1, 1)], home);
    let mut answer = entered::<F>();
    assert_eq!(decapsulate::<F, _, _>(&mut answer, &mut tables), Fate::Pod(DEVICE));
    assert_eq!((answer.to, hops::<F>(&answer)), (POD, before - 1));
    checksums::<F>(&answer.packet.bytes, Expect::Full).unwrap();
    // Not for long, if it falls silent.
    tables.now += HOME_TICKS;
    assert_eq!(decapsulate::<F, _, _>(&mut entered::<F>(), &mut tables), Fate::Pod(DEVICE));
    tables.now += 1;
    assert_eq!(decapsulate::<F, _, _>(&mut entered::<F>(), &mut tables), Fate::Pass);
}

fn two_devices_with_one_address_make_it_the_bridges_business<F: Bed>() {
    let mut tables = tables::<F>();
    let sent = || out::<F>(place::<F>(2, 1));
    for device in [DEVICE, DEVICE + 1] {
        assert_eq!(shortcut::<F, _, _>(&mut sent(), &mut tables, device), Fate::Tunnel);
    }
    assert_eq!(decapsulate::<F, _, _>(&mut entered::<F>(), &mut tables), Fate::Pass);
    // Until there was no quarrel for a while.
    tables.now += HOME_TICKS + 1;
    assert_eq!(shortcut::<F, _, _>(&mut sent(), &mut tables, DEVICE + 1), Fate::Tunnel);
    let found = decapsulate::<F, _, _>(&mut entered::<F>(), &mut tables);
    assert_eq!(found, Fate::Pod(DEVICE + 1));
}

fn what_is_left_for_the_stack_goes_its_way<F: Bed>() {
    let mut tables = tables::<F>();
    let mut passes = |frame: &mut Framed| {
        assert_eq!(shortcut::<F, _, _>(frame, &mut tables, DEVICE), Fate::Pass);
        assert!(!frame.is_marked);
    };
    // To nobody's pod, from what is none of our pods, too long, at the end of its hops.
    passes(&mut out::<F>(place::<F>(3, 1)));
    let foreign = frame::Datagram::<F>::tcp(place::<F>(3, 1), place::<F>(2, 1), tcp::ACK);
    passes(&mut Framed::new(foreign.bytes(), BRIDGE, POD));
    let long = |payload| {
        let frame = frame::Datagram::<F>::tcp(place::<F>(1, 1), place::<F>(2, 1), tcp::ACK);
        Framed::new(frame.with_payload(&vec![7; payload]).bytes(), BRIDGE, POD)
    };
    passes(&mut long(200));
    let mut last = out::<F>(place::<F>(2, 1));
    last.packet.store(if F::V6 { 7 } else { 8 }, &[1]).unwrap();
    passes(&mut last);
    // A GSO packet is as long as what it becomes: 20 bytes of TCP header are before each part.
    let largest = 200 - F::HEADER - 20;
    passes(&mut Framed { segment: largest + 1, ..long(2000) });
    let mut fits = Framed { segment: largest, ..long(2000) };
    assert_eq!(shortcut::<F, _, _>(&mut fits, &mut tables, DEVICE), Fate::Tunnel);
}

fn the_proxys_flows_pass_by_its_programs<F: Bed>() {
    let mut tables = tables::<F>();
    let mut sent = out::<F>(place::<F>(2, 1));
    assert_eq!(shortcut::<F, _, _>(&mut sent, &mut tables, DEVICE), Fate::Tunnel);
    tables.translated.push(hash::way(F::address(2, 1), F::address(1, 1)));
    let stays = |tables: &mut MemoryTunnels<F>| {
        let mut frame = entered::<F>();
        assert_eq!(decapsulate::<F, _, _>(&mut frame, tables), Fate::Pass);
        assert_eq!(frame, entered::<F>());
    };
    stays(&mut tables);
    tables.translated.clear();
    tables.tunnel.fast_path = fast_path::ONE_WAY;
    stays(&mut tables);
    // Into the tunnel they go by its device, where the proxy's program is.
    let mut sent = out::<F>(place::<F>(2, 1));
    assert_eq!(shortcut::<F, _, _>(&mut sent, &mut tables, DEVICE), Fate::Tunnel);
}

fn without_a_fast_path_all_goes_by_the_stack<F: Bed>() {
    let mut tables = tables::<F>();
    let mut sent = out::<F>(place::<F>(2, 1));
    assert_eq!(shortcut::<F, _, _>(&mut sent, &mut tables, DEVICE), Fate::Tunnel);
    tables.tunnel.fast_path = fast_path::OFF;
    let mut again = out::<F>(place::<F>(2, 1));
    assert_eq!(shortcut::<F, _, _>(&mut again, &mut tables, DEVICE), Fate::Pass);
    assert_eq!(again, out::<F>(place::<F>(2, 1)));
    assert_eq!(decapsulate::<F, _, _>(&mut entered::<F>(), &mut tables), Fate::Pass);
}
