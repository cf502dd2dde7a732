//! Flows of pods that leave the pod network, and of others that enter it elsewhere.

use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
};

use datapath::{
    address::{
        Be16, V4, V6,
        protocol::{TCP, UDP},
    },
    counter::Reason,
    flow::{FlowKey, Place, hook, role},
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::{Datagram, Sum, icmp},
    packet::Verdict,
    policy::{KUBE_PROXY_MARK, MASQUERADE_MARK, Networks, Policy},
    sctp::chunk,
    tables::Store,
    tunnel::NetworkKey,
};

use crate::{
    machine::{Overlay, Side, Sizes},
    plan::*,
    sender::{Sender, ports, same},
};

both! {
    a_pod_reaches_the_outside,
    a_pod_pings_the_outside,
    what_stays_in_the_pod_network_keeps_its_source,
    others_reach_a_remote_pod_by_the_device_of_the_tunnel,
    transit_is_masqueraded,
    what_the_node_sends_keeps_its_source,
    multicast_keeps_its_source,
    what_a_proxy_marks_is_left_alone,
    without_a_policy_nothing_is_masqueraded,
    an_answer_to_the_outside_keeps_its_source,
    a_segment_without_a_flow_is_an_answer,
    a_masqueraded_tuple_is_not_taken_by_a_question,
    pings_of_two_pods_are_told_apart,
    an_association_of_a_pod_is_masqueraded,
    other_protocols_pass,
    what_cannot_be_read_passes,
    packets_to_the_node_are_not_ours,
    ports_come_from_the_range_and_differ,
    a_port_serves_several_destinations,
    without_a_free_port_the_flow_is_refused,
    an_unanswered_flow_gives_its_port_up,
    a_port_that_a_socket_has_is_not_taken,
    without_an_address_nothing_leaves,
    a_syn_again_keeps_its_source,
    a_new_connection_begins_when_the_old_is_closed,
    fragments_follow_their_first,
    fragments_of_pings_follow_their_first,
    a_fragment_before_its_first_is_refused_only_where_it_leaves,
    fragments_of_answers_to_the_outside_pass,
    behind_options_and_extensions,
    udp_without_checksum_stays_so,
    errors_about_requests,
    errors_about_answers,
    errors_of_the_node_about_answers,
    errors_about_pings,
    errors_about_flows_that_keep_their_source_pass,
    redirects_are_dropped,
    a_flood_pushes_out_no_settled_flow,
    a_table_of_live_flows_refuses_and_counts,
    a_table_of_expired_flows_makes_room,
    an_evicted_row_comes_back,
    an_evicted_row_of_a_question_comes_back,
    flows_expire_as_netfilters_do,
    a_sweep_keeps_both_rows_of_a_live_flow,
}

type At<F> = Place<<F as datapath::address::Family>::Address>;

/// First and last port to masquerade with.
const PORTS: (u16, u16) = (60_000, 65_535);

/// A node with a pod network.
struct Gateway<F: Side> {
    sender: Sender<F, Overlay<F>>,
    policy: Policy,
}

impl<F: Side> Deref for Gateway<F> {
    type Target = Sender<F, Overlay<F>>;

    fn deref(&self) -> &Self::Target {
        &self.sender
    }
}

impl<F: Side> DerefMut for Gateway<F> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.sender
    }
}

/// The networks 0 to 3 are pods', network 1 those of this node.
pub(crate) fn networks<F: Side>() -> Networks<F::Address> {
    let prefix = |net, bits| NetworkKey {
        prefix_len: if F::V6 { 96 + bits } else { bits },
        network: F::address(net, 0),
    };
    Networks { all: prefix(0, 14), own: prefix(1, 16) }
}

impl<F: Side> Gateway<F> {
    fn new() -> Self {
        Self::sized(Sizes::default())
    }

    fn sized(sizes: Sizes) -> Self {
        let (v4, v6) = (networks::<V4>(), networks::<V6>());
        let policy = Policy { v4, v6, ..Policy::default() };
        let mut gateway = Self { sender: Sender::new(Overlay::new(sizes)), policy };
        gateway.nat_ports(PORTS.0, PORTS.1);
        gateway.device(node::<F>(0).addr);
        gateway
    }

    fn nat_ports(&mut self, first: u16, last: u16) {
        (self.policy.nat_port_first, self.policy.nat_port_last) = (first, last);
        self.sender.machine.set_policy(self.policy);
    }

    fn device(&mut self, address: F::Address) {
        self.machine.set_device(Some(device::<F>(address)));
    }

    /// Sends a packet out that must leave with another source, and returns that.
    #[track_caller]
    fn leaves(&mut self, packet: &Datagram<F>) -> At<F> {
        self.leaves_as(packet, node::<F>(0).addr)
    }

    #[track_caller]
    fn leaves_as(&mut self, packet: &Datagram<F>, address: F::Address) -> At<F> {
        let outcome = self.run(UP_OUT, &packet.bytes());
        assert_eq!(outcome.verdict, Verdict::Pass);
        let source = Place::new(address, ports::<F>(&outcome.bytes).0);
        assert!(is_ours(source.port), "{source:?}");
        same::<F>(&packet.clone().from(source).bytes(), &outcome.bytes);
        source
    }

    /// A flow from `c` to `o` that has been answered, and its source.
    #[track_caller]
    fn answered(&mut self, proto: u8, c: At<F>, o: At<F>) -> At<F> {
        let s = self.leaves(&Datagram::<F>::of(proto, c, o, SYN));
        self.answer(proto, c, o, s);
        s
    }

