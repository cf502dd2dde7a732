//! Nodes: where NodePorts answer, and in which zone endpoints are preferred.

use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Report, address::Use, labels};
use crate::{
    manifest::document::{Document, NodeAddress, Spec},
    model::{Node, Object},
};

/// Set by the cluster autoscaler before it takes a node away (KEP-3836).
const GOING: &str = "ToBeDeletedByClusterAutoscaler";

#[expect(clippy::unnecessary_wraps, reason = "the signature of all kinds")]
pub(super) fn node(document: Document, report: &mut Report) -> Option<Object> {
    let spec = document.spec.unwrap_or_default();
    let zone = labels(document.metadata.as_ref()).and_then(|labels| labels.zone.clone());
    let deleted = document.metadata.is_some_and(|metadata| metadata.deletion_timestamp.is_some());
    let taints = spec.taints.as_deref().unwrap_or_default();
    let tainted = taints.iter().any(|taint| taint.key.as_deref() == Some(GOING));
    let addresses = document.status.and_then(|status| status.addresses).unwrap_or_default();
    let mut of_type = |wanted| -> Box<[_]> {
        let addresses = addresses.iter().enumerate();
        addresses
            .filter_map(|(index, address)| self::address(index, address, wanted, report))
            .collect()
    };
    let internal_ips = of_type("InternalIP");
    let external_ips = of_type("ExternalIP");
    Some(Object::Node(Arc::new(Node {
        name: Arc::clone(&report.key.name.name),
        zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
        internal_ips,
        external_ips,
        pod_cidrs: pod_cidrs(&spec, report),
        going: deleted || tainted,
    })))
}

fn address(
    index: usize,
    document: &NodeAddress,
    wanted: &str,
    report: &mut Report,
) -> Option<std::net::IpAddr> {
    if document.r#type.as_deref() != Some(wanted) {
        return None;
    }
    let text = document.address.as_deref().unwrap_or_default();
    report.address(&format!("status.addresses[{index}].address"), text, Use::Any)
}

fn pod_cidrs(spec: &Spec, report: &mut Report) -> Box<[IpNetwork]> {
    let single: Vec<&str> = spec.pod_cidr.as_deref().into_iter().collect();
    let listed: Vec<&str> = spec.pod_cidrs.iter().flatten().map(String::as_str).collect();
    let (field, texts) = if listed.is_empty() { ("podCIDR", single) } else { ("podCIDRs", listed) };
    let texts = texts.into_iter().filter(|text| !text.is_empty());
    texts.filter_map(|text| report.network(&format!("spec.{field}"), text)).collect()
}
