//! Connections that the packet path translates.
//!
//! A flow from client `c` to frontend `v`, served by backend `b`, has a row for each packet
//! that needs a rewrite, keyed by the tuple that the packet has where it is rewritten. The
//! destination is rewritten where a packet enters the node, the source where it leaves:
//!
//! | row         | key             | hook    | becomes        |
//! |-------------|-----------------|---------|----------------|
//! | `ORIGINAL`  | `c → v`         | ingress | `c → b`        |
//! | `REPLY`     | `b → c`         | egress  | `v → c`        |
//!
//! and if the flow is masqueraded with source `s`, so that its replies return here,
//!
//! | row         | key             | hook    | becomes        |
//! |-------------|-----------------|---------|----------------|
//! | `ORIGINAL_SOURCE` | `c → b`   | egress  | `s → b`        |
//! | `REPLY_TARGET`    | `b → s`   | ingress | `b → c`        |
//!
//! or, if the node of the backend answers the client itself ([`crate::direct`]), in their place
//!
//! | row         | key             | hook    | becomes        |
//! |-------------|-----------------|---------|----------------|
//! | `ORIGINAL_SOURCE` | `c → b`   | egress  | `c → v`        |
//!
//! Where another flow of the client has `b → c` already, because it goes to the same backend from
//! the same port by another frontend, the client gets another port toward the backend, its *alias*:
//! `c` is rewritten together with `v` in the first two rows, and is the alias in all other places.
//!
//! A flow that is masqueraded without any Service ([`crate::ipmasq`]) has only these two, with
//! the same place as frontend and backend.
//!
//! Each row holds enough to write the others again, so none that is lost is missed. Rows live
//! in the LRU tables `PENDING4`/`PENDING6` until the flow is answered, then in the hash tables
//! `FLOWS4`/`FLOWS6`, which evict nothing.

use crate::{
    address::{Address, Be16, protocol},
    tables::Opening,
};

/// Key of the flow tables: 16 and 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct FlowKey<A> {
    pub src: A,
    pub dst: A,
    pub src_port: Be16,
    pub dst_port: Be16,
    /// [`crate::address::protocol`].
    pub proto: u8,
    /// [`hook`].
    pub hook: u8,
    pub pad: u16,
}

/// Where a row applies.
pub mod hook {
    /// The packet enters the node: the row gives a new destination.
    pub const INGRESS: u8 = 0;
    /// The packet leaves the node: the row gives a new source.
    pub const EGRESS: u8 = 1;
}

/// Value of the flow tables: 48 and 72 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow<A> {
    /// What the packet's destination (at ingress) or source (at egress) becomes.
    pub to: A,
    /// The address that neither key nor `to` tell: the frontend, or the masquerade source
    /// (zero while there is none).
    pub other: A,
    pub to_port: Be16,
    pub other_port: Be16,
    /// Index into `SERVICES` when the flow began.
    pub service: u32,
    /// One of [`role`].
    pub role: u8,
    /// Bits of [`seen`].
    pub seen: u8,
    /// Bits of [`flow_flags`].
    pub flags: u16,
    /// When the last packet passed, in units of [`TICK_NS`].
    pub last: u32,
    /// When the flow began, in units of [`TICK_NS`].
    pub since: u32,
    /// What turns ([`Be16::xor`]) the client's own port into its alias, and back; zero if it has none.
    pub alias: Be16,
    /// The same where the packet's other port is to be turned with it: in `ORIGINAL` and `REPLY`. By
    /// itself, so that programs need not ask which row it is.
    pub turn: Be16,
    /// Counted without locks: two processors that carry one direction at once may lose some.
    pub packets: u64,
    pub bytes: u64,
}

/// `Flow::last` and `Flow::since` count units of 2^30 ns (about 1.07 s) of the monotonic
/// clock: a shift where a division would be dear.
pub const TICK_NS: u64 = 1 << 30;

/// Which of a flow's rows this is; see the table above.
pub mod role {
    pub const ORIGINAL: u8 = 1;
    pub const REPLY: u8 = 2;
    pub const ORIGINAL_SOURCE: u8 = 3;
    pub const REPLY_TARGET: u8 = 4;

    /// The role of the row for the same packets' answers.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(role: u8) -> u8 {
        match role {
            ORIGINAL => REPLY,
            REPLY => ORIGINAL,
            ORIGINAL_SOURCE => REPLY_TARGET,
            _ => ORIGINAL_SOURCE,
        }
    }

    /// True for the rows of packets of the side that began the flow.
    #[inline(always)]
    #[must_use]
    pub const fn asks(role: u8) -> bool {
        matches!(role, ORIGINAL | ORIGINAL_SOURCE)
    }

    /// True for the rows that masquerade a flow.
    #[inline(always)]
    #[must_use]
    pub const fn masquerades(role: u8) -> bool {
        matches!(role, ORIGINAL_SOURCE | REPLY_TARGET)
    }
}