    #[track_caller]
    fn answer(&mut self, proto: u8, c: At<F>, o: At<F>, s: At<F>) {
        let back = Datagram::<F>::of(proto, o, s, SYN | ACK);
        self.becomes(UP_IN, &back.bytes(), &back.clone().to(c).bytes());
        let third = Datagram::<F>::of(proto, c, o, ACK);
        self.becomes(UP_OUT, &third.bytes(), &third.clone().from(s).bytes());
    }
}

fn is_ours(port: Be16) -> bool {
    (PORTS.0..=PORTS.1).contains(&port.get())
}

fn a_pod_reaches_the_outside<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Gateway::<F>::new();
        let (c, o) = (client::<F>(40_000), outside::<F>(443));
        let to = |flags| Datagram::<F>::of(proto, c, o, flags).with_payload(b"odd");
        let s = bed.leaves(&to(SYN));
        assert_eq!(bed.rows(), (2, 0));
        let back = |flags| Datagram::<F>::of(proto, o, s, flags).with_payload(&[7; 999]);
        for turn in 0..3 {
            bed.becomes(UP_IN, &back(SYN | ACK).bytes(), &back(SYN | ACK).to(c).bytes());
            // TCP waits for the client's answer to the answer.
            let kept = if turn == 0 && proto == TCP { (2, 0) } else { (0, 2) };
            assert_eq!(bed.rows(), kept, "turn {turn}");
            bed.becomes(UP_OUT, &to(ACK).bytes(), &to(ACK).from(s).bytes());
            assert_eq!(bed.rows(), (0, 2), "turn {turn}");
        }
    }
}

/// A ping's request and its reply.
fn ping<F: Side>(from: At<F>, to: F::Address) -> Datagram<F> {
    echo(if F::V6 { 128 } else { 8 }, from.addr, to, from.port)
}

fn pong<F: Side>(from: F::Address, to: At<F>) -> Datagram<F> {
    echo(if F::V6 { 129 } else { 0 }, from, to.addr, to.port)
}

fn echo<F: Side>(kind: u8, src: F::Address, dst: F::Address, id: Be16) -> Datagram<F> {
    let [a, b] = id.bytes();
    icmp::<F>(src, dst, [kind, 0], [a, b, 0, 1], &[0x61; 57])
}

/// The identifier of an echo.
fn identifier<F: Side>(bytes: &[u8]) -> Be16 {
    let at = if F::V6 { 44 } else { 24 };
    Be16::from_bytes([bytes[at], bytes[at + 1]])
}

/// Sends a ping out, and returns the source it leaves with.
#[track_caller]
fn pings<F: Side>(bed: &mut Gateway<F>, from: At<F>, to: F::Address) -> At<F> {
    let outcome = bed.run(UP_OUT, &ping::<F>(from, to).bytes());
    let source = node::<F>(identifier::<F>(&outcome.bytes).get());
    assert!(is_ours(source.port), "{source:?}");
    same::<F>(&ping::<F>(source, to).bytes(), &outcome.bytes);
    source
}

fn a_pod_pings_the_outside<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(77), outside::<F>(0).addr);
    let s = pings(&mut bed, c, o);
    assert_eq!(bed.rows(), (2, 0));
    for _ in 0..3 {
        bed.becomes(UP_IN, &pong::<F>(o, s).bytes(), &pong::<F>(o, c).bytes());
        assert_eq!(bed.rows(), (0, 2));
        assert_eq!(pings(&mut bed, c, o), s);
    }
    // Another identifier is another ping, and nobody's.
    bed.passes(UP_IN, &pong::<F>(o, node::<F>(s.port.get() ^ 1)).bytes());
}

/// Rules 2 to 4 of flannel's.
fn what_stays_in_the_pod_network_keeps_its_source<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (pod, remote, device) = (client::<F>(1), far::<F>(2), at::<F>(1, 0, 3));
    for (src, dst) in [
        (pod, remote),
        (device, remote),
        (remote, pod),
        (outside::<F>(4), pod),
        (pod, near::<F>(5)),
    ] {
        for proto in [TCP, UDP] {
            bed.passes(UP_OUT, &Datagram::<F>::of(proto, src, dst, SYN).bytes());
        }
        bed.passes(UP_OUT, &ping::<F>(src, dst.addr).bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
    // From the outside to the outside is nobody's.
    bed.passes(UP_OUT, &Datagram::<F>::udp(outside::<F>(1), at::<F>(7, 7, 7)).bytes());
    assert_eq!(bed.rows(), (0, 0));
}

/// Rule 6: the remote pod's answer would go another way.
fn others_reach_a_remote_pod_by_the_device_of_the_tunnel<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let inner = F::address(1, 0);
    bed.device(inner);
    for (proto, o) in [(TCP, outside::<F>(50_000)), (UDP, node::<F>(50_001))] {
        let pod = far::<F>(8080);
        let to = Datagram::<F>::of(proto, o, pod, SYN);
        let s = bed.leaves_as(&to, inner);
        let back = Datagram::<F>::of(proto, pod, s, SYN | ACK);
        bed.becomes(UP_IN, &back.bytes(), &back.clone().to(o).bytes());
    }
}

fn transit_is_masqueraded<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.leaves(&Datagram::<F>::tcp(far::<F>(1), at::<F>(3, 3, 80), SYN));
    // Also to the addresses of other nodes.
    bed.leaves(&Datagram::<F>::tcp(client::<F>(1), at::<F>(9, 2, 10_250), SYN));
}

