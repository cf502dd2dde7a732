//! What the masquerade is told: which networks are pods', and which address each device has.

use std::net::IpAddr;

use agent_kit::ports::PortRange;
use datapath::{
    device::Device,
    policy::{Networks, Policy},
    tunnel::NetworkKey,
};
use ipnetwork::IpNetwork;

use crate::{
    interface::{Listing, Uplink},
    net_config::NetConfig,
    subnet::{Family, Subnet},
};

/// The row of `POLICIES`.
pub fn policy(config: &NetConfig, own: Subnet, ports: PortRange) -> Policy {
    let mut policy =
        Policy { nat_port_first: ports.first, nat_port_last: ports.last, ..Policy::default() };
    if let (Some(IpNetwork::V4(all)), Some(IpNetwork::V4(own))) =
        (config.network(Family::V4), own.of(Family::V4))
    {
        policy.v4 = Networks {
            all: NetworkKey::new(all.network(), all.prefix()),
            own: NetworkKey::new(own.network(), own.prefix()),
        };
    }
    if let (Some(IpNetwork::V6(all)), Some(IpNetwork::V6(own))) =
        (config.network(Family::V6), own.of(Family::V6))
    {
        policy.v6 = Networks {
            all: NetworkKey::new(all.network(), all.prefix()),
            own: NetworkKey::new(own.network(), own.prefix()),
        };
    }
    policy
}

/// The addresses of an uplink to masquerade with: its own, or the one that other nodes know.
pub fn of_uplink(listing: &Listing, index: u32, uplink: &Uplink) -> Device {
    device(|family| own(listing, index, family).or_else(|| uplink.public(family)))
}

/// Those of the tunnel's device: the first of this node's pod networks, which it gets.
pub fn of_tunnel(subnet: Subnet) -> Device {
    device(|family| subnet.of(family).map(|network| network.network()))
}

fn device(address: impl Fn(Family) -> Option<IpAddr>) -> Device {
    let mut device = Device::default();
    if let Some(IpAddr::V4(address)) = address(Family::V4) {
        device.masquerade4 = address.into();
    }
    if let Some(IpAddr::V6(address)) = address(Family::V6) {
        device.masquerade6 = address.into();
    }
    device
}

/// The first address of a device that others can answer to.
fn own(listing: &Listing, index: u32, family: Family) -> Option<IpAddr> {
    let mut held = listing.addresses.iter().filter(|held| {
        held.device == index
            && held.is_global
            && held.is_usable
            && !held.is_temporary
            && held.ip().is_ipv4() == (family == Family::V4)
    });
    held.next().map(crate::interface::Address::ip)
}
