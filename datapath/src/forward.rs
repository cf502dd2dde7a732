//! On past bridge and IP stack (the proxy's fast path): what comes from outside for a Service goes straight
//! into the pod, or out again toward the other node that has it, and what a pod answers goes straight out.
//!
//! The kernel says of each packet where it goes (`bpf_fib_lookup`), so routes and neighbours are its own, and
//! right while no agent runs; whatever it has more to say of, its IP stack forwards. Segments of TCP alone: of
//! datagrams a masquerade beside us has to see both ways.

use crate::{
    address::protocol,
    header::{IpHeader, Network, Part, tcp},
    packet::Packet,
};

/// What was passed by: index into the per-CPU array `FORWARDED`, which counts packets (a GSO packet is one).
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From outside into a pod of this node.
    Pod = 0,
    /// From outside to another node, and from there to the client.
    Node = 1,
    /// From a pod of this node to the client.
    Client = 2,
}

impl Way {
    pub const ALL: [Self; FORWARDED_LEN] = [Self::Pod, Self::Node, Self::Client];

    /// As metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Client => "client",
        }
    }
}

/// Length of `FORWARDED`.
pub const FORWARDED_LEN: usize = 3;

/// Length of a packet, or of the longest that a GSO packet of segments with so much payload becomes, if it is
/// one that may pass the IP stack by: TCP without options or extension headers of IP, no fragment, nothing that
/// begins or resets a connection, and a hop left. `None` for others.
#[inline(always)]
pub fn length<F: Network, P: Packet>(
    packet: &P,
    header: &IpHeader<F::Address>,
    segment: u32,
) -> Option<u32> {
    if header.next != protocol::TCP || header.offset != F::HEADER || header.part != Part::Whole {
        return None;
    }
    F::forwarded(packet.words(0)?)?;
    let [word] = packet.words(F::HEADER + FLAGS)?;
    let [offset, flags, _, _] = word.to_ne_bytes();
    if flags & (tcp::SYN | tcp::RST) != 0 {
        return None;
    }
    Some(if segment == 0 { packet.len() } else { F::HEADER + (offset >> 4) as u32 * 4 + segment })
}

/// Where TCP has the length of its header, and its flags behind that (RFC 9293 §3.1).
const FLAGS: u32 = 12;
