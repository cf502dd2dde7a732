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
//! Each row holds enough to write the others again, so none that is lost is missed. Rows live
//! in the LRU tables `PENDING4`/`PENDING6` until the flow is answered, then in the hash tables
//! `FLOWS4`/`FLOWS6`, which evict nothing.

use crate::address::Be16;

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
    /// [`Clock`](crate::flow::TICK_NS) of the last packet.
    pub last: u32,
    /// Clock when the flow began.
    pub since: u32,
    pub pad: u32,
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
}

/// What packets of a row's direction have shown, as bits. `ORIGINAL` and `REPLY` tell a flow's
/// state together.
pub mod seen {
    /// Any packet at all.
    pub const PACKET: u8 = 1;
    /// A TCP segment with FIN.
    pub const FIN: u8 = 2;
    /// A TCP segment with RST.
    pub const RST: u8 = 4;
}

/// Bits of `Flow::flags`.
pub mod flow_flags {
    /// The flow must be masqueraded; set in `ORIGINAL` and `ORIGINAL_SOURCE`.
    pub const MASQUERADE: u16 = 1;
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
    /// `nf_conntrack_udp_timeout`.
    pub const UDP_UNANSWERED: u32 = 30;
    /// `nf_conntrack_udp_timeout_stream`.
    pub const UDP_ANSWERED: u32 = 120;
}
