//! What the kernel is told of peers: neighbours, forwarding entries of tunnel devices, routes, and
//! rows of the programs' tables. The same structure for what there shall be and what there is, and the difference of
//! the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::mac::Mac;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entries {
    /// By device and address: permanent ones.
    pub neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// By device and inner address: where frames to it are sent. More than one place is never
    /// wanted, and may be found.
    pub fdb: BTreeMap<(u32, Mac), BTreeSet<IpAddr>>,
    pub routes: BTreeMap<IpNetwork, Hop>,
    /// Networks of which nothing leaves this node while no narrower or better route is there.
    pub blackholes: BTreeSet<IpNetwork>,
    /// Rows of `VTEPS4/6`, by pod network.
    pub vteps: BTreeMap<IpNetwork, Remote>,
    /// Rows of `SENDERS`.
    pub senders: BTreeSet<Mac>,
}

/// Where the tunnel to a pod network ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Remote {
    /// The node's, on the underlay.
    pub address: IpAddr,
    /// Of its tunnel device.
    pub mac: Mac,
    /// Whether a packet to the node may leave by the uplink as a program made it.
    pub by_uplink: bool,
    /// Whether the node answers clients outside by itself.
    pub answers: bool,
}

/// The way to a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Hop {
    pub device: u32,
    /// None: a way that we never make.
    pub via: Option<IpAddr>,
    /// The next hop need not be in a network of the device.
    pub is_onlink: bool,
    /// Whether it is ours to remove. What is not ours is replaced only where we want a way to
    /// the same network.
    pub is_ours: bool,
}

/// One write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Op {
    SetNeighbour { device: u32, address: IpAddr, mac: Mac },
    RemoveNeighbour { device: u32, address: IpAddr },
    SetFdb { device: u32, mac: Mac, to: IpAddr },
    RemoveFdb { device: u32, mac: Mac, to: IpAddr },
    SetRoute { network: IpNetwork, hop: Hop },
    RemoveRoute { network: IpNetwork, hop: Hop },
    SetBlackhole { network: IpNetwork },
    RemoveBlackhole { network: IpNetwork },
    SetVtep { network: IpNetwork, to: Remote },
    RemoveVtep { network: IpNetwork },
    SetSender { mac: Mac },
    RemoveSender { mac: Mac },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetNeighbour { address, mac, .. } => {
                write!(f, "set neighbour {address} at {mac}")
            }
            Self::RemoveNeighbour { address, .. } => write!(f, "remove neighbour {address}"),
            Self::SetFdb { mac, to, .. } => write!(f, "set forwarding entry {mac} to {to}"),
            Self::RemoveFdb { mac, to, .. } => write!(f, "remove forwarding entry {mac} to {to}"),
            Self::SetRoute { network, .. } => write!(f, "set route to {network}"),
            Self::RemoveRoute { network, .. } => write!(f, "remove route to {network}"),
            Self::SetBlackhole { network } => write!(f, "set blackhole route to {network}"),
            Self::RemoveBlackhole { network } => write!(f, "remove blackhole route to {network}"),
            Self::SetVtep { network, to } => {
                write!(f, "set the tunnel to {network} to {}", to.address)
            }
            Self::RemoveVtep { network } => write!(f, "remove the tunnel to {network}"),
            Self::SetSender { mac } => write!(f, "let {mac} send"),
            Self::RemoveSender { mac } => write!(f, "let {mac} send no more"),
        }
    }
}