/// What packets of a row's direction have shown, as bits. `ORIGINAL` and `REPLY` tell a flow's
/// state together.
pub mod seen {
    /// Any packet at all.
    pub const PACKET: u8 = 1;
    /// A TCP segment with FIN, or SCTP's SHUTDOWN.
    pub const FIN: u8 = 2;
    /// A TCP segment with RST, or SCTP's ABORT.
    pub const RST: u8 = 4;
}

/// Bits of `Flow::flags`.
pub mod flow_flags {
    /// The flow must be masqueraded; set in all its rows.
    pub const MASQUERADE: u16 = 1;
    /// The flow's endpoint has left its Service: the next segment is answered with RST. Set by the
    /// agent, in the rows of answered flows of TCP that see a segment first on its way. The rows are
    /// not removed instead, because they alone tell that a segment is ours to answer once its
    /// Service is gone too, and while another proxy's rules are on the node.
    pub const RESET: u16 = 2;
    /// Beside `MASQUERADE`, whose rows these flows have but for `REPLY_TARGET`: the backend's node
    /// answers the client itself, so packets go there as they came, and no reply is seen here. Their
    /// source is the frontend.
    pub const DIRECT: u16 = 4;
    /// In `REPLY`, of a flow that has no other row yet ([`crate::syn`]).
    pub const LONE: u16 = 8;
}

/// Seconds without a packet after which a flow is forgotten.
pub mod timeout_sec {
    /// TCP before the handshake is done (`nf_conntrack_tcp_timeout_syn_recv`).
    pub const TCP_OPENING: u32 = 60;
    /// kube-proxy sets `nf_conntrack_tcp_timeout_established` to 24 h.
    pub const TCP_ESTABLISHED: u32 = 86_400;
    /// kube-proxy sets `nf_conntrack_tcp_timeout_close_wait` to 1 h.
    pub const TCP_HALF_CLOSED: u32 = 3_600;
    /// `nf_conntrack_tcp_timeout_time_wait`.
    pub const TCP_CLOSED: u32 = 120;
    /// `nf_conntrack_tcp_timeout_close`: after RST.
    pub const TCP_RESET: u32 = 10;
    /// `nf_conntrack_sctp_timeout_cookie_wait`.
    pub const SCTP_OPENING: u32 = 3;
    /// `nf_conntrack_sctp_timeout_established`: an association that is idle sends a HEARTBEAT every
    /// 30 s (RFC 9260 §8.3, §16).
    pub const SCTP_ESTABLISHED: u32 = 210;
    /// `nf_conntrack_sctp_timeout_closed`: after ABORT, and after SHUTDOWN too, where conntrack waits
    /// for 3 s only, but no flow that was answered is forgotten sooner.
    pub const SCTP_CLOSED: u32 = 10;
    /// `nf_conntrack_udp_timeout`.
    pub const UDP_UNANSWERED: u32 = 30;
    /// `nf_conntrack_udp_timeout_stream`.
    pub const UDP_ANSWERED: u32 = 120;
    /// `nf_conntrack_icmp_timeout` and `nf_conntrack_icmpv6_timeout`.
    pub const ECHO: u32 = 30;
}

/// Value of the array `WALKS`: what a walk over a flow table has done, and when it may stop.
/// 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Walk {
    pub removed: u32,
    pub enough: u32,
    /// When a walk last found nothing to remove, in units of [`TICK_NS`].
    pub in_vain: u32,
    /// When the table was last full, in the same units; zero if it never was.
    pub full: u32,
}

impl Walk {
    /// Flows removed at once when room is needed: a walk begins with the rows that walks before
    /// it have looked at, so it must be worth the while.
    pub const ROOM: u32 = 1_024;

    /// True for some time after the table was full: then closed flows have to go soon, lest
    /// those of the last two minutes keep new ones out. (So does netfilter's conntrack: its
    /// `tcp_can_early_drop`.)
    #[inline(always)]
    #[must_use]
    pub const fn is_pressed(&self, now: u32) -> bool {
        self.full != 0 && now.wrapping_sub(self.full) <= timeout_sec::TCP_CLOSED
    }
}

/// The one row per processor of `SCRATCH4` and `SCRATCH6`: where a row is put together, because
/// an eBPF program and all it calls share 512 bytes of stack.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scratch<A> {
    pub parties: Parties<A>,
    pub key: FlowKey<A>,
    pub row: Flow<A>,
}

/// Where a packet comes from or goes to: 8 and 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place<A> {
    pub addr: A,
    pub port: Be16,
    pub pad: u16,
}

