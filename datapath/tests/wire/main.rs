//! Frames that are dealt with before the kernel sees them, on the host's engine, to the byte.

mod echo;
mod scene;
mod source_rate;
mod syn;

use datapath::{
    address::{Be16, Mac, V4, V6, protocol},
    both,
    counter::{Hook, Reason, drop_index},
    egress::egress,
    flow::{FlowKey, Parties, flow_flags, hook, role, seen, timeout_sec},
    frontend::{AddressUse, address_mark, address_use},
    hash,
    header::tcp,
    host::{
        buffer::Buffer,
        frame::{Datagram, Sum},
        verify::{Expect, checksums, difference},
        wire::RawFrame,
    },
    ingress::ingress,
    nexthop::Uplink,
    packet::Verdict,
    service::ServiceCounters,
    tunnel::Sender,
    vxlan::{self, SOURCE_PORTS},
    wire::{CARRIED_LEN, Fate, Leg},
};

use scene::*;

const TCP: u8 = protocol::TCP;
const UDP: u8 = protocol::UDP;
const DEVICES: Devices = Devices { up: 2, up2: 5 };

/// What a case changes, and in words; of tables, or of those of one flow.
type Change<F> = (&'static str, fn(&mut Scene<F>));
type KeyChange<F> = (&'static str, fn(&mut Scene<F>, &Key<F>));

both! {
    frames_of_flows_are_turned,
    they_become_what_the_packet_path_makes_of_them,
    packets_and_their_times_are_counted,
    the_other_row_is_woken_once_a_tick,
    what_the_flow_has_to_learn_of_passes,
    what_is_no_plain_packet_passes,
    what_the_tables_do_not_tell_of_passes,
    what_has_no_way_passes,
    the_longest_packet_of_a_way_goes,
    what_a_device_may_have_to_sum_up_passes,
    datagrams_without_a_checksum,
    datagrams_that_end_before_their_packet_pass,
    congestion_is_carried,
    every_bit_of_a_tunnels_headers_is_judged,
    a_row_of_requests_in_the_tunnel,
    other_roles_are_none_of_an_uplinks,
    nothing_is_read_that_is_not_there,
    padding_stays_behind,
    what_cannot_be_written_any_more_is_dropped_and_counted,
    checksums_are_right_whatever_is_in_the_packet,
    a_sum_of_zero_is_told_from_none,
}

fn scene<F: Side>() -> Scene<F> {
    Scene::new(DEVICES, NOW)
}

/// Requests and replies of all flows, as they come in.
fn all<F: Side>() -> Vec<(Kind, u8, bool)> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        for proto in [TCP, UDP] {
            all.push((kind, proto, true));
            // Those of a backend on this node come in by no uplink.
            if kind.has_replies() {
                all.push((kind, proto, false));
            }
        }
    }
    all
}

fn packet_of<F: Side>(kind: Kind, proto: u8, is_request: bool) -> Datagram<F> {
    if is_request { request(kind, proto) } else { reply(kind, proto) }
}

fn enters<F: Side>(kind: Kind, is_request: bool, packet: &[u8]) -> Vec<u8> {
    let is_within = if is_request { kind == Kind::Arrived } else { kind.is_tunnelled() };
    if is_within { from_peer::<F>(packet) } else { arriving::<F>(packet) }
}

/// The key that a packet is looked up by.
fn key_of<F: Side>(packet: &Datagram<F>) -> Key<F> {
    FlowKey::new(packet.src, packet.dst, packet.proto, hook::INGRESS)
}

/// What is to become of a packet of a flow, by the table of `datapath::flow`.
fn turned<F: Side>(kind: Kind, is_request: bool, packet: &Datagram<F>) -> Datagram<F> {
    let parties = kind.parties::<F>(packet.proto);
    if kind.is_local() {
        packet.clone().from(parties.alias()).to(parties.backend)
    } else if kind == Kind::Direct {
        forwarded(packet, parties.client, parties.frontend)
    } else if is_request {
        forwarded(packet, parties.source, parties.backend)
    } else {
        forwarded(packet, parties.frontend, parties.client)
    }
}

