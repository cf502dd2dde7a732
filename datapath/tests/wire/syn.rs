//! Connections that begin at the wire, with one row, and what becomes of them on the packet path.

use datapath::{
    address::Be16,
    algorithm::Algorithm,
    backend::{Backend, backend_flags},
    both,
    counter::Hook,
    egress::egress,
    flow::{Flow, Parties, Place, flow_flags, role, seen},
    header::tcp,
    host::{buffer::Buffer, frame::Datagram},
    ingress::ingress,
    packet::Verdict,
    service::{Service, ServiceCounters, SetRef, service_flags},
    source_rate,
    tables::Opening,
    wire::{Fate, Leg},
};

use crate::{
    TCP, UDP, passes, scene as node,
    scene::{Key, ROUTER, Row, SERVICE, Scene, Side, UP, arriving, at, frame, from_peer},
};

both! {
    a_syn_goes_to_a_backend_of_this_node_and_leaves_one_row,
    sent_again_it_is_the_same_flow,
    the_answer_brings_the_other_row,
    the_answer_finds_its_flow_whatever_the_set_has_become,
    a_refusal_is_an_answer_too,
    of_two_answers_the_first_has_the_flow,
    a_syn_that_is_lost_again_on_the_packet_path_goes_on_there,
    another_frontend_s_flow_between_the_same_two_does_not_take_its_place,
    an_answer_is_translated_again_when_the_other_row_was_pushed_out,
    all_else_passes_as_it_is,
}

const CLIENT: u16 = 40_500;

/// What makes a SYN one for the packet path, and in words.
type Change<'a, F> = (&'static str, &'a dyn Fn(&mut Scene<F>));

/// A node that serves a port by backends of its own, with Maglev's table.
fn serving<F: Side>(hosts: &[u16]) -> Scene<F> {
    let mut scene = node::<F>();
    scene.memory.flows.clear();
    scene.serve(at::<F>(9, 1, 30_080), Algorithm::Maglev, &backends::<F>(hosts));
    scene
}

fn backends<F: Side>(hosts: &[u16]) -> Vec<Backend<F::Address>> {
    let backend = |&host: &u16| Backend {
        addr: F::address(1, host),
        port: Be16::new(8080),
        generation: 0,
        flags: backend_flags::LOCAL,
    };
    hosts.iter().map(backend).collect()
}

fn client<F: Side>() -> Place<F::Address> {
    at::<F>(8, 5, CLIENT)
}

fn segment<F: Side>(flags: u8) -> Datagram<F> {
    Datagram::of(TCP, client::<F>(), at::<F>(9, 1, 30_080), flags)
}

fn answer<F: Side>(backend: Place<F::Address>, flags: u8) -> Datagram<F> {
    Datagram::of(TCP, backend, client::<F>(), flags)
}

/// Sends a SYN, which goes to the backend of this number.
#[track_caller]
fn opens<F: Side>(scene: &mut Scene<F>, host: u16) -> Parties<F::Address> {
    let (packet, backend) = (segment::<F>(tcp::SYN), at::<F>(1, host, 8080));
    let turned = frame::<F>(UP, ROUTER, &packet.clone().to(backend).bytes());
    assert_eq!(scene.run(&arriving::<F>(&packet.bytes())), (Fate::Pass, turned));
    Parties { client: packet.src, frontend: packet.dst, backend, proto: TCP, ..Parties::default() }
}

fn pending<F: Side>(scene: &mut Scene<F>) -> Vec<(Key<F>, Row<F>)> {
    let mut rows: Vec<_> = scene.memory.pending.iter().map(|(key, row)| (*key, *row)).collect();
    rows.sort_by_key(|(_, row)| row.role);
    rows
}