/// The four parties of a flow. Every row tells all of them. 40 and 88 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Parties<A> {
    pub client: Place<A>,
    pub frontend: Place<A>,
    pub backend: Place<A>,
    /// The masquerade source; all zero if there is none (yet). Of a direct flow, the frontend.
    pub source: Place<A>,
    /// What turns the client's port into that which it has toward the backend; zero if that is its own.
    pub alias: Be16,
    pub proto: u8,
    pub pad: [u8; 5],
}

impl<A> Place<A> {
    #[inline(always)]
    pub const fn new(addr: A, port: Be16) -> Self {
        Self { addr, port, pad: 0 }
    }
}

impl<A: Address> Flow<A> {
    /// What a packet of the row becomes: the place on one side, and what turns the port on the other.
    #[inline(always)]
    pub const fn becomes(&self) -> (Place<A>, Be16) {
        (Place::new(self.to, self.to_port), self.turn)
    }
}

impl<A: Address> FlowKey<A> {
    #[inline(always)]
    pub const fn new(src: Place<A>, dst: Place<A>, proto: u8, hook: u8) -> Self {
        Self {
            src: src.addr,
            dst: dst.addr,
            src_port: src.port,
            dst_port: dst.port,
            proto,
            hook,
            pad: 0,
        }
    }

    #[inline(always)]
    pub const fn src(&self) -> Place<A> {
        Place::new(self.src, self.src_port)
    }

    #[inline(always)]
    pub const fn dst(&self) -> Place<A> {
        Place::new(self.dst, self.dst_port)
    }

    /// The key by which a packet is looked up where it leaves, of which `row` was found by this one where it
    /// entered.
    #[inline(always)]
    #[must_use]
    pub const fn onward(&self, row: &Flow<A>) -> Self {
        let src = Place::new(self.src, self.src_port.xor(row.turn));
        Self::new(src, Place::new(row.to, row.to_port), self.proto, hook::EGRESS)
    }
}

impl<A: Address> Parties<A> {
    /// The parties of the flow that a row belongs to.
    #[inline(always)]
    pub fn of(key: &FlowKey<A>, row: &Flow<A>) -> Self {
        Self::of_role(row.role, key, row)
    }

    /// The same where the role is known beforehand, which spares the verifier three of four
    /// ways to go on.
    #[inline(always)]
    pub fn of_role(role: u8, key: &FlowKey<A>, row: &Flow<A>) -> Self {
        let (src, dst) = (key.src(), key.dst());
        let to = Place::new(row.to, row.to_port);
        let other = Place::new(row.other, row.other_port);
        let (mut client, frontend, backend, source) = match role {
            role::REPLY => (dst, to, src, other),
            role::ORIGINAL_SOURCE => (src, other, dst, to),
            role::REPLY_TARGET => (to, other, src, dst),
            _ => (src, dst, to, other),
        };
        if role != role::ORIGINAL {
            client.port = client.port.xor(row.alias);
        }
        Self { client, frontend, backend, source, alias: row.alias, proto: key.proto, pad: [0; 5] }
    }

    /// The client as the backend, or the masquerade, knows it.
    #[inline(always)]
    pub const fn alias(&self) -> Place<A> {
        Place::new(self.client.addr, self.client.port.xor(self.alias))
    }

    #[inline(always)]
    pub const fn original(&self) -> FlowKey<A> {
        FlowKey::new(self.client, self.frontend, self.proto, hook::INGRESS)
    }

    #[inline(always)]
    pub const fn reply(&self) -> FlowKey<A> {
        FlowKey::new(self.backend, self.alias(), self.proto, hook::EGRESS)
    }

    #[inline(always)]
    pub const fn original_source(&self) -> FlowKey<A> {
        FlowKey::new(self.alias(), self.backend, self.proto, hook::EGRESS)
    }

    #[inline(always)]
    pub const fn reply_target(&self) -> FlowKey<A> {
        FlowKey::new(self.backend, self.source, self.proto, hook::INGRESS)
    }

    /// The key of the row for a role.
    #[inline(always)]
    pub const fn key(&self, role: u8) -> FlowKey<A> {
        match role {
            role::REPLY => self.reply(),
            role::ORIGINAL_SOURCE => self.original_source(),
            role::REPLY_TARGET => self.reply_target(),
            _ => self.original(),
        }
    }

    /// The row for a role, as it is when it begins.
    #[inline(always)]
    pub fn row(&self, opening: Opening) -> Flow<A> {
        let Opening { role, service, flags, now, .. } = opening;
        let (to, other) = match role {
            role::REPLY => (self.frontend, self.source),
            role::ORIGINAL_SOURCE => (self.source, self.frontend),
            role::REPLY_TARGET => (self.alias(), self.frontend),
            _ => (self.backend, self.source),
        };
        Flow {
            to: to.addr,
            other: other.addr,
            to_port: to.port,
            other_port: other.port,
            service,
            role,
            seen: 0,
            flags,
            last: now,
            since: now,
            alias: self.alias,
            turn: if role::masquerades(role) { Be16::ZERO } else { self.alias },
            packets: 0,
            bytes: 0,
        }
    }
}

