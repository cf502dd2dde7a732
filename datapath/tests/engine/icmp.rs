//! ICMP errors about flows. A flow has two directions, each of which can be complained about
//! by its receiver or by a router on the way, and the complaint may come in by either side.

use datapath::{
    address::protocol::{SCTP, TCP, UDP},
    counter::Reason,
    flow::Place,
    header::tcp::{ACK, SYN},
    host::frame::{Datagram, Sample, Sum, icmp},
};

use crate::{bed::Bed, machine::Side, plan::*, sender::ports};

both! {
    about_a_request_by_a_router,
    about_a_request_by_the_backend,
    about_an_answer_by_the_client,
    about_an_answer_by_a_router,
    about_a_masqueraded_request,
    about_a_masqueraded_answer,
    about_a_flow_not_yet_answered,
    about_a_hairpin,
    all_kinds_of_errors,
    as_short_as_errors_may_be,
    about_udp_without_checksum,
    about_udp_whose_checksum_comes_to_zero,
    about_first_fragments,
    about_options_and_extensions,
    behind_options_and_extensions,
    redirects_are_dropped,
    about_other_flows_nothing_is_done,
    about_pings_nothing_is_done,
    quotations_that_cannot_be_read,
    informational_messages_between_the_parties_pass,
}

type At<F> = Place<<F as datapath::address::Family>::Address>;

/// Packet too big: "fragmentation needed" with a next-hop MTU of 1400, or ICMPv6's.
fn too_big<F: Sample>() -> ([u8; 2], [u8; 4]) {
    if F::V6 { ([2, 0], [0, 0, 0x05, 0x78]) } else { ([3, 4], [0, 0, 0x05, 0x78]) }
}

pub(crate) fn error<F: Side>(src: F::Address, dst: F::Address, quote: &[u8]) -> Vec<u8> {
    let (kind, rest) = too_big::<F>();
    icmp::<F>(src, dst, kind, rest, quote).bytes()
}

/// An answered flow from a pod.
fn flow<F: Side>(proto: u8, c: At<F>, v: At<F>, b: At<F>) -> Bed<F> {
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(v, proto, &[remote(b)]);
    bed.run(POD_IN, &Datagram::<F>::of(proto, c, v, SYN).bytes());
    bed.run(POD_OUT, &Datagram::<F>::of(proto, b, c, SYN | ACK).bytes());
    bed.run(POD_IN, &Datagram::<F>::of(proto, c, v, ACK).bytes());
    assert_eq!(bed.rows(), (0, 2));
    bed
}

/// An answered flow from the outside to a backend elsewhere, and its source.
fn masqueraded<F: Side>(proto: u8, c: At<F>, v: At<F>, b: At<F>) -> (Bed<F>, At<F>) {
    let mut bed = Bed::<F>::new();
    bed.node_port(v.port.get(), proto, &[remote(b)]);
    bed.run(UP_IN, &Datagram::<F>::of(proto, c, v, SYN).bytes());
    let out = bed.run(UP_OUT, &Datagram::<F>::of(proto, c, b, SYN).bytes());
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    bed.run(UP_IN, &Datagram::<F>::of(proto, b, s, SYN | ACK).bytes());
    bed.run(UP_OUT, &Datagram::<F>::of(proto, b, c, SYN | ACK).bytes());
    bed.run(UP_IN, &Datagram::<F>::of(proto, c, v, ACK).bytes());
    assert_eq!(bed.rows(), (0, 4));
    (bed, s)
}

fn parties<F: Side>() -> (At<F>, At<F>, At<F>) {
    (client::<F>(40_000), vip::<F>(80), far::<F>(8080))
}

fn about_a_request_by_a_router<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = parties::<F>();
        let mut bed = flow::<F>(proto, c, v, b);
        let request = Datagram::<F>::of(proto, c, v, ACK).with_payload(&[5; 200]);
        let r = router::<F>();
        let came = error::<F>(r, c.addr, &request.clone().to(b).bytes());
        bed.passes(UP_IN, &came);
        bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &request.bytes()));
    }
}

