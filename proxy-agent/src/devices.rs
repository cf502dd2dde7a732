//! Which devices get which programs, and which address each masquerades with: pure, from the
//! list of devices and the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use agent_kit::attach;
use datapath::{
    address::Mac,
    device::{Device, way},
};

use crate::{
    config::{NodePortAddresses, PodLink},
    desired::IpFamily,
    leftovers::IPVS_DEVICE,
    netlink::{DeviceAddress, Link, Network},
};

/// What a device leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Role {
    Pod,
    /// A pod's, on a bridge that sees what leaves toward its pods.
    Port,
    /// A bridge of pods, and of nothing else.
    Bridge,
    Uplink,
    /// Of the overlay's tunnels, behind which are the pods of other nodes.
    Tunnel,
}

/// A device that gets programs.
pub type Attachment = attach::Attachment<Role, Device>;

/// What the devices are to be, and what stands in the way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roles {
    /// By interface index.
    pub devices: BTreeMap<u32, Attachment>,
    /// Names of devices that should be attached to and carry no Ethernet frames.
    pub not_ethernet: Vec<String>,
    /// Uplinks asked for by name that are not there.
    pub missing: Vec<String>,
    /// Some device leads to the outside, other nodes' pods apart.
    pub has_uplink: bool,
    /// The node's addresses, given or found on its uplinks.
    pub node_addresses: Vec<IpAddr>,
}

/// What decides.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Names given by the user; if none, uplinks are found.
    pub uplinks: Vec<String>,
    pub pod_link: PodLink,
    /// Addresses of this node; if none, those of the uplinks.
    pub node_addresses: Vec<IpAddr>,
    /// What goes from port to port of a bridge of pods passes no rules of netfilter, which would
    /// have to see a reply's source as the backend sent it.
    pub at_bridges: bool,
    /// Devices on which others have a say ([`crate::guard`]).
    pub guarded: BTreeSet<u32>,
}

/// Decides.
pub fn roles(network: &Network, wish: &Wish) -> Roles {
    let mut roles = Roles::default();
    let uplinks = uplinks(network, wish, &mut roles);
    roles.node_addresses = node_addresses(network, wish, &uplinks);
    let bridges = bridges(network, wish, &uplinks);
    for link in &network.links {
        let bridge = link.bridge.and_then(|index| bridges.get(&index));
        // Pods of other nodes are outside, whatever uplinks were named.
        let role = if link.is_tunnel {
            Role::Tunnel
        } else if uplinks.contains(&link.index) {
            Role::Uplink
        } else if bridges.contains_key(&link.index) {
            Role::Bridge
        } else if !is_pod_link(network, link, &wish.pod_link) {
            continue;
        } else if bridge.is_some() {
            Role::Port
        } else {
            Role::Pod
        };
        if !link.is_ethernet {
            roles.not_ethernet.push(link.name.clone());
            continue;
        }
        let device = Device {
            masquerade4: match masquerade(network, link, &roles, IpFamily::V4) {
                Some(IpAddr::V4(address)) => address.into(),
                _ => Device::default().masquerade4,
            },
            masquerade6: match masquerade(network, link, &roles, IpFamily::V6) {
                Some(IpAddr::V6(address)) => address.into(),
                _ => Device::default().masquerade6,
            },
            bridge: bridge.copied().unwrap_or_default(),
            mac: link.mac,
            way: match role {
                Role::Uplink => way::OUT,
                Role::Pod | Role::Port if leads_into_pod(network, link, wish) => way::POD,
                _ => way::NONE,
            },
        };
        roles.has_uplink |= uplinks.contains(&link.index);
        roles.devices.insert(link.index, Attachment { name: link.name.clone(), role, device });
    }
    roles
}