/// The same with what is to stand before it.
fn expected<F: Side>(
    scene: &mut Scene<F>,
    kind: Kind,
    is_request: bool,
    packet: &Datagram<F>,
) -> (Fate, Vec<u8>) {
    let turned = turned(kind, is_request, packet);
    if kind.is_local() {
        let from = if kind == Kind::Arrived { NODE } else { ROUTER };
        return (Fate::Pass, frame::<F>(UP, from, &turned.bytes()));
    }
    let key = key_of(packet);
    let path = hash::tuple(&key);
    let at = F::HEADER as usize + if packet.proto == TCP { 16 } else { 6 };
    let checksum = u16::from_ne_bytes(packet.bytes()[at..at + 2].try_into().expect("two bytes"));
    let own = u16::from_ne_bytes(packet.bytes()[4..6].try_into().expect("two bytes"));
    let id = own ^ checksum ^ path as u16;
    let is_direct = kind == Kind::Direct;
    let to = if is_direct { kind.parties::<F>(packet.proto).backend } else { turned.dst };
    let hop = scene.wires.hops[&to.addr];
    let mut bytes = turned.bytes();
    if hop.port != Be16::ZERO {
        let outer = Outer {
            src: F::address(9, 1),
            dst: F::address(9, 2),
            src_port: vxlan::source_port(SOURCE_PORTS[0], SOURCE_PORTS[1], path),
            to: PEER,
            from: OWN,
            id: u16::from_be_bytes(id.to_ne_bytes()),
        };
        bytes = outer.wrap::<F>(&bytes);
    }
    (Fate::Send(hop.device), frame::<F>(hop.to, hop.from, &bytes))
}

/// Checks a frame's checksums, of the packet in a tunnel as well.
#[track_caller]
fn sums<F: Side>(frame: &[u8]) {
    let packet = &frame[ETHERNET..];
    checksums::<F>(packet, Expect::Full).expect("checksums");
    let udp = F::HEADER as usize;
    if packet[if F::V6 { 6 } else { 9 }] == UDP && packet[udp + 2..udp + 4] == PORT.to_be_bytes() {
        assert_eq!(packet[udp + 6..udp + 8] == [0, 0], !F::V6, "RFC 8200 §8.1");
        checksums::<F>(&packet[F::OVERHEAD as usize..], Expect::Full).expect("checksums within");
    }
}

#[track_caller]
fn same<F: Side>(found: &(Fate, Vec<u8>), expected: &(Fate, Vec<u8>), what: &str) {
    assert_eq!(found.0, expected.0, "{what}");
    let (found, expected) = (&found.1, &expected.1);
    let link = |frame: &[u8]| frame[..ETHERNET].to_vec();
    assert_eq!(link(found), link(expected), "{what}");
    if let Some(text) = difference::<F>(&expected[ETHERNET..], &found[ETHERNET..]) {
        panic!("{what}: {text}");
    }
}

/// A frame that must not be touched, nor leave a trace.
#[track_caller]
fn passes<F: Side>(scene: &mut Scene<F>, bytes: &[u8], what: &str) {
    let (flows, drops) = (scene.memory.flows.clone(), scene.memory.drops.clone());
    let stats = scene.memory.stats.clone();
    let found = scene.run(bytes);
    same::<F>(&found, &(Fate::Pass, bytes.to_vec()), what);
    assert_eq!(scene.memory.flows, flows, "{what}");
    assert_eq!(scene.memory.drops, drops, "{what}");
    assert_eq!(scene.memory.stats, stats, "{what}");
}

/// A frame that would be turned, for a case to change.
#[track_caller]
fn is_turned<F: Side>(scene: &mut Scene<F>, bytes: &[u8], what: &str) {
    let (fate, out) = scene.run(bytes);
    assert!(fate != Fate::Drop && out != bytes, "{what}: {fate:?}");
    sums::<F>(&out);
}

fn frames_of_flows_are_turned<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let what = format!("{kind:?} of {proto}, request: {is_request}");
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        let expected = expected(&mut scene, kind, is_request, &packet);
        let found = scene.run(&bytes);
        same::<F>(&found, &expected, &what);
        sums::<F>(&found.1);
        assert_eq!(scene.memory.drops.iter().sum::<u64>(), 0, "{what}");
        let parties = kind.parties::<F>(proto);
        let asked = match (kind.is_local(), is_request) {
            (true, _) => vec![],
            (false, true) => vec![(parties.backend.addr, parties.source.addr)],
            (false, false) => vec![(parties.client.addr, parties.frontend.addr)],
        };
        assert_eq!(scene.wires.asked, asked, "{what}");
    }
}

/// One hop less, as the stack between the packet path's two hooks has it.
fn hop<F: Side>(bytes: &mut [u8]) {
    if F::V6 {
        bytes[7] -= 1;
    } else {
        bytes[8] -= 1;
        fill_checksum(bytes);
    }
}

