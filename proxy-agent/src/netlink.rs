//! Devices, addresses and default routes of this network namespace, and word of their changes.

use std::{collections::BTreeMap, io, net::IpAddr};

use agent_kit::{
    netlink::{default_devices, own_address},
    notice::Notices,
};
use datapath::address::Mac;
use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
    route::RouteMessage,
    tc::{TcAttribute, TcMessage},
};
use rtnetlink::Handle;

use crate::desired::IpFamily;

/// A device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, as the kernel tells them")]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `bond`, `vlan` …; empty for a card.
    pub kind: String,
    pub mtu: u32,
    /// The XDP program that runs there, whoever runs it.
    pub xdp_program: Option<u32>,
    /// Carries Ethernet frames, which is what the programs parse.
    pub is_ethernet: bool,
    pub is_loopback: bool,
    /// One end of a pair.
    pub is_veth: bool,
    /// The other end is in another network namespace.
    pub peer_is_elsewhere: bool,
    /// Leads to other nodes' pods (VXLAN).
    pub is_tunnel: bool,
    pub is_bridge: bool,
    /// The bridge it is a port of, or the bond it is a member of.
    pub bridge: Option<u32>,
    pub mac: Mac,
    /// What delays or limits packets there (tc-bandwidth and the like).
    pub shaper: Option<String>,
}

/// An address of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceAddress {
    pub ifindex: u32,
    pub address: IpAddr,
    /// Valid beyond the link.
    pub is_global: bool,
}

/// Everything, as it was at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Network {
    pub links: Vec<Link>,
    /// In the kernel's order: the first of a device is its primary one.
    pub addresses: Vec<DeviceAddress>,
    pub default_routes: Vec<(IpFamily, u32)>,
}

/// Why devices are not known.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: {0}")]
    Open(#[from] io::Error),
    #[error("cannot list {what}: {source}")]
    List { what: &'static str, source: rtnetlink::Error },
}

/// The connection to the kernel. Needs a tokio runtime.
pub struct Netlink {
    handle: Handle,
    notices: Notices,
}

impl Netlink {
    pub fn open() -> Result<Self, NetlinkError> {
        // Requests have a socket of their own, so that notifications cannot crowd out answers.
        let notices = Notices::open()?;
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, notices })
    }

    /// Returns when something may have changed; `None` once the kernel says no more. May be
    /// dropped half way: no word is lost by that.
    pub async fn changed(&mut self) -> Option<()> {
        self.notices.changed().await
    }

    pub async fn list(&self) -> Result<Network, NetlinkError> {
        list(&self.handle).await
    }
}

/// Everything at once, for a command; blocks.
pub fn look() -> Result<Network, NetlinkError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        list(&handle).await
    })
}

async fn list(handle: &Handle) -> Result<Network, NetlinkError> {
    let failed = |what| move |source| NetlinkError::List { what, source };
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(failed("devices"))?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    let mut default_routes = Vec::new();
    for (family, af) in [(IpFamily::V4, AddressFamily::Inet), (IpFamily::V6, AddressFamily::Inet6)]
    {
        let mut request = RouteMessage::default();
        request.header.address_family = af;
        let mut routes = handle.route().get(request).execute();
        while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
            default_routes
                .extend(default_devices(&route).into_iter().map(|device| (family, device)));
        }
    }
    let mut shapers = BTreeMap::new();
    let mut disciplines = handle.qdisc().get().execute();
    while let Some(found) = disciplines.try_next().await.map_err(failed("queueing disciplines"))? {
        shapers.extend(shaper(&found));
    }
    let link = |message: &LinkMessage| {
        let link = link(message);
        Link { shaper: shapers.get(&link.index).cloned(), ..link }
    };
    Ok(Network {
        links: links.iter().map(link).collect(),
        addresses: addresses.iter().filter_map(address).collect(),
        default_routes,
    })
}

/// A queueing discipline that may delay or limit packets, by its device: all but those that only send, and the
/// place of programs, `clsact`. With `ingress`, what enters is handed to another device that has one.
fn shaper(message: &TcMessage) -> Option<(u32, String)> {
    const PLAIN: [&str; 6] = ["noqueue", "clsact", "pfifo_fast", "fq_codel", "mq", "fq"];
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind),
        _ => None,
    })?;
    let device = u32::try_from(message.header.index).ok()?;
    (!PLAIN.contains(&kind.as_str())).then(|| (device, kind.clone()))
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => {
                link.mac = address.as_slice().try_into().map_or(Mac::default(), Mac);
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(told) => {
                link.xdp_program = told.iter().find_map(|told| match told {
                    LinkXdp::ProgId(id) => Some(*id),
                    _ => None,
                });
            }
            LinkAttribute::Controller(index) => link.bridge = Some(*index),
            LinkAttribute::LinkNetNsId(_) => link.peer_is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = |info: &LinkInfo| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                };
                link.kind = infos.iter().find_map(kind).unwrap_or_default();
                link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                link.is_tunnel = infos.contains(&LinkInfo::Kind(InfoKind::Vxlan));
            }
            _ => {}
        }
    }
    link
}

fn address(message: &AddressMessage) -> Option<DeviceAddress> {
    let unusable = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Dadfailed;
    if message.header.flags.intersects(unusable) {
        return None;
    }
    let address = own_address(message)?;
    Some(DeviceAddress {
        ifindex: message.header.index,
        address,
        is_global: message.header.scope == AddressScope::Universe,
    })
}
