//! rtnetlink: what flannel's data path reads and writes of this network namespace.

mod message;

use std::{io, net::IpAddr};

use agent_kit::{netlink::default_devices, ports::PortRange};
use futures::StreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage, address::AddressMessage, link::LinkMessage,
    neighbour::NeighbourMessage, route::RouteMessage,
};
use rtnetlink::{
    Handle,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
};

pub use message::DIRECT_PROTOCOL;

use crate::{
    device::Wish,
    entries::{Entries, Op},
    interface::Listing,
    mac::{self, Mac},
    subnet::Family,
};

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{hint}", hint = hint(source))]
pub struct KernelError {
    pub what: String,
    pub source: io::Error,
}

fn hint(err: &io::Error) -> &'static str {
    match err.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run as root, or with CAP_NET_ADMIN",
        Some(libc::EADDRINUSE) => {
            "; another VXLAN device has this port in another mode: remove it, or configure \
             another Port"
        }
        Some(libc::EOPNOTSUPP) => "; is the kernel's module vxlan loaded?",
        _ => "",
    }
}

/// A tunnel device as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, as the kernel tells them")]
pub struct VxlanLink {
    pub vni: u32,
    pub link: u32,
    pub local: Option<IpAddr>,
    pub port: u16,
    pub source_ports: Option<PortRange>,
    pub learning: bool,
    pub gbp: bool,
    pub has_group: bool,
    pub l2miss: bool,
    pub collect_metadata: bool,
}

/// The connection to the kernel. Needs a tokio runtime.
#[derive(Clone)]
pub struct Kernel {
    handle: Handle,
}

