//! Addresses of a lab, all computed: node N is 192.168.78.(10+N), its pods are 10.244.N.(10…).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const FABRIC4: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 1);
pub const FABRIC6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 1);
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 50);
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 0x50);
pub const CLUSTER_CIDR4: &str = "10.244.0.0/16";
pub const CLUSTER_CIDR6: &str = "fd00:10:244::/48";
pub const SERVICE_CIDR4: &str = "10.96.0.0/16";
pub const SERVICE_CIDR6: &str = "fd00:10:96::/112";

/// Which families a cluster's pods and nodes have; Services may have both in either.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Families {
    #[default]
    Ipv4,
    Both,
}

/// The primary addresses of node `number`, counted from 1.
pub fn node4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 78, 10 + number)
}

/// Written as people read it: node 1 is `fd00:78::11`.
pub fn node6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x78, 0, 0, 0, 0, 0, 0x10 + u16::from(number))
}

/// The node's end of the overlay: the first address of its pod network.
pub fn tunnel4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 0)
}

/// The same for IPv6.
pub fn tunnel6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, 0)
}

/// The pods' gateway on a node: its bridge.
pub fn gateway4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 1)
}

pub fn gateway6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(node), 0, 0, 0, 1)
}

/// Pod `slot` of a node, counted from 0.
pub fn pod4(node: u8, slot: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 10 + slot)
}

pub fn pod6(node: u8, slot: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(node), 0, 0, 0, 0x10 + u16::from(slot))
}

/// The pod networks of a node.
pub fn pod_cidrs(node: u8) -> [String; 2] {
    [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node:x}::/64")]
}

/// The addresses of one place, one per family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}
