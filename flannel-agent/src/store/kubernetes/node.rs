//! Between a Node and a lease, without a cluster.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::Value;

use crate::{
    annotation::Annotations,
    lease::{self, Attrs, Expiry, Lease},
    net_config::NetConfig,
    store::Entry,
    subnet::{Subnet, masked},
};

/// The first podCIDR of each family, else the one of the older field.
pub(super) fn subnet(node: &Node) -> Subnet {
    let Some(spec) = &node.spec else { return Subnet::default() };
    let cidrs = spec.pod_cidrs.clone().filter(|cidrs| !cidrs.is_empty());
    let cidrs = cidrs.unwrap_or_else(|| spec.pod_cidr.clone().into_iter().collect());
    let parse = |cidr: &String| cidr.parse::<IpNetwork>().ok().map(masked);
    Subnet::from_networks(cidrs.iter().filter_map(parse))
}

/// The families that the network has: a cluster may assign more.
pub(super) fn only(subnet: Subnet, config: &NetConfig) -> Subnet {
    Subnet {
        v4: subnet.v4.filter(|_| config.v4.is_some()),
        v6: subnet.v6.filter(|_| config.v6.is_some()),
    }
}

/// What a node says of itself; `None` of one that does not take part.
pub(super) fn entry(names: &Annotations, node: &Node) -> Option<Entry> {
    let annotations = node.annotations();
    let read = |name: String| annotations.get(&name).map(String::as_str);
    if read(names.kube_subnet_manager()) != Some("true") {
        return None;
    }
    let data = |name: String| match read(name.clone()) {
        None | Some("" | "null") => Ok(None),
        Some(text) => serde_json::from_str::<Value>(text)
            .map(Some)
            .map_err(|_| format!("annotation {name}: {text} is not JSON")),
    };
    let address = |name: String, expected: &str| {
        let text = read(name.clone()).filter(|text| !text.is_empty());
        text.map(|text| {
            text.parse().map_err(|_| format!("annotation {name}: {text} is no {expected}"))
        })
        .transpose()
    };
    // What cannot be read of one family leaves the other: it reaches us as absent or as it is,
    // and the one that needs it complains.
    let public_ip = address(names.public_ip(), "IPv4 address");
    let lease = public_ip.map(|public_ip| {
        let public_ipv6 = address(names.public_ipv6(), "IPv6 address").ok().flatten();
        let kept =
            |name: String| data(name.clone()).unwrap_or_else(|_| read(name).map(Value::from));
        Lease {
            subnet: subnet(node),
            attrs: Attrs {
                public_ip: public_ip.and_then(lease::public_ipv4),
                public_ipv6: public_ipv6.and_then(lease::public_ipv6),
                backend_type: read(names.backend_type()).unwrap_or_default().into(),
                backend_data: kept(names.backend_data()),
                backend_v6_data: kept(names.backend_v6_data()),
            },
            expires: Expiry::Never,
        }
    });
    Some(Entry { key: node.name_any(), lease })
}