/// The writes that lead from what is to what shall be, in an order in which no packet finds a
/// route whose neighbour is missing: the kernel would ask the network for it.
pub fn diff(wanted: &Entries, actual: &Entries) -> Vec<Op> {
    let mut ops = Vec::new();
    let is_gone =
        |(network, hop): &(&IpNetwork, &Hop)| hop.is_ours && !wanted.routes.contains_key(network);
    let gone = actual.routes.iter().filter(is_gone);
    ops.extend(gone.map(|(&network, &hop)| Op::RemoveRoute { network, hop }));
    for (&(device, address), &mac) in &wanted.neighbours {
        if actual.neighbours.get(&(device, address)) != Some(&mac) {
            ops.push(Op::SetNeighbour { device, address, mac });
        }
    }
    for (&(device, mac), places) in &wanted.fdb {
        let found = actual.fdb.get(&(device, mac));
        let surplus = found.into_iter().flatten().filter(|place| !places.contains(place));
        let surplus: Vec<IpAddr> = surplus.copied().collect();
        let is_there = found.is_some_and(|found| places.is_subset(found));
        // One wrong place is replaced, without a moment in which there is none.
        let kept = usize::from(!is_there);
        ops.extend(surplus.iter().skip(kept).map(|&to| Op::RemoveFdb { device, mac, to }));
        if !is_there {
            ops.extend(places.iter().map(|&to| Op::SetFdb { device, mac, to }));
        }
    }
    // A peer may send before we send to it.
    let added = wanted.senders.difference(&actual.senders);
    ops.extend(added.map(|&mac| Op::SetSender { mac }));
    for (&network, &to) in &wanted.vteps {
        if actual.vteps.get(&network) != Some(&to) {
            ops.push(Op::SetVtep { network, to });
        }
    }
    let added = wanted.blackholes.difference(&actual.blackholes);
    ops.extend(added.map(|&network| Op::SetBlackhole { network }));
    for (&network, &hop) in &wanted.routes {
        if actual.routes.get(&network) != Some(&hop) {
            ops.push(Op::SetRoute { network, hop });
        }
    }
    for &(device, address) in actual.neighbours.keys() {
        if !wanted.neighbours.contains_key(&(device, address)) {
            ops.push(Op::RemoveNeighbour { device, address });
        }
    }
    for (&(device, mac), places) in &actual.fdb {
        if !wanted.fdb.contains_key(&(device, mac)) {
            ops.extend(places.iter().map(|&to| Op::RemoveFdb { device, mac, to }));
        }
    }
    let gone = actual.vteps.keys().filter(|network| !wanted.vteps.contains_key(network));
    ops.extend(gone.map(|&network| Op::RemoveVtep { network }));
    let gone = actual.senders.difference(&wanted.senders);
    ops.extend(gone.map(|&mac| Op::RemoveSender { mac }));
    let gone = actual.blackholes.difference(&wanted.blackholes);
    ops.extend(gone.map(|&network| Op::RemoveBlackhole { network }));
    ops
}