fn what_the_node_sends_keeps_its_source<F: Side>() {
    let mut bed = Gateway::<F>::new();
    for flags in [SYN, ACK] {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(node::<F>(33_000), far::<F>(80), flags).bytes());
        bed.passes(UP_OUT, &Datagram::<F>::tcp(node::<F>(1), outside::<F>(80), flags).bytes());
    }
    bed.passes(UP_OUT, &Datagram::<F>::udp(node::<F>(33_000), far::<F>(53)).bytes());
    bed.passes(UP_OUT, &ping::<F>(node::<F>(9), far::<F>(0).addr).bytes());
    assert_eq!(bed.rows(), (0, 0));
}

fn multicast_keeps_its_source<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let group = Place::new(F::group(), Be16::new(5353));
    for src in [client::<F>(5353), outside::<F>(5353), far::<F>(5353)] {
        bed.passes(UP_OUT, &Datagram::<F>::udp(src, group).bytes());
        bed.passes(UP_OUT, &ping::<F>(src, group.addr).bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn what_a_proxy_marks_is_left_alone<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let syn = Datagram::<F>::tcp(client::<F>(1), outside::<F>(80), SYN);
    for mark in [MASQUERADE_MARK, KUBE_PROXY_MARK, KUBE_PROXY_MARK | 7] {
        let (passed, mut after) = ((Verdict::Pass, syn.bytes()), mark);
        assert_eq!(bed.machine.run_marked(UP_OUT, &mut after, &syn.bytes()), passed);
        assert_eq!(after, mark);
    }
    assert_eq!(bed.rows(), (0, 0));
    // Other bits are other people's.
    let (_, out) = bed.machine.run_marked(UP_OUT, &mut 0x8000, &syn.bytes());
    assert_ne!(out, syn.bytes());
    // And what is masqueraded here, a mark that comes later does not end.
    let marked = bed.machine.run_marked(UP_OUT, &mut { MASQUERADE_MARK }, &syn.bytes());
    assert_eq!(marked, (Verdict::Pass, out));
}

fn without_a_policy_nothing_is_masqueraded<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.machine.set_policy(Policy::default());
    let (c, o) = (client::<F>(1), outside::<F>(53));
    for hook in [UP_OUT, UP_IN] {
        bed.passes(hook, &Datagram::<F>::tcp(c, o, SYN).bytes());
        bed.passes(hook, &Datagram::<F>::udp(o, c).bytes());
        bed.passes(hook, &ping::<F>(c, o.addr).bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

/// Netfilter masquerades by a flow's first packet, and so what is not masqueraded.
fn an_answer_to_the_outside_keeps_its_source<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (o, pod) = (outside::<F>(50_000), near::<F>(80));
    bed.passes(UP_IN, &Datagram::<F>::tcp(o, pod, SYN).bytes());
    for flags in [SYN | ACK, ACK, FIN | ACK, RST] {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(pod, o, flags).bytes());
    }
    assert_eq!(bed.rows(), (0, 0), "of TCP the segment itself tells");
    for _ in 0..3 {
        bed.passes(UP_IN, &Datagram::<F>::udp(o, pod).bytes());
        bed.passes(UP_OUT, &Datagram::<F>::udp(pod, o).bytes());
        assert_eq!(bed.rows(), (0, 2));
    }
    bed.passes(UP_IN, &ping::<F>(o, pod.addr).bytes());
    assert_eq!(bed.rows(), (2, 2));
    bed.passes(UP_OUT, &pong::<F>(pod.addr, o).bytes());
    assert_eq!(bed.rows(), (0, 4));
    // What the pod itself begins is masqueraded all the same.
    bed.leaves(&Datagram::<F>::udp(near::<F>(81), o));
    pings(&mut bed, near::<F>(7), o.addr);
}

fn a_segment_without_a_flow_is_an_answer<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(80));
    bed.leaves(&Datagram::<F>::tcp(client::<F>(2), o, SYN));
    for flags in [ACK, SYN | ACK, FIN | ACK, RST | ACK, SYN | RST] {
        bed.passes(UP_OUT, &Datagram::<F>::tcp(c, o, flags).bytes());
    }
    bed.passes(UP_OUT, &pong::<F>(c.addr, outside::<F>(9)).bytes());
    assert_eq!(bed.rows(), (2, 0));
}

fn a_masqueraded_tuple_is_not_taken_by_a_question<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(5353), outside::<F>(53));
    let s = bed.answered(UDP, c, o);
    bed.passes(UP_IN, &Datagram::<F>::udp(o, c).bytes());
    assert_eq!(bed.leaves(&Datagram::<F>::udp(c, o)), s);
    assert_eq!(bed.rows(), (0, 2));
}

fn pings_of_two_pods_are_told_apart<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, d, o) = (client::<F>(1), near::<F>(1), outside::<F>(0).addr);
    let (first, second) = (pings(&mut bed, c, o), pings(&mut bed, d, o));
    assert_ne!(first, second);
    for (pod, source) in [(c, first), (d, second)] {
        bed.becomes(UP_IN, &pong::<F>(o, source).bytes(), &pong::<F>(o, pod).bytes());
    }
}

