//! The `ip` command lines of a lab: which devices, addresses and routes each namespace gets.

use crate::{
    address::{self, SERVICE_CIDR4, SERVICE_CIDR6},
    namespace::Namespace,
    spec::{LabSpec, NodeSpec, PodLinks},
};

/// Settings of every namespace. Addresses are usable at once: no duplicate detection.
pub(crate) fn sysctls(spec: &LabSpec, forwards: bool) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    let mut set = |name: &str, value: String| entries.push((name.to_string(), value));
    for scope in ["all", "default"] {
        set(&format!("ipv6/conf/{scope}/disable_ipv6"), "0".into());
        set(&format!("ipv6/conf/{scope}/accept_dad"), "0".into());
        set(&format!("ipv6/conf/{scope}/accept_ra"), "0".into());
        set(&format!("ipv4/conf/{scope}/rp_filter"), spec.rp_filter.to_string());
    }
    if forwards {
        set("ipv4/ip_forward", "1".into());
        set("ipv6/conf/all/forwarding", "1".into());
    }
    entries
}

/// The network between the nodes: one bridge, one port for each node and the client.
pub(crate) fn fabric(lab: &str, spec: &LabSpec) -> Vec<String> {
    let mut lines = vec![
        "link set lo up".into(),
        "link add ul0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".into(),
        "link set ul0 address 02:78:00:00:00:01 up".into(),
        format!("address add {}/24 dev ul0", address::FABRIC4),
        format!("address add {}/64 dev ul0 nodad", address::FABRIC6),
    ];
    for name in spec.nodes.iter().map(|node| node.name.as_str()).chain(["client"]) {
        let namespace = Namespace::new(lab, name).name;
        lines.push(format!("link add to-{name} type veth peer name eth0 netns {namespace}"));
        lines.push(format!("link set to-{name} master ul0 up"));
    }
    // What stands for the outside is also the nodes' router, which knows the pods.
    for (number, _) in spec.nodes().filter(|_| !spec.overlay) {
        let [v4, v6] = address::pod_cidrs(number);
        lines.push(format!("route add {v4} via {}", address::node4(number)));
        lines.push(format!("route add {v6} via {}", address::node6(number)));
    }
    lines
}

pub(crate) fn client(spec: &LabSpec) -> Vec<String> {
    let mut lines = uplink(&address::CLIENT4.to_string(), &address::CLIENT6.to_string());
    if spec.client_service_routes && !spec.nodes.is_empty() {
        lines.push(format!("route add {SERVICE_CIDR4} via {}", address::node4(1)));
        lines.push(format!("route add {SERVICE_CIDR6} via {}", address::node6(1)));
    }
    lines
}

/// A node without its pods.
pub(crate) fn node(spec: &LabSpec, number: u8, node: &NodeSpec) -> Vec<String> {
    let mut lines =
        uplink(&address::node4(number).to_string(), &address::node6(number).to_string());
    lines.push(format!("route add default via {}", address::FABRIC4));
    lines.push(format!("route add ::/0 via {}", address::FABRIC6));
    if node.pod_links == PodLinks::Bridge {
        lines.extend(bridge(number, spec.pod_mtu));
    }
    for (other, _) in spec.nodes().filter(|(other, _)| *other != number && !spec.overlay) {
        let [v4, v6] = address::pod_cidrs(other);
        lines.push(format!("route add {v4} via {}", address::node4(other)));
        lines.push(format!("route add {v6} via {}", address::node6(other)));
    }
    lines
}

fn uplink(v4: &str, v6: &str) -> Vec<String> {
    vec![
        "link set lo up".into(),
        format!("address add {v4}/24 dev eth0"),
        format!("address add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".into(),
    ]
}

/// Its hardware address is set, or it would change with the first port.
fn bridge(node: u8, mtu: u16) -> Vec<String> {
    vec![
        "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".into(),
        format!("link set cni0 address 02:10:24:40:{node:02x}:01 mtu {mtu} up"),
        format!("address add {}/24 dev cni0", address::gateway4(node)),
        format!("address add {}/64 dev cni0 nodad", address::gateway6(node)),
    ]
}

/// The node's side of a pod's link.
pub(crate) fn pod_port(lab: &str, spec: &LabSpec, node: u8, slot: u8, pod: &str) -> Vec<String> {
    let namespace = Namespace::new(lab, pod).name;
    let mtu = spec.pod_mtu;
    let mut lines = vec![format!(
        "link add veth{pod} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"
    )];
    match spec.nodes[usize::from(node) - 1].pod_links {
        PodLinks::Bridge => lines.push(format!("link set veth{pod} master cni0 up")),
        PodLinks::Routed => lines.extend([
            format!("link set veth{pod} up"),
            format!("address add {}/32 dev veth{pod}", address::gateway4(node)),
            format!("address add {}/128 dev veth{pod} nodad", address::gateway6(node)),
            format!("route add {}/32 dev veth{pod}", address::pod4(node, slot)),
            format!("route add {}/128 dev veth{pod}", address::pod6(node, slot)),
        ]),
    }
    lines
}

/// The pod's own side.
pub(crate) fn pod(spec: &LabSpec, node: u8, slot: u8) -> Vec<String> {
    let (v4, v6) = (address::pod4(node, slot), address::pod6(node, slot));
    let (gateway4, gateway6) = (address::gateway4(node), address::gateway6(node));
    let mut lines = vec!["link set lo up".into()];
    match spec.nodes[usize::from(node) - 1].pod_links {
        PodLinks::Bridge => lines.extend([
            format!("address add {v4}/24 dev eth0"),
            format!("address add {v6}/64 dev eth0 nodad"),
            "link set eth0 up".into(),
        ]),
        PodLinks::Routed => lines.extend([
            format!("address add {v4}/32 dev eth0"),
            format!("address add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".into(),
            format!("route add {gateway4}/32 dev eth0 scope link"),
            format!("route add {gateway6}/128 dev eth0"),
        ]),
    }
    lines.push(format!("route add default via {gateway4}"));
    lines.push(format!("route add ::/0 via {gateway6}"));
    lines
}
