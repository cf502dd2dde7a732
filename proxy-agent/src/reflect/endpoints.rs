//! EndpointSlices and core/v1 Endpoints, as pkg/proxy/endpointslicecache.go reads them.

use std::{net::IpAddr, num::NonZeroU64, sync::Arc};

use jiff::Timestamp;

use super::{Report, address::Use, annotation, is_for_another, labels, share};
use crate::{
    desired::IpFamily,
    manifest::document::{
        Conditions, Document, Endpoint as EndpointDocument, EndpointAddress, EndpointHints,
        EndpointPort, Hint, Metadata, Subset,
    },
    model::{Endpoint, EndpointSet, Hints, Name, Object, Slice, SlicePort, Weight},
    problem::ProblemKind,
};

/// `None` if it belongs to no Service, or holds host names.
pub(super) fn slice(document: Document, report: &mut Report) -> Option<Object> {
    if is_for_another(document.metadata.as_ref()) {
        return None;
    }
    let triggered_ms = triggered_ms(document.metadata.as_ref());
    let service = labels(document.metadata.as_ref())?.service_name.clone();
    let service = service.filter(|name| !name.is_empty())?;
    let family = match document.address_type.as_deref().unwrap_or_default() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => return None,
        other => {
            report.refuse("addressType", format!("unknown type {other:?}; write IPv4 or IPv6"));
            return None;
        }
    };
    let weights = annotation::weights(document.metadata.as_ref(), report);
    let endpoints = document.endpoints.unwrap_or_default();
    let endpoints = endpoints
        .iter()
        .enumerate()
        .filter_map(|(index, document)| endpoint(index, document, family, report))
        .map(|endpoint| endpoint.weighted(&weights))
        .collect();
    let ports = ports(document.ports.as_deref(), "ports", report);
    let name =
        Name { namespace: Arc::clone(&report.key.name.namespace), name: service.as_str().into() };
    let slices = [Slice { family, endpoints, ports }].into();
    let set = EndpointSet { service: name, from_slice: true, triggered_ms, slices };
    Some(Object::Endpoints(Arc::new(set)))
}

/// Only measured by: a time that cannot be read is as good as none.
fn triggered_ms(metadata: Option<&Metadata>) -> Option<NonZeroU64> {
    let annotations = metadata?.annotations.as_ref()?;
    let time: Timestamp = annotations.last_change_trigger_time.as_deref()?.parse().ok()?;
    NonZeroU64::new(time.as_millisecond().try_into().ok()?)
}

/// Only `addresses[0]` counts. Conditions that are missing: ready and serving are true,
/// terminating is false (discovery/v1 EndpointConditions).
fn endpoint(
    index: usize,
    document: &EndpointDocument,
    family: IpFamily,
    report: &mut Report,
) -> Option<Endpoint> {
    let field = format!("endpoints[{index}].addresses");
    let Some(text) = document.addresses.as_deref().unwrap_or_default().first() else {
        report.note(ProblemKind::Ignored, field, "an endpoint without address is left out");
        return None;
    };
    let field = format!("{field}[0]");
    let address = report.address(&field, text, Use::Reachable)?;
    if IpFamily::of(&address) != family {
        report.refuse(field, format!("{address} is not of the slice's addressType"));
        return None;
    }
    let nothing = Conditions::default();
    let conditions = document.conditions.as_ref().unwrap_or(&nothing);
    Some(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        weight: None,
        node: share(document.node_name.as_deref(), report),
        hints: hints(document.hints.as_ref(), report),
    })
}

fn hints(document: Option<&EndpointHints>, report: &mut Report) -> Option<Box<Hints>> {
    let document = document?;
    let mut names = |hints: Option<&[Hint]>| -> Box<[Arc<str>]> {
        let names = hints.unwrap_or_default().iter();
        names.filter_map(|hint| share(hint.name.as_deref(), report)).collect()
    };
    let hints = Hints {
        zones: names(document.for_zones.as_deref()),
        nodes: names(document.for_nodes.as_deref()),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

/// A port without number means all ports and is left out, as kube-proxy does. One without
/// name counts as named "": the API server writes that before kube-proxy sees it.
fn ports(documents: Option<&[EndpointPort]>, field: &str, report: &mut Report) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    for (index, document) in documents.unwrap_or_default().iter().enumerate() {
        let Some(number) = document.port.filter(|&number| number != 0) else { continue };
        let field = format!("{field}[{index}]");
        let proto = report.protocol(&format!("{field}.protocol"), document.protocol.as_deref());
        let port = report.port(&format!("{field}.port"), number);
        if let Some(proto) = proto {
            let name = report.strings.share(document.name.as_deref().unwrap_or_default());
            ports.push(SlicePort { name, proto, port });
        }
    }
    ports.into()
}

/// Named like their Service.
pub(super) fn endpoints(document: Document, report: &mut Report) -> Option<Object> {
    if is_for_another(document.metadata.as_ref()) {
        return None;
    }
    let weights = annotation::weights(document.metadata.as_ref(), report);
    let mut slices = Vec::new();
    for (index, subset) in document.subsets.unwrap_or_default().iter().enumerate() {
        subset_slices(subset, &format!("subsets[{index}]"), &weights, &mut slices, report);
    }
    let service = report.key.name.clone();
    let slices = slices.into();
    let set = EndpointSet { service, from_slice: false, triggered_ms: None, slices };
    Some(Object::Endpoints(Arc::new(set)))
}

fn subset_slices(
    subset: &Subset,
    field: &str,
    weights: &[Weight],
    slices: &mut Vec<Slice>,
    report: &mut Report,
) {
    let ports = ports(subset.ports.as_deref(), &format!("{field}.ports"), report);
    let mut endpoints = Vec::new();
    let lists = [
        ("addresses", true, subset.addresses.as_deref()),
        ("notReadyAddresses", false, subset.not_ready_addresses.as_deref()),
    ];
    for (list, ready, addresses) in lists {
        for (index, address) in addresses.unwrap_or_default().iter().enumerate() {
            let field = format!("{field}.{list}[{index}].ip");
            let endpoint = from_address(address, ready, &field, report);
            endpoints.extend(endpoint.map(|endpoint| endpoint.weighted(weights)));
        }
    }
    for family in [IpFamily::V4, IpFamily::V6] {
        let of_family = |endpoint: &&Endpoint| IpFamily::of(&endpoint.address) == family;
        let endpoints: Box<[Endpoint]> = endpoints.iter().filter(of_family).cloned().collect();
        if !endpoints.is_empty() {
            slices.push(Slice { family, endpoints, ports: ports.clone() });
        }
    }
}

fn from_address(
    document: &EndpointAddress,
    ready: bool,
    field: &str,
    report: &mut Report,
) -> Option<Endpoint> {
    let text = document.ip.as_deref().unwrap_or_default();
    let address: IpAddr = report.address(field, text, Use::Reachable)?;
    let node = share(document.node_name.as_deref(), report);
    let (serving, terminating) = (ready, false);
    Some(Endpoint { address, ready, serving, terminating, weight: None, node, hints: None })
}

impl Endpoint {
    fn weighted(self, weights: &[Weight]) -> Self {
        Self { weight: Weight::of(weights, self.address, self.node.as_deref()), ..self }
    }
}
