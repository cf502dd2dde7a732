//! Direct server return, at the node that a client asks: what it sends goes on as it is.

use datapath::{
    address::{
        Be16,
        protocol::{SCTP, TCP, UDP},
    },
    algorithm::Algorithm,
    flow::{Place, flow_flags, hook, role, timeout_sec},
    frontend::kind,
    header::tcp::{ACK, FIN, RST, SYN},
    host::frame::Datagram,
    packet::Verdict,
    policy::MASQUERADE_MARK,
    service::SetRef,
    tables::Store,
};

use crate::{
    bed::Bed,
    icmp::error,
    machine::Side,
    plan::*,
    sender::{ports, same},
};

both! {
    a_client_is_sent_on_as_it_is,
    datagrams_are_kept_in_the_second_tick,
    fragments_go_as_they_come,
    what_it_does_for_a_flow_the_mark_says,
    what_its_client_shows_stands_for_both,
    a_syn_again_and_after_the_end,
    to_others_it_is_masqueraded,
    a_second_flow_of_one_port_is_masqueraded,
    errors_go_where_packets_do,
    what_an_eviction_took_is_written_again,
}

type Ends<F> = [Place<<F as datapath::address::Family>::Address>; 3];

/// Client, frontend and backend, whose node answers clients itself.
fn ends<F: Side>() -> Ends<F> {
    [outside::<F>(40_000), node::<F>(30_080), far::<F>(8080)]
}

/// A Service at a port of the node, as it is by default where nodes answer.
pub(crate) fn publish<F: Side>(
    bed: &mut Bed<F>,
    frontend: Place<F::Address>,
    kind: u8,
    cluster: SetRef,
    local: SetRef,
) -> u32 {
    let service = bed.service_of(cluster, local, Algorithm::Maglev.flags());
    for proto in [TCP, UDP, SCTP] {
        bed.frontend(frontend, proto, service, kind);
    }
    service
}

fn bed<F: Side>() -> Bed<F> {
    let [_, v, b] = ends::<F>();
    let mut bed = Bed::<F>::new();
    let set = bed.set(&[remote(b)]);
    publish(&mut bed, v, kind::NODE_PORT, set, SetRef::REJECT);
    bed.node_answers(b.addr);
    bed
}

fn a_client_is_sent_on_as_it_is<F: Side>() {
    let [c, v, b] = ends::<F>();
    for proto in [TCP, SCTP] {
        let mut bed = bed::<F>();
        let to = |flags| Datagram::<F>::of(proto, c, v, flags);
        for (flags, rows) in [(SYN, (3, 0)), (ACK, (0, 3)), (ACK, (0, 3))] {
            bed.becomes(UP_IN, &to(flags).bytes(), &to(flags).to(b).bytes());
            bed.becomes(UP_OUT, &to(flags).to(b).bytes(), &to(flags).bytes());
            assert_eq!(bed.rows(), rows, "after {flags} of {proto}");
        }
        for (key, row) in bed.flows() {
            assert_eq!(row.flags, flow_flags::MASQUERADE | flow_flags::DIRECT, "{key:?}");
        }
    }
}

fn datagrams_are_kept_in_the_second_tick<F: Side>() {
    let [c, v, b] = ends::<F>();
    let mut bed = bed::<F>();
    let packet = Datagram::<F>::udp(c, v);
    for rows in [(3, 0), (3, 0)] {
        bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
        bed.becomes(UP_OUT, &packet.clone().to(b).bytes(), &packet.bytes());
        assert_eq!(bed.rows(), rows);
    }
    bed.machine.pass(2);
    bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
    assert_eq!(bed.rows(), (0, 3));
    bed.becomes(UP_OUT, &packet.clone().to(b).bytes(), &packet.bytes());
    bed.machine.pass(timeout_sec::UDP_ANSWERED + 1);
    bed.machine.sweep();
    assert_eq!(bed.rows(), (0, 0));
}

fn fragments_go_as_they_come<F: Side>() {
    let [c, v, b] = ends::<F>();
    let mut bed = bed::<F>();
    let packet = Datagram::<F>::udp(c, v).with_payload(&[0x5a; 2000]);
    let inside = packet.clone().to(b).fragments(1024);
    for (piece, inside) in packet.fragments(1024).iter().zip(&inside) {
        bed.becomes(UP_IN, piece, inside);
        bed.becomes(UP_OUT, inside, piece);
    }
}

