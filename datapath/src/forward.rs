//! On past bridge and IP stack (the proxy's fast path): what comes from outside for a Service goes straight
//! into the pod, or out again toward the other node that has it, and what a pod answers goes straight out.
//!
//! The kernel says of each packet where it goes (`bpf_fib_lookup`), so routes and neighbours are its own, and
//! right while no agent runs; whatever it has more to say of, its IP stack forwards. Segments of TCP alone: of
//! datagrams a masquerade beside us has to see both ways.

use crate::{
    address::{Address, Be16, protocol},
    flow::{Flow, FlowKey, Place, flow_flags, role},
    fragment::Ports,
    header::{self, IpHeader, Network, Part, tcp},
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

/// What is read of a segment of TCP that may pass the IP stack by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub ports: Ports,
    /// [`tcp`] bits.
    pub flags: u8,
    /// From the network header on; of a GSO packet, the longest that it becomes.
    pub length: u32,
}

impl Segment {
    /// Reads a packet, or one of GSO of segments with so much payload: TCP without options or extension headers
    /// of IP, no fragment, nothing that begins or resets a connection, and a hop left. `None` for others.
    #[inline(always)]
    pub fn read<F: Network, P: Packet>(
        packet: &P,
        header: &IpHeader<F::Address>,
        payload: u32,
    ) -> Option<Self> {
        let is_plain = header.offset == F::HEADER && header.part == Part::Whole;
        if header.next != protocol::TCP || !is_plain {
            return None;
        }
        F::forwarded(packet.words(0)?)?;
        // RFC 9293 §3.1: behind the sequence numbers, the length of the header and its flags.
        let [both, _, _, word] = packet.words(F::HEADER)?;
        let [offset, flags, _, _] = word.to_ne_bytes();
        if flags & (tcp::SYN | tcp::RST) != 0 {
            return None;
        }
        let headers = F::HEADER + (offset >> 4) as u32 * 4;
        let length = if payload == 0 { packet.len() } else { headers + payload };
        Some(Self { ports: header::ports(both.to_ne_bytes()), flags, length })
    }
}

/// Where a segment goes by its flow's row, and from where: all that the hooks on its way would make of it.
/// `None` if the row has more to say, or is of a hook on the way.
#[inline(always)]
pub fn aim<A: Address>(key: &FlowKey<A>, row: &Flow<A>) -> Option<Aim<A>> {
    let (src, dst) = (key.src(), key.dst());
    let to = Place::new(row.to, row.to_port);
    let other = Place::new(row.other, row.other_port);
    let turned = |place: Place<A>, by: Be16| Place::new(place.addr, place.port.xor(by));
    let is_masqueraded = row.flags & flow_flags::MASQUERADE != 0;
    if row.flags & !flow_flags::MASQUERADE != 0 || is_masqueraded && row.other_port == Be16::ZERO {
        return None;
    }
    let (way, src, dst) = match row.role {
        role::ORIGINAL if is_masqueraded => (Way::Node, other, to),
        role::ORIGINAL => (Way::Pod, turned(src, row.turn), to),
        role::REPLY_TARGET => (Way::Node, other, turned(to, row.alias)),
        role::REPLY if !is_masqueraded => (Way::Client, to, turned(dst, row.turn)),
        _ => return None,
    };
    Some(Aim { way, src, dst })
}

/// See [`aim`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aim<A> {
    pub way: Way,
    pub src: Place<A>,
    pub dst: Place<A>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{address::Ipv4, flow::Parties, tables::Opening};

    fn place(host: u8, port: u16) -> Place<Ipv4> {
        Place::new(Ipv4::from_bytes([10, 0, 0, host]), Be16::new(port))
    }

    /// What becomes of a packet of a row for this role.
    fn aim_of(parties: &Parties<Ipv4>, role: u8, flags: u16) -> Option<Aim<Ipv4>> {
        let opening = Opening { role, service: 7, flags, now: 1, replace: false };
        aim(&parties.key(role), &parties.row(opening))
    }

    #[test]
    fn both_ends_are_those_behind_the_last_hook() {
        let (client, frontend, backend) = (place(1, 40_000), place(2, 80), place(3, 8080));
        let alias = Be16::new(40_000).xor(Be16::new(61_000));
        let known = place(1, 61_000);
        let proto = protocol::TCP;
        let parties = Parties { client, frontend, backend, alias, proto, ..Parties::default() };
        let goes = |way, src, dst| Some(Aim { way, src, dst });
        assert_eq!(aim_of(&parties, role::ORIGINAL, 0), goes(Way::Pod, known, backend));
        assert_eq!(aim_of(&parties, role::REPLY, 0), goes(Way::Client, frontend, client));
        let masqueraded = flow_flags::MASQUERADE;
        assert_eq!(aim_of(&parties, role::ORIGINAL, masqueraded), None, "it has no source yet");
        let source = place(4, 50_000);
        let parties = Parties { source, ..parties };
        let of = |role| aim_of(&parties, role, masqueraded);
        assert_eq!(of(role::ORIGINAL), goes(Way::Node, source, backend));
        assert_eq!(of(role::REPLY_TARGET), goes(Way::Node, frontend, client));
        assert_eq!([of(role::REPLY), of(role::ORIGINAL_SOURCE)], [None; 2]);
        for flag in [flow_flags::RESET, flow_flags::DIRECT | masqueraded] {
            assert_eq!(aim_of(&parties, role::ORIGINAL, flag), None, "{flag}");
        }
    }
}
