//! The tunnel device: kept where it fits, with its hardware address kept in any case. The classic
//! one of each family is as flanneld makes it; where programs choose the tunnel, one serves both.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path};

use agent_kit::ports::PortRange;
use ipnetwork::IpNetwork;
use tracing::{info, warn};

use crate::{
    config::Datapath,
    interface::{Interface, Listing, Uplink},
    kernel::{Kernel, KernelError, VxlanLink},
    mac::{self, Mac},
    net_config::{Backend, NetConfig, Vxlan},
    peers::Tunnel,
    subnet::Family,
};

/// The kernel's own choice of a port, which is not the one that was assigned later (4789).
const KERNEL_PORT: u16 = 8472;

/// A device as it shall be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    pub name: String,
    pub kind: DeviceKind,
    pub port: u16,
    /// Without, the kernel takes those that it gives to sockets.
    pub source_ports: Option<PortRange>,
    pub gbp: bool,
    pub mtu: u32,
    pub mac: Mac,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// One VNI, one family of underlay; tunnels by forwarding entries.
    Classic { vni: u32, link: u32, local: IpAddr, learning: bool },
    /// Tunnels by programs (`external`, collect metadata).
    Programs,
}

/// The port of the tunnels.
pub fn port(vxlan: &Vxlan) -> u16 {
    if vxlan.port == 0 { KERNEL_PORT } else { vxlan.port }
}

/// Bytes that a packet grows by: outer Ethernet header, IP, UDP, VXLAN.
pub fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

pub fn name(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// Whether a name is that of a tunnel device, of whatever VNI.
pub fn is_name(name: &str) -> bool {
    let vni = name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel-v6."));
    vni.is_some_and(|vni| !vni.is_empty() && vni.bytes().all(|byte| byte.is_ascii_digit()))
}

impl Wish {
    /// The device of both families whose tunnels programs choose.
    pub fn of_programs(plan: &Plan<'_>, mac: Mac) -> Self {
        Self {
            name: name(Family::V4, plan.vxlan.vni),
            kind: DeviceKind::Programs,
            port: plan.vxlan.port,
            source_ports: plan.source_ports,
            gbp: plan.vxlan.gbp,
            mtu: pod_mtu(plan.config, plan.uplink),
            mac,
        }
    }

    /// The classic device of a family.
    pub fn new(family: Family, plan: &Plan<'_>, mac: Mac) -> Option<Self> {
        let Plan { vxlan, uplink, source_ports, .. } = *plan;
        Some(Self {
            name: name(family, vxlan.vni),
            kind: DeviceKind::Classic {
                vni: vxlan.vni,
                link: uplink.index,
                local: uplink.public(family)?,
                learning: vxlan.learning,
            },
            port: vxlan.port,
            source_ports,
            gbp: vxlan.gbp,
            mtu: mtu_below(vxlan, uplink).saturating_sub(overhead(family)),
            mac,
        })
    }

    /// Why a device that is there cannot serve; what is not compared can be set.
    pub fn mismatch(&self, found: &VxlanLink) -> Option<String> {
        let port = if self.port == 0 { KERNEL_PORT } else { self.port };
        let differs = |what: &str, is: &dyn ToString, wanted: &dyn ToString| {
            Some(format!("{what} is {} and not {}", is.to_string(), wanted.to_string()))
        };
        if found.port != port {
            return differs("its port", &found.port, &port);
        }
        if found.source_ports != self.source_ports {
            let told = |ports: Option<PortRange>| {
                ports.map_or("the kernel's choice".to_owned(), |ports| ports.to_string())
            };
            return differs(
                "its source ports",
                &told(found.source_ports),
                &told(self.source_ports),
            );
        }
        if found.gbp != self.gbp {
            return differs("GBP", &found.gbp, &self.gbp);
        }
        let DeviceKind::Classic { vni, link, local, learning } = self.kind else {
            return (!found.collect_metadata)
                .then(|| "it does not ask programs for tunnels".into());
        };
        if found.collect_metadata {
            Some("it asks programs for tunnels".into())
        } else if found.vni != vni {
            differs("its VNI", &found.vni, &vni)
        } else if found.link != link {
            differs("the device below", &found.link, &link)
        } else if found.local != Some(local) {
            let is = found.local.map_or("none".to_owned(), |local| local.to_string());
            differs("its local address", &is, &local)
        } else if found.learning != learning {
            differs("Learning", &found.learning, &learning)
        } else if found.has_group || found.l2miss {
            Some("it has a group or asks for addresses".into())
        } else {
            None
        }
    }
}

/// Which devices there shall be.
pub struct Plan<'a> {
    pub config: &'a NetConfig,
    pub vxlan: &'a Vxlan,
    pub uplink: &'a Uplink,
    pub datapath: Datapath,
    pub source_ports: Option<PortRange>,
    /// What other nodes know each family's device by.
    pub macs: &'a BTreeMap<Family, Mac>,
}