fn they_become_what_the_packet_path_makes_of_them<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        for flags in [tcp::ACK, 0x18] {
            let what = format!("{kind:?} of {proto}, request: {is_request}");
            let mut by_wire = scene::<F>();
            for (net, host, flags) in [
                (96, 1, address_use::CLUSTER_IP),
                (9, 1, address_use::FRONTEND | address_use::MASQUERADE),
                (1, 0x100, address_use::MASQUERADE),
            ] {
                by_wire.memory.addresses.insert(F::address(net, host), AddressUse { flags });
            }
            let marked = by_wire.wires.marks.iter().map(|byte| *byte != 0).collect();
            by_wire.memory.marks = marked;
            let mut by_path = by_wire.clone();
            let packet = Datagram { flags, ..packet_of::<F>(kind, proto, is_request) };
            let (_, out) = by_wire.run(&enters::<F>(kind, is_request, &packet.bytes()));
            let mut buffer = Buffer::new(packet.bytes());
            let memory = &mut by_path.memory;
            let verdict = ingress::<F, _, _>(&mut buffer, memory, Hook::UplinkIngress);
            assert_eq!(verdict, Verdict::Pass, "{what}");
            if !kind.is_local() {
                hop::<F>(&mut buffer.bytes);
                let verdict = egress::<F, _, _>(&mut buffer, memory, Hook::UplinkEgress);
                assert_eq!(verdict, Verdict::Pass, "{what}");
            }
            let mut inner = &out[ETHERNET..];
            if inner.len() != buffer.bytes.len() {
                inner = &inner[F::OVERHEAD as usize..];
            }
            assert_eq!(difference::<F>(&buffer.bytes, inner), None, "{what}");
            assert_eq!(by_wire.memory.flows.len(), memory.flows.len(), "{what}");
            for (key, row) in &memory.flows {
                let mut row = *row;
                let found = by_wire.memory.flows[key];
                if key.hook == hook::EGRESS {
                    // On the wire, that row does not count.
                    (row.packets, row.bytes) = (found.packets, found.bytes);
                }
                assert_eq!(found, row, "{what}: {key:?}");
            }
        }
    }
}

fn packets_and_their_times_are_counted<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let what = format!("{kind:?} of {proto}, request: {is_request}");
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        let length = packet.bytes().len() as u64;
        let mut flows = scene.memory.flows.clone();
        for count in 1..=3 {
            is_turned(&mut scene, &bytes, &what);
            let key = key_of(&packet);
            let row = flows.get_mut(&key).expect("a row");
            (row.last, row.seen) = (NOW, seen::PACKET);
            row.packets += 1;
            row.bytes += length;
            if !kind.is_local() {
                let beside = beside::<F>(kind, proto, is_request);
                flows.get_mut(&beside).expect("a row").last = NOW;
            }
            assert_eq!(scene.memory.flows, flows, "{what}");
            let counted = ServiceCounters {
                packets: count,
                bytes: count * length,
                ..ServiceCounters::default()
            };
            assert_eq!(scene.memory.stats[&SERVICE], counted, "{what}");
            let mut carried = [0; CARRIED_LEN];
            carried[leg(kind, is_request) as usize] = count;
            assert_eq!(scene.memory.carried, carried, "{what}");
        }
    }
}

const fn leg(kind: Kind, is_request: bool) -> Leg {
    match kind {
        Kind::Arrived => return Leg::Arrived,
        Kind::Direct => return Leg::Direct,
        _ if kind.is_local() => return Leg::Local,
        _ => {}
    }
    match (kind.is_tunnelled(), is_request) {
        (true, true) => Leg::Tunnel,
        (true, false) => Leg::TunnelBack,
        (false, true) => Leg::Out,
        (false, false) => Leg::Back,
    }
}

/// Where a masqueraded packet's other row is.
fn beside<F: Side>(kind: Kind, proto: u8, is_request: bool) -> Key<F> {
    let parties = kind.parties::<F>(proto);
    if is_request { parties.original_source() } else { parties.reply() }
}

fn the_other_row_is_woken_once_a_tick<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        if kind.is_local() {
            continue;
        }
        let what = format!("{kind:?} of {proto}, request: {is_request}");
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request).bytes();
        let bytes = enters::<F>(kind, is_request, &packet);
        let beside = beside::<F>(kind, proto, is_request);
        is_turned(&mut scene, &bytes, &what);
        assert_eq!(scene.row(&beside).last, NOW, "{what}");
        scene.row(&beside).last = BEFORE;
        is_turned(&mut scene, &bytes, &what);
        assert_eq!(scene.row(&beside).last, BEFORE, "{what}: in the same tick");
        scene.set_now(NOW + 1);
        is_turned(&mut scene, &bytes, &what);
        assert_eq!(scene.row(&beside).last, NOW + 1, "{what}");
        // One that is gone is not missed.
        scene.memory.flows.remove(&beside);
        scene.set_now(NOW + 2);
        is_turned(&mut scene, &bytes, &what);
        assert!(!scene.memory.flows.contains_key(&beside), "{what}");
    }
}