/// The overlay's masquerade, which comes first where it leaves, has to know.
fn what_it_does_for_a_flow_the_mark_says<F: Side>() {
    let [c, v, _] = ends::<F>();
    let mut bed = bed::<F>();
    for flags in [SYN, ACK] {
        let packet = Datagram::<F>::tcp(c, v, flags).bytes();
        let mut mark = 0;
        let (verdict, entered) = bed.machine.run_marked(UP_IN, &mut mark, &packet);
        assert_eq!((verdict, mark), (Verdict::Pass, MASQUERADE_MARK));
        let (verdict, left) = bed.machine.run_marked(UP_OUT, &mut mark, &entered);
        assert_eq!((verdict, mark), (Verdict::Pass, 0));
        same::<F>(&packet, &left);
    }
}

fn what_its_client_shows_stands_for_both<F: Side>() {
    let [c, v, _] = ends::<F>();
    for (flags, lasts) in [
        (ACK, timeout_sec::TCP_ESTABLISHED),
        (ACK | FIN, timeout_sec::TCP_CLOSED),
        (ACK | RST, timeout_sec::TCP_RESET),
    ] {
        let mut bed = bed::<F>();
        for flags in [SYN, ACK, flags] {
            bed.run(UP_IN, &Datagram::<F>::tcp(c, v, flags).bytes());
        }
        bed.machine.pass(lasts - 5);
        bed.machine.sweep();
        assert_eq!(bed.rows(), (0, 3), "{flags}");
        bed.machine.pass(6);
        bed.machine.sweep();
        assert_eq!(bed.rows(), (0, 0), "{flags}");
    }
}

fn a_syn_again_and_after_the_end<F: Side>() {
    let [c, v, b] = ends::<F>();
    let mut bed = bed::<F>();
    let mut send = |flags| {
        let packet = Datagram::<F>::tcp(c, v, flags);
        bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
        bed.becomes(UP_OUT, &packet.clone().to(b).bytes(), &packet.bytes());
        bed.rows()
    };
    assert_eq!([SYN, SYN, ACK, SYN].map(&mut send), [(3, 0), (3, 0), (0, 3), (0, 3)]);
    assert_eq!([ACK | FIN, SYN, ACK].map(send), [(0, 3), (3, 0), (0, 3)]);
}

fn to_others_it_is_masqueraded<F: Side>() {
    let [c, v, b] = ends::<F>();
    let other = at::<F>(9, 4, 30_080);
    let sent = |bed: &mut Bed<F>, v| {
        let packet = Datagram::<F>::tcp(c, v, SYN);
        bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
        let left = bed.run(UP_OUT, &packet.clone().to(b).bytes()).bytes;
        (ports::<F>(&left).1 == v.port).then_some(())
    };
    assert!(sent(&mut bed::<F>(), v).is_some());
    // Of addresses of the node, the other one knows one.
    for (kind, expected) in [
        (kind::NODE_PORT, None),
        (kind::LOAD_BALANCER, Some(())),
        (kind::EXTERNAL_IP, Some(())),
        (kind::CLUSTER_IP, Some(())),
    ] {
        let mut bed = bed::<F>();
        let set = bed.set(&[remote(b)]);
        publish(&mut bed, other, kind, set, SetRef::REJECT);
        assert_eq!(sent(&mut bed, other), expected, "{kind}");
    }
    // This one does not, or that one.
    let mut bed = bed::<F>();
    bed.node_answers_no_more();
    assert_eq!(sent(&mut bed, v), None);
    let mut bed = Bed::<F>::new();
    let set = bed.set(&[remote(b)]);
    publish(&mut bed, v, kind::NODE_PORT, set, SetRef::REJECT);
    bed.node_answers(at::<F>(2, 4, 0).addr);
    assert_eq!(sent(&mut bed, v), None);
    // Nodes do not choose alike.
    for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::SourceHash] {
        let mut bed = self::bed::<F>();
        let service = bed.service_of(set, SetRef::REJECT, algorithm.flags());
        bed.frontend(v, TCP, service, kind::NODE_PORT);
        assert_eq!(sent(&mut bed, v), None);
    }
    // A backend here.
    let (mut bed, near) = (self::bed::<F>(), near::<F>(8080));
    let set = bed.set(&[local(near)]);
    publish(&mut bed, v, kind::NODE_PORT, set, set);
    bed.node_answers(near.addr);
    let packet = Datagram::<F>::tcp(c, v, SYN);
    bed.becomes(UP_IN, &packet.bytes(), &packet.to(near).bytes());
    assert_eq!(bed.rows(), (2, 0));
    // A pod of this node.
    let (mut bed, c) = (self::bed::<F>(), client::<F>(40_000));
    let packet = Datagram::<F>::tcp(c, v, SYN);
    bed.becomes(POD_IN, &packet.bytes(), &packet.clone().to(b).bytes());
    bed.passes(UP_OUT, &packet.to(b).bytes());
}

