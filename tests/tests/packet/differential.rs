//! The engine and the loaded programs of the proxy, packet by packet.
//!
//! Choices are made comparable by leaving none: one backend to a set, one port to masquerade
//! with.

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{SCTP, TCP, UDP},
    },
    backend::Backend,
    counter::{Hook, Reason},
    flow::Place,
    frontend::{AddressUse, Frontend, FrontendKey, address_use, kind},
    host::frame::Datagram,
    service::{Service, SetRef, service_flags},
    settings::Settings,
};

use crate::{
    host,
    machine::{Machine, Side, Sizes},
    plan::*,
    twins::{self, Counts, Dice, back, complaint, mangle},
};

#[test]
fn v4() {
    compare::<V4>();
}

#[test]
fn v6() {
    compare::<V6>();
}

type Twins<F> = twins::Twins<F, Machine<F>, false>;

fn twins<F: Side>() -> Twins<F> {
    let sizes = Sizes::default();
    let mut twins = Twins::new(Machine::new(sizes), host::Machine::new(sizes));
    let settings = Settings {
        nat_port_first: 59_000,
        nat_port_last: 59_000,
        ipv6_checksum_flags: 0x10,
        ..Settings::default()
    };
    twins.kernel.set_settings(settings);
    twins.host.set_settings(settings);
    address(&mut twins, node::<F>(0).addr, address_use::FRONTEND | address_use::MASQUERADE);
    twins
}

fn address<F: Side>(twins: &mut Twins<F>, address: F::Address, flags: u32) {
    twins.kernel.put_address(address, AddressUse { flags });
    twins.host.put_address(address, AddressUse { flags });
}

/// A Service by its index, at one address and port.
fn expose<F: Side>(
    twins: &mut Twins<F>,
    index: u32,
    (place, proto): (Place<F::Address>, u8),
    backend: Option<Backend<F::Address>>,
    flags: u32,
) {
    let cluster = backend.map_or(SetRef::REJECT, |backend| {
        let row = Backend { generation: 1, ..backend };
        twins.kernel.put_backend(index, row);
        twins.host.put_backend(index, row);
        SetRef { block: index, count: 1, generation: 1 }
    });
    let row = Service { cluster, local: SetRef::DROP, flags, affinity: 0 };
    twins.kernel.put_service(index, row);
    twins.host.put_service(index, row);
    let kind = if place.addr == node::<F>(0).addr {
        kind::NODE_PORT
    } else {
        address(twins, place.addr, address_use::CLUSTER_IP);
        kind::CLUSTER_IP
    };
    let key = FrontendKey::new(place.addr, place.port, proto);
    let row = Frontend { service: index, kind, pad: [0; 3] };
    twins.kernel.put_frontend(key, row);
    twins.host.put_frontend(key, row);
}

/// A packet from somebody to somebody, most likely to a frontend.
fn request<F: Side>(dice: &mut Dice) -> Datagram<F> {
    let clients = [
        client::<F>(0),
        client::<F>(0),
        near::<F>(0),
        far::<F>(0),
        outside::<F>(0),
        at::<F>(8, 8, 0),
    ];
    let frontends = [
        (vip::<F>(80), TCP),
        (vip::<F>(80), TCP),
        (vip::<F>(53), UDP),
        (vip::<F>(38_412), SCTP),
        (node::<F>(30_412), SCTP),
        (vip::<F>(81), TCP),
        (at::<F>(96, 2, 80), TCP),
        (at::<F>(96, 2, 53), UDP),
        (at::<F>(96, 3, 80), TCP),
        (at::<F>(96, 4, 80), TCP),
        (at::<F>(96, 5, 80), TCP),
        (at::<F>(96, 5, 53), UDP),
        (node::<F>(30_080), TCP),
        (node::<F>(30_081), TCP),
        (node::<F>(30_053), UDP),
        (node::<F>(30_054), UDP),
        (node::<F>(59_000), UDP),
        (node::<F>(22), TCP),
        (far::<F>(8080), TCP),
    ];
    let mut src = dice.of(&clients);
    src.port = Be16::new(dice.of(&[1000, 1001, 1002, 1003, 8080, 5353]));
    let (dst, proto) = dice.of(&frontends);
    let flags = dice.of(&[0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x12, 0x04, 0x14, 0x00, 0xc2]);
    let mut packet = Datagram::of(proto, src, dst, flags);
    packet.id = dice.below(8) as u32;
    packet
}