fn about_a_request_by_the_backend<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = parties::<F>();
        let mut bed = flow::<F>(proto, c, v, b);
        let request = Datagram::<F>::of(proto, c, v, ACK).with_payload(b"odd");
        let came = error::<F>(b.addr, c.addr, &request.clone().to(b).bytes());
        bed.passes(UP_IN, &came);
        bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &request.bytes()));
    }
}

fn about_an_answer_by_the_client<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = parties::<F>();
        let mut bed = flow::<F>(proto, c, v, b);
        let answer = Datagram::<F>::of(proto, b, c, ACK).with_payload(b"odd");
        let went = error::<F>(c.addr, v.addr, &answer.clone().from(v).bytes());
        let goes = error::<F>(c.addr, b.addr, &answer.bytes());
        bed.becomes(POD_IN, &went, &goes);
        bed.passes(UP_OUT, &goes);
    }
}

fn about_an_answer_by_a_router<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let mut bed = Bed::<F>::new();
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), near::<F>(8080));
        bed.node_port(30_080, proto, &[local(b)]);
        bed.run(UP_IN, &Datagram::<F>::of(proto, c, v, SYN).bytes());
        bed.run(UP_OUT, &Datagram::<F>::of(proto, b, c, SYN | ACK).bytes());
        let answer = Datagram::<F>::of(proto, b, c, ACK).with_payload(&[5; 300]);
        let r = router::<F>();
        let went = error::<F>(r, v.addr, &answer.clone().from(v).bytes());
        let goes = error::<F>(r, b.addr, &answer.bytes());
        bed.becomes(UP_IN, &went, &goes);
        bed.passes(POD_OUT, &goes);
    }
}

fn about_a_masqueraded_request<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
        let (mut bed, s) = masqueraded::<F>(proto, c, v, b);
        let request = Datagram::<F>::of(proto, c, v, ACK).with_payload(&[5; 64]);
        let inside = request.clone().to(b);
        for (by, shown) in [(router::<F>(), v.addr), (b.addr, v.addr)] {
            let came = error::<F>(by, s.addr, &inside.clone().from(s).bytes());
            let between = error::<F>(by, c.addr, &inside.bytes());
            bed.becomes(UP_IN, &came, &between);
            bed.becomes(UP_OUT, &between, &error::<F>(shown, c.addr, &request.bytes()));
        }
    }
}

fn about_a_masqueraded_answer<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
        let (mut bed, s) = masqueraded::<F>(proto, c, v, b);
        let answer = Datagram::<F>::of(proto, b, c, ACK).with_payload(&[5; 64]);
        for (by, shown) in [(router::<F>(), s.addr), (c.addr, s.addr)] {
            let came = error::<F>(by, v.addr, &answer.clone().from(v).bytes());
            let between = error::<F>(by, b.addr, &answer.bytes());
            bed.becomes(UP_IN, &came, &between);
            let goes = error::<F>(shown, b.addr, &answer.clone().to(s).bytes());
            bed.becomes(UP_OUT, &between, &goes);
        }
    }
}

fn about_a_flow_not_yet_answered<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = Bed::<F>::new();
    bed.cluster_ip(v, TCP, &[remote(b)]);
    let syn = Datagram::<F>::tcp(c, v, SYN);
    bed.run(POD_IN, &syn.bytes());
    let came = error::<F>(b.addr, c.addr, &syn.clone().to(b).bytes());
    bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &syn.bytes()));
    assert_eq!(bed.rows(), (2, 0));
}

fn about_a_hairpin<F: Side>() {
    let mut bed = Bed::<F>::new();
    let (c, v, b) = (client::<F>(40_000), vip::<F>(80), client::<F>(8080));
    bed.cluster_ip(v, UDP, &[local(b)]);
    let request = Datagram::<F>::udp(c, v);
    bed.run(POD_IN, &request.bytes());
    let out = bed.run(POD_OUT, &request.clone().to(b).bytes());
    let s = node::<F>(ports::<F>(&out.bytes).0.get());
    // The pod itself says that the port is closed.
    let came = error::<F>(b.addr, s.addr, &request.clone().to(b).from(s).bytes());
    let between = error::<F>(b.addr, c.addr, &request.clone().to(b).bytes());
    bed.becomes(POD_IN, &came, &between);
    bed.becomes(POD_OUT, &between, &error::<F>(v.addr, c.addr, &request.bytes()));
}

