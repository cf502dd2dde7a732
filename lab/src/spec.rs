//! The shape of a lab, as data.

use serde::{Deserialize, Serialize};

use crate::{
    address::{self, Addresses},
    error::{Error, Result},
};

/// What is raised. The default is two nodes with two pods each, and an outside client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LabSpec {
    pub nodes: Vec<NodeSpec>,
    /// Whether the client knows the way to ClusterIPs, by the first node.
    pub client_service_routes: bool,
    /// `rp_filter` of every namespace: 2 (loose) is what Debian sets.
    pub rp_filter: u8,
    /// MTU of pods and their links.
    pub pod_mtu: u16,
    /// No routes lead to other nodes' pods: an overlay shall.
    #[serde(default)]
    pub overlay: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    /// Slot of each pod; a removed pod leaves a hole, so that addresses never move.
    pub pods: Vec<Option<String>>,
    pub pod_links: PodLinks,
}

/// How pods reach their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PodLinks {
    /// Ports of the bridge `cni0`.
    Bridge,
    /// A routed veth for each pod and no bridge.
    Routed,
}

impl Default for LabSpec {
    fn default() -> Self {
        Self {
            nodes: vec![
                NodeSpec::new("node1", &["pod1a", "pod1b"]),
                NodeSpec::new("node2", &["pod2a", "pod2b"]),
            ],
            client_service_routes: false,
            rp_filter: 2,
            pod_mtu: 1500,
            overlay: false,
        }
    }
}

impl NodeSpec {
    pub fn new(name: &str, pods: &[&str]) -> Self {
        Self {
            name: name.into(),
            pods: pods.iter().map(|pod| Some((*pod).into())).collect(),
            pod_links: PodLinks::Bridge,
        }
    }

    #[must_use]
    pub fn routed(mut self) -> Self {
        self.pod_links = PodLinks::Routed;
        self
    }

    /// The pods that there are, with their slots.
    pub fn pods(&self) -> impl Iterator<Item = (u8, &str)> {
        (0u8..).zip(&self.pods).filter_map(|(slot, pod)| Some((slot, pod.as_deref()?)))
    }
}

/// Where a name stands in a lab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seat {
    Fabric,
    Client,
    Node { number: u8 },
    Pod { node: u8, slot: u8 },
}

impl LabSpec {
    /// Nodes with their numbers, counted from 1.
    pub fn nodes(&self) -> impl Iterator<Item = (u8, &NodeSpec)> {
        (1u8..).zip(&self.nodes)
    }

    pub(crate) fn seat(&self, name: &str) -> Option<Seat> {
        match name {
            "fabric" => return Some(Seat::Fabric),
            "client" => return Some(Seat::Client),
            _ => {}
        }
        self.nodes().find_map(|(number, node)| {
            if node.name == name {
                return Some(Seat::Node { number });
            }
            let (slot, _) = node.pods().find(|(_, pod)| *pod == name)?;
            Some(Seat::Pod { node: number, slot })
        })
    }

    pub(crate) fn addresses(&self, name: &str) -> Option<Addresses> {
        Some(match self.seat(name)? {
            Seat::Fabric => Addresses { v4: address::FABRIC4, v6: address::FABRIC6 },
            Seat::Client => Addresses { v4: address::CLIENT4, v6: address::CLIENT6 },
            Seat::Node { number } => {
                Addresses { v4: address::node4(number), v6: address::node6(number) }
            }
            Seat::Pod { node, slot } => {
                Addresses { v4: address::pod4(node, slot), v6: address::pod6(node, slot) }
            }
        })
    }

    /// Every place of the lab, by name.
    pub fn names(&self) -> Vec<&str> {
        let inside = self.nodes.iter().flat_map(|node| {
            std::iter::once(node.name.as_str()).chain(node.pods().map(|(_, pod)| pod))
        });
        ["fabric", "client"].into_iter().chain(inside).collect()
    }

    /// Refuses what addresses and device names (15 bytes, `veth` in front) cannot express.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |what, name: &str, reason| Error::BadSpec { what, name: name.into(), reason };
        if self.nodes.len() > 30 {
            return Err(bad("a node", "31", "30 nodes fit into the fabric's addresses"));
        }
        let names = self.names();
        for (at, name) in names.iter().enumerate() {
            if name.is_empty() || name.len() > 11 {
                return Err(bad("a place", name, "names have 1 to 11 bytes"));
            }
            if names[..at].contains(name) {
                return Err(bad("a place", name, "the name is taken"));
            }
        }
        match self.nodes.iter().find(|node| node.pods.len() > 200) {
            Some(node) => Err(bad("a node", &node.name, "200 pods fit on a node")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_the_names_do() {
        let spec = LabSpec::default();
        let pod = spec.addresses("pod2b").unwrap();
        assert_eq!(pod.v4.to_string(), "10.244.2.11");
        assert_eq!(pod.v6.to_string(), "fd00:10:244:2::11");
        let node = spec.addresses("node1").unwrap();
        assert_eq!(node.v4.to_string(), "192.168.78.11");
        assert_eq!(node.v6.to_string(), "fd00:78::11");
        assert_eq!(spec.addresses("pod3a"), None);
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        let mut spec = LabSpec::default();
        spec.validate().unwrap();
        spec.nodes[0].pods.push(Some("a-name-too-long".into()));
        assert!(spec.validate().is_err());
        spec.nodes[0].pods[2] = Some("pod2a".into());
        assert!(spec.validate().is_err());
    }
}