/// The packet path's programs at the uplink.
#[track_caller]
fn path<F: Side>(scene: &mut Scene<F>, hook: Hook, packet: &Datagram<F>) -> Vec<u8> {
    let mut buffer = Buffer::new(packet.bytes());
    let verdict = if hook == Hook::UplinkIngress {
        ingress::<F, _, _>(&mut buffer, &mut scene.memory, hook)
    } else {
        egress::<F, _, _>(&mut buffer, &mut scene.memory, hook)
    };
    assert_eq!(verdict, Verdict::Pass);
    buffer.bytes
}

#[track_caller]
fn answers<F: Side>(scene: &mut Scene<F>, parties: &Parties<F::Address>, flags: u8) {
    let packet = answer::<F>(parties.backend, flags);
    let left = path(scene, Hook::UplinkEgress, &packet);
    assert_eq!(left, packet.from(parties.frontend).bytes());
}

fn counted<F: Side>(scene: &Scene<F>) -> ServiceCounters {
    scene.memory.stats.get(&SERVICE).copied().unwrap_or_default()
}

fn a_syn_goes_to_a_backend_of_this_node_and_leaves_one_row<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    let now = scene.memory.now;
    let opening = Opening {
        role: role::REPLY,
        service: SERVICE,
        flags: flow_flags::LONE,
        now,
        replace: false,
    };
    assert_eq!(pending(&mut scene), [(parties.reply(), parties.row(opening))]);
    assert!(scene.memory.flows.is_empty());
    let bytes = segment::<F>(tcp::SYN).bytes().len() as u64;
    let expected =
        ServiceCounters { packet_connections: 1, packets: 1, bytes, ..ServiceCounters::default() };
    assert_eq!(counted(&scene), expected);
    assert_eq!(scene.memory.carried[Leg::Local as usize], 1);
    // Congestion control asked for, data with it: a SYN all the same.
    let mut scene = serving::<F>(&[3]);
    let packet = segment::<F>(tcp::SYN | 0xc0).with_payload(b"early");
    let turned = frame::<F>(UP, ROUTER, &packet.clone().to(parties.backend).bytes());
    assert_eq!(scene.run(&arriving::<F>(&packet.bytes())), (Fate::Pass, turned));
}

fn sent_again_it_is_the_same_flow<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    opens(&mut scene, 3);
    scene.set_now(scene.memory.now + 3);
    opens(&mut scene, 3);
    let rows = pending(&mut scene);
    assert_eq!((rows.len(), rows[0].1.last), (1, scene.memory.now));
    assert_eq!((counted(&scene).packet_connections, counted(&scene).packets), (1, 2));
}

fn the_answer_brings_the_other_row<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
    let rows = pending(&mut scene);
    assert_eq!(
        rows.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        [parties.original(), parties.reply()]
    );
    assert!(rows.iter().all(|(_, row)| row.flags == 0 && row.service == SERVICE));
    assert_eq!((rows[0].1.seen, rows[1].1.seen), (0, seen::PACKET));
    // The answer to the answer is for the packet path, where the flow is kept.
    let ack = segment::<F>(tcp::ACK);
    passes(&mut scene, &arriving::<F>(&ack.bytes()), "not kept yet");
    let entered = path(&mut scene, Hook::UplinkIngress, &ack);
    assert_eq!(entered, ack.clone().to(parties.backend).bytes());
    assert_eq!((scene.memory.flows.len(), pending(&mut scene).len()), (2, 0));
    // All that comes then is carried here.
    let turned = frame::<F>(UP, ROUTER, &ack.clone().to(parties.backend).bytes());
    assert_eq!(scene.run(&arriving::<F>(&ack.bytes())), (Fate::Pass, turned));
    assert_eq!(counted(&scene).packet_connections, 1);
}

