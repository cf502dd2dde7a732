//! Which device and address lead to the other nodes: flanneld's rules, over a list.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::tunnel::Traffic;
use ipnetwork::IpNetwork;
use regex_lite::Regex;

use crate::{kernel::VxlanLink, mac::Mac, subnet::Family};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub is_up: bool,
    pub is_loopback: bool,
    pub vxlan: Option<VxlanLink>,
    /// One end of a pair whose other end is in another network namespace.
    pub leads_elsewhere: bool,
    /// What the device has carried.
    pub traffic: Traffic,
}

/// An address of a device, with the length of its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, as the kernel tells them")]
pub struct Address {
    pub device: u32,
    pub network: IpNetwork,
    /// Valid beyond the link.
    pub is_global: bool,
    pub is_permanent: bool,
    pub is_temporary: bool,
    /// Neither deprecated nor a duplicate.
    pub is_usable: bool,
}

impl Address {
    pub fn ip(&self) -> IpAddr {
        self.network.ip()
    }
}

/// All devices and addresses at one moment, in the kernel's order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    pub interfaces: Vec<Interface>,
    pub addresses: Vec<Address>,
    pub default_routes: Vec<(Family, u32)>,
}

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Names or addresses, the first that is there.
    pub names: Vec<String>,
    pub patterns: Vec<Regex>,
    /// The device that leads to `--iface-can-reach`.
    pub can_reach: Option<u32>,
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
    pub needs_v4: bool,
    pub needs_v6: bool,
}

/// The device toward the other nodes, and the addresses they send to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
}

impl Uplink {
    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_ip.map(IpAddr::V4),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }
}

/// Why there is no way to the other nodes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("--iface: none of {0} is a device or an address of this node")]
    NoSuchName(String),
    #[error("--iface-regex: no address and no name of a device matches {0}")]
    NoMatch(String),
    #[error("--iface-can-reach: no route leads there")]
    Unreachable,
    #[error("--public-ip: {0} is no address of this node; name the device too, with --iface")]
    NotLocal(IpAddr),
    #[error("no default route names a device toward the other nodes; name it with --iface")]
    NoDefaultRoute,
    #[error(
        "the default routes of IPv4 and IPv6 leave by different devices; name the one toward the \
         other nodes with --iface"
    )]
    Apart,
    #[error("{device} has no usable {family} address; give it one, or name another with --iface")]
    NoAddress { device: String, family: &'static str },
}

impl Listing {
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    pub fn at(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    fn holder(&self, ip: IpAddr) -> Option<&Interface> {
        let address = self.addresses.iter().find(|address| address.ip() == ip)?;
        self.at(address.device)
    }

    /// The device's best address: global before link-local, permanent before dynamic, none
    /// that serves privacy if there is another, never a deprecated one.
    fn best(&self, device: u32, family: Family) -> Option<IpAddr> {
        let of = |address: &&Address| {
            address.device == device && address.is_usable && Family::of(address.ip()) == family
        };
        let rank =
            |address: &&Address| (!address.is_global, !address.is_permanent, address.is_temporary);
        self.addresses.iter().filter(of).min_by_key(rank).map(Address::ip)
    }
}

/// Chooses as flanneld does.
pub fn select(listing: &Listing, choice: &Choice) -> Result<Uplink, InterfaceError> {
    let (interface, named) = device(listing, choice)?;
    let address = |family, public: Option<IpAddr>, is_needed: bool| {
        let named = named.filter(|ip| Family::of(*ip) == family);
        let found = public.or(named).or_else(|| listing.best(interface.index, family));
        match found {
            None if is_needed => Err(InterfaceError::NoAddress {
                device: interface.name.clone(),
                family: match family {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                },
            }),
            found => Ok(found.filter(|_| is_needed)),
        }
    };
    let v4 = address(Family::V4, choice.public_ip.map(IpAddr::V4), choice.needs_v4)?;
    let v6 = address(Family::V6, choice.public_ipv6.map(IpAddr::V6), choice.needs_v6)?;
    Ok(Uplink {
        index: interface.index,
        name: interface.name.clone(),
        mtu: interface.mtu,
        public_ip: v4.and_then(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }),
        public_ipv6: v6.and_then(|ip| match ip {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        }),
    })
}

/// The device, and the address by which it was named.
fn device<'a>(
    listing: &'a Listing,
    choice: &Choice,
) -> Result<(&'a Interface, Option<IpAddr>), InterfaceError> {
    if !choice.names.is_empty() {
        let by_name = |name: &String| match name.parse() {
            Ok(ip) => listing.holder(ip).map(|interface| (interface, Some(ip))),
            Err(_) => listing.interface(name).map(|interface| (interface, None)),
        };
        let found = choice.names.iter().find_map(by_name);
        if let Some(found) = found {
            return Ok(found);
        }
        if choice.patterns.is_empty() {
            return Err(InterfaceError::NoSuchName(choice.names.join(", ")));
        }
    }
    if !choice.patterns.is_empty() {
        return matching(listing, &choice.patterns);
    }
    if let Some(index) = choice.can_reach {
        let found = listing.at(index).map(|interface| (interface, None));
        return found.ok_or(InterfaceError::Unreachable);
    }
    let public = choice.public_ip.map(IpAddr::V4).or(choice.public_ipv6.map(IpAddr::V6));
    if let Some(public) = public {
        let found = listing.holder(public).map(|interface| (interface, Some(public)));
        return found.ok_or(InterfaceError::NotLocal(public));
    }
    default_route(listing, choice).map(|interface| (interface, None))
}

