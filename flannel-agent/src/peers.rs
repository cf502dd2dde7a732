//! From leases to what the kernel is told: which peer is reached how, and what is wrong with
//! those that are not. One bad lease, or one family of it, stops no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    config::Datapath,
    entries::{Entries, Hop, Remote},
    lease::{Lease, Vtep},
    mac::{self, Mac},
    net_config::{Backend, NetConfig},
    subnet::{Family, Subnet, number},
};

/// This node, as far as its peers are concerned.
#[derive(Clone, Debug)]
pub struct Site {
    pub config: NetConfig,
    pub subnet: Subnet,
    /// The tunnel devices that there are.
    pub tunnels: BTreeMap<Family, Tunnel>,
    /// Who chooses the tunnel: programs, or the kernel's tables.
    pub datapath: Datapath,
    /// Keep packets to pods of ours that are not there from leaving, also without programs.
    pub has_blackhole: bool,
    /// The device toward the other nodes.
    pub uplink: u32,
    /// Addresses of peers that are reached without a router in between.
    pub neighbours: BTreeSet<IpAddr>,
    /// Those to which a program may send by the uplink what it has put into a tunnel.
    pub by_uplink: BTreeSet<IpAddr>,
}

/// A tunnel device of one family; with programs both families have the same one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    pub device: u32,
    /// What other nodes know it by.
    pub mac: Mac,
}

/// The next hop of the one route to all pods elsewhere, where programs choose the tunnel. Nobody
/// has the address; it only spares the kernel a neighbour for each pod.
const NEXT_HOP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// What it is said to have as its hardware address; programs write another over it.
const NEXT_HOP_MAC: Mac = Mac([0x02, 0x4d, 0x52, 0, 0, 1]);

/// One peer, one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The lease's key, or the Node's name.
    pub name: String,
    pub subnet: IpNetwork,
    pub address: IpAddr,
    pub path: Path,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether it answers clients outside by itself, when what they sent comes through the tunnel.
    #[serde(default)]
    pub answers: bool,
}

/// How packets reach a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    Vxlan,
    /// By a route, without a tunnel.
    Direct,
}

impl Path {
    pub fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Direct => "direct",
        }
    }
}

/// What is wrong with a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The lease's key, or the Node's name.
    pub name: String,
    pub message: String,
}

/// What follows from all leases together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compiled {
    pub entries: Entries,
    pub peers: Vec<Peer>,
    pub faults: Vec<Fault>,
    /// Leases of another kind of network, which flanneld ignores too.
    pub others: usize,
    /// Subnets of peers by first address, with the last one and whose it is.
    taken: BTreeMap<(Family, u128), (u128, String)>,
    /// Hardware addresses of peers' devices.
    macs: BTreeSet<(Family, Mac)>,
}

/// Compiles the leases of all nodes but this one.
pub fn compile<'a>(
    site: &Site,
    leases: impl IntoIterator<Item = (&'a String, &'a Result<Lease, String>)>,
) -> Compiled {
    let mut compiled = Compiled::default();
    compiled.own(site);
    for (name, lease) in leases {
        match lease {
            Err(message) => compiled.fault(name, message.clone()),
            Ok(lease) if lease.attrs.backend_type != site.config.backend.name() => {
                compiled.others += 1;
            }
            Ok(lease) if lease.subnet.overlaps(site.subnet) => {
                let message =
                    format!("holds {}, which is ours; remove one of the two leases", lease.subnet);
                compiled.fault(name, message);
            }
            Ok(lease) => {
                for family in Family::BOTH {
                    if let Err(message) = compiled.add(site, name, lease, family) {
                        compiled.fault(name, message);
                    }
                }
            }
        }
    }
    compiled
}

impl Compiled {
    /// What there is without any peer.
    fn own(&mut self, site: &Site) {
        let has_programs = site.datapath == Datapath::Ebpf && !site.tunnels.is_empty();
        if has_programs || site.has_blackhole {
            self.entries.blackholes.extend(site.subnet.networks());
        }
        if !has_programs {
            return;
        }
        for (family, via) in Family::BOTH.into_iter().zip(NEXT_HOP) {
            let (Some(network), Some(tunnel)) =
                (site.config.network(family), site.tunnels.get(&family))
            else {
                continue;
            };
            self.entries.neighbours.insert((tunnel.device, via), NEXT_HOP_MAC);
            self.route(network, tunnel.device, via, true);
        }
    }

    fn fault(&mut self, name: &str, message: String) {
        self.faults.push(Fault { name: name.into(), message });
    }

