//! What the kernel's messages about addresses and routes say, as far as both agents read it.

use std::net::IpAddr;

use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

/// The device's own address.
pub fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link `Address` is the other end's, and `Local` ours.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let attributes = &message.attributes;
    attributes.iter().find_map(own).or_else(|| attributes.iter().find_map(any))
}

/// Devices of a default route in the main table.
pub fn default_devices(message: &RouteMessage) -> Vec<u32> {
    let header = &message.header;
    if header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return Vec::new();
    }
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}
