//! Pings to addresses of Services that answer them.

use datapath::{
    both,
    frontend::{AddressUse, address_use, mark},
    host::frame::{Datagram, Sample, icmp},
    wire::{Fate, Leg},
};

use crate::{
    passes, scene as node,
    scene::{ETHERNET, ROUTER, Scene, Side, UP, arriving, frame, from_peer},
};

both! {
    a_ping_is_answered_at_once,
    what_is_another_matter_passes,
}

fn echo<F: Side>(kinds: (u8, u8), src: F::Address, dst: F::Address) -> Datagram<F> {
    let kind = if F::V6 { kinds.1 } else { kinds.0 };
    icmp::<F>(src, dst, [kind, 0], [1, 2, 3, 4], &[0x61; 57])
}

fn client<F: Side>() -> F::Address {
    <F as Sample>::elsewhere(8, 7)
}

fn virtual_ip<F: Side>() -> F::Address {
    <F as Sample>::elsewhere(96, 1)
}

fn answering<F: Side>(flags: u32) -> Scene<F> {
    let mut scene = node::<F>();
    scene.memory.addresses.insert(virtual_ip::<F>(), AddressUse { flags });
    scene.wires.mark_address(virtual_ip::<F>(), mark::of_use(flags));
    scene
}

fn a_ping_is_answered_at_once<F: Side>() {
    let mut scene = answering::<F>(address_use::FRONTEND | address_use::ECHO);
    let up = scene.devices.up;
    for hops in [1, 64, 255] {
        let asked = Datagram { hops, ..echo::<F>((8, 128), client::<F>(), virtual_ip::<F>()) };
        let answer = Datagram { hops: 64, ..echo::<F>((0, 129), virtual_ip::<F>(), client::<F>()) };
        let (fate, bytes) = scene.run(&arriving::<F>(&asked.bytes()));
        assert_eq!(fate, Fate::Send(up));
        assert_eq!(bytes, frame::<F>(ROUTER, UP, &answer.bytes()));
    }
    assert_eq!(scene.memory.carried[Leg::Echo as usize], 3);
    assert_eq!(scene.memory.drops.iter().sum::<u64>(), 0);
}

fn what_is_another_matter_passes<F: Side>() {
    let (c, v) = (client::<F>(), virtual_ip::<F>());
    let asked = echo::<F>((8, 128), c, v).bytes();
    let mut scene = answering::<F>(address_use::CLUSTER_IP);
    passes(&mut scene, &arriving::<F>(&asked), "without the option");
    let mut scene = answering::<F>(address_use::CLUSTER_IP | address_use::ECHO);
    passes(&mut scene, &arriving::<F>(&echo::<F>((0, 129), c, v).bytes()), "an answer");
    // Unreachable or too big, no hop left, a redirect: the packet path knows whose they are.
    for kinds in [(3, 1), (3, 2), (11, 3), (5, 137)] {
        passes(&mut scene, &arriving::<F>(&echo::<F>(kinds, c, v).bytes()), "an error");
    }
    passes(&mut scene, &arriving::<F>(&echo::<F>((8, 128), c, client::<F>()).bytes()), "another's");
    passes(&mut scene, &frame::<F>(ROUTER, UP, &asked), "for another node");
    passes(&mut scene, &from_peer::<F>(&asked), "out of a tunnel");
    let whole = arriving::<F>(&asked);
    passes(&mut scene, &whole[..=ETHERNET + F::HEADER as usize], "cut off");
    for piece in echo::<F>((8, 128), c, v).fragments(16) {
        passes(&mut scene, &arriving::<F>(&piece), "in pieces");
    }
}