fn the_answer_finds_its_flow_whatever_the_set_has_become<F: Side>() {
    for hosts in [&[4][..], &[]] {
        let mut scene = serving::<F>(&[3]);
        let parties = opens(&mut scene, 3);
        scene.serve(parties.frontend, Algorithm::Maglev, &backends::<F>(hosts));
        answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
        let ack = segment::<F>(tcp::ACK);
        passes(&mut scene, &arriving::<F>(&ack.bytes()), "not kept yet");
        let entered = path(&mut scene, Hook::UplinkIngress, &ack);
        assert_eq!(entered, ack.to(parties.backend).bytes(), "{hosts:?}");
    }
}

fn a_refusal_is_an_answer_too<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    answers(&mut scene, &parties, tcp::RST | tcp::ACK);
    let rows = pending(&mut scene);
    assert_eq!((rows.len(), rows[1].1.seen & seen::RST), (2, seen::RST));
    // The next connection of this tuple begins anew, on the packet path.
    scene.serve(parties.frontend, Algorithm::Maglev, &backends::<F>(&[4]));
    let syn = segment::<F>(tcp::SYN);
    passes(&mut scene, &arriving::<F>(&syn.bytes()), "there are rows");
    let entered = path(&mut scene, Hook::UplinkIngress, &syn);
    assert_eq!(entered, syn.to(at::<F>(1, 4, 8080)).bytes());
}

fn of_two_answers_the_first_has_the_flow<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let first = opens(&mut scene, 3);
    scene.serve(first.frontend, Algorithm::Maglev, &backends::<F>(&[4]));
    let second = opens(&mut scene, 4);
    answers(&mut scene, &second, tcp::SYN | tcp::ACK);
    answers(&mut scene, &first, tcp::SYN | tcp::ACK);
    let ack = segment::<F>(tcp::ACK);
    let entered = path(&mut scene, Hook::UplinkIngress, &ack);
    assert_eq!(entered, ack.to(second.backend).bytes());
}

/// As where the program is taken off its device, or the frame comes in by another.
fn a_syn_that_is_lost_again_on_the_packet_path_goes_on_there<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    let syn = segment::<F>(tcp::SYN);
    let entered = path(&mut scene, Hook::UplinkIngress, &syn);
    assert_eq!(entered, syn.to(parties.backend).bytes());
    assert_eq!(pending(&mut scene).iter().map(|(_, row)| row.flags).collect::<Vec<_>>(), [0, 0]);
    answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
    let ack = segment::<F>(tcp::ACK);
    assert_eq!(path(&mut scene, Hook::UplinkIngress, &ack), ack.to(parties.backend).bytes());
    assert_eq!((scene.memory.flows.len(), pending(&mut scene).len()), (2, 0));
}

fn another_frontend_s_flow_between_the_same_two_does_not_take_its_place<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    let other = at::<F>(9, 1, 30_081);
    scene.serve(other, Algorithm::Maglev, &backends::<F>(&[3]));
    let packet = Datagram::of(TCP, client::<F>(), other, tcp::SYN);
    // XDP leaves it to the packet path, where the client gets another port.
    passes(&mut scene, &arriving::<F>(&packet.bytes()), "another's flow between these two");
    let left = path(&mut scene, Hook::UplinkIngress, &packet);
    assert_ne!(left, packet.clone().to(parties.backend).bytes(), "the same port");
    assert_ne!(left, packet.bytes());
    answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
    let ack = path(&mut scene, Hook::UplinkIngress, &segment::<F>(tcp::ACK));
    assert_eq!(ack, segment::<F>(tcp::ACK).to(parties.backend).bytes());
}

/// As a flood does.
fn an_answer_is_translated_again_when_the_other_row_was_pushed_out<F: Side>() {
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut scene, 3);
    answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
    scene.memory.pending.remove(&parties.original()).expect("brought by the answer");
    answers(&mut scene, &parties, tcp::SYN | tcp::ACK);
}