impl Roles {
    /// Every address that some device masquerades with.
    pub fn masquerade_addresses(&self) -> BTreeSet<IpAddr> {
        let unset = Device::default();
        let mut addresses = BTreeSet::new();
        for Attachment { device, .. } in self.devices.values() {
            if device.masquerade4 != unset.masquerade4 {
                addresses.insert(device.masquerade4.into());
            }
            if device.masquerade6 != unset.masquerade6 {
                addresses.insert(device.masquerade6.into());
            }
        }
        addresses
    }
}

/// Addresses of this node at which NodePorts answer. CIDRs of one family say nothing of the other, so
/// there it is all addresses, as with a CIDR of everything and as with kube-proxy
/// (pkg/proxy/util/nodeport_addresses.go); a keyword beside them speaks for both.
pub fn node_port_addresses(
    network: &Network,
    node_addresses: &[IpAddr],
    wanted: &NodePortAddresses,
) -> Vec<IpAddr> {
    let is_any = |held: &DeviceAddress| held.is_global && !held.address.is_loopback();
    let is_in_cidrs = |held: &DeviceAddress| {
        let is_v4 = held.address.is_ipv4();
        let mut of_family = wanted.cidrs.iter().filter(|cidr| cidr.is_ipv4() == is_v4).peekable();
        if of_family.peek().is_none() {
            return !wanted.cidrs.is_empty() && !wanted.has_keyword() && is_any(held);
        }
        of_family.any(|cidr| match cidr.prefix() {
            0 => is_any(held),
            _ => cidr.contains(held.address),
        })
    };
    let answers = |held: &&DeviceAddress| {
        wanted.all && is_any(held)
            || wanted.localhost && held.address.is_loopback()
            || is_in_cidrs(held)
    };
    // What kube-proxy may have left holds every cluster IP, and is none of the node's own.
    let of_ipvs = network.links.iter().find(|link| link.name == IPVS_DEVICE).map(|link| link.index);
    let own = network.addresses.iter().filter(|held| Some(held.ifindex) != of_ipvs);
    let answering = own.filter(answers).map(|held| held.address);
    let primary = node_addresses.iter().copied().filter(|_| wanted.primary);
    let mut addresses: Vec<IpAddr> = primary.chain(answering).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Addresses at which healthCheckNodePorts answer; `None`: at all that there are. A load balancer
/// may ask at others than NodePorts answer at, so only addresses that are written out count; of a
/// family in which none is, nobody is asked.
pub fn health_check_addresses(
    network: &Network,
    wanted: &NodePortAddresses,
) -> Option<Vec<IpAddr>> {
    if wanted.primary || wanted.all {
        return None;
    }
    let is_written = |address: &IpAddr| {
        wanted.localhost && address.is_loopback()
            || wanted.cidrs.iter().any(|cidr| cidr.contains(*address))
    };
    // Without it nobody can listen at them.
    let needs_device = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let mut addresses = node_port_addresses(network, &[], wanted);
    addresses.retain(|address| is_written(address) && !needs_device(address));
    Some(addresses)
}

fn uplinks(network: &Network, wish: &Wish, roles: &mut Roles) -> BTreeSet<u32> {
    if !wish.uplinks.is_empty() {
        let mut found = BTreeSet::new();
        for name in &wish.uplinks {
            match network.links.iter().find(|link| link.name == *name) {
                Some(link) => {
                    found.insert(link.index);
                }
                None => roles.missing.push(name.clone()),
            }
        }
        return found;
    }
    let holders = network
        .addresses
        .iter()
        .filter(|held| wish.node_addresses.contains(&held.address))
        .map(|held| held.ifindex);
    let routes = network.default_routes.iter().map(|&(_, device)| device);
    let is_loopback =
        |index: u32| network.links.iter().any(|link| link.index == index && link.is_loopback);
    holders.chain(routes).filter(|&index| !is_loopback(index)).collect()
}

fn node_addresses(network: &Network, wish: &Wish, uplinks: &BTreeSet<u32>) -> Vec<IpAddr> {
    if !wish.node_addresses.is_empty() {
        return wish.node_addresses.clone();
    }
    [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .filter_map(|family| {
            // The device of the family's default route knows best what the node is called.
            let routed = network.default_routes.iter().filter(|route| route.0 == family);
            let mut devices = routed.map(|route| &route.1).chain(uplinks);
            devices.find_map(|&device| first_global(network, device, family))
        })
        .collect()
}

/// Bridges all of whose ports are pods', with their addresses, by interface index. What is sent to
/// a pod on one comes by way of the bridge itself, or from another pod on it: to see both, its own
/// hook and those of what enters do, and a packet from pod to pod meets one program instead of two.
fn bridges(network: &Network, wish: &Wish, uplinks: &BTreeSet<u32>) -> BTreeMap<u32, Mac> {
    let is_watched = |bridge: &&Link| {
        let mut ports =
            network.links.iter().filter(|link| link.bridge == Some(bridge.index)).peekable();
        bridge.is_bridge
            && bridge.is_ethernet
            && !uplinks.contains(&bridge.index)
            && ports.peek().is_some()
            && ports.all(|port| {
                !uplinks.contains(&port.index) && is_pod_link(network, port, &wish.pod_link)
            })
    };
    let watched = network.links.iter().filter(|_| wish.at_bridges).filter(is_watched);
    watched.map(|bridge| (bridge.index, bridge.mac)).collect()
}

/// True if nothing has a say between the kernel's routing and the pod behind a device: it is an end of a pair,
/// by itself or a port of a bridge, and neither is guarded.
fn leads_into_pod(network: &Network, link: &Link, wish: &Wish) -> bool {
    let is_free = |index: u32| !wish.guarded.contains(&index);
    let is_free_bridge = |index: u32| {
        let found = network.links.iter().find(|link| link.index == index);
        found.is_some_and(|link| link.is_bridge) && is_free(index)
    };
    let is_end = link.is_veth && link.peer_is_elsewhere;
    is_end && is_free(link.index) && link.bridge.is_none_or(is_free_bridge)
}

fn is_pod_link(network: &Network, link: &Link, wanted: &PodLink) -> bool {
    match wanted {
        PodLink::None => false,
        PodLink::Auto => link.is_veth && link.peer_is_elsewhere,
        PodLink::Prefix(prefix) => link.name.starts_with(prefix.as_str()),
        PodLink::Bridge(name) => network
            .links
            .iter()
            .any(|bridge| bridge.name == *name && link.bridge == Some(bridge.index)),
    }
}

/// The address that `MASQUERADE` would choose: the device's own, that of the bridge it is a
/// port of, or the node's.
fn masquerade(network: &Network, link: &Link, roles: &Roles, family: IpFamily) -> Option<IpAddr> {
    first_global(network, link.index, family)
        .or_else(|| first_global(network, link.bridge?, family))
        .or_else(|| {
            roles.node_addresses.iter().copied().find(|address| IpFamily::of(address) == family)
        })
}

fn first_global(network: &Network, ifindex: u32, family: IpFamily) -> Option<IpAddr> {
    network
        .addresses
        .iter()
        .find(|held| {
            held.ifindex == ifindex && held.is_global && IpFamily::of(&held.address) == family
        })
        .map(|held| held.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.into(), is_ethernet: true, ..Link::default() }
    }

    fn veth(index: u32, name: &str, bridge: Option<u32>) -> Link {
        Link { is_veth: true, peer_is_elsewhere: true, bridge, ..link(index, name) }
    }

    fn held(ifindex: u32, address: &str) -> DeviceAddress {
        DeviceAddress { ifindex, address: address.parse().unwrap(), is_global: true }
    }

    /// A node in a namespace: its uplink is a pair too.
    fn node() -> Network {
        Network {
            links: vec![
                Link { is_loopback: true, ..link(1, "lo") },
                veth(2, "eth0", None),
                Link { is_bridge: true, mac: Mac([2, 0, 0, 0, 0, 3]), ..link(3, "cni0") },
                veth(4, "pod-a", Some(3)),
                veth(5, "pod-b", None),
                Link { is_ethernet: false, ..link(6, "tun0") },
            ],
            addresses: vec![
                held(1, "10.9.9.9"),
                DeviceAddress { is_global: false, ..held(2, "169.254.0.1") },
                held(2, "192.0.2.1"),
                held(2, "2001:db8::1"),
                held(3, "10.1.0.1"),
            ],
            default_routes: vec![(IpFamily::V4, 2)],
        }
    }

    fn wish() -> Wish {
        Wish {
            uplinks: Vec::new(),
            pod_link: PodLink::Auto,
            node_addresses: Vec::new(),
            at_bridges: false,
            guarded: BTreeSet::new(),
        }
    }

    fn names(roles: &Roles, role: Role) -> Vec<&str> {
        let all = roles.devices.values().filter(|device| device.role == role);
        all.map(|device| device.name.as_str()).collect()
    }

    #[test]
    fn a_pair_with_the_default_route_is_the_uplink() {
        let roles = roles(&node(), &wish());
        assert_eq!(names(&roles, Role::Uplink), ["eth0"]);
        assert_eq!(names(&roles, Role::Pod), ["pod-a", "pod-b"]);
        let node_addresses: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(roles.node_addresses, node_addresses);
    }

    #[test]
    fn a_tunnel_has_programs_beside_the_uplinks_that_are_named() {
        let tunnel = Link { is_tunnel: true, ..link(7, "flannel.1") };
        let mut network = node();
        network.links.push(tunnel);
        network.addresses.push(held(7, "10.1.0.0"));
        let named = Wish { uplinks: vec!["eth0".into()], ..wish() };
        let both = roles(&network, &named);
        assert_eq!(names(&both, Role::Uplink), ["eth0"]);
        assert_eq!(names(&both, Role::Tunnel), ["flannel.1"]);
        assert_eq!(IpAddr::from(both.devices[&7].device.masquerade4).to_string(), "10.1.0.0");
        // The node is not known by the tunnel's address, nor is a tunnel a way to the outside.
        assert_eq!(both.node_addresses, roles(&node(), &named).node_addresses);
        let none = Wish { uplinks: vec!["eth9".into()], ..wish() };
        assert!(both.has_uplink && !roles(&network, &none).has_uplink);
    }

    #[test]
    fn masquerade_is_by_own_address_then_bridge_then_node() {
        let roles = roles(&node(), &wish());
        let of = |index: u32| IpAddr::from(roles.devices[&index].device.masquerade4).to_string();
        assert_eq!([of(2), of(4), of(5)], ["192.0.2.1", "10.1.0.1", "192.0.2.1"]);
        let v6 = IpAddr::from(roles.devices[&4].device.masquerade6).to_string();
        assert_eq!(v6, "2001:db8::1");
        assert_eq!(roles.masquerade_addresses().len(), 3);
    }

    #[test]
    fn a_bridge_of_pods_sees_what_leaves_toward_them() {
        let wish = Wish { at_bridges: true, ..wish() };
        let found = |network: &Network| {
            let roles = roles(network, &wish);
            [Role::Bridge, Role::Port, Role::Pod].map(|role| names(&roles, role).join(" "))
        };
        let mut network = node();
        assert_eq!(found(&network), ["cni0", "pod-a", "pod-b"]);
        let roles = roles(&network, &wish);
        let of = |index: u32| (roles.devices[&index].device.bridge, index);
        assert_eq!(of(4).0, Mac([2, 0, 0, 0, 0, 3]));
        assert_eq!([of(3).0, of(5).0], [Mac::default(); 2]);
        // The bridge masquerades as its ports would.
        let source = |index: u32| roles.devices[&index].device.masquerade4;
        assert_eq!(source(3), source(4));
        // What comes by a port that is no pod's passes neither the bridge's own hook nor a pod's.
        network.links.push(Link { bridge: Some(3), ..link(8, "eth1") });
        assert_eq!(found(&network), ["", "", "pod-a pod-b"]);
        network.links.pop();
        // Nor does a device that is over others see what goes between them, if it is no bridge.
        network.links[2].is_bridge = false;
        assert_eq!(found(&network), ["", "", "pod-a pod-b"]);
    }

    #[test]
    fn a_node_address_on_loopback_makes_no_uplink_of_it() {
        let wish = Wish { node_addresses: vec!["10.9.9.9".parse().unwrap()], ..wish() };
        assert_eq!(names(&roles(&node(), &wish), Role::Uplink), ["eth0"]);
    }

    #[test]
    fn named_uplinks_that_cannot_be_are_told() {
        let wish = Wish { uplinks: vec!["tun0".into(), "eth7".into()], ..wish() };
        let roles = roles(&node(), &wish);
        assert_eq!(roles.not_ethernet, ["tun0"]);
        assert_eq!(roles.missing, ["eth7"]);
    }

    #[test]
    fn node_ports_answer_where_asked() {
        let mut network = node();
        for address in ["127.0.0.1", "::1"] {
            network.addresses.push(DeviceAddress { is_global: false, ..held(1, address) });
        }
        network.links.push(link(7, "kube-ipvs0"));
        network.addresses.push(held(7, "10.96.0.1"));
        let at = |wanted: &str| {
            let primary = ["192.0.2.1".parse().unwrap()];
            let addresses = node_port_addresses(&network, &primary, &wanted.parse().unwrap());
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let all = "10.1.0.1 10.9.9.9 192.0.2.1 2001:db8::1";
        for (wanted, addresses) in [
            ("primary", "192.0.2.1"),
            ("all", all),
            ("localhost", "127.0.0.1 ::1"),
            ("10.0.0.0/8", "10.1.0.1 10.9.9.9 2001:db8::1"),
            ("2001:db9::/32", "10.1.0.1 10.9.9.9 192.0.2.1"),
            ("10.0.0.0/8,2001:db9::/32", "10.1.0.1 10.9.9.9"),
            ("0.0.0.0/0", all),
            ("primary,localhost", "127.0.0.1 192.0.2.1 ::1"),
            ("primary,10.1.0.0/16", "10.1.0.1 192.0.2.1"),
            ("all,127.0.0.0/8", "10.1.0.1 10.9.9.9 127.0.0.1 192.0.2.1 2001:db8::1"),
            ("0.0.0.0/0,127.0.0.0/8,2001:db9::/32", "10.1.0.1 10.9.9.9 127.0.0.1 192.0.2.1"),
        ] {
            assert_eq!(at(wanted), addresses, "{wanted}");
        }
    }

    #[test]
    fn health_checks_answer_everywhere_unless_addresses_are_written_out() {
        let mut network = node();
        network.addresses.push(DeviceAddress { is_global: false, ..held(2, "fe80::1") });
        let at = |wanted: &str| health_check_addresses(&network, &wanted.parse().unwrap());
        assert_eq!([at("primary"), at("all")], [None, None]);
        assert_eq!(at("192.0.2.0/24,::/0").unwrap().len(), 2);
        assert_eq!(at("localhost"), Some(Vec::new()));
        assert_eq!([at("primary,localhost"), at("all,127.0.0.0/8")], [None, None]);
        network.addresses.push(DeviceAddress { is_global: false, ..held(1, "127.0.0.1") });
        let at = |wanted: &str| health_check_addresses(&network, &wanted.parse().unwrap());
        assert_eq!(at("localhost,10.1.0.0/16").unwrap().len(), 2);
    }

    #[test]
    fn pod_links_by_bridge_and_prefix() {
        let with = |pod_link| roles(&node(), &Wish { pod_link, ..wish() });
        assert_eq!(names(&with(PodLink::Bridge("cni0".into())), Role::Pod), ["pod-a"]);
        assert_eq!(names(&with(PodLink::Prefix("pod-b".into())), Role::Pod), ["pod-b"]);
        assert_eq!(names(&with(PodLink::None), Role::Pod), [""; 0]);
    }
}
