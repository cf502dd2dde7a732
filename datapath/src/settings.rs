//! What the agent tells the programs at run time.

/// The one row of the array `SETTINGS`: 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// `SO_NETNS_COOKIE` of the node's own network namespace.
    pub host_netns_cookie: u64,
    /// First and last source port for masqueraded connections, in this machine's byte order.
    pub nat_port_first: u16,
    pub nat_port_last: u16,
    /// One of [`socket_lb`].
    pub socket_lb: u8,
    /// 1 while another service proxy's rules are on the node: TCP connections that it began
    /// pass untouched, instead of being answered with RST.
    pub foreign_proxy: u8,
    /// 1 if the packet path sees what pods send.
    pub sees_pods: u8,
    /// 1 if the agent has connections of TCP to endpoints that are gone reset: those of pods are left
    /// to the packet path then, whose rows it can mark.
    pub resets_tcp: u8,
    /// Flags for `bpf_l4_csum_replace` when an IPv6 address changes: `BPF_F_PSEUDO_HDR`, and
    /// `BPF_F_IPV6` where the kernel knows it (6.16), without which it spoils the checksum of
    /// packets that a network card summed up (CHECKSUM_COMPLETE).
    pub ipv6_checksum_flags: u32,
    /// [`crate::hash::address`] of the node's, as which its own processes count where a backend is
    /// chosen by the client's address.
    pub node_hash: u32,
    /// Nanoseconds between new flows of one source outside, as [`crate::source_rate`] has it; zero if
    /// they may be as many as they like.
    pub new_flow_interval: u32,
    /// 1 if what is for a backend on a node that answers clients itself ([`crate::tunnel::Vtep`]) goes
    /// there as it is, and if this node does so (direct server return).
    pub dsr: u16,
    /// 1 if packets of known connections pass bridge and IP stack by ([`crate::forward`]).
    pub fast_path: u16,
}

/// Whose `connect` and `sendmsg` calls the socket path translates.
pub mod socket_lb {
    pub const OFF: u8 = 0;
    /// Only processes in the node's own network namespace.
    pub const HOST: u8 = 1;
    pub const ON: u8 = 2;
    /// All but the pods of `BYPASSCGROUPS`.
    pub const ON_BUT: u8 = 3;
}