fn what_the_flow_has_to_learn_of_passes<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request);
        let key = key_of(&packet);
        let enter = |flags: u8| {
            let packet = Datagram { flags, ..packet.clone() };
            enters::<F>(kind, is_request, &packet.bytes())
        };
        if proto == TCP {
            for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST] {
                passes(&mut scene, &enter(flags), &format!("{kind:?}, flags {flags:#x}"));
            }
            // What is known of is no news, but a SYN is always.
            scene.row(&key).seen = seen::PACKET | seen::FIN;
            is_turned(&mut scene.clone(), &enter(tcp::FIN | tcp::ACK), "another FIN");
            passes(&mut scene, &enter(tcp::RST), "RST after FIN");
            scene.row(&key).seen = seen::PACKET | seen::RST | seen::FIN;
            for flags in [tcp::RST, tcp::RST | tcp::ACK, tcp::FIN | tcp::ACK, tcp::ACK] {
                is_turned(&mut scene.clone(), &enter(flags), "another RST");
            }
            passes(&mut scene, &enter(tcp::SYN), "SYN after RST");
            scene.row(&key).seen = seen::PACKET;
        } else {
            scene.row(&key).last = NOW - timeout_sec::UDP_ANSWERED;
            is_turned(&mut scene.clone(), &enter(0), "idle, but not for long");
            scene.row(&key).last -= 1;
            passes(&mut scene, &enter(0), "idle");
            scene.row(&key).last = BEFORE;
        }
        let bytes = enter(tcp::ACK);
        scene.row(&key).flags |= flow_flags::RESET;
        passes(&mut scene, &bytes, "its endpoint is gone");
        scene.row(&key).flags &= !flow_flags::RESET;
        scene.row(&key).seen = 0;
        passes(&mut scene, &bytes, "the first of its direction");
        scene.row(&key).seen = seen::PACKET;
        is_turned(&mut scene, &bytes, "as before");
    }
    // Of TCP, nothing is idle here: only a sweep tells.
    let mut scene = scene::<F>();
    let packet = request::<F>(Kind::Routed, TCP);
    scene.row(&key_of(&packet)).last = NOW.wrapping_sub(timeout_sec::TCP_ESTABLISHED + 1);
    is_turned(&mut scene, &arriving::<F>(&packet.bytes()), "an idle connection");
}

fn what_is_no_plain_packet_passes<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request);
        let enter = |bytes: &[u8]| enters::<F>(kind, is_request, bytes);
        is_turned(&mut scene.clone(), &enter(&packet.bytes()), "as it is");
        let large = packet.clone().with_payload(&[7; 64]);
        for piece in large.fragments(32) {
            passes(&mut scene, &enter(&piece), "a fragment");
        }
        if F::V6 {
            for number in [0, 60, 43, 44, 51, 135] {
                let mut packet = packet.clone();
                packet.extensions = vec![(number, vec![0; 8])];
                passes(&mut scene, &enter(&packet.bytes()), "an extension header");
            }
        } else {
            let packet = Datagram { options: vec![7, 7, 4, 0, 0, 0, 0, 0], ..packet.clone() };
            passes(&mut scene, &enter(&packet.bytes()), "options");
        }
        let association = Datagram::<F>::sctp(packet.src, packet.dst, 0);
        passes(&mut scene, &enter(&association.bytes()), "SCTP");
        for proto in [F::ICMP, 47, 50] {
            let other = Datagram::<F>::other(packet.src.addr, packet.dst.addr, proto, &[0; 40]);
            passes(&mut scene, &enter(&other.bytes()), "another protocol");
        }
        let mut other = packet.bytes();
        other[0] ^= 0x20;
        passes(&mut scene, &enter(&other), "another version");
        let mut tagged = enter(&packet.bytes());
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        passes(&mut scene, &tagged, "a tag");
        // ARP, LLDP, and a length as IEEE 802.3 has it.
        let other_family = if F::V6 { [8, 0] } else { [0x86, 0xdd] };
        for kind in [[8, 6], [0x88, 0xcc], [0, 46], other_family] {
            let mut other = enter(&packet.bytes());
            other[12..14].copy_from_slice(&kind);
            passes(&mut scene, &other, "no frame of its family");
        }
        if !F::V6 {
            let mut short = packet.bytes();
            short[0] = 0x44;
            passes(&mut scene, &enter(&short), "a header too short");
        }
    }
}

