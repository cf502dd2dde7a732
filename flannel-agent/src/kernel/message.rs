//! Between netlink's messages and ours, without a socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_kit::{netlink::own_address, ports::PortRange};
use datapath::tunnel::Traffic;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteProtocol, RouteScope, RouteType,
    },
};

use super::VxlanLink;
use crate::{
    device::{DeviceKind, Wish},
    entries::{Entries, Hop},
    interface::{Address, Interface},
    mac::{self, Mac},
    subnet::Family,
};

/// `rtm_protocol` of routes over the uplink, by which they are known as ours. Not in use by
/// others (`/etc/iproute2/rt_protos`).
pub const DIRECT_PROTOCOL: u8 = 77;

/// What the kernel gives to IPv6 routes that name no metric.
const METRIC6: u32 = 1024;

pub(super) fn inet(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

pub(super) fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        index: message.header.index,
        is_up: flags.contains(LinkFlags::Up),
        is_loopback: flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    let (mut is_veth, mut is_elsewhere) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) => interface.mac = bytes[..].try_into().ok().map(Mac),
            LinkAttribute::Stats64(stats) => {
                interface.traffic = Traffic {
                    received_packets: stats.rx_packets,
                    received_bytes: stats.rx_bytes,
                    sent_packets: stats.tx_packets,
                    sent_bytes: stats.tx_bytes,
                };
            }
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                interface.vxlan = vxlan(infos);
                is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            _ => {}
        }
    }
    interface.leads_elsewhere = is_veth && is_elsewhere;
    interface
}

fn vxlan(infos: &[LinkInfo]) -> Option<VxlanLink> {
    let attributes = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(attributes)) => Some(attributes),
        _ => None,
    })?;
    let mut link = VxlanLink::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(vni) => link.vni = *vni,
            InfoVxlan::Link(index) => link.link = *index,
            InfoVxlan::Local(ip) => link.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => link.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Port(port) => link.port = *port,
            InfoVxlan::PortRange((0, 0)) => {}
            &InfoVxlan::PortRange((first, last)) => {
                link.source_ports = Some(PortRange { first, last });
            }
            InfoVxlan::Learning(on) => link.learning = *on,
            InfoVxlan::Gbp => link.gbp = true,
            InfoVxlan::Group(ip) => link.has_group = !ip.is_unspecified(),
            InfoVxlan::Group6(ip) => link.has_group = !ip.is_unspecified(),
            InfoVxlan::L2Miss(on) => link.l2miss = *on,
            InfoVxlan::CollectMetadata(on) => link.collect_metadata = *on,
            _ => {}
        }
    }
    Some(link)
}

/// The attributes that flanneld sends, in its words: what it leaves out (a port of 0, the
/// checksum of IPv4 underlays) is left to the kernel here too.
pub(super) fn vxlan_of(wish: &Wish) -> LinkMessage {
    let mut data = match wish.kind {
        DeviceKind::Classic { vni, link, local, learning } => vec![
            InfoVxlan::Id(vni),
            InfoVxlan::Link(link),
            match local {
                IpAddr::V4(ip) => InfoVxlan::Local(ip),
                IpAddr::V6(ip) => InfoVxlan::Local6(ip),
            },
            InfoVxlan::Ttl(0),
            InfoVxlan::Tos(0),
            InfoVxlan::Learning(learning),
            InfoVxlan::Proxy(false),
            InfoVxlan::Rsc(false),
            InfoVxlan::L2Miss(false),
            InfoVxlan::L3Miss(false),
            InfoVxlan::UDPZeroCsumTX(false),
            InfoVxlan::UDPZeroCsumRX(false),
        ],
        // It takes frames of every VNI and asks a program for the tunnel of each that it sends.
        DeviceKind::Programs => {
            vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Learning(false)]
        }
    };
    if wish.gbp {
        data.push(InfoVxlan::Gbp);
    }
    if let Some(PortRange { first, last }) = wish.source_ports {
        data.push(InfoVxlan::PortRange((first, last)));
    }
    if wish.port != 0 {
        data.push(InfoVxlan::Port(wish.port));
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(wish.name.clone()),
        LinkAttribute::Mtu(wish.mtu),
        // systemd rewrites the address of a device that is created without one.
        LinkAttribute::Address(wish.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]),
    ];
    message
}