fn an_association_of_a_pod_is_masqueraded<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(5000), outside::<F>(38_412));
    let to = |kind| Datagram::<F>::sctp(c, o, kind).with_payload(&[kind; 33]);
    // What is no INIT is an answer to somebody outside.
    bed.passes(UP_OUT, &to(chunk::DATA).bytes());
    let s = bed.leaves(&to(chunk::INIT));
    let back = |kind| Datagram::<F>::sctp(o, s, kind).with_payload(&[kind; 29]);
    let answer = back(chunk::INIT_ACK);
    bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
    assert_eq!(bed.rows(), (2, 0));
    for kind in [chunk::COOKIE_ECHO, chunk::DATA] {
        bed.becomes(UP_OUT, &to(kind).bytes(), &to(kind).from(s).bytes());
        assert_eq!(bed.rows(), (0, 2));
        bed.becomes(UP_IN, &back(kind).bytes(), &back(kind).to(c).bytes());
    }
    let pieces = to(chunk::DATA).fragments(16);
    bed.drops(UP_OUT, &pieces[0], Reason::SctpFragment);
}

fn other_protocols_pass<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(0).addr, outside::<F>(0).addr);
    for proto in [33, 47, 50] {
        bed.passes(UP_OUT, &Datagram::<F>::other(c, o, proto, &[1; 24]).bytes());
        bed.passes(UP_IN, &Datagram::<F>::other(o, c, proto, &[1; 24]).bytes());
    }
    // Messages that are neither echo nor error.
    for kind in if F::V6 { [133, 135, 136] } else { [13, 14, 9] } {
        bed.passes(UP_OUT, &icmp::<F>(c, o, [kind, 0], [1; 4], &[1; 24]).bytes());
        bed.passes(UP_IN, &icmp::<F>(o, c, [kind, 0], [1; 4], &[1; 24]).bytes());
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn what_cannot_be_read_passes<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(2));
    let header = if F::V6 { 40 } else { 20 };
    for packet in [Datagram::<F>::tcp(c, o, SYN), Datagram::<F>::udp(c, o), ping::<F>(c, o.addr)] {
        let whole = packet.bytes();
        for length in header..header + 8 {
            bed.passes(UP_OUT, &whole[..length]);
        }
        for length in 0..header + 8 {
            bed.passes(UP_IN, &whole[..length]);
        }
    }
    assert_eq!(bed.rows(), (0, 0));
}

fn packets_to_the_node_are_not_ours<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let s = bed.leaves(&Datagram::<F>::tcp(client::<F>(1), outside::<F>(80), SYN));
    for port in [22, 60_000, s.port.get()] {
        for flags in [SYN, ACK] {
            // From another port than the flow's.
            bed.passes(
                UP_IN,
                &Datagram::<F>::tcp(outside::<F>(81), node::<F>(port), flags).bytes(),
            );
        }
        bed.passes(UP_IN, &Datagram::<F>::udp(outside::<F>(80), node::<F>(port)).bytes());
        bed.passes(UP_IN, &pong::<F>(outside::<F>(0).addr, node::<F>(port)).bytes());
        bed.passes(UP_IN, &ping::<F>(outside::<F>(port), node::<F>(0).addr).bytes());
    }
    assert_eq!(bed.rows(), (2, 0));
}

fn ports_come_from_the_range_and_differ<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let given: BTreeSet<_> = (1000..1500)
        .map(|port| bed.leaves(&Datagram::<F>::tcp(client::<F>(port), outside::<F>(80), SYN)).port)
        .collect();
    assert_eq!(given.len(), 500);
    bed.nat_ports(60_000, 60_003);
    let o = at::<F>(8, 8, 53);
    let given: BTreeSet<_> = (1..4)
        .map(|port| bed.leaves(&Datagram::<F>::udp(client::<F>(port), o)).port.get())
        .collect();
    assert!(given.len() == 3 && given.iter().all(|port| (60_000..=60_003).contains(port)));
}

fn a_port_serves_several_destinations<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.nat_ports(60_000, 60_000);
    for host in 1..=5 {
        let syn = Datagram::<F>::tcp(client::<F>(1), at::<F>(8, host, 80), SYN);
        assert_eq!(bed.leaves(&syn).port.get(), 60_000);
        let datagram = Datagram::<F>::udp(client::<F>(1), at::<F>(8, host, 80));
        assert_eq!(bed.leaves(&datagram).port.get(), 60_000);
        assert_eq!(pings(&mut bed, client::<F>(1), F::address(8, host)).port.get(), 60_000);
    }
}

fn without_a_free_port_the_flow_is_refused<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.nat_ports(60_000, 60_000);
    let o = outside::<F>(80);
    for proto in [TCP, UDP] {
        let s = bed.answered(proto, client::<F>(1), o);
        for port in 2..4 {
            let packet = Datagram::<F>::of(proto, client::<F>(port), o, SYN);
            bed.drops(UP_OUT, &packet.bytes(), Reason::NatPortsExhausted);
        }
        // The other goes on.
        assert_eq!(bed.leaves(&Datagram::<F>::of(proto, client::<F>(1), o, ACK)), s);
    }
    let s = pings(&mut bed, client::<F>(1), o.addr);
    bed.run(UP_IN, &pong::<F>(o.addr, s).bytes());
    let other = ping::<F>(client::<F>(2), o.addr);
    bed.drops(UP_OUT, &other.bytes(), Reason::NatPortsExhausted);
}

/// A flood of flows that nobody answers must not keep others from beginning.
fn an_unanswered_flow_gives_its_port_up<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.nat_ports(60_000, 60_000);
    for port in 1..10 {
        bed.leaves(&Datagram::<F>::tcp(client::<F>(port), outside::<F>(80), SYN));
        assert_eq!(bed.rows(), (2, 0), "nothing is left of the flow before");
    }
}