fn what_the_tables_do_not_tell_of_passes<F: Side>() {
    let changes: [KeyChange<F>; 5] = [
        ("no row", |scene, key| {
            let _ = scene.memory.flows.remove(key);
        }),
        ("no uplink", |scene, _| scene.wires.uplink = None),
        ("for another node", |scene, _| {
            scene.wires.uplink = Some(Uplink { mac: Mac([2; 6]), ..Uplink::default() });
        }),
        ("an address of nobody's", |scene, key| {
            scene.wires.uses[address_mark(key.dst)] = 0;
        }),
        ("a way without flows, and no frontend", |scene, _| {
            scene.wires.uses.iter_mut().for_each(|byte| *byte &= !1);
            scene.wires.uses.iter_mut().for_each(|byte| *byte = if *byte == 0 { 2 } else { *byte });
            scene.wires.marks.fill(0);
            scene.wires.ports.fill(0);
        }),
    ];
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        for (what, change) in changes {
            let mut scene = scene::<F>();
            // Which is what another node's is.
            if kind == Kind::Arrived && what.starts_with(['a']) {
                continue;
            }
            change(&mut scene, &key_of(&packet));
            passes(&mut scene, &bytes, what);
        }
        for to in [Mac([0xff; 6]), Mac([2, 0, 0, 0, 2, 3]), Mac([0x33, 0x33, 0, 0, 0, 1])] {
            let mut bytes = bytes.clone();
            bytes[..6].copy_from_slice(&to.0);
            passes(&mut scene::<F>(), &bytes, "a frame for others");
        }
        // An address that is ours as a whole is enough to look,
        let mut scene = scene::<F>();
        scene.wires.uses.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        scene.wires.marks.fill(0);
        scene.wires.ports.fill(0);
        is_turned(&mut scene, &bytes, "a cluster IP");
        // and of another, a port of a frontend, or a way that is marked.
        for keeps_ports in [true, false] {
            let mut scene = self::scene::<F>();
            if keeps_ports {
                scene.wires.marks.fill(0);
                scene.wires.ports.fill(7);
            } else {
                scene.wires.ports.fill(0);
            }
            scene.wires.uses.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0) * 2);
            is_turned(&mut scene, &bytes, "a mark");
        }
    }
}

fn what_has_no_way_passes<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        if kind.is_local() {
            continue;
        }
        let parties = kind.parties::<F>(proto);
        let to = if is_request { parties.backend.addr } else { parties.client.addr };
        let mut packet = packet_of::<F>(kind, proto, is_request);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        let mut scene = scene::<F>();
        scene.wires.hops.get_mut(&to).expect("a way").device = 0;
        passes(&mut scene, &bytes, "the kernel has to see to it");
        scene.wires.hops.remove(&to);
        passes(&mut scene, &bytes, "nobody knows the way");
        let mut scene = self::scene::<F>();
        scene.row(&key_of(&packet)).other_port = Be16::ZERO;
        passes(&mut scene, &bytes, "without a source as yet");
        for (hops, goes) in [(0, false), (1, false), (2, true), (255, true)] {
            packet.hops = hops;
            let mut scene = self::scene::<F>();
            let bytes = enters::<F>(kind, is_request, &packet.bytes());
            if goes {
                let expected = expected(&mut scene, kind, is_request, &packet);
                same::<F>(&scene.run(&bytes), &expected, "hops");
            } else {
                passes(&mut scene, &bytes, "no hop left");
            }
        }
    }
    // To a pod of this node, the stack counts the hop.
    let packet = Datagram { hops: 1, ..request::<F>(Kind::Local, TCP) };
    let mut scene = self::scene::<F>();
    let expected = expected(&mut scene, Kind::Local, true, &packet);
    same::<F>(&scene.run(&arriving::<F>(&packet.bytes())), &expected, "the last hop");
}

fn the_longest_packet_of_a_way_goes<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let parties = kind.parties::<F>(proto);
        let to = if is_request { parties.backend.addr } else { parties.client.addr };
        let before = packet.bytes().len() - packet.payload.len();
        let mtu = scene::<F>().wires.hops.get(&to).map_or(MTU, |hop| hop.mtu) as usize;
        for (payload, fits) in [(mtu - before, true), (mtu - before + 1, kind.is_local())] {
            let mut scene = scene::<F>();
            let packet = packet.clone().with_payload(&vec![9; payload]);
            let bytes = enters::<F>(kind, is_request, &packet.bytes());
            if fits {
                let expected = expected(&mut scene, kind, is_request, &packet);
                same::<F>(&scene.run(&bytes), &expected, "as long as may be");
            } else {
                passes(&mut scene, &bytes, "too long");
            }
        }
    }
}

fn what_a_device_may_have_to_sum_up_passes<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let packet = Datagram { sum: Sum::Partial, ..packet };
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        passes(&mut scene::<F>(), &bytes, "CHECKSUM_PARTIAL");
    }
}

fn datagrams_without_a_checksum<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        if proto == TCP {
            continue;
        }
        let packet = Datagram { sum: Sum::Zero, ..packet_of::<F>(kind, proto, is_request) };
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        let mut scene = scene::<F>();
        let into_tunnel = if is_request { kind.is_tunnelled() } else { kind == Kind::Around };
        if F::V6 && into_tunnel {
            passes(&mut scene, &bytes, "the kernel has to sum it up");
        } else {
            let expected = expected(&mut scene, kind, is_request, &packet);
            same::<F>(&scene.run(&bytes), &expected, "no checksum");
        }
    }
}