pub(super) fn mtu_of(index: u32, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message
}

pub(super) fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let address = own_address(message)?;
    let flags = message.header.flags;
    Some(Address {
        device: message.header.index,
        network: IpNetwork::new(address, message.header.prefix_len).ok()?,
        is_global: message.header.scope == AddressScope::Universe,
        is_permanent: flags.contains(AddressHeaderFlags::Permanent),
        // For IPv4 the same bit means a further address of one network.
        is_temporary: address.is_ipv6() && flags.contains(AddressHeaderFlags::Secondary),
        is_usable: !flags
            .intersects(AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed),
    })
}

pub(super) fn address_of(index: u32, address: IpAddr, prefix: Option<u8>) -> AddressMessage {
    let family = Family::of(address);
    let mut message = AddressMessage::default();
    message.header.family = inet(family);
    message.header.index = index;
    message.header.prefix_len = prefix.unwrap_or(family.bits());
    message.header.scope = AddressScope::Universe;
    if family == Family::V6 {
        // Nobody else is on the device; until detection ended the address could not be used.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Mac)> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let address = destination(message)?;
    Some(((message.header.ifindex, address), hardware(message)?))
}

pub(super) fn fdb(message: &NeighbourMessage) -> Option<(u32, Mac, IpAddr)> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mac = hardware(message).filter(|&mac| mac::is_usable(mac))?;
    Some((message.header.ifindex, mac, destination(message)?))
}

fn hardware(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes[..].try_into().ok().map(Mac),
        _ => None,
    })
}

/// Of forwarding entries the kernel does not say which family the address is of.
fn destination(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            let v4 = <[u8; 4]>::try_from(&bytes[..]).map(|bytes| Ipv4Addr::from(bytes).into());
            v4.or_else(|_| {
                <[u8; 16]>::try_from(&bytes[..]).map(|bytes| Ipv6Addr::from(bytes).into())
            })
            .ok()
        }
        _ => None,
    })
}

pub(super) fn neighbour_of(device: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = inet(Family::of(address));
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(address)));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

pub(super) fn fdb_of(device: u32, mac: Mac, to: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    // The device's own table and not that of a bridge it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(neighbour_address(to)),
    ];
    message
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

/// Takes note of a route of the main table that is ours, or stands where ours may have to be.
pub(super) fn add_route(
    entries: &mut Entries,
    message: &RouteMessage,
    devices: &[u32],
    networks: &[IpNetwork],
) {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.protocol == RouteProtocol::Kernel {
        return;
    }
    let Some(network) = route_network(message) else { return };
    match header.kind {
        RouteType::Unicast => {}
        RouteType::BlackHole if header.protocol == RouteProtocol::Other(DIRECT_PROTOCOL) => {
            entries.blackholes.insert(network);
            return;
        }
        _ => return,
    }
    let is_inside = networks
        .iter()
        .any(|whole| whole.contains(network.network()) && network.prefix() >= whole.prefix());
    let mut hop = Hop {
        device: 0,
        via: None,
        is_onlink: header.flags.contains(RouteFlags::Onlink),
        is_ours: false,
    };
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.device = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => hop.via = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => hop.via = Some(IpAddr::V6(*ip)),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let usual = if network.is_ipv6() { METRIC6 } else { 0 };
    hop.is_ours = header.protocol == RouteProtocol::Other(DIRECT_PROTOCOL)
        || (is_inside && devices.contains(&hop.device));
    if metric == usual && (is_inside || hop.is_ours) {
        entries.routes.insert(network, hop);
    }
}