    /// One family of a lease, if both sides have it.
    fn add(
        &mut self,
        site: &Site,
        name: &str,
        lease: &Lease,
        family: Family,
    ) -> Result<(), String> {
        let (Some(network), Some(subnet)) = (site.config.network(family), lease.subnet.of(family))
        else {
            return Ok(());
        };
        if !network.contains(subnet.network()) || subnet.prefix() <= network.prefix() {
            return Err(format!("{subnet} lies outside the pod network {network}"));
        }
        let (first, last) = (number(subnet.network()), number(subnet.broadcast()));
        // They are disjoint, so that only the last one that begins before our end can reach us.
        let before = self.taken.range((family, 0)..=(family, last)).next_back();
        if let Some((_, (_, other))) = before.filter(|(_, (end, _))| *end >= first) {
            return Err(format!("{subnet} overlaps the subnet of {other}"));
        }
        let address = lease.attrs.public(family).ok_or_else(|| match family {
            Family::V4 => "PublicIP is missing".to_owned(),
            Family::V6 => "PublicIPv6 is missing, so its IPv6 pods are out of reach".to_owned(),
        })?;
        let is_neighbour = site.neighbours.contains(&address);
        let peer = |path, vtep: Option<Vtep>| Peer {
            name: name.into(),
            subnet,
            address,
            path,
            mac: vtep.map(|vtep| vtep.mac.to_string()),
            answers: vtep.is_some_and(|vtep| vtep.answers),
        };
        match &site.config.backend {
            Backend::HostGw if !is_neighbour => {
                return Err(format!(
                    "{address} is behind a router, which host-gw cannot pass; use vxlan, with \
                 DirectRouting if routes shall serve neighbours"
                ));
            }
            Backend::Vxlan(vxlan) if !(vxlan.direct_routing && is_neighbour) => {
                let Some(tunnel) = site.tunnels.get(&family) else {
                    return Err(format!("no tunnel device for {}", family.label()));
                };
                let vtep = vtep(lease, family)?;
                let Vtep { mac, answers, .. } = vtep;
                if mac == tunnel.mac {
                    return Err(format!("VtepMAC {mac} is that of our own device"));
                }
                if !self.macs.insert((family, mac)) {
                    return Err(format!("VtepMAC {mac} is another peer's too"));
                }
                match site.datapath {
                    Datapath::Ebpf => {
                        let by_uplink = site.by_uplink.contains(&address);
                        let to = Remote { address, mac, by_uplink, answers };
                        self.entries.vteps.insert(subnet, to);
                        self.entries.senders.insert(mac);
                    }
                    Datapath::Kernel => {
                        self.entries.neighbours.insert((tunnel.device, subnet.network()), mac);
                        self.entries.fdb.insert((tunnel.device, mac), [address].into());
                        self.route(subnet, tunnel.device, subnet.network(), true);
                    }
                }
                self.peers.push(peer(Path::Vxlan, Some(vtep)));
            }
            _ => {
                self.route(subnet, site.uplink, address, false);
                self.peers.push(peer(Path::Direct, None));
            }
        }
        self.taken.insert((family, first), (last, name.into()));
        Ok(())
    }

    fn route(&mut self, network: IpNetwork, device: u32, via: IpAddr, is_onlink: bool) {
        let hop = Hop { device, via: Some(via), is_onlink, is_ours: true };
        self.entries.routes.insert(network, hop);
    }
}