/// True if both sides have closed the connection, or one has reset it: a SYN with the same
/// tuple is a new connection.
#[inline(always)]
#[must_use]
pub const fn is_closed(original: u8, reply: u8) -> bool {
    (original | reply) & seen::RST != 0 || original & reply & seen::FIN != 0
}

/// Seconds without a packet after which a flow is forgotten, by what its two directions have
/// shown ([`seen`]).
#[inline(always)]
#[must_use]
pub const fn timeout(proto: u8, original: u8, reply: u8) -> u32 {
    if proto == protocol::UDP {
        return if reply == 0 { timeout_sec::UDP_UNANSWERED } else { timeout_sec::UDP_ANSWERED };
    }
    if proto == protocol::SCTP {
        return if (original | reply) & (seen::FIN | seen::RST) != 0 {
            timeout_sec::SCTP_CLOSED
        } else if reply == 0 {
            timeout_sec::SCTP_OPENING
        } else {
            timeout_sec::SCTP_ESTABLISHED
        };
    }
    if proto != protocol::TCP {
        return timeout_sec::ECHO;
    }
    if (original | reply) & seen::RST != 0 {
        timeout_sec::TCP_RESET
    } else if original & reply & seen::FIN != 0 {
        timeout_sec::TCP_CLOSED
    } else if (original | reply) & seen::FIN != 0 {
        timeout_sec::TCP_HALF_CLOSED
    } else if reply == 0 {
        timeout_sec::TCP_OPENING
    } else {
        timeout_sec::TCP_ESTABLISHED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ipv4;

    fn place(host: u8, port: u16) -> Place<Ipv4> {
        Place::new(Ipv4::from_bytes([10, 0, 0, host]), Be16::new(port))
    }

    #[test]
    fn every_row_tells_all_parties() {
        let parties = Parties {
            client: place(1, 40_000),
            frontend: place(2, 80),
            backend: place(3, 8080),
            source: place(4, 50_000),
            proto: protocol::TCP,
            ..Parties::default()
        };
        for (key, role) in [
            (parties.original(), role::ORIGINAL),
            (parties.reply(), role::REPLY),
            (parties.original_source(), role::ORIGINAL_SOURCE),
            (parties.reply_target(), role::REPLY_TARGET),
        ] {
            assert_eq!(parties.key(role), key);
            let opening = Opening { role, service: 7, flags: 0, now: 1, replace: false };
            assert_eq!(Parties::of(&key, &parties.row(opening)), parties, "role {role}");
            let aliased = Parties { alias: Be16::new(0x9c40 ^ 0xee48), ..parties };
            let (key, row) = (aliased.key(role), aliased.row(opening));
            assert_eq!(Parties::of(&key, &row), aliased, "role {role}");
            let own = [key.src_port, key.dst_port, row.to_port].contains(&aliased.client.port);
            assert_eq!(own, role == role::ORIGINAL, "role {role}");
            let onward = match role {
                role::ORIGINAL => aliased.original_source(),
                role::REPLY_TARGET => aliased.reply(),
                _ => continue,
            };
            assert_eq!(key.onward(&row), onward, "role {role}");
        }
    }

    #[test]
    fn timeouts_follow_the_state() {
        let (packet, fin, rst) = (seen::PACKET, seen::FIN | seen::PACKET, seen::RST);
        let tcp = |original, reply| timeout(protocol::TCP, original, reply);
        assert_eq!(tcp(packet, 0), 60);
        assert_eq!(tcp(packet, packet), 86_400);
        assert_eq!(tcp(fin, packet), 3_600);
        assert_eq!(tcp(fin, fin), 120);
        assert_eq!(tcp(packet, rst), 10);
        let sctp = |original, reply| timeout(protocol::SCTP, original, reply);
        assert_eq!(sctp(packet, 0), 3);
        assert_eq!(sctp(packet, packet), 210);
        assert_eq!(sctp(fin, packet), 10);
        assert_eq!(sctp(fin, fin), 10);
        assert_eq!(sctp(packet, rst), 10);
        assert_eq!(timeout(protocol::UDP, packet, 0), 30);
        assert_eq!(timeout(protocol::UDP, packet, packet), 120);
        assert_eq!(timeout(protocol::ICMP, packet, packet), 30);
        assert_eq!(timeout(protocol::ICMPV6, packet, 0), 30);
    }
}