fn route_network(message: &RouteMessage) -> Option<IpNetwork> {
    let prefix = message.header.destination_prefix_length;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    IpNetwork::new(address, prefix).ok()
}

/// A route of ours in the main table, with nothing of where it leads.
fn route_to(network: IpNetwork, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = inet(Family::of(network.network()));
    header.destination_prefix_length = network.prefix();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.scope = RouteScope::Universe;
    header.kind = kind;
    header.protocol = RouteProtocol::Other(DIRECT_PROTOCOL);
    message.attributes.push(RouteAttribute::Destination(network.network().into()));
    message
}

pub(super) fn route_of(network: IpNetwork, hop: &Hop) -> RouteMessage {
    let mut message = route_to(network, RouteType::Unicast);
    if hop.is_onlink {
        // As flanneld's, so that it finds its own when it comes back.
        message.header.protocol = RouteProtocol::Boot;
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Oif(hop.device));
    message.attributes.extend(hop.via.map(|via| RouteAttribute::Gateway(via.into())));
    message
}

/// Counts only while no other route leads there, such as that of the pods' bridge.
const BLACKHOLE_METRIC: u32 = 4096;

pub(super) fn blackhole_of(network: IpNetwork) -> RouteMessage {
    let mut message = route_to(network, RouteType::BlackHole);
    message.attributes.push(RouteAttribute::Priority(BLACKHOLE_METRIC));
    message
}

/// The question that `ip route get` asks.
pub(super) fn way_to(address: IpAddr) -> RouteMessage {
    let family = Family::of(address);
    let mut message = RouteMessage::default();
    message.header.address_family = inet(family);
    message.header.destination_prefix_length = family.bits();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}

/// The same for what has a source.
pub(super) fn way(from: IpAddr, to: IpAddr) -> RouteMessage {
    let mut message = way_to(to);
    message.header.source_prefix_length = Family::of(from).bits();
    message.attributes.push(RouteAttribute::Source(from.into()));
    message
}

/// Of a route that neither puts packets into something nor divides those of `length` bytes.
pub(super) fn plain_device(message: &RouteMessage, length: u32) -> Option<u32> {
    let is_plain = message.attributes.iter().all(|attribute| match attribute {
        RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => false,
        RouteAttribute::Metrics(metrics) => metrics.iter().all(|metric| match metric {
            RouteMetric::Mtu(mtu) => *mtu >= length,
            _ => true,
        }),
        _ => true,
    });
    device(message).filter(|_| is_plain && message.header.kind == RouteType::Unicast)
}

pub(super) fn direct_device(message: &RouteMessage) -> Option<u32> {
    let is_routed = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
    let is_unicast = message.header.kind == RouteType::Unicast;
    device(message).filter(|_| is_unicast && !is_routed)
}

pub(super) fn device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_way_neither_wraps_nor_divides() {
        let route = |kind, more: Vec<RouteAttribute>| {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = vec![RouteAttribute::Oif(2)];
            message.attributes.extend(more);
            plain_device(&message, 1500)
        };
        let mtu = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
        let router = RouteAttribute::Gateway(Ipv4Addr::new(192, 168, 78, 1).into());
        assert_eq!(route(RouteType::Unicast, vec![]), Some(2));
        assert_eq!(route(RouteType::Unicast, vec![router, mtu(1500)]), Some(2));
        assert_eq!(route(RouteType::Unicast, vec![mtu(1499)]), None);
        assert_eq!(route(RouteType::Unicast, vec![RouteAttribute::Encap(vec![])]), None);
        assert_eq!(route(RouteType::Local, vec![]), None);
    }

    #[test]
    fn a_way_is_asked_for_with_its_source() {
        let ip = |nth| IpAddr::from([192, 168, 78, nth]);
        let message = way(ip(11), ip(12));
        assert_eq!(message.header.source_prefix_length, 32);
        assert!(message.attributes.contains(&RouteAttribute::Source(ip(11).into())));
        assert!(message.attributes.contains(&RouteAttribute::Destination(ip(12).into())));
    }
}