/// What making a device as it shall be took; to be told, and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Provided {
    tunnel: Tunnel,
    repairs: u32,
}

/// The MAC of a device that is there, to be kept.
pub fn existing_mac(listing: &Listing, name: &str) -> Option<Mac> {
    let found = listing.interface(name).filter(|found| found.vxlan.is_some())?;
    found.mac.filter(|&mac| mac::is_usable(mac))
}

/// Makes or repairs the device; `is_first` if that is no repair but the begin. The listing is
/// renewed where something was done.
async fn provide(
    kernel: &Kernel,
    listing: &mut Listing,
    wish: &Wish,
    is_first: bool,
) -> Result<Provided, KernelError> {
    let found = listing.interface(&wish.name);
    let reason = match found {
        None => Some("it is not there".to_owned()),
        Some(found) => match &found.vxlan {
            None => Some("it is no VXLAN device".to_owned()),
            Some(vxlan) => wish.mismatch(vxlan),
        },
    };
    let Some(reason) = reason else {
        let found = found.expect("a device without reason to replace it is there");
        let tunnel = Tunnel { device: found.index, mac: found.mac.unwrap_or(wish.mac) };
        let repairs = adjust(kernel, found, wish).await?;
        if repairs > 0 {
            *listing = kernel.listing().await?;
        }
        return Ok(Provided { tunnel, repairs });
    };
    if let Some(found) = found {
        warn!(
            device = wish.name,
            reason, "replacing the tunnel device; its hardware address is kept"
        );
        kernel.remove_link(found.index, &found.name).await?;
    } else if is_first {
        info!(device = wish.name, mac = %wish.mac, mtu = wish.mtu, "creating the tunnel device");
    } else {
        warn!(device = wish.name, "the tunnel device is gone; creating it again");
    }
    kernel.create_vxlan(wish).await?;
    *listing = kernel.listing().await?;
    let created = listing.interface(&wish.name).ok_or_else(|| KernelError {
        what: format!("find device {}", wish.name),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let mac = created.mac.unwrap_or(wish.mac);
    let tunnel = Tunnel { device: created.index, mac };
    Ok(Provided { tunnel, repairs: u32::from(!is_first) })
}

/// Makes or repairs the devices of all families, which are to be known by these addresses. Gives
/// them with the number of repairs.
pub async fn provide_all(
    kernel: &Kernel,
    listing: &mut Listing,
    plan: &Plan<'_>,
    is_first: bool,
) -> Result<(BTreeMap<Family, Tunnel>, u32), KernelError> {
    let (mut tunnels, mut repairs) = (BTreeMap::new(), 0);
    match plan.datapath {
        Datapath::Kernel => {
            for (&family, &mac) in plan.macs {
                let Some(wish) = Wish::new(family, plan, mac) else { continue };
                let provided = provide(kernel, listing, &wish, is_first).await?;
                repairs += provided.repairs;
                tunnels.insert(family, provided.tunnel);
            }
        }
        Datapath::Ebpf => {
            // The classic device of IPv6 would keep the port.
            let classic = listing.interface(&name(Family::V6, plan.vxlan.vni));
            if let Some(found) = classic.filter(|found| found.vxlan.is_some()) {
                info!(device = found.name, "removing: one device serves both families from now on");
                kernel.remove_link(found.index, &found.name).await?;
                *listing = kernel.listing().await?;
            }
            let Some((&first, &mac)) = plan.macs.first_key_value() else {
                return Ok((tunnels, repairs));
            };
            let wish = Wish::of_programs(plan, mac);
            let provided = provide(kernel, listing, &wish, is_first).await?;
            repairs += provided.repairs;
            for (&family, &mac) in plan.macs {
                tunnels.insert(family, Tunnel { mac, ..provided.tunnel });
            }
            tunnels.insert(first, provided.tunnel);
        }
    }
    Ok((tunnels, repairs))
}

async fn adjust(kernel: &Kernel, found: &Interface, wish: &Wish) -> Result<u32, KernelError> {
    if found.mtu == wish.mtu {
        return Ok(0);
    }
    info!(device = wish.name, from = found.mtu, to = wish.mtu, "setting the MTU");
    kernel.set_mtu(found.index, &found.name, wish.mtu).await?;
    Ok(1)
}

/// Gives the device the subnet's first address, takes others of the pod network away, and sets
/// it up. The address is what the node's own packets to pods elsewhere carry as their source.
pub async fn address(
    kernel: &Kernel,
    listing: &Listing,
    device: u32,
    own: IpNetwork,
    pods: IpNetwork,
) -> Result<u32, KernelError> {
    let Some(found) = listing.at(device) else { return Ok(0) };
    let name = &found.name;
    let mut repairs = 0;
    let wanted = own.network();
    let bits = Family::of(wanted).bits();
    settle(name, Family::of(wanted));
    let addresses: Vec<IpNetwork> = listing
        .addresses
        .iter()
        .filter(|address| address.device == device)
        .map(|address| address.network)
        .collect();
    for &other in &addresses {
        if pods.contains(other.ip()) && (other.ip() != wanted || other.prefix() != bits) {
            kernel.remove_address(device, name, other).await?;
            repairs += 1;
        }
    }
    if !addresses.iter().any(|address| address.ip() == wanted && address.prefix() == bits) {
        kernel.add_address(device, name, wanted).await?;
        repairs += 1;
    }
    if !found.is_up {
        kernel.set_up(device, name).await?;
        repairs += 1;
    }
    Ok(repairs)
}

/// Nobody on a tunnel device may announce routers; and a device for IPv6 needs it switched on.
/// Where /proc/sys is read-only or IPv6 is not built in, there is nothing to announce to.
fn settle(name: &str, family: Family) {
    let directory = Path::new("/proc/sys/net/ipv6/conf").join(name);
    let write = |entry: &str, value: &str| {
        let path = directory.join(entry);
        if fs::read_to_string(&path).is_ok_and(|is| is.trim() != value) {
            let _ = fs::write(path, value);
        }
    };
    write("accept_ra", "0");
    if family == Family::V6 {
        write("disable_ipv6", "0");
    }
}

/// What a packet with its overhead must fit into: as configured, else as the uplink has it.
fn mtu_below(vxlan: &Vxlan, uplink: &Uplink) -> u32 {
    if vxlan.mtu > 0 { vxlan.mtu } else { uplink.mtu }
}

/// The MTU that pods are told: what fits into the tunnels of all families that are on.
pub fn pod_mtu(config: &NetConfig, uplink: &Uplink) -> u32 {
    match &config.backend {
        Backend::HostGw => uplink.mtu,
        Backend::Vxlan(vxlan) => {
            let overhead = config.families().map(overhead).max().unwrap_or(0);
            mtu_below(vxlan, uplink).saturating_sub(overhead)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name(Family::V6, 7), "flannel-v6.7");
        assert!(is_name("flannel.1") && is_name("flannel-v6.4096"));
        assert!(!is_name("flannel.") && !is_name("flannel.x") && !is_name("flannel-wg"));
    }

    #[test]
    fn a_device_that_fits_is_kept() {
        let uplink = Uplink {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
            public_ip: "192.168.78.11".parse().ok(),
            public_ipv6: "fd00:78::11".parse().ok(),
        };
        let network = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let (config, macs) = (NetConfig::parse(network).unwrap(), BTreeMap::new());
        let plan = Plan {
            config: &config,
            vxlan: &Vxlan::default(),
            uplink: &uplink,
            datapath: Datapath::Kernel,
            source_ports: None,
            macs: &macs,
        };
        let wish = |family| Wish::new(family, &plan, Mac([2, 0, 0, 0, 0, 1])).unwrap();
        let found = VxlanLink {
            vni: 1,
            link: 2,
            local: "192.168.78.11".parse().ok(),
            port: 8472,
            ..VxlanLink::default()
        };
        assert_eq!((wish(Family::V4).mtu, wish(Family::V6).mtu), (1450, 1430));
        assert_eq!(wish(Family::V4).mismatch(&found), None);
        for other in [
            VxlanLink { vni: 2, ..found },
            VxlanLink { link: 3, ..found },
            VxlanLink { local: None, ..found },
            VxlanLink { port: 4789, ..found },
            VxlanLink { source_ports: Some(PortRange { first: 5000, last: 5999 }), ..found },
            VxlanLink { gbp: true, ..found },
            VxlanLink { learning: true, ..found },
            VxlanLink { has_group: true, ..found },
            VxlanLink { l2miss: true, ..found },
            VxlanLink { collect_metadata: true, ..found },
        ] {
            assert!(wish(Family::V4).mismatch(&other).is_some(), "{other:?}");
        }
    }
}