fn vtep(lease: &Lease, family: Family) -> Result<Vtep, String> {
    let field = match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    };
    let data = lease.attrs.data(family).ok_or_else(|| format!("{field} is missing"))?;
    let vtep = Vtep::read(data).ok_or_else(|| format!("{field}: {data} has no VtepMAC to read"))?;
    if mac::is_usable(vtep.mac) {
        Ok(vtep)
    } else {
        Err(format!("{field}: {} is no device's", vtep.mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Attrs, Expiry};

    const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

    fn site(config: &str, neighbours: &[&str]) -> Site {
        let tunnel = |device| Tunnel { device, mac: Mac([2, 0, 0, 0, 0, 1]) };
        Site {
            config: NetConfig::parse(config).unwrap(),
            subnet: Subnet::parse_key("10.244.1.0-24&fd00:10:244:1::-64").unwrap(),
            tunnels: [(Family::V4, tunnel(4)), (Family::V6, tunnel(6))].into(),
            datapath: Datapath::Kernel,
            has_blackhole: false,
            uplink: 2,
            neighbours: neighbours.iter().map(|ip| ip.parse().unwrap()).collect(),
            by_uplink: BTreeSet::from(["192.168.78.12".parse().unwrap()]),
        }
    }

    fn lease(key: &str, value: &str) -> (String, Result<Lease, String>) {
        let attrs = Attrs::parse(value).unwrap();
        let subnet = Subnet::parse_key(key).unwrap();
        (key.into(), Ok(Lease { subnet, attrs, expires: Expiry::Untold }))
    }

    fn compiled(site: &Site, leases: &[(String, Result<Lease, String>)]) -> Compiled {
        compile(site, leases.iter().map(|(key, lease)| (key, lease)))
    }

    const KEY: &str = "10.244.2.0-24&fd00:10:244:2::-64";
    const VALUE: &str = r#"{"PublicIP":"192.168.78.12","PublicIPv6":"fd00:78::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}}"#;

    #[test]
    fn a_peer_is_three_entries_a_family() {
        let compiled = compiled(&site(DUAL, &[]), &[lease(KEY, VALUE)]);
        assert_eq!(compiled.faults, []);
        let entries = &compiled.entries;
        assert_eq!((entries.neighbours.len(), entries.fdb.len(), entries.routes.len()), (2, 2, 2));
        let hop = entries.routes[&"fd00:10:244:2::/64".parse::<IpNetwork>().unwrap()];
        assert_eq!((hop.device, hop.via, hop.is_onlink), (6, "fd00:10:244:2::".parse().ok(), true));
    }

    #[test]
    fn with_programs_a_peer_is_a_row_a_family_and_no_entry() {
        let site = Site { datapath: Datapath::Ebpf, ..site(DUAL, &[]) };
        let alone = compiled(&site, &[]).entries;
        assert_eq!((alone.neighbours.len(), alone.routes.len(), alone.blackholes.len()), (2, 2, 2));
        let compiled = compiled(&site, &[lease(KEY, VALUE)]);
        assert_eq!(compiled.faults, []);
        let entries = &compiled.entries;
        let remote = entries.vteps[&"10.244.2.0/24".parse::<IpNetwork>().unwrap()];
        assert_eq!(remote.address, "192.168.78.12".parse::<IpAddr>().unwrap());
        let by_uplink = |network: &str| entries.vteps[&network.parse().unwrap()].by_uplink;
        assert!(by_uplink("10.244.2.0/24") && !by_uplink("fd00:10:244:2::/64"));
        assert_eq!((entries.vteps.len(), entries.senders.len()), (2, 2));
        assert_eq!((&entries.routes, &entries.neighbours), (&alone.routes, &alone.neighbours));
        assert!(entries.fdb.is_empty());
    }

    #[test]
    fn who_answers_clients_is_told_for_each_family() {
        let site = Site { datapath: Datapath::Ebpf, ..site(DUAL, &[]) };
        let value = VALUE.replace(r#""BackendV6Data":{"#, r#""BackendV6Data":{"DSR":true,"#);
        let compiled = compiled(&site, &[lease(KEY, &value)]);
        let answers = |network: &str| compiled.entries.vteps[&network.parse().unwrap()].answers;
        assert!(!answers("10.244.2.0/24") && answers("fd00:10:244:2::/64"));
        let told: Vec<bool> = compiled.peers.iter().map(|peer| peer.answers).collect();
        assert_eq!(told, [false, true]);
    }

    #[test]
    fn neighbours_need_no_tunnel_where_that_is_wished() {
        let compiled = compiled(&site(DUAL, &["192.168.78.12"]), &[lease(KEY, VALUE)]);
        let paths: Vec<Path> = compiled.peers.iter().map(|peer| peer.path).collect();
        assert_eq!(paths, [Path::Direct, Path::Vxlan]);
        let hop = compiled.entries.routes[&"10.244.2.0/24".parse::<IpNetwork>().unwrap()];
        assert_eq!((hop.device, hop.via, hop.is_onlink), (2, "192.168.78.12".parse().ok(), false));
    }

    #[test]
    fn host_gw_needs_neighbours() {
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
        let value = r#"{"PublicIP":"192.168.78.12","BackendType":"host-gw"}"#;
        let leases = [lease("10.244.2.0-24", value)];
        assert_eq!(
            compiled(&site(config, &["192.168.78.12"]), &leases).peers[0].path,
            Path::Direct
        );
        let apart = compiled(&site(config, &[]), &leases);
        assert!(apart.faults[0].message.contains("behind a router") && apart.peers.is_empty());
    }

    #[test]
    fn one_bad_family_or_lease_stops_no_other() {
        let half = VALUE.replace("02:00:00:00:00:03", "none");
        let site = site(DUAL, &[]);
        let mut leases = vec![lease(KEY, &half)];
        leases.push(("10.244.9.0-24".into(), Err("not JSON".into())));
        leases.push(lease("10.244.1.128-25", VALUE));
        leases.push(lease("10.245.1.0-24", VALUE));
        leases.push(lease("10.244.2.0-25", VALUE));
        leases.push(lease("10.244.3.0-24", VALUE));
        leases.push(lease("10.244.4.0-24", &VALUE.replace("00:02", "00:01")));
        leases.push(lease("10.244.5.0-24", &VALUE.replace("vxlan", "wireguard")));
        let compiled = compiled(&site, &leases);
        let said: Vec<&str> = compiled.faults.iter().map(|fault| fault.message.as_str()).collect();
        for (nth, part) in [
            "BackendV6Data",
            "not JSON",
            "is ours",
            "outside",
            "overlaps",
            "another peer's",
            "our own device",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(said[nth].contains(part), "{part}: {said:?}");
        }
        assert_eq!((compiled.peers.len(), compiled.others, said.len()), (1, 1, 7));
    }
}