/// Under the port that it gets toward the backend nobody else would know the client.
fn a_second_flow_of_one_port_is_masqueraded<F: Side>() {
    let [c, v, b] = ends::<F>();
    let mut bed = bed::<F>();
    let set = bed.set(&[remote(b)]);
    let second = at::<F>(7, 9, 80);
    publish(&mut bed, second, kind::LOAD_BALANCER, set, SetRef::REJECT);
    for flags in [SYN, ACK] {
        let packet = Datagram::<F>::tcp(c, v, flags);
        bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
    }
    let packet = Datagram::<F>::tcp(c, second, SYN);
    let entered = bed.run(UP_IN, &packet.bytes());
    let alias = ports::<F>(&entered.bytes).0;
    assert_ne!(alias, c.port);
    let left = bed.run(UP_OUT, &entered.bytes);
    let source = node::<F>(ports::<F>(&left.bytes).0.get());
    same::<F>(&packet.from(source).to(b).bytes(), &left.bytes);
    // Replies to that one come here.
    let reply = Datagram::<F>::tcp(b, source, SYN | ACK);
    let back = reply.clone().to(Place::new(c.addr, alias));
    bed.becomes(UP_IN, &reply.bytes(), &back.bytes());
    bed.becomes(UP_OUT, &back.bytes(), &reply.from(second).to(c).bytes());
}

fn errors_go_where_packets_do<F: Side>() {
    let [c, v, b] = ends::<F>();
    for proto in [TCP, UDP, SCTP] {
        let mut bed = bed::<F>();
        for flags in [SYN, ACK] {
            bed.run(UP_IN, &Datagram::<F>::of(proto, c, v, flags).bytes());
        }
        // About what the other node has sent to the client, by a router or the client.
        let reply = Datagram::<F>::of(proto, b, c, ACK).with_payload(&[5; 300]);
        for by in [router::<F>(), c.addr] {
            let came = error::<F>(by, v.addr, &reply.clone().from(v).bytes());
            let between = error::<F>(by, b.addr, &reply.bytes());
            bed.becomes(UP_IN, &came, &between);
            bed.becomes(UP_OUT, &between, &came);
        }
        // By this node, about what does not fit.
        let request = Datagram::<F>::of(proto, c, v, ACK).with_payload(&[5; 300]);
        let own = node::<F>(0).addr;
        let made = error::<F>(own, c.addr, &request.clone().to(b).bytes());
        bed.becomes(UP_OUT, &made, &error::<F>(own, c.addr, &request.bytes()));
    }
}

fn what_an_eviction_took_is_written_again<F: Side>() {
    let [c, v, b] = ends::<F>();
    for lost in [role::REPLY, role::ORIGINAL_SOURCE] {
        let mut bed = bed::<F>();
        let send = |bed: &mut Bed<F>, flags| {
            let packet = Datagram::<F>::tcp(c, v, flags);
            bed.becomes(UP_IN, &packet.bytes(), &packet.clone().to(b).bytes());
            bed.becomes(UP_OUT, &packet.clone().to(b).bytes(), &packet.bytes());
        };
        send(&mut bed, SYN);
        let rows = bed.pending();
        let (key, _) = rows.iter().find(|(_, row)| row.role == lost).expect("a row");
        assert_eq!((key.hook, key.dst_port != Be16::ZERO), (hook::EGRESS, true));
        bed.machine.remove_row(Store::Pending, key);
        send(&mut bed, ACK);
        assert_eq!(bed.rows(), (0, 3), "{lost}");
    }
}
