//! What a source begins that may begin no more, of which the program on the wire asks.

use datapath::{
    address::{Address, Be16},
    both,
    counter::{Hook, Reason, drop_index},
    flow::{Flow, Place, role},
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    header::tcp,
    host::{
        buffer::Buffer,
        frame::{Datagram, Sample},
    },
    ingress::ingress,
    packet::Verdict,
    source_rate,
    wire::Fate,
};

use crate::{
    TCP, UDP, key_of, passes, scene as node,
    scene::{Kind, SERVICE, Scene, Side, arriving, at, from_peer, request},
};

both! {
    what_would_begin_a_flow_too_many_is_dropped,
    other_frames_of_the_source_are_not,
    no_source_is_charged_here,
    each_flow_is_charged_once,
}

/// A source that may begin no more, and a Service at a port of the node.
fn exhausted<F: Side>() -> Scene<F> {
    let mut scene = node::<F>();
    let frontend = Frontend { service: SERVICE, kind: kind::NODE_PORT, pad: [0; 3] };
    for proto in [TCP, UDP] {
        let key = FrontendKey::new(F::address(9, 1), Be16::new(30_080), proto);
        scene.memory.frontends.insert(key, frontend);
    }
    let flags = address_use::FRONTEND | address_use::MASQUERADE;
    scene.memory.addresses.insert(F::address(9, 1), AddressUse { flags });
    scene.memory.settings.new_flow_interval = source_rate::interval(1);
    let number = scene.memory.clock() + source_rate::BURST_NS;
    scene.memory.rates.insert(stranger::<F>(0).addr.origin(), number);
    scene
}

fn stranger<F: Side>(port: u16) -> Place<F::Address> {
    Place::new(<F as Sample>::elsewhere(8, 7), Be16::new(port))
}

fn first<F: Side>(proto: u8, from: Place<F::Address>) -> Datagram<F> {
    Datagram::of(proto, from, at::<F>(9, 1, 30_080), tcp::SYN)
}

const REFUSED: usize = drop_index(Hook::XdpIngress, Reason::SourceRate) as usize;

fn what_would_begin_a_flow_too_many_is_dropped<F: Side>() {
    for proto in [TCP, UDP] {
        let mut scene = exhausted::<F>();
        let rates = scene.memory.rates.clone();
        for count in 1..=3 {
            let bytes = arriving::<F>(&first::<F>(proto, stranger::<F>(2000)).bytes());
            assert_eq!(scene.run(&bytes), (Fate::Drop, bytes));
            assert_eq!(scene.memory.drops[REFUSED], count);
            assert_eq!(scene.memory.drops.iter().sum::<u64>(), count);
        }
        assert!(rates.iter().eq(scene.memory.rates.iter()));
    }
}

fn other_frames_of_the_source_are_not<F: Side>() {
    for proto in [TCP, UDP] {
        let packet = first::<F>(proto, stranger::<F>(2000));
        let bytes = arriving::<F>(&packet.bytes());
        let mut scene = exhausted::<F>();
        scene.memory.settings.new_flow_interval = 0;
        passes(&mut scene, &bytes, "any number");
        let mut scene = exhausted::<F>();
        scene.set_now(scene.memory.now + 1);
        passes(&mut scene, &bytes, "a second later");
        let mut scene = exhausted::<F>();
        passes(&mut scene, &arriving::<F>(&first::<F>(proto, at::<F>(8, 5, 9)).bytes()), "another");
        passes(&mut scene, &from_peer::<F>(&packet.bytes()), "a pod elsewhere");
        let mut elsewhere = bytes.clone();
        elsewhere[5] ^= 1;
        passes(&mut scene, &elsewhere, "a frame for others");
        let to_host = packet.clone().to(at::<F>(9, 1, 22));
        passes(&mut scene, &arriving::<F>(&to_host.bytes()), "no Service has the port");
        scene.wires.mark_port(Be16::new(22), proto);
        passes(&mut scene, &arriving::<F>(&to_host.bytes()), "another address has the port");
        if proto == TCP {
            for flags in [tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
                let packet = Datagram { flags, ..packet.clone() };
                passes(&mut scene, &arriving::<F>(&packet.bytes()), "begins nothing");
            }
        }
        let row = Flow { role: role::ORIGINAL, ..Flow::default() };
        scene.memory.pending.insert(key_of(&packet), row);
        passes(&mut scene, &bytes, "begun, and not answered yet");
        scene.memory.pending.remove(&key_of(&packet));
        assert_eq!(scene.run(&bytes).0, Fate::Drop);
    }
    // Of a flow that has been answered.
    let mut scene = exhausted::<F>();
    let packet = request::<F>(Kind::Routed, TCP);
    let number = scene.memory.clock() + source_rate::BURST_NS;
    scene.memory.rates.insert(packet.src.addr.origin(), number);
    assert!(matches!(scene.run(&arriving::<F>(&packet.bytes())).0, Fate::Send(_)));
}

fn no_source_is_charged_here<F: Side>() {
    let mut scene = exhausted::<F>();
    scene.memory.rates.remove(&stranger::<F>(0).addr.origin());
    for port in 1..10 {
        let bytes = arriving::<F>(&first::<F>(TCP, stranger::<F>(port)).bytes());
        passes(&mut scene, &bytes, "charged by nobody");
    }
    assert_eq!(scene.memory.rates.iter().count(), 0);
}

/// Through both programs, as frames go: two flows at once, and one a second.
fn each_flow_is_charged_once<F: Side>() {
    let mut scene = exhausted::<F>();
    scene.memory.rates.remove(&stranger::<F>(0).addr.origin());
    let mut begun = Vec::new();
    for port in 1..10 {
        let packet = first::<F>(TCP, stranger::<F>(port)).bytes();
        if scene.run(&arriving::<F>(&packet)).0 == Fate::Pass {
            let mut buffer = Buffer::new(packet);
            let memory = &mut scene.memory;
            // Its Service has no endpoint, which is told once the flow was charged.
            let verdict = ingress::<F, _, _>(&mut buffer, memory, Hook::UplinkIngress);
            assert_ne!(verdict, Verdict::Pass);
            begun.push(port);
        }
        if port == 5 {
            scene.set_now(scene.memory.now + 1);
        }
    }
    assert_eq!(begun, [1, 2, 6]);
    let in_path = drop_index(Hook::UplinkIngress, Reason::SourceRate) as usize;
    assert_eq!((scene.memory.drops[REFUSED], scene.memory.drops[in_path]), (6, 0));
}