/// Behind the datagram may stand what its own checksum does not cover (RFC 9868).
fn datagrams_that_end_before_their_packet_pass<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        if proto == TCP {
            continue;
        }
        let packet = packet_of::<F>(kind, proto, is_request);
        let mut bytes = packet.bytes();
        bytes.extend([1, 2, 3, 4]);
        let at = if F::V6 { 4 } else { 2 };
        let length = u16::from_be_bytes([bytes[at], bytes[at + 1]]) + 4;
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        if !F::V6 {
            fill_checksum(&mut bytes);
        }
        passes(&mut scene::<F>(), &enters::<F>(kind, is_request, &bytes), "more than the datagram");
    }
}

/// RFC 6040 §4.1 and figure 4.
fn congestion_is_carried<F: Side>() {
    for (inner, outer) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
        let mut bytes = request::<F>(Kind::Tunnelled, TCP).bytes();
        set_congestion::<F>(&mut bytes, inner);
        let (fate, out) = scene::<F>().run(&arriving::<F>(&bytes));
        assert_eq!(fate, Fate::Send(DEVICES.up));
        sums::<F>(&out);
        assert_eq!(congestion::<F>(&out[ETHERNET..]), outer);
        assert_eq!(congestion::<F>(&out[ETHERNET + F::OVERHEAD as usize..]), inner);
    }
    for inner in 0..4 {
        for outer in 0..4 {
            let mut packet = reply::<F>(Kind::Tunnelled, TCP).bytes();
            set_congestion::<F>(&mut packet, inner);
            let mut bytes = from_peer::<F>(&packet);
            set_congestion::<F>(&mut bytes[ETHERNET..], outer);
            let mut scene = scene::<F>();
            // What would change the inner header, or end the packet, is the kernel's to do.
            if matches!(outer, 0 | 2) || outer == inner {
                let (fate, out) = scene.run(&bytes);
                assert_eq!(fate, Fate::Send(DEVICES.up), "{outer} over {inner}");
                assert_eq!(congestion::<F>(&out[ETHERNET..]), inner);
            } else {
                passes(&mut scene, &bytes, &format!("{outer} over {inner}"));
            }
        }
    }
    // Of the other bits of the class, none goes outside.
    let mut bytes = request::<F>(Kind::Tunnelled, TCP).bytes();
    if F::V6 {
        (bytes[0], bytes[1]) = (0x6b, 0x8a);
        (bytes[2], bytes[3]) = (0xbc, 0xde);
    } else {
        bytes[1] = 0xb8;
        fill_checksum(&mut bytes);
    }
    let (_, out) = scene::<F>().run(&arriving::<F>(&bytes));
    sums::<F>(&out);
    let start: &[u8] = if F::V6 { &[0x60, 0, 0, 0] } else { &[0x45, 0] };
    assert_eq!(&out[ETHERNET..ETHERNET + start.len()], start);
    let inner = ETHERNET + F::OVERHEAD as usize;
    assert_eq!(out[inner..inner + start.len()], bytes[..start.len()]);
}

fn every_bit_of_a_tunnels_headers_is_judged<F: Side>() {
    let packet = reply::<F>(Kind::Tunnelled, TCP);
    let whole = from_peer::<F>(&packet.bytes());
    let expected = expected(&mut scene::<F>(), Kind::Tunnelled, false, &packet);
    // Places that do not matter: the outer identification and checksum, flow label, hops, source,
    // source port, and what the frame says it is from. Both lengths must agree.
    let (header, vxlan) = (ETHERNET, ETHERNET + F::HEADER as usize);
    let free = |at: usize| {
        let outer = if F::V6 {
            matches!(at - header, 2 | 3 | 7..24)
        } else {
            matches!(at - header, 4 | 5 | 8 | 10..16)
        };
        outer || (vxlan..vxlan + 2).contains(&at)
    };
    let mut judged = 0;
    for at in 0..ETHERNET + F::OVERHEAD as usize {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let mut scene = scene::<F>();
            let is_link = (6..12).contains(&at);
            // The type of service but for congestion, and IPv6's flow label; fragments may be
            // forbidden; of an IPv6 tunnel any checksum will do, of an IPv4 one there is none.
            let byte = at.wrapping_sub(header);
            let may = if F::V6 {
                byte == 0 && bit < 4 || byte == 1 && bit != 4
            } else {
                byte == 1 && bit != 0 || byte == 6 && bit >= 6
            } || F::V6 && (vxlan + 6..vxlan + 8).contains(&at);
            if is_link || at >= header && free(at) || may {
                let (fate, out) = scene.run(&bytes);
                assert_eq!((fate, &out), (expected.0, &expected.1), "byte {at}, bit {bit}");
                judged += 1;
            } else {
                passes(&mut scene, &bytes, &format!("byte {at}, bit {bit}"));
            }
        }
    }
    assert!(judged > 100, "{judged}");
    let changes: [Change<F>; 6] = [
        ("another network", |scene| scene.wires.tunnel.vni += 1),
        ("another port", |scene| scene.wires.tunnel.port = Be16::new(4789)),
        ("the device does all", |scene| scene.wires.tunnel.uplink = 0),
        ("no sender", |scene| scene.wires.senders.clear()),
        ("another sender", |scene| scene.wires.senders = vec![Sender { mac: OWN, pad: 0 }]),
        ("another device", |scene| {
            (scene.wires.tunnel.mac4, scene.wires.tunnel.mac6) = (NODE, NODE);
        }),
    ];
    for (what, change) in changes {
        let mut scene = scene::<F>();
        change(&mut scene);
        passes(&mut scene, &whole, what);
    }
    if F::V6 {
        let mut bytes = whole.clone();
        bytes[vxlan + 6..vxlan + 8].fill(0);
        passes(&mut scene::<F>(), &bytes, "no outer checksum");
    }
    // A flow's own packets to the tunnels' port, whoever's that is.
    let mut scene = scene::<F>();
    let parties = Parties { frontend: at::<F>(96, 1, PORT), ..Kind::Local.parties::<F>(UDP) };
    scene.put(&parties, false, BEFORE);
    let packet = self::packet::<F>(UDP, parties.client, parties.frontend);
    passes(&mut scene, &arriving::<F>(&packet.bytes()), "to the tunnels' port");
    // Of TCP the port is any other.
    let parties = Parties { proto: TCP, ..parties };
    scene.put(&parties, false, BEFORE);
    let packet = self::packet::<F>(TCP, parties.client, parties.frontend);
    is_turned(&mut scene, &arriving::<F>(&packet.bytes()), "TCP to the tunnels' port");
}