fn all_kinds_of_errors<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(TCP, c, v, b);
    let request = Datagram::<F>::tcp(c, v, ACK);
    let kinds: &[[u8; 2]] = if F::V6 {
        &[[1, 0], [1, 4], [2, 0], [3, 0], [3, 1], [4, 0], [4, 2]]
    } else {
        &[[3, 0], [3, 1], [3, 3], [3, 4], [3, 13], [4, 0], [11, 0], [11, 1], [12, 0]]
    };
    for kind in kinds {
        let make = |src, quote: &Datagram<F>| {
            icmp::<F>(src, c.addr, *kind, [1, 2, 3, 4], &quote.bytes()).bytes()
        };
        let came = make(b.addr, &request.clone().to(b));
        bed.becomes(POD_OUT, &came, &make(v.addr, &request));
    }
}

/// An IPv4 error may quote no more than eight bytes behind the header (RFC 792).
fn as_short_as_errors_may_be<F: Side>() {
    for proto in [TCP, UDP, SCTP] {
        let (c, v, b) = parties::<F>();
        let mut bed = flow::<F>(proto, c, v, b);
        let request = Datagram::<F>::of(proto, c, v, ACK).with_payload(&[5; 64]);
        let header = if F::V6 { 40 } else { 20 };
        let checksum = match proto {
            TCP => header + 16..header + 18,
            UDP => header + 6..header + 8,
            _ => header + 8..header + 12,
        };
        for length in header + 4..request.bytes().len() {
            let make = |src, quote: Datagram<F>| error::<F>(src, c.addr, &quote.bytes()[..length]);
            let came = make(b.addr, request.clone().to(b));
            if checksum.start < length && length < checksum.end {
                // A part of a checksum is nobody's.
                assert_eq!(bed.run(POD_OUT, &came).bytes.len(), came.len());
                continue;
            }
            bed.becomes(POD_OUT, &came, &make(v.addr, request.clone()));
        }
        // Without ports nobody can tell whose it is.
        for length in 0..header + 4 {
            let quote = request.clone().to(b).bytes();
            bed.passes(POD_OUT, &error::<F>(b.addr, c.addr, &quote[..length]));
        }
    }
}

fn about_udp_without_checksum<F: Side>() {
    if F::V6 {
        return;
    }
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(UDP, c, v, b);
    let mut request = Datagram::<F>::udp(c, v);
    request.sum = Sum::Zero;
    let came = error::<F>(b.addr, c.addr, &request.clone().to(b).bytes());
    bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &request.bytes()));
}

/// Zero says that there is no checksum (RFC 768), which over IPv6 is an error (RFC 8200 §8.1).
fn about_udp_whose_checksum_comes_to_zero<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(UDP, c, v, b);
    let field = if F::V6 { 46 } else { 26 };
    // What the client sent is so that its checksum is 0xffff, the way zero is written.
    let request = Datagram::<F>::udp(c, v).with_payload(&[0; 8]);
    let sum = request.bytes();
    let request = request.with_payload(&[sum[field], sum[field + 1], 0, 0, 0, 0, 0, 0]);
    assert_eq!(request.bytes()[field..field + 2], [0xff, 0xff]);
    let came = error::<F>(b.addr, c.addr, &request.clone().to(b).bytes());
    bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &request.bytes()));
}

fn about_first_fragments<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(UDP, c, v, b);
    let request = Datagram::<F>::udp(c, v).with_payload(&[9; 64]);
    let (asked, sent) = (request.fragments(32), request.clone().to(b).fragments(32));
    let came = error::<F>(router::<F>(), c.addr, &sent[0]);
    bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &asked[0]));
    // A later one shows no ports, and passes as it is.
    bed.passes(POD_OUT, &error::<F>(router::<F>(), c.addr, &sent[1]));
}