/// The annotations that say so; what an operator wrote to be said instead is said.
pub(super) fn annotations(
    names: &Annotations,
    attrs: &Attrs,
    present: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let text = |data: &Option<Value>| data.as_ref().map_or("null".into(), Value::to_string);
    let said = |overwrite: String, own: String| {
        present.get(&overwrite).filter(|text| !text.is_empty()).cloned().unwrap_or(own)
    };
    let mut annotations = BTreeMap::from([
        (names.kube_subnet_manager(), "true".to_owned()),
        (names.backend_type(), attrs.backend_type.clone()),
    ]);
    if let Some(ip) = attrs.public_ip {
        annotations.insert(names.backend_data(), text(&attrs.backend_data));
        let ip = said(names.public_ip_overwrite(), ip.to_string());
        annotations.insert(names.public_ip(), ip);
    }
    if let Some(ip) = attrs.public_ipv6 {
        annotations.insert(names.backend_v6_data(), text(&attrs.backend_v6_data));
        let ip = said(names.public_ipv6_overwrite(), ip.to_string());
        annotations.insert(names.public_ipv6(), ip);
    }
    annotations
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{annotation::DEFAULT_PREFIX, lease::Vtep, mac};

    fn names() -> Annotations {
        Annotations::new(DEFAULT_PREFIX).unwrap()
    }

    fn node(annotations: &BTreeMap<String, String>) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "node2", "annotations": annotations },
            "spec": { "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"] },
        }))
        .unwrap()
    }

    fn attrs() -> Attrs {
        let mac = mac::parse("12:c6:65:89:b4:e3").unwrap();
        Attrs {
            public_ip: "192.168.78.12".parse().ok(),
            public_ipv6: "fd00:78::12".parse().ok(),
            backend_type: "vxlan".into(),
            backend_data: Some(Vtep { vni: 1, mac, answers: false }.to_value()),
            backend_v6_data: Some(Vtep { vni: 1, mac, answers: false }.to_value()),
        }
    }

    #[test]
    fn annotations_are_flannels_to_the_byte_and_read_again() {
        let written = annotations(&names(), &attrs(), &BTreeMap::new());
        let text: Vec<String> =
            written.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text,
            [
                r#"flannel.alpha.coreos.com/backend-data={"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
                "flannel.alpha.coreos.com/backend-type=vxlan",
                r#"flannel.alpha.coreos.com/backend-v6-data={"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#,
                "flannel.alpha.coreos.com/kube-subnet-manager=true",
                "flannel.alpha.coreos.com/public-ip=192.168.78.12",
                "flannel.alpha.coreos.com/public-ipv6=fd00:78::12",
            ]
        );
        let lease = entry(&names(), &node(&written)).unwrap().lease.unwrap();
        assert_eq!(lease.attrs, attrs());
        assert_eq!(lease.subnet.to_string(), "10.244.2.0/24,fd00:10:244:2::/64");
    }

    #[test]
    fn a_node_says_that_it_answers_clients_and_that_it_ended() {
        let mac = mac::parse("12:c6:65:89:b4:e3").unwrap();
        let data = Some(Vtep { vni: 1, mac, answers: true }.to_value());
        let answering = Attrs { backend_data: data.clone(), backend_v6_data: data, ..attrs() };
        let written = annotations(&names(), &answering, &BTreeMap::new());
        let said = r#"{"DSR":true,"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#;
        assert_eq!(written[&names().backend_data()], said);
        assert_eq!(written[&names().backend_v6_data()], said);
        let lease = entry(&names(), &node(&written)).unwrap().lease.unwrap();
        assert_eq!(lease.attrs, answering);
        let after = annotations(&names(), &attrs(), &written);
        assert_eq!(after, annotations(&names(), &attrs(), &BTreeMap::new()));
    }

    #[test]
    fn operators_say_another_address() {
        let present = BTreeMap::from([(names().public_ip_overwrite(), "9.9.9.9".to_owned())]);
        let written = annotations(&names(), &attrs(), &present);
        assert_eq!(written[&names().public_ip()], "9.9.9.9");
        assert_eq!(written[&names().public_ipv6()], "fd00:78::12");
    }

    #[test]
    fn who_takes_no_part_is_nobody_and_bad_data_is_one_familys() {
        let mut written = annotations(&names(), &attrs(), &BTreeMap::new());
        written.insert(names().backend_v6_data(), "{".into());
        let lease = entry(&names(), &node(&written)).unwrap().lease.unwrap();
        assert!(Vtep::read(lease.attrs.backend_data.as_ref().unwrap()).is_some());
        assert!(Vtep::read(lease.attrs.backend_v6_data.as_ref().unwrap()).is_none());
        written.insert(names().kube_subnet_manager(), "false".into());
        assert_eq!(entry(&names(), &node(&written)), None);
    }

    #[test]
    fn the_older_field_serves_where_the_newer_is_not() {
        let node: Node =
            serde_json::from_value(json!({ "spec": { "podCIDR": "10.244.9.0/24" } })).unwrap();
        assert_eq!(subnet(&node).to_string(), "10.244.9.0/24");
    }
}