fn matching<'a>(
    listing: &'a Listing,
    patterns: &[Regex],
) -> Result<(&'a Interface, Option<IpAddr>), InterfaceError> {
    for pattern in patterns {
        let is_match = |address: &&Address| pattern.is_match(&address.ip().to_string());
        let by_address =
            listing.addresses.iter().filter(|address| address.is_usable).find(is_match);
        if let Some(address) = by_address
            && let Some(interface) = listing.at(address.device)
        {
            return Ok((interface, Some(address.ip())));
        }
        let by_name = |interface: &&Interface| pattern.is_match(&interface.name);
        if let Some(interface) = listing.interfaces.iter().find(by_name) {
            return Ok((interface, None));
        }
    }
    let patterns: Vec<&str> = patterns.iter().map(Regex::as_str).collect();
    Err(InterfaceError::NoMatch(patterns.join(", ")))
}

fn default_route<'a>(
    listing: &'a Listing,
    choice: &Choice,
) -> Result<&'a Interface, InterfaceError> {
    let of = |wanted: Family| {
        let mut routes = listing.default_routes.iter().filter(move |(family, _)| *family == wanted);
        routes.next().map(|&(_, device)| device)
    };
    let index = match (choice.needs_v4, choice.needs_v6) {
        (true, true) => match (of(Family::V4), of(Family::V6)) {
            (Some(v4), Some(v6)) if v4 == v6 => Some(v4),
            (Some(_), Some(_)) => return Err(InterfaceError::Apart),
            _ => None,
        },
        (false, true) => of(Family::V6),
        _ => of(Family::V4),
    };
    index.and_then(|index| listing.at(index)).ok_or(InterfaceError::NoDefaultRoute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let interface = |index, name: &str| Interface {
            index,
            name: name.into(),
            mtu: 1500,
            ..Interface::default()
        };
        let address = |device, cidr: &str| Address {
            device,
            network: cidr.parse().unwrap(),
            is_global: true,
            is_permanent: true,
            is_temporary: false,
            is_usable: true,
        };
        Listing {
            interfaces: vec![interface(1, "lo"), interface(2, "eth0"), interface(3, "eth1")],
            addresses: vec![
                Address { is_global: false, ..address(2, "fe80::1/64") },
                Address { is_usable: false, ..address(2, "192.168.78.9/24") },
                Address { is_permanent: false, ..address(2, "192.168.78.10/24") },
                address(2, "192.168.78.11/24"),
                Address { is_temporary: true, ..address(2, "fd00:78::aa/64") },
                address(2, "fd00:78::11/64"),
                address(3, "10.0.0.11/24"),
            ],
            default_routes: vec![(Family::V4, 2), (Family::V6, 2)],
        }
    }

    fn dual() -> Choice {
        Choice { needs_v4: true, needs_v6: true, ..Choice::default() }
    }

    #[test]
    fn the_default_route_and_the_best_addresses() {
        let uplink = select(&listing(), &dual()).unwrap();
        assert_eq!((uplink.index, uplink.mtu), (2, 1500));
        assert_eq!(uplink.public_ip, "192.168.78.11".parse().ok());
        assert_eq!(uplink.public_ipv6, "fd00:78::11".parse().ok());
        let apart = Listing { default_routes: vec![(Family::V4, 2), (Family::V6, 3)], ..listing() };
        assert_eq!(select(&apart, &dual()), Err(InterfaceError::Apart));
        let none = Listing { default_routes: Vec::new(), ..listing() };
        assert_eq!(select(&none, &dual()), Err(InterfaceError::NoDefaultRoute));
    }

    #[test]
    fn names_addresses_and_patterns() {
        let single = Choice { needs_v4: true, ..Choice::default() };
        let named = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            select(&listing(), &Choice { names, ..single.clone() })
        };
        assert_eq!(named(&["eth9", "eth1"]).unwrap().name, "eth1");
        assert_eq!(named(&["192.168.78.10"]).unwrap().public_ip, "192.168.78.10".parse().ok());
        assert!(matches!(named(&["eth9"]), Err(InterfaceError::NoSuchName(_))));
        assert!(matches!(named(&["lo"]), Err(InterfaceError::NoAddress { .. })));
        let pattern = |pattern: &str| {
            let patterns = vec![Regex::new(pattern).unwrap()];
            select(&listing(), &Choice { patterns, ..single.clone() })
        };
        assert_eq!(pattern(r"^10\.").unwrap().name, "eth1");
        assert_eq!(pattern("th1$").unwrap().name, "eth1");
        assert!(matches!(pattern("wlan"), Err(InterfaceError::NoMatch(_))));
    }

    #[test]
    fn a_public_address_selects_its_device_or_is_free() {
        let public = |ip: &str, names: &[&str]| {
            let choice = Choice {
                public_ip: ip.parse().ok(),
                names: names.iter().map(ToString::to_string).collect(),
                needs_v4: true,
                ..Choice::default()
            };
            select(&listing(), &choice)
        };
        assert_eq!(public("10.0.0.11", &[]).unwrap().name, "eth1");
        assert!(matches!(public("9.9.9.9", &[]), Err(InterfaceError::NotLocal(_))));
        let free = public("9.9.9.9", &["eth0"]).unwrap();
        assert_eq!((free.name.as_str(), free.public_ip), ("eth0", "9.9.9.9".parse().ok()));
    }
}