/// The next packet, and where it meets us.
fn next<F: Side>(dice: &mut Dice, recent: &[Vec<u8>]) -> Option<(Hook, Vec<u8>)> {
    let hooks = [Hook::PodIngress, Hook::PodEgress, Hook::UplinkIngress, Hook::UplinkEgress];
    let (ins, outs) = ([hooks[0], hooks[2]], [hooks[1], hooks[3]]);
    let (hook, packet) = match dice.below(10) {
        // What came in goes out.
        0..=2 if !recent.is_empty() => {
            return Some((dice.of(&outs), recent[dice.below(recent.len())].clone()));
        }
        3 | 4 if !recent.is_empty() => {
            let of = dice.below(recent.len());
            (dice.of(&hooks), back::<F>(dice, &recent[of])?)
        }
        5 if !recent.is_empty() => {
            let about = dice.below(recent.len());
            (dice.of(&hooks), complaint::<F>(dice, &recent[about])?)
        }
        // A process of the node asks.
        6 => (Hook::UplinkEgress, request(dice)),
        _ => (dice.of(&ins), request(dice)),
    };
    Some((hook, mangle(dice, packet)))
}

fn compare<F: Side>() {
    let mut twins = twins::<F>();
    let services = [
        ((vip::<F>(80), TCP), Some(local(near::<F>(8080))), 0),
        ((vip::<F>(53), UDP), Some(local(near::<F>(5353))), 0),
        ((vip::<F>(38_412), SCTP), Some(local(near::<F>(8080))), 0),
        ((node::<F>(30_412), SCTP), Some(remote(far::<F>(5353))), 0),
        ((at::<F>(96, 2, 80), TCP), Some(remote(far::<F>(8080))), 0),
        ((at::<F>(96, 2, 53), UDP), Some(remote(far::<F>(5353))), 0),
        ((at::<F>(96, 3, 80), TCP), None, 0),
        ((at::<F>(96, 4, 80), TCP), Some(local(near::<F>(8080))), service_flags::INTERNAL_LOCAL),
        ((at::<F>(96, 5, 80), TCP), Some(local(client::<F>(8080))), 0),
        ((at::<F>(96, 5, 53), UDP), Some(local(client::<F>(5353))), 0),
        ((node::<F>(30_080), TCP), Some(local(near::<F>(8080))), 0),
        ((node::<F>(30_081), TCP), Some(remote(far::<F>(8080))), 0),
        ((node::<F>(30_053), UDP), Some(remote(far::<F>(5353))), 0),
        ((node::<F>(30_054), UDP), Some(local(near::<F>(5353))), service_flags::EXTERNAL_LOCAL),
    ];
    let indices = 1..;
    for (index, (frontend, backend, flags)) in indices.clone().zip(services) {
        expose(&mut twins, index, frontend, backend, flags);
    }
    let mut dice = Dice::new(0x006d_696c_6c72_6163);
    let counts = twins.compare(&mut dice, &[35, 135, 4_000, 90_000], next::<F>);
    for (index, _) in indices.zip(services) {
        assert_eq!(twins.kernel.counters(index), twins.host.counters(index));
    }
    let Counts { packets, passed, rewritten, dropped, answered } = counts;
    println!(
        "IPv{}: {packets} packets, {passed} passed ({rewritten} rewritten), {dropped} dropped, {answered} answered",
        F::SUFFIX
    );
    assert!(rewritten * 10 > packets && dropped * 100 > packets && answered * 100 > packets);
    let reached = Hook::ALL.iter().flat_map(|hook| twins.kernel.drops(*hook)).enumerate();
    let reached: std::collections::BTreeSet<_> =
        reached.filter(|(_, count)| *count > 0).map(|(at, _)| at % Reason::ALL.len()).collect();
    println!("reasons met: {:?}", reached.iter().map(|at| Reason::ALL[*at]).collect::<Vec<_>>());
}
