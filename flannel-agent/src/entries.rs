//! What the kernel is told of peers: neighbours, forwarding entries of tunnel devices, and
//! routes. The same structure for what there shall be and what there is, and the difference of
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
    ops
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
        }
    }

    fn mac(nth: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, nth])
    }

    fn ip(nth: u8) -> IpAddr {
        [10, 244, nth, 0].into()
    }

    /// Peers as a set of entries: each has a neighbour, a forwarding entry and a route.
    fn wanted() -> impl Strategy<Value = Entries> {
        prop::collection::btree_map(0_u8..6, (0_u8..6, 0_u8..4, any::<bool>()), 0..6).prop_map(
            |peers| {
                let mut entries = Entries::default();
                for (peer, (inner, outer, is_direct)) in peers {
                    let network = IpNetwork::new(ip(peer), 24).unwrap();
                    if is_direct {
                        let hop = Hop {
                            device: 2,
                            via: Some(ip(100 + outer)),
                            is_onlink: false,
                            is_ours: true,
                        };
                        entries.routes.insert(network, hop);
                        continue;
                    }
                    entries.neighbours.insert((1, ip(peer)), mac(inner));
                    entries.fdb.insert((1, mac(inner)), [ip(100 + outer)].into());
                    let hop =
                        Hop { device: 1, via: Some(ip(peer)), is_onlink: true, is_ours: true };
                    entries.routes.insert(network, hop);
                }
                entries
            },
        )
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