impl Op {
    /// True if it is a row of a table, and no matter of netlink.
    pub fn is_row(&self) -> bool {
        matches!(
            self,
            Self::SetVtep { .. }
                | Self::RemoveVtep { .. }
                | Self::SetSender { .. }
                | Self::RemoveSender { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel makes of a write, refusals included.
    fn apply(entries: &mut Entries, op: Op) {
        match op {
            Op::SetNeighbour { device, address, mac } => {
                entries.neighbours.insert((device, address), mac);
            }
            Op::RemoveNeighbour { device, address } => {
                entries.neighbours.remove(&(device, address)).expect("ENOENT");
            }
            Op::SetFdb { device, mac, to } => {
                // Replacing changes the first of several.
                let places = entries.fdb.entry((device, mac)).or_default();
                places.pop_first();
                places.insert(to);
            }
            Op::RemoveFdb { device, mac, to } => {
                let places = entries.fdb.get_mut(&(device, mac)).expect("ENOENT");
                assert!(places.remove(&to), "ENOENT");
                if places.is_empty() {
                    entries.fdb.remove(&(device, mac));
                }
            }
            Op::SetRoute { network, hop } => {
                if let (Some(via), true) = (hop.via, hop.is_onlink) {
                    assert!(entries.neighbours.contains_key(&(hop.device, via)), "would ask");
                }
                entries.routes.insert(network, hop);
            }
            Op::RemoveRoute { network, hop } => {
                assert_eq!(entries.routes.remove(&network), Some(hop), "ESRCH");
            }
            Op::SetBlackhole { network } => assert!(entries.blackholes.insert(network), "EEXIST"),
            Op::RemoveBlackhole { network } => {
                assert!(entries.blackholes.remove(&network), "ESRCH");
            }
            Op::SetVtep { network, to } => {
                assert!(entries.senders.contains(&to.mac), "it could not answer");
                entries.vteps.insert(network, to);
            }
            Op::RemoveVtep { network } => {
                entries.vteps.remove(&network).expect("ENOENT");
            }
            Op::SetSender { mac } => assert!(entries.senders.insert(mac), "EEXIST"),
            Op::RemoveSender { mac } => {
                let is_used = entries.vteps.values().any(|to| to.mac == mac);
                assert!(!is_used && entries.senders.remove(&mac), "ENOENT");
            }
        }
    }

    fn mac(nth: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, nth])
    }

    fn ip(nth: u8) -> IpAddr {
        [10, 244, nth, 0].into()
    }

    /// How a peer is reached.
    #[derive(Clone, Copy, Debug)]
    enum Way {
        /// A neighbour, a forwarding entry and a route.
        Device,
        /// A route.
        Direct,
        /// Rows of the programs' tables.
        Programs { answers: bool },
    }

    fn way() -> impl Strategy<Value = Way> {
        let programs = any::<bool>().prop_map(|answers| Way::Programs { answers });
        prop_oneof![Just(Way::Device), Just(Way::Direct), programs]
    }

    /// Peers as a set of entries.
    fn wanted() -> impl Strategy<Value = Entries> {
        prop::collection::btree_map(0_u8..6, (0_u8..6, 0_u8..4, way()), 0..6).prop_map(|peers| {
            let mut entries = Entries::default();
            for (peer, (inner, outer, way)) in peers {
                let network = IpNetwork::new(ip(peer), 24).unwrap();
                let hop = |device, via, is_onlink| Hop {
                    device,
                    via: Some(via),
                    is_onlink,
                    is_ours: true,
                };
                match way {
                    Way::Direct => {
                        entries.routes.insert(network, hop(2, ip(100 + outer), false));
                    }
                    Way::Device => {
                        entries.neighbours.insert((1, ip(peer)), mac(inner));
                        entries.fdb.insert((1, mac(inner)), [ip(100 + outer)].into());
                        entries.routes.insert(network, hop(1, ip(peer), true));
                    }
                    Way::Programs { answers } => {
                        let (address, by_uplink) = (ip(100 + outer), outer % 2 == 0);
                        let to = Remote { address, mac: mac(inner), by_uplink, answers };
                        entries.vteps.insert(network, to);
                        entries.senders.insert(to.mac);
                        entries.blackholes.insert(network);
                    }
                }
            }
            entries
        })
    }

    proptest! {
        #[test]
        fn the_difference_leads_there(wanted in wanted(), mut actual in wanted(), more: Vec<u8>) {
            // Another hand added places, and routes that are not ours.
            for nth in more {
                if let Some((_, places)) = actual.fdb.iter_mut().next() {
                    places.insert(ip(200_u8.saturating_add(nth % 5)));
                }
                let network = IpNetwork::new(ip(50 + nth % 5), 24).unwrap();
                let hop = Hop { device: 9, via: None, is_onlink: false, is_ours: false };
                actual.routes.insert(network, hop);
            }
            let foreign: Vec<_> = actual.routes.iter().filter(|(_, hop)| !hop.is_ours)
                .map(|(&network, &hop)| (network, hop)).collect();
            for op in diff(&wanted, &actual) {
                apply(&mut actual, op);
            }
            let mut expected = wanted.clone();
            expected.routes.extend(foreign);
            prop_assert_eq!(&actual, &expected);
            prop_assert_eq!(diff(&wanted, &actual), []);
        }
    }
}