/// Whoever asks through the tunnel is at home with the packet path, unless the answer has to come
/// back here.
fn a_row_of_requests_in_the_tunnel<F: Side>() {
    for proto in [TCP, UDP] {
        for kind in Kind::ALL {
            let packet = request::<F>(kind, proto);
            let bytes = from_peer::<F>(&packet.bytes());
            let mut scene = scene::<F>();
            let mut expected = expected(&mut scene, kind, true, &packet);
            if kind.is_local() {
                expected.1[6..12].copy_from_slice(&NODE.0);
            }
            if kind == Kind::Direct {
                passes(&mut scene, &bytes, "the kernel sees that it goes round no circle");
            } else {
                same::<F>(&scene.run(&bytes), &expected, "through");
            }
        }
        let frontend = at::<F>(1, 0x100, 30_080);
        let mut scene = scene::<F>();
        let parties = Parties { frontend, ..Kind::Local.parties::<F>(proto) };
        scene.put(&parties, false, BEFORE);
        let packet = scene::packet::<F>(proto, parties.client, frontend);
        passes(&mut scene, &from_peer::<F>(&packet.bytes()), "an address in the pods' network");
    }
}

fn other_roles_are_none_of_an_uplinks<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        for role in [0, role::REPLY, role::ORIGINAL_SOURCE, 5, 255] {
            let mut scene = scene::<F>();
            scene.row(&key_of(&packet)).role = role;
            passes(&mut scene, &bytes, &format!("role {role}"));
        }
    }
}

fn nothing_is_read_that_is_not_there<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request);
        let whole = enters::<F>(kind, is_request, &packet.bytes());
        let start = whole.len() - packet.bytes().len();
        let headers = start + F::HEADER as usize + if proto == TCP { 20 } else { 8 };
        for length in ETHERNET..headers {
            passes(&mut scene::<F>(), &whole[..length], &format!("{length} bytes"));
        }
        for length in headers..whole.len() {
            let _ = scene::<F>().run(&whole[..length]);
        }
    }
}

/// Short frames come with more than the packet.
fn padding_stays_behind<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        let packet = packet_of::<F>(kind, proto, is_request).with_payload(&[1]);
        let mut bytes = enters::<F>(kind, is_request, &packet.bytes());
        let padding = [0, 0, 5, 6, 7];
        bytes.extend(padding);
        let mut scene = scene::<F>();
        let mut expected = expected(&mut scene, kind, is_request, &packet);
        expected.1.extend(padding);
        same::<F>(&scene.run(&bytes), &expected, "padding");
    }
}