fn about_options_and_extensions<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(TCP, c, v, b);
    let mut request = Datagram::<F>::tcp(c, v, ACK);
    request.options = vec![0x94, 4, 0, 0, 1, 1, 1, 0];
    request.extensions = vec![
        (0, vec![0, 0, 5, 2, 0, 0, 1, 0]),
        (60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    let came = error::<F>(b.addr, c.addr, &request.clone().to(b).bytes());
    bed.becomes(POD_OUT, &came, &error::<F>(v.addr, c.addr, &request.bytes()));
}

/// The error's own header may be followed by more before the message.
fn behind_options_and_extensions<F: Side>() {
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
    let (mut bed, s) = masqueraded::<F>(TCP, c, v, b);
    let request = Datagram::<F>::tcp(c, v, ACK).with_payload(&[5; 64]);
    let inside = request.clone().to(b);
    let pad = |units: u8| {
        let mut bytes = vec![0, units, 1, 4 + units * 8];
        bytes.resize(8 + usize::from(units) * 8, 0);
        bytes
    };
    let chains: [Vec<(u8, Vec<u8>)>; 4] = [
        vec![(0, pad(0))],
        vec![(60, pad(3))],
        vec![(0, pad(0)), (60, pad(1))],
        // RFC 6946: in one fragment, and no other.
        vec![(44, vec![0, 0, 0, 0, 1, 2, 3, 4])],
    ];
    for chain in chains {
        let made = |src, dst, about: &Datagram<F>| {
            let (kind, rest) = too_big::<F>();
            let mut error = icmp::<F>(src, dst, kind, rest, &about.bytes());
            error.options = [1, 1, 1, 0].repeat(chain.len());
            error.extensions.clone_from(&chain);
            error.bytes()
        };
        for (by, shown) in [(router::<F>(), v.addr), (b.addr, v.addr)] {
            let came = made(by, s.addr, &inside.clone().from(s));
            let between = made(by, c.addr, &inside);
            bed.becomes(UP_IN, &came, &between);
            bed.becomes(UP_OUT, &between, &made(shown, c.addr, &request));
        }
        // A ping behind the same headers is nobody's.
        let mut ping = icmp::<F>(b.addr, c.addr, [128, 0], [0; 4], &inside.bytes());
        ping.extensions.clone_from(&chain);
        bed.passes(UP_OUT, &ping.bytes());
    }
}

fn redirects_are_dropped<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(TCP, c, v, b);
    let r = router::<F>();
    let redirect = |dst, quote: &[u8]| {
        if !F::V6 {
            return icmp::<F>(r, dst, [5, 1], [10, 7, 0, 2], quote).bytes();
        }
        // Target and destination, the target's link-layer address, the packet redirected.
        let mut body = F::octets(router::<F>());
        body.extend(F::octets(dst));
        body.extend([2, 1, 2, 0, 0, 0, 0, 1]);
        body.extend([4, (quote.len() / 8 + 1) as u8, 0, 0, 0, 0, 0, 0]);
        body.extend(quote);
        icmp::<F>(r, dst, [137, 0], [0; 4], &body).bytes()
    };
    let request = Datagram::<F>::tcp(c, v, ACK).with_payload(&[0; 4]);
    let about = redirect(c.addr, &request.clone().to(b).bytes());
    bed.drops(POD_OUT, &about, Reason::IcmpRedirect);
    let answer = Datagram::<F>::tcp(v, c, ACK).with_payload(&[0; 4]);
    bed.drops(POD_IN, &redirect(v.addr, &answer.bytes()), Reason::IcmpRedirect);
    // About traffic that is not ours they are the kernel's.
    let direct = Datagram::<F>::tcp(c, b, ACK).to(far::<F>(1)).with_payload(&[0; 4]);
    bed.passes(POD_OUT, &redirect(c.addr, &direct.bytes()));
}

fn about_other_flows_nothing_is_done<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(TCP, c, v, b);
    let direct = Datagram::<F>::tcp(client::<F>(40_001), b, ACK);
    bed.passes(POD_OUT, &error::<F>(b.addr, c.addr, &direct.bytes()));
    let udp = Datagram::<F>::udp(c, b);
    bed.passes(POD_OUT, &error::<F>(b.addr, c.addr, &udp.bytes()));
    let ping = icmp::<F>(c.addr, b.addr, [if F::V6 { 128 } else { 8 }, 0], [0; 4], b"ping");
    bed.passes(POD_OUT, &error::<F>(b.addr, c.addr, &ping.bytes()));
}

