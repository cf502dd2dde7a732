//! Addresses that cluster IPs are given out of, and that no Service has.

use datapath::{
    address::protocol::TCP,
    counter::Reason,
    header::tcp::{ACK, SYN},
    host::frame::Datagram,
    tunnel::NetworkKey,
};

use crate::{bed::Bed, machine::Side, plan::*};

both! {
    what_no_service_has_is_dropped,
    what_a_service_has_is_not,
    other_networks_pass,
    pods_may_send_what_the_node_will_not_let_out,
}

/// The length of a network in which two addresses of one net are.
fn bits<F: Side>() -> u32 {
    if F::V6 { 112 } else { 16 }
}

/// Cluster IPs come from two networks, and a Service has one.
fn bed<F: Side>() -> Bed<F> {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(vip::<F>(80), TCP, &[local(near::<F>(8080))]);
    let networks = [vip::<F>(0), at::<F>(98, 0, 0)]
        .map(|of| NetworkKey { prefix_len: bits::<F>(), network: of.addr });
    bed.machine.put_service_networks(&networks);
    bed
}

/// Neighbours of the Service's address.
fn nobody<F: Side>(host: u16) -> [datapath::flow::Place<F::Address>; 2] {
    [at::<F>(96, host, 80), at::<F>(98, host, 80)]
}

fn what_no_service_has_is_dropped<F: Side>() {
    let mut bed = bed::<F>();
    for to in [200, 4_000].into_iter().flat_map(nobody::<F>) {
        for datagram in [
            Datagram::<F>::tcp(client::<F>(1), to, SYN),
            Datagram::<F>::tcp(client::<F>(1), to, ACK),
            Datagram::<F>::udp(node::<F>(1), to),
        ] {
            bed.drops(UP_OUT, &datagram.bytes(), Reason::UnallocatedAddress);
        }
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn what_a_service_has_is_not<F: Side>() {
    let mut bed = bed::<F>();
    let syn = |port| Datagram::<F>::tcp(client::<F>(1), vip::<F>(port), SYN).bytes();
    bed.passes(UP_OUT, &syn(80));
    bed.answers(UP_OUT, &syn(81), Reason::UnknownPort);
}

fn other_networks_pass<F: Side>() {
    let mut bed = bed::<F>();
    for to in [outside::<F>(80), at::<F>(97, 5, 80), at::<F>(99, 5, 80), far::<F>(80)] {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(client::<F>(1), to, SYN).bytes());
    }
    bed.machine.put_service_networks(&[]);
    for to in nobody::<F>(200) {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(client::<F>(1), to, SYN).bytes());
    }
}

/// Somebody between may know the way.
fn pods_may_send_what_the_node_will_not_let_out<F: Side>() {
    let mut bed = bed::<F>();
    let [to, _] = nobody::<F>(200);
    bed.passes(POD_IN, &Datagram::<F>::udp(client::<F>(1), to).bytes());
}