fn a_port_that_a_socket_has_is_not_taken<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.nat_ports(60_000, 60_000);
    let o = outside::<F>(53);
    bed.machine.hold(&FlowKey::new(o, node::<F>(60_000), UDP, hook::INGRESS));
    let packet = Datagram::<F>::udp(client::<F>(1), o);
    bed.drops(UP_OUT, &packet.bytes(), Reason::NatPortsExhausted);
    bed.nat_ports(60_001, 60_001);
    assert_eq!(bed.leaves(&packet).port.get(), 60_001);
}

fn without_an_address_nothing_leaves<F: Side>() {
    let mut bed = Gateway::<F>::new();
    for device in [None, Some(datapath::device::Device::default())] {
        bed.machine.set_device(device);
        let (c, o) = (client::<F>(1), outside::<F>(2));
        bed.drops(UP_OUT, &Datagram::<F>::udp(c, o).bytes(), Reason::NoMasqueradeAddress);
        bed.drops(UP_OUT, &ping::<F>(c, o.addr).bytes(), Reason::NoMasqueradeAddress);
        bed.passes(UP_OUT, &Datagram::<F>::udp(c, far::<F>(2)).bytes());
    }
}

fn a_syn_again_keeps_its_source<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let syn = Datagram::<F>::tcp(client::<F>(1), outside::<F>(80), SYN);
    let s = bed.leaves(&syn);
    for _ in 0..5 {
        bed.machine.pass(3);
        assert_eq!(bed.leaves(&syn), s);
    }
    assert_eq!(bed.rows(), (2, 0));
}

fn a_new_connection_begins_when_the_old_is_closed<F: Side>() {
    let mut bed = Gateway::<F>::new();
    bed.nat_ports(60_000, 60_000);
    let (c, o) = (client::<F>(1), outside::<F>(80));
    let s = bed.answered(TCP, c, o);
    // A SYN in the middle of a connection is the receiver's affair.
    assert_eq!(bed.leaves(&Datagram::<F>::tcp(c, o, SYN)), s);
    assert_eq!(bed.rows(), (0, 2));
    bed.leaves(&Datagram::<F>::tcp(c, o, FIN | ACK));
    let fin = Datagram::<F>::tcp(o, s, FIN | ACK);
    bed.becomes(UP_IN, &fin.bytes(), &fin.clone().to(c).bytes());
    bed.leaves(&Datagram::<F>::tcp(c, o, SYN));
    assert_eq!(bed.rows(), (2, 0), "nothing is left of the first");
}

fn fragments_follow_their_first<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(53));
    let packet = Datagram::<F>::udp(c, o).with_payload(&[0x5a; 3001]);
    let pieces = packet.fragments(1024);
    let out = bed.run(UP_OUT, &pieces[0]);
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    let expected = packet.from(s).fragments(1024);
    same::<F>(&expected[0], &out.bytes);
    for (piece, expected) in pieces.iter().zip(&expected).rev() {
        bed.becomes(UP_OUT, piece, expected);
    }
    let answer = Datagram::<F>::udp(o, s).with_payload(&[1; 2000]);
    for (piece, expected) in answer.fragments(800).iter().zip(answer.clone().to(c).fragments(800)) {
        bed.becomes(UP_IN, piece, &expected);
    }
    assert_eq!(bed.rows(), (0, 2), "a first fragment is an answer");
}

/// A ping as long as this.
fn long<F: Side>(mut ping: Datagram<F>, kind: u8, id: Be16) -> Datagram<F> {
    let [a, b] = id.bytes();
    let whole = icmp::<F>(ping.src.addr, ping.dst.addr, [kind, 0], [a, b, 0, 1], &[3; 2000]);
    ping.payload = whole.payload;
    ping
}

fn fragments_of_pings_follow_their_first<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(5), outside::<F>(0).addr);
    let (asks, answers) = if F::V6 { (128, 129) } else { (8, 0) };
    let pieces = long(ping::<F>(c, o), asks, c.port).fragments(1024);
    let out = bed.run(UP_OUT, &pieces[0]);
    let at = if F::V6 { 8 } else { 0 };
    let s = node::<F>(identifier::<F>(&out.bytes[at..]).get());
    assert!(is_ours(s.port));
    let expected = long(ping::<F>(s, o), asks, s.port).fragments(1024);
    same::<F>(&expected[0], &out.bytes);
    bed.becomes(UP_OUT, &pieces[1], &expected[1]);
    let came = long(pong::<F>(o, s), answers, s.port).fragments(1024);
    let seen = long(pong::<F>(o, c), answers, c.port).fragments(1024);
    for (piece, expected) in came.iter().zip(&seen) {
        bed.becomes(UP_IN, piece, expected);
    }
}

fn a_fragment_before_its_first_is_refused_only_where_it_leaves<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(53));
    let pieces = Datagram::<F>::udp(c, o).with_payload(&[1; 100]).fragments(64);
    bed.drops(UP_OUT, &pieces[1], Reason::FragmentWithoutFirst);
    let pieces = Datagram::<F>::udp(o, node::<F>(60_000)).with_payload(&[1; 100]).fragments(64);
    bed.passes(UP_IN, &pieces[1]);
    // The first was refused: so is the rest.
    bed.nat_ports(60_000, 60_000);
    bed.answered(UDP, c, o);
    let mut late = Datagram::<F>::udp(client::<F>(2), o).with_payload(&[1; 100]);
    late.id = 99;
    bed.drops(UP_OUT, &late.fragments(64)[0], Reason::NatPortsExhausted);
    bed.drops(UP_OUT, &late.fragments(64)[1], Reason::FragmentWithoutFirst);
}