fn all_else_passes_as_it_is<F: Side>() {
    let syn = arriving::<F>(&segment::<F>(tcp::SYN).bytes());
    let service = |scene: &mut Scene<F>, change: fn(&mut Service)| {
        change(scene.memory.services.get_mut(&SERVICE).expect("a Service"));
    };
    let changes: [Change<'_, F>; 12] = [
        ("another algorithm", &|scene| {
            let all = service_flags::ALGORITHM;
            scene.memory.services.get_mut(&SERVICE).expect("a Service").flags &= !all;
        }),
        ("session affinity", &|scene| service(scene, |row| row.affinity = 10)),
        ("source ranges", &|scene| service(scene, |row| row.flags |= service_flags::SOURCE_RANGES)),
        ("a limit for sources", &|scene| {
            scene.memory.settings.new_flow_interval = source_rate::interval(1_000);
        }),
        ("no frontend", &|scene| scene.memory.frontends.clear()),
        ("no Service", &|scene| scene.memory.services.clear()),
        ("no backend", &|scene| {
            scene.serve(at::<F>(9, 1, 30_080), Algorithm::Maglev, &[]);
        }),
        ("a backend elsewhere", &|scene| {
            let elsewhere = backends::<F>(&[3]).into_iter().map(|row| Backend { flags: 0, ..row });
            let elsewhere: Vec<_> = elsewhere.collect();
            scene.serve(at::<F>(9, 1, 30_080), Algorithm::Maglev, &elsewhere);
        }),
        ("none that the policy allows", &|scene| {
            service(scene, |row| {
                row.flags |= service_flags::EXTERNAL_LOCAL;
                row.local = SetRef::DROP;
            });
        }),
        ("a backend that asks itself", &|scene| {
            let own = Backend { addr: F::address(8, 5), ..backends::<F>(&[3])[0] };
            scene.serve(at::<F>(9, 1, 30_080), Algorithm::Maglev, &[own]);
        }),
        ("begun on the packet path", &|scene| {
            path(scene, Hook::UplinkIngress, &segment::<F>(tcp::SYN));
        }),
        ("a flow by another frontend", &|scene| {
            let parties = Parties {
                client: client::<F>(),
                frontend: at::<F>(96, 1, 80),
                backend: at::<F>(1, 3, 8080),
                proto: TCP,
                ..Parties::default()
            };
            let opening =
                Opening { role: role::REPLY, service: 1, flags: 0, now: 1, replace: true };
            let row = Flow { flags: flow_flags::LONE, ..parties.row(opening) };
            scene.memory.pending.insert(parties.reply(), row);
        }),
    ];
    for (what, change) in changes {
        let mut scene = serving::<F>(&[3]);
        change(&mut scene);
        let (rows, stats) = (pending(&mut scene), scene.memory.stats.clone());
        passes(&mut scene, &syn, what);
        assert_eq!(pending(&mut scene), rows, "{what}");
        assert_eq!(scene.memory.stats, stats, "{what}");
    }
    let mut scene = serving::<F>(&[3]);
    let parties = opens(&mut serving::<F>(&[3]), 3);
    let opening = Opening { role: role::REPLY, service: 1, flags: 0, now: 1, replace: true };
    scene.memory.flows.insert(parties.reply(), parties.row(opening));
    passes(&mut scene, &syn, "a flow that was answered");
    let mut scene = serving::<F>(&[3]);
    for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST, 0] {
        passes(&mut scene, &arriving::<F>(&segment::<F>(flags).bytes()), "no SYN alone");
    }
    let datagram = Datagram { proto: UDP, ..segment::<F>(0) };
    passes(&mut scene, &arriving::<F>(&datagram.bytes()), "UDP");
    passes(&mut scene, &from_peer::<F>(&segment::<F>(tcp::SYN).bytes()), "in a tunnel");
    let mut for_others = syn.clone();
    for_others[5] ^= 1;
    passes(&mut scene, &for_others, "a frame for others");
    let short = &syn[..syn.len() - 1];
    passes(&mut scene, short, "a frame that ends before its packet");
    assert!(pending(&mut scene).is_empty());
}