/// An echo has no ports, so no flow: what complains about one is the kernel's where the address
/// is the node's, and nobody's where it is a cluster IP.
fn about_pings_nothing_is_done<F: Side>() {
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
    let (mut bed, _) = masqueraded::<F>(TCP, c, v, b);
    bed.cluster_ip(vip::<F>(80), TCP, &[remote(b)]);
    for kind in if F::V6 { [128, 129] } else { [8, 0] } {
        // The bytes that would be ports are those of the flow.
        let rest = [0x75, 0x80, 0x9c, 0x40];
        let echo = |src, dst| icmp::<F>(src, dst, [kind, 0], rest, b"ping").bytes();
        for (hook, by) in [(UP_IN, router::<F>()), (POD_IN, b.addr), (UP_OUT, b.addr)] {
            bed.passes(hook, &error::<F>(by, v.addr, &echo(v.addr, c.addr)));
            bed.passes(hook, &error::<F>(by, c.addr, &echo(c.addr, b.addr)));
        }
        let lost = error::<F>(c.addr, vip::<F>(0).addr, &echo(vip::<F>(0).addr, c.addr));
        bed.drops(UP_IN, &lost, Reason::UnknownPort);
    }
}

/// Nobody can tell whose they are: the kernel's business, or nobody's at a cluster IP.
fn quotations_that_cannot_be_read<F: Side>() {
    let (c, v, b) = (outside::<F>(40_000), node::<F>(30_080), far::<F>(8080));
    let (mut bed, s) = masqueraded::<F>(TCP, c, v, b);
    let lost = vip::<F>(80);
    bed.cluster_ip(lost, TCP, &[remote(b)]);
    let request = Datagram::<F>::tcp(s, b, ACK).with_payload(&[5; 64]);
    let header = if F::V6 { 40 } else { 20 };
    let spoil = |at: usize, byte: u8| {
        let mut bytes = request.bytes();
        bytes[at] = byte;
        bytes
    };
    let mut quotations = vec![Vec::new(), vec![0x45], vec![0xff; 200]];
    if F::V6 {
        // IPv4, no version, a chain that ends nowhere, and ones that are not followed.
        quotations.extend([spoil(0, 0x45), spoil(0, 0), spoil(6, 60), spoil(6, 51), spoil(6, 50)]);
    } else {
        // IPv6, lengths below the least, and options beyond the quotation's end.
        quotations.extend([spoil(0, 0x65), spoil(0, 0x40), spoil(0, 0x44)]);
        quotations.push(spoil(0, 0x4f)[..60].to_vec());
    }
    // Another protocol, and headers without all ports.
    quotations.extend([spoil(if F::V6 { 6 } else { 9 }, 132), request.bytes()[..header].to_vec()]);
    quotations.push(request.bytes()[..header + 3].to_vec());
    for quotation in quotations {
        for hook in [UP_IN, UP_OUT] {
            bed.passes(hook, &error::<F>(b.addr, s.addr, &quotation));
        }
        bed.drops(UP_IN, &error::<F>(b.addr, lost.addr, &quotation), Reason::UnknownPort);
    }
    // Not even all of the message's own header.
    let whole = error::<F>(b.addr, s.addr, &request.bytes());
    for length in header..header + 8 {
        bed.passes(UP_IN, &whole[..length]);
        bed.passes(UP_OUT, &whole[..length]);
    }
}

fn informational_messages_between_the_parties_pass<F: Side>() {
    let (c, v, b) = parties::<F>();
    let mut bed = flow::<F>(TCP, c, v, b);
    let quote = Datagram::<F>::tcp(c, b, ACK).bytes();
    let kinds: &[u8] = if F::V6 { &[128, 129, 135, 136] } else { &[0, 8, 13, 14] };
    for kind in kinds {
        // What follows looks like a quoted packet and is none.
        let message = icmp::<F>(b.addr, c.addr, [*kind, 0], [0; 4], &quote);
        bed.passes(POD_OUT, &message.bytes());
        bed.passes(UP_IN, &message.bytes());
    }
}