fn fragments_of_answers_to_the_outside_pass<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (o, pod) = (outside::<F>(5000), near::<F>(53));
    for piece in Datagram::<F>::udp(o, pod).with_payload(&[1; 100]).fragments(64) {
        bed.passes(UP_IN, &piece);
    }
    for piece in Datagram::<F>::udp(pod, o).with_payload(&[1; 200]).fragments(64) {
        bed.passes(UP_OUT, &piece);
    }
    for piece in Datagram::<F>::tcp(pod, o, ACK).with_payload(&[1; 200]).fragments(64) {
        bed.passes(UP_OUT, &piece);
    }
    assert_eq!(bed.rows(), (0, 2));
}

fn behind_options_and_extensions<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(80));
    let dress = |mut packet: Datagram<F>| {
        packet.options = vec![1; 8];
        packet.extensions = vec![(0, vec![0; 8]), (60, vec![0; 8])];
        packet
    };
    for proto in [TCP, UDP] {
        let to = dress(Datagram::<F>::of(proto, c, o, SYN));
        let s = bed.leaves(&to);
        let back = dress(Datagram::<F>::of(proto, o, s, SYN | ACK));
        bed.becomes(UP_IN, &back.bytes(), &back.clone().to(c).bytes());
    }
    let out = bed.run(UP_OUT, &dress(ping::<F>(c, o.addr)).bytes());
    let at = if F::V6 { 16 } else { 8 };
    let s = node::<F>(identifier::<F>(&out.bytes[at..]).get());
    same::<F>(&dress(ping::<F>(s, o.addr)).bytes(), &out.bytes);
    bed.becomes(UP_IN, &dress(pong::<F>(o.addr, s)).bytes(), &dress(pong::<F>(o.addr, c)).bytes());
}

fn udp_without_checksum_stays_so<F: Side>() {
    if F::V6 {
        return;
    }
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(53));
    let mut packet = Datagram::<F>::udp(c, o);
    packet.sum = Sum::Zero;
    let s = bed.leaves(&packet);
    let mut answer = Datagram::<F>::udp(o, s);
    answer.sum = Sum::Zero;
    bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
}

/// Packet too big: "fragmentation needed" with a next-hop MTU of 1400, or ICMPv6's.
fn error<F: Side>(src: F::Address, dst: F::Address, quote: &[u8]) -> Vec<u8> {
    let (kind, rest) = if F::V6 { ([2, 0], [0, 0, 5, 0x78]) } else { ([3, 4], [0, 0, 5, 0x78]) };
    icmp::<F>(src, dst, kind, rest, quote).bytes()
}

/// By a router on the way, and by the destination.
fn errors_about_requests<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Gateway::<F>::new();
        let (c, o) = (client::<F>(40_000), outside::<F>(80));
        // Not yet answered, and answered.
        let s = bed.leaves(&Datagram::<F>::of(proto, c, o, SYN));
        for _ in 0..2 {
            let request = Datagram::<F>::of(proto, c, o, ACK).with_payload(&[5; 201]);
            for by in [router::<F>(), o.addr] {
                let came = error::<F>(by, s.addr, &request.clone().from(s).bytes());
                bed.becomes(UP_IN, &came, &error::<F>(by, c.addr, &request.bytes()));
            }
            bed.answer(proto, c, o, s);
        }
    }
}

fn errors_about_answers<F: Side>() {
    for proto in [TCP, UDP] {
        let mut bed = Gateway::<F>::new();
        let (c, o) = (client::<F>(40_000), outside::<F>(80));
        let s = bed.answered(proto, c, o);
        let answer = Datagram::<F>::of(proto, o, c, ACK).with_payload(&[5; 64]);
        let goes = error::<F>(s.addr, o.addr, &answer.clone().to(s).bytes());
        bed.becomes(UP_OUT, &error::<F>(c.addr, o.addr, &answer.bytes()), &goes);
    }
}

/// Who finds no pod, or a link too narrow, complains about a packet whose destination the outside does not
/// know, and by the address that it knows.
fn errors_of_the_node_about_answers<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(40_000), outside::<F>(80));
    let s = bed.answered(UDP, c, o);
    let answer = Datagram::<F>::udp(o, c).with_payload(&[5; 64]);
    for by in [node::<F>(0).addr, router::<F>()] {
        let goes = error::<F>(s.addr, o.addr, &answer.clone().to(s).bytes());
        bed.becomes(UP_OUT, &error::<F>(by, o.addr, &answer.bytes()), &goes);
    }
}

fn errors_about_pings<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(77), outside::<F>(0).addr);
    let s = pings(&mut bed, c, o);
    for _ in 0..2 {
        for by in [router::<F>(), o] {
            let came = error::<F>(by, s.addr, &ping::<F>(s, o).bytes());
            bed.becomes(UP_IN, &came, &error::<F>(by, c.addr, &ping::<F>(c, o).bytes()));
        }
        for by in [node::<F>(0).addr, c.addr] {
            let goes = error::<F>(node::<F>(0).addr, o, &pong::<F>(o, s).bytes());
            bed.becomes(UP_OUT, &error::<F>(by, o, &pong::<F>(o, c).bytes()), &goes);
        }
        bed.run(UP_IN, &pong::<F>(o, s).bytes());
    }
    // As short as an error may be: no more than the identifier.
    let header = if F::V6 { 40 } else { 20 };
    let quote = |from| ping::<F>(from, o).bytes()[..header + 8].to_vec();
    let came = error::<F>(o, s.addr, &quote(s));
    bed.becomes(UP_IN, &came, &error::<F>(o, c.addr, &quote(c)));
    bed.passes(UP_IN, &error::<F>(o, s.addr, &quote(s)[..header + 7]));
    // About another ping nothing is known.
    bed.passes(UP_IN, &error::<F>(o, s.addr, &quote(node::<F>(s.port.get() ^ 1))));
}

