//! What clients address: a table from (address, port, protocol) to the Service behind it, and
//! one of the addresses themselves.
//!
//! Both are hash tables whose rows are inserted and removed but never changed in place: what
//! changes often (a Service's backends) lives in [`crate::service`]. The kernel may give a
//! removed row's memory to the next row inserted while a program still reads it, so the writer
//! waits for the readers between a removal and the next insertion.

use crate::address::Be16;

/// Key of `FRONTENDS4` and `FRONTENDS6`: 8 and 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    pub addr: A,
    pub port: Be16,
    /// [`crate::address::protocol`].
    pub proto: u8,
    pub pad: u8,
}

impl<A> FrontendKey<A> {
    #[inline(always)]
    pub const fn new(addr: A, port: Be16, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }
}

/// Value of `FRONTENDS4` and `FRONTENDS6`: 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// Index into `SERVICES`.
    pub service: u32,
    /// [`kind`].
    pub kind: u8,
    pub pad: [u8; 3],
}

/// How a frontend came to be; decides which traffic policy applies to it.
pub mod kind {
    /// `spec.clusterIPs`: the internal traffic policy applies.
    pub const CLUSTER_IP: u8 = 1;
    /// `spec.ports[].nodePort` on one of the node's addresses: external traffic policy.
    pub const NODE_PORT: u8 = 2;
    /// `spec.externalIPs`: external traffic policy.
    pub const EXTERNAL_IP: u8 = 3;
    /// `status.loadBalancer.ingress[].ip`: external traffic policy, source ranges.
    pub const LOAD_BALANCER: u8 = 4;
}

/// Value of `ADDRESSES4` and `ADDRESSES6`, whose key is the bare address: 4 bytes. Every
/// packet's destination is looked up here first; no row means that it is none of ours. Before a
/// row is inserted, [`mark::of_use`] must be set in the byte of [`address_mark`] in `ADDRESSMARKS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressUse {
    /// Bits of [`address_use`].
    pub flags: u32,
}

/// The byte of `ADDRESSMARKS` that stands for an address. Bits are set and never cleared: one
/// that stands for nothing any more costs a look-up, one that is missing would cost the packet.
#[inline(always)]
#[must_use]
pub fn address_mark<A: crate::address::Address>(address: A) -> usize {
    crate::hash::mix(address.fold()) as usize & (crate::maps::MARKS_LEN - 1)
}

/// The byte of `PORTMARKS` that stands for a port: of frontends with addresses that have other ports
/// too. Set before the frontend's row is inserted, and never cleared.
#[inline(always)]
#[must_use]
pub fn port_mark(port: Be16) -> usize {
    port.raw() as usize
}

/// Bits of marks.
pub mod mark {
    use super::address_use;
    use crate::address::protocol;

    /// In `ADDRESSMARKS`: what goes to the address is for us to decide, whatever its port.
    pub const WHOLE: u8 = 1;
    /// In `ADDRESSMARKS`: what goes to its frontends, and the replies to flows that have it as
    /// their source.
    pub const PORTS: u8 = 2;

    /// In `ADDRESSMARKS`, beside one of the others: a load balancer's address, to which not all of
    /// the node's own packets may go.
    pub const LOAD_BALANCER: u8 = 4;

    /// The bits of `ADDRESSMARKS` for an address with these bits of [`address_use`].
    #[must_use]
    pub const fn of_use(flags: u32) -> u8 {
        let is_whole = flags & (address_use::CLUSTER_IP | address_use::ECHO) != 0;
        let whole = if is_whole { WHOLE } else { PORTS };
        let balancer = if flags & address_use::LOAD_BALANCER != 0 { LOAD_BALANCER } else { 0 };
        whole | balancer
    }

    /// The bit of `PORTMARKS` for a protocol that has ports; zero for another.
    #[inline(always)]
    #[must_use]
    pub const fn of_protocol(proto: u8) -> u8 {
        match proto {
            protocol::TCP => 1,
            protocol::UDP => 2,
            protocol::SCTP => 4,
            _ => 0,
        }
    }
}

/// What an address is used for, as bits.
pub mod address_use {
    /// A cluster IP: a port it does not have is refused.
    pub const CLUSTER_IP: u32 = 1;
    /// Has frontends, and other ports that are none of ours (node addresses, external IPs).
    pub const FRONTEND: u32 = 2;
    /// Masqueraded connections have it as their source, so that replies come to it.
    pub const MASQUERADE: u32 = 4;
    /// Of a load balancer, beside `FRONTEND`: its Services may have source ranges.
    pub const LOAD_BALANCER: u32 = 8;
    /// Answers pings, beside one of the others.
    pub const ECHO: u32 = 16;
}