impl Kernel {
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Sends one message and collects what comes back.
    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(io::Error::other)?;
        let mut messages = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(err) if err.code.is_some() => return Err(err.to_io()),
                _ => {}
            }
        }
        Ok(messages)
    }

    async fn write(
        &self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), KernelError> {
        let answer = self.ask(message, NLM_F_ACK | flags).await;
        answer.map(drop).map_err(|source| KernelError { what: what(), source })
    }

    /// Writes a removal; what is gone already is no error.
    async fn remove(
        &self,
        what: impl FnOnce() -> String,
        message: RouteNetlinkMessage,
    ) -> Result<(), KernelError> {
        match self.write(what, message, 0).await {
            Err(err) if is_absent(&err.source) => Ok(()),
            result => result,
        }
    }

    async fn dump(
        &self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let failed = |source| KernelError { what: format!("list {what}"), source };
        self.ask(message, NLM_F_DUMP).await.map_err(failed)
    }

    /// Devices, addresses and default routes.
    pub async fn listing(&self) -> Result<Listing, KernelError> {
        let mut listing = Listing::default();
        let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
        for answer in self.dump("devices", links).await? {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                listing.interfaces.push(message::interface(&link));
            }
        }
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        for answer in self.dump("addresses", addresses).await? {
            if let RouteNetlinkMessage::NewAddress(address) = answer {
                listing.addresses.extend(message::address(&address));
            }
        }
        for family in Family::BOTH {
            for route in self.routes(family).await? {
                let devices = default_devices(&route);
                listing.default_routes.extend(devices.into_iter().map(|device| (family, device)));
            }
        }
        Ok(listing)
    }

    async fn routes(&self, family: Family) -> Result<Vec<RouteMessage>, KernelError> {
        let mut request = RouteMessage::default();
        request.header.address_family = message::inet(family);
        let answers = self.dump("routes", RouteNetlinkMessage::GetRoute(request)).await?;
        Ok(answers.into_iter().filter_map(route).collect())
    }

    async fn neighbours(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<NeighbourMessage>, KernelError> {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let answers = self.dump("neighbours", RouteNetlinkMessage::GetNeighbour(request)).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
                _ => None,
            })
            .collect())
    }

    /// What there is on these tunnel devices, and all routes that are or could be ours.
    pub async fn entries(
        &self,
        devices: &[u32],
        networks: &[IpNetwork],
    ) -> Result<Entries, KernelError> {
        let mut entries = Entries::default();
        for family in Family::BOTH {
            for neighbour in self.neighbours(message::inet(family)).await? {
                let found = message::neighbour(&neighbour);
                let found = found.filter(|((device, _), _)| devices.contains(device));
                entries.neighbours.extend(found);
            }
            for route in self.routes(family).await? {
                message::add_route(&mut entries, &route, devices, networks);
            }
        }
        if !devices.is_empty() {
            for entry in self.neighbours(AddressFamily::Bridge).await? {
                let found = message::fdb(&entry);
                if let Some((device, mac, to)) =
                    found.filter(|(device, ..)| devices.contains(device))
                {
                    entries.fdb.entry((device, mac)).or_default().insert(to);
                }
            }
        }
        Ok(entries)
    }

    /// Does one write, if it is one of netlink.
    pub async fn apply(&self, op: &Op) -> Result<(), KernelError> {
        const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
        let what = || op.to_string();
        match *op {
            Op::SetNeighbour { device, address, mac } => {
                let message = message::neighbour_of(device, address, Some(mac));
                self.write(what, RouteNetlinkMessage::NewNeighbour(message), SET).await
            }
            Op::RemoveNeighbour { device, address } => {
                let message = message::neighbour_of(device, address, None);
                self.remove(what, RouteNetlinkMessage::DelNeighbour(message)).await
            }
            Op::SetFdb { device, mac, to } => {
                let message = message::fdb_of(device, mac, to);
                self.write(what, RouteNetlinkMessage::NewNeighbour(message), SET).await
            }
            Op::RemoveFdb { device, mac, to } => {
                let message = message::fdb_of(device, mac, to);
                self.remove(what, RouteNetlinkMessage::DelNeighbour(message)).await
            }
            Op::SetRoute { network, hop } => {
                let message = message::route_of(network, &hop);
                self.write(what, RouteNetlinkMessage::NewRoute(message), SET).await
            }
            Op::RemoveRoute { network, hop } => {
                let message = message::route_of(network, &hop);
                self.remove(what, RouteNetlinkMessage::DelRoute(message)).await
            }
            Op::SetBlackhole { network } => {
                let message = message::blackhole_of(network);
                self.write(what, RouteNetlinkMessage::NewRoute(message), SET).await
            }
            Op::RemoveBlackhole { network } => {
                let message = message::blackhole_of(network);
                self.remove(what, RouteNetlinkMessage::DelRoute(message)).await
            }
            // Rows are written to tables.
            Op::SetVtep { .. }
            | Op::RemoveVtep { .. }
            | Op::SetSender { .. }
            | Op::RemoveSender { .. } => Ok(()),
        }
    }

    /// The device that packets to an address leave by, if no router is in between.
    pub async fn direct_device(&self, address: IpAddr) -> Option<u32> {
        message::direct_device(&self.route_to(address).await?)
    }

    /// The device that packets to an address leave by.
    pub async fn device_to(&self, address: IpAddr) -> Option<u32> {
        message::device(&self.route_to(address).await?)
    }

    /// The device that packets of `length` bytes from one address to another leave by as they are.
    pub async fn plain_device(&self, from: IpAddr, to: IpAddr, length: u32) -> Option<u32> {
        message::plain_device(&self.route(message::way(from, to)).await?, length)
    }

    /// The route that packets to an address take.
    async fn route_to(&self, address: IpAddr) -> Option<RouteMessage> {
        self.route(message::way_to(address)).await
    }

    async fn route(&self, request: RouteMessage) -> Option<RouteMessage> {
        let request = RouteNetlinkMessage::GetRoute(request);
        let answers = self.ask(request, 0).await.ok()?;
        answers.into_iter().find_map(route)
    }

    pub async fn create_vxlan(&self, wish: &Wish) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::NewLink(message::vxlan_of(wish));
        let what = || format!("create device {}", wish.name);
        self.write(what, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    pub async fn remove_link(&self, index: u32, name: &str) -> Result<(), KernelError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let message = RouteNetlinkMessage::DelLink(link);
        self.remove(|| format!("remove device {name}"), message).await
    }

    pub async fn set_mtu(&self, index: u32, name: &str, mtu: u32) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::SetLink(message::mtu_of(index, mtu));
        self.write(|| format!("set the MTU of {name} to {mtu}"), message, 0).await
    }

    pub async fn set_up(&self, index: u32, name: &str) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::SetLink(message::up(index));
        self.write(|| format!("set device {name} up"), message, 0).await
    }

    pub async fn add_address(
        &self,
        index: u32,
        name: &str,
        address: IpAddr,
    ) -> Result<(), KernelError> {
        let message = RouteNetlinkMessage::NewAddress(message::address_of(index, address, None));
        let what = || format!("give {name} the address {address}");
        self.write(what, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    pub async fn remove_address(
        &self,
        index: u32,
        name: &str,
        address: IpNetwork,
    ) -> Result<(), KernelError> {
        let message = message::address_of(index, address.ip(), Some(address.prefix()));
        let message = RouteNetlinkMessage::DelAddress(message);
        self.remove(|| format!("take {address} from {name}"), message).await
    }
}

fn route(answer: RouteNetlinkMessage) -> Option<RouteMessage> {
    match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    }
}

/// The kernel has several words for it.
fn is_absent(err: &io::Error) -> bool {
    let absent = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL];
    err.raw_os_error().is_some_and(|code| absent.contains(&code))
}

/// A MAC for a new device.
pub fn random_mac() -> io::Result<Mac> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(mac::local(bytes))
}