fn errors_about_flows_that_keep_their_source_pass<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (o, pod) = (outside::<F>(5000), near::<F>(53));
    bed.run(UP_IN, &Datagram::<F>::udp(o, pod).bytes());
    bed.run(UP_OUT, &Datagram::<F>::udp(pod, o).bytes());
    bed.passes(UP_OUT, &error::<F>(pod.addr, o.addr, &Datagram::<F>::udp(o, pod).bytes()));
    bed.passes(UP_IN, &error::<F>(o.addr, pod.addr, &Datagram::<F>::udp(pod, o).bytes()));
    let redirect = redirect::<F>(pod.addr, &Datagram::<F>::udp(pod, o).bytes());
    bed.passes(UP_IN, &redirect);
    // About flows of which nothing is known at all.
    bed.passes(UP_OUT, &error::<F>(pod.addr, o.addr, &Datagram::<F>::udp(o, near::<F>(9)).bytes()));
}

fn redirect<F: Side>(dst: F::Address, quote: &[u8]) -> Vec<u8> {
    let r = router::<F>();
    if !F::V6 {
        return icmp::<F>(r, dst, [5, 1], [10, 7, 0, 2], quote).bytes();
    }
    let mut body = F::octets(r);
    body.extend(F::octets(dst));
    body.extend([4, (quote.len() / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
    body.extend(quote);
    icmp::<F>(r, dst, [137, 0], [0; 4], &body).bytes()
}

fn redirects_are_dropped<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(40_000), outside::<F>(80));
    let s = bed.answered(TCP, c, o);
    let request = Datagram::<F>::tcp(s, o, ACK).with_payload(&[0; 4]);
    bed.drops(UP_IN, &redirect::<F>(s.addr, &request.bytes()), Reason::IcmpRedirect);
    let answer = Datagram::<F>::tcp(o, c, ACK).with_payload(&[0; 4]);
    bed.drops(UP_OUT, &redirect::<F>(o.addr, &answer.bytes()), Reason::IcmpRedirect);
    let other = Datagram::<F>::tcp(node::<F>(33_000), o, ACK).with_payload(&[0; 4]);
    bed.passes(UP_IN, &redirect::<F>(s.addr, &other.bytes()));
}

fn a_flood_pushes_out_no_settled_flow<F: Side>() {
    let mut bed = Gateway::<F>::sized(Sizes { pending: 1024, ..Sizes::default() });
    let o = outside::<F>(80);
    let settled: Vec<_> = (1..=20).map(|port| bed.answered(TCP, client::<F>(port), o)).collect();
    for index in 0..2000 {
        bed.leaves(&Datagram::<F>::tcp(at::<F>(1, index, 1024), at::<F>(8, index, 80), SYN));
        // Questions from the outside, too.
        bed.passes(UP_IN, &Datagram::<F>::udp(at::<F>(8, index, 9), at::<F>(1, index, 53)).bytes());
    }
    let (pending, answered) = bed.rows();
    assert!(pending <= 1024, "{pending}");
    assert_eq!(answered, 40);
    for (port, s) in (1..).zip(settled) {
        assert_eq!(bed.leaves(&Datagram::<F>::tcp(client::<F>(port), o, ACK)), s);
        let back = Datagram::<F>::tcp(o, s, ACK);
        bed.becomes(UP_IN, &back.bytes(), &back.clone().to(client::<F>(port)).bytes());
    }
}

fn a_table_of_live_flows_refuses_and_counts<F: Side>() {
    let mut bed = Gateway::<F>::sized(Sizes { flows: 256, ..Sizes::default() });
    let o = outside::<F>(80);
    for port in 1..=128 {
        bed.answered(TCP, client::<F>(port), o);
    }
    // TCP is refused with its third packet, UDP with the answer.
    let c = client::<F>(1000);
    let s = bed.leaves(&Datagram::<F>::tcp(c, o, SYN));
    let back = Datagram::<F>::tcp(o, s, SYN | ACK);
    bed.becomes(UP_IN, &back.bytes(), &back.clone().to(c).bytes());
    bed.drops(UP_OUT, &Datagram::<F>::tcp(c, o, ACK).bytes(), Reason::FlowTableFull);
    let s = bed.leaves(&Datagram::<F>::udp(c, o));
    let answer = Datagram::<F>::udp(o, s);
    bed.drops(UP_IN, &answer.bytes(), Reason::FlowTableFull);
    // What somebody outside asks, with the pod's answer.
    bed.passes(UP_IN, &Datagram::<F>::udp(o, near::<F>(53)).bytes());
    bed.drops(UP_OUT, &Datagram::<F>::udp(near::<F>(53), o).bytes(), Reason::FlowTableFull);
    // One flow ends, and its place is another's.
    bed.leaves(&Datagram::<F>::tcp(client::<F>(1), o, RST));
    bed.machine.pass(12);
    bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
}

fn a_table_of_expired_flows_makes_room<F: Side>() {
    let mut bed = Gateway::<F>::sized(Sizes { flows: 256, ..Sizes::default() });
    let o = outside::<F>(80);
    for port in 1..=128 {
        bed.answered(TCP, client::<F>(port), o);
    }
    bed.machine.pass(86_401);
    // No sweep, no agent.
    for port in 1001..=1128 {
        bed.answered(TCP, client::<F>(port), o);
    }
}

/// Removes the row of a role from `PENDING`.
#[track_caller]
fn lose<F: Side>(bed: &mut Gateway<F>, lost: u8) {
    let found: Vec<_> = bed.pending().into_iter().filter(|(_, row)| row.role == lost).collect();
    assert_eq!(found.len(), 1, "role {lost}");
    bed.machine.remove_row(Store::Pending, &found[0].0);
}

fn an_evicted_row_comes_back<F: Side>() {
    let (c, o) = (client::<F>(40_000), outside::<F>(80));
    // The answers' row, by what the client sends again.
    let mut bed = Gateway::<F>::new();
    let syn = Datagram::<F>::tcp(c, o, SYN);
    let s = bed.leaves(&syn);
    lose(&mut bed, role::REPLY_TARGET);
    assert_eq!(bed.leaves(&syn), s);
    // The client's row, by the answer.
    lose(&mut bed, role::ORIGINAL_SOURCE);
    bed.answer(TCP, c, o, s);
    assert_eq!(bed.rows(), (0, 2));
    // The same after the answer, before the client's own.
    let mut bed = Gateway::<F>::new();
    let s = bed.leaves(&syn);
    let back = Datagram::<F>::tcp(o, s, SYN | ACK);
    bed.becomes(UP_IN, &back.bytes(), &back.clone().to(c).bytes());
    lose(&mut bed, role::REPLY_TARGET);
    for _ in 0..2 {
        assert_eq!(bed.leaves(&Datagram::<F>::tcp(c, o, ACK)), s);
        let data = Datagram::<F>::tcp(o, s, ACK);
        bed.becomes(UP_IN, &data.bytes(), &data.clone().to(c).bytes());
    }
    assert_eq!(bed.rows(), (0, 2));
    // Datagrams and pings.
    for lost in [role::REPLY_TARGET, role::ORIGINAL_SOURCE] {
        let mut bed = Gateway::<F>::new();
        let question = Datagram::<F>::udp(c, o);
        let s = bed.leaves(&question);
        lose(&mut bed, lost);
        if lost == role::REPLY_TARGET {
            bed.machine.pass(5);
            assert_eq!(bed.leaves(&question), s);
        }
        let answer = Datagram::<F>::udp(o, s);
        bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
        assert_eq!(bed.rows(), (0, 2), "role {lost}");
        assert_eq!(bed.leaves(&question), s);
    }
}

fn an_evicted_row_of_a_question_comes_back<F: Side>() {
    for lost in [role::ORIGINAL, role::REPLY] {
        let mut bed = Gateway::<F>::new();
        let (o, pod) = (outside::<F>(5000), near::<F>(53));
        bed.passes(UP_IN, &Datagram::<F>::udp(o, pod).bytes());
        lose(&mut bed, lost);
        bed.machine.pass(5);
        bed.passes(UP_IN, &Datagram::<F>::udp(o, pod).bytes());
        bed.passes(UP_OUT, &Datagram::<F>::udp(pod, o).bytes());
        assert_eq!(bed.rows(), (0, 2), "role {lost}");
    }
}

fn flows_expire_as_netfilters_do<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let o = outside::<F>(80);
    let (open, reset, closed) = (client::<F>(1), client::<F>(2), client::<F>(3));
    bed.answered(TCP, open, o);
    bed.answered(TCP, reset, o);
    let s = bed.answered(TCP, closed, o);
    bed.answered(UDP, client::<F>(4), o);
    let pinged = pings(&mut bed, client::<F>(5), o.addr);
    bed.run(UP_IN, &pong::<F>(o.addr, pinged).bytes());
    bed.passes(UP_IN, &Datagram::<F>::udp(o, near::<F>(53)).bytes());
    bed.passes(UP_OUT, &Datagram::<F>::udp(near::<F>(53), o).bytes());
    bed.leaves(&Datagram::<F>::tcp(reset, o, RST));
    bed.leaves(&Datagram::<F>::tcp(closed, o, FIN | ACK));
    bed.run(UP_IN, &Datagram::<F>::tcp(o, s, FIN | ACK).bytes());
    let left = |bed: &mut Gateway<F>, ticks| {
        bed.machine.pass(ticks);
        bed.machine.sweep();
        bed.rows()
    };
    assert_eq!(left(&mut bed, 0), (0, 12));
    assert_eq!(left(&mut bed, 12), (0, 10), "the reset flow");
    assert_eq!(left(&mut bed, 20), (0, 8), "the ping");
    assert_eq!(left(&mut bed, 80), (0, 8));
    assert_eq!(left(&mut bed, 15), (0, 2), "the closed one and the datagrams");
    assert_eq!(left(&mut bed, 86_000), (0, 2));
    assert_eq!(left(&mut bed, 500), (0, 0));
}

/// One direction may be silent for long, as in a download.
fn a_sweep_keeps_both_rows_of_a_live_flow<F: Side>() {
    let mut bed = Gateway::<F>::new();
    let (c, o) = (client::<F>(1), outside::<F>(53));
    let s = bed.answered(UDP, c, o);
    for _ in 0..10 {
        let answer = Datagram::<F>::udp(o, s);
        bed.becomes(UP_IN, &answer.bytes(), &answer.clone().to(c).bytes());
        bed.machine.pass(110);
        bed.machine.sweep();
        assert_eq!(bed.rows(), (0, 2));
    }
    bed.machine.pass(20);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 0));
}