fn what_cannot_be_written_any_more_is_dropped_and_counted<F: Side>() {
    let packet = request::<F>(Kind::Tunnelled, TCP);
    for (room, fate) in
        [(F::OVERHEAD, Fate::Send(DEVICES.up)), (F::OVERHEAD - 1, Fate::Drop), (0, Fate::Drop)]
    {
        let mut scene = scene::<F>();
        let mut frame = RawFrame::new(arriving::<F>(&packet.bytes()));
        frame.room = room;
        assert_eq!(scene.run_frame(&mut frame), fate);
        let index = drop_index(Hook::XdpIngress, Reason::RewriteFailed) as usize;
        let dropped = u64::from(fate == Fate::Drop);
        assert_eq!(scene.memory.drops[index], dropped);
        assert_eq!(scene.memory.drops.iter().sum::<u64>(), dropped);
    }
    // What came out of a tunnel has room for one.
    let mut scene = scene::<F>();
    let mut frame = RawFrame::new(from_peer::<F>(&reply::<F>(Kind::Around, TCP).bytes()));
    frame.room = 0;
    assert_eq!(scene.run_frame(&mut frame), Fate::Send(DEVICES.up));
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

fn checksums_are_right_whatever_is_in_the_packet<F: Side>() {
    let mut dice = Dice(7);
    for (kind, proto, is_request) in all::<F>() {
        let mut scene = scene::<F>();
        let packet = packet_of::<F>(kind, proto, is_request);
        let mut turned = 0;
        for round in 0..2_000 {
            let length = dice.next() as usize % 40;
            let mut payload: Vec<u8> = (0..length).map(|_| dice.next() as u8).collect();
            if round < 100 && length >= 2 {
                payload.fill(0xff);
            }
            let packet = Datagram {
                hops: 2 + (dice.next() % 254) as u8,
                id: dice.next() as u16 as u32,
                sequence: dice.next() as u32,
                acknowledgement: dice.next() as u32,
                ..packet.clone().with_payload(&payload)
            };
            let bytes = enters::<F>(kind, is_request, &packet.bytes());
            let (fate, out) = scene.run(&bytes);
            assert_ne!(fate, Fate::Drop);
            if out == bytes {
                // The sum is that of the pseudo header by itself.
                continue;
            }
            turned += 1;
            sums::<F>(&out);
            if proto == UDP {
                let inner = out.len() - packet.bytes().len() + F::HEADER as usize + 6;
                assert_ne!(out[inner..inner + 2], [0, 0], "none at all");
            }
        }
        assert!(turned > 1_900, "{turned}");
    }
}

/// Zero says that there is none, so it is written in its other form (RFC 768).
fn a_sum_of_zero_is_told_from_none<F: Side>() {
    for (kind, proto, is_request) in all::<F>() {
        if proto == TCP {
            continue;
        }
        // A word that makes the packet's sum what it has to be, once it is turned.
        let mut packet = packet_of::<F>(kind, proto, is_request).with_payload(&[0; 6]);
        let bare = turned(kind, is_request, &packet);
        packet.payload[4..].copy_from_slice(&checksum_of(&bare).to_be_bytes());
        assert_eq!(checksum_of(&turned(kind, is_request, &packet)), 0xffff);
        let mut scene = scene::<F>();
        let expected = expected(&mut scene, kind, is_request, &packet);
        let bytes = enters::<F>(kind, is_request, &packet.bytes());
        same::<F>(&scene.run(&bytes), &expected, "the packet's");
    }
    if !F::V6 {
        return;
    }
    // In a tunnel's sum the packet's own makes up for all but its first words: the label of its flow.
    for (kind, proto, is_request) in all::<F>() {
        let mut packet = packet_of::<F>(kind, proto, is_request).bytes();
        let enter = |packet: &[u8]| enters::<F>(kind, is_request, packet);
        let (_, out) = scene::<F>().run(&enter(&packet));
        let at = ETHERNET + F::HEADER as usize + 6;
        if out.len() < ETHERNET + packet.len() + F::OVERHEAD as usize {
            continue;
        }
        packet[2..4].copy_from_slice(&out[at..at + 2]);
        let (_, out) = scene::<F>().run(&enter(&packet));
        assert_eq!(out[at..at + 2], [0xff, 0xff], "the tunnel's");
        sums::<F>(&out);
    }
}

/// The checksum in a packet.
fn checksum_of<F: Side>(packet: &Datagram<F>) -> u16 {
    let bytes = packet.bytes();
    let at = F::HEADER as usize + if packet.proto == TCP { 16 } else { 6 };
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Ports are those of the flow in all of a tunnel's headers: replies of one flow go one way.
#[test]
fn a_flows_tunnels_are_one() {
    fn ports<F: Side>(kind: Kind) -> Be16 {
        let mut scene = scene::<F>();
        let bytes = arriving::<F>(&request::<F>(kind, TCP).bytes());
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let (_, out) = scene.run(&bytes);
            let at = ETHERNET + F::HEADER as usize;
            ports.insert(Be16::from_bytes([out[at], out[at + 1]]));
        }
        assert_eq!(ports.len(), 1);
        ports.pop_first().expect("one")
    }
    assert_ne!(ports::<V4>(Kind::Tunnelled), ports::<V4>(Kind::TunnelledAlias));
    assert_ne!(ports::<V6>(Kind::Tunnelled), ports::<V6>(Kind::TunnelledAlias));
    // And none is among those that a host gives to its own.
    assert!(ports::<V4>(Kind::Tunnelled).get() >= 49_152);
}
