//! Services, with the defaults that the API server fills in, because manifests in a directory
//! have met none.

use std::{collections::HashSet, fmt::Display, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use super::{Report, address::Use, annotation, is_for_another};
use crate::{
    desired::IpFamily,
    manifest::document::{Document, LoadBalancerIngress, ServicePort as PortDocument, Spec},
    model::{Object, Service, ServicePort, ServiceType},
    problem::ProblemKind,
};

/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`, and its bound.
const AFFINITY_TIMEOUT_SEC: i64 = 10_800;
const AFFINITY_TIMEOUT_MAX_SEC: i64 = 86_400;

/// `None` if kube-proxy leaves it alone, by ShouldSkipService of pkg/proxy/util.
pub(super) fn service(document: Document, report: &mut Report) -> Option<Object> {
    let spec = document.spec.unwrap_or_default();
    if is_for_another(document.metadata.as_ref()) {
        return None;
    }
    let kind = service_type(&spec, report)?;
    let cluster_ips = cluster_ips(&spec, report)?;
    let metadata = document.metadata.as_ref();
    let algorithm = annotation::algorithm(metadata, report);
    let weights = annotation::weights(metadata, report);
    let without_sockets = annotation::without_sockets(metadata, report);
    let ingress = document.status.and_then(|status| status.load_balancer?.ingress);
    let created = document.metadata.and_then(|metadata| metadata.creation_timestamp);
    let service = Service {
        name: report.key.name.clone(),
        kind,
        created: created.as_deref().and_then(digits),
        ports: ports(&spec, report),
        external_ips: external_ips(&spec, &cluster_ips, report),
        load_balancer_ips: load_balancer_ips(ingress.as_deref(), &cluster_ips, report),
        source_ranges: source_ranges(&spec, &cluster_ips, report),
        internal_local: is_local("internal", spec.internal_traffic_policy.as_deref(), report),
        external_local: is_local("external", spec.external_traffic_policy.as_deref(), report),
        health_check_node_port: health_check_node_port(&spec, kind, report),
        affinity_timeout_sec: affinity(&spec, report),
        algorithm,
        weights,
        without_sockets,
        cluster_ips,
    };
    Some(Object::Service(Arc::new(service)))
}

fn service_type(spec: &Spec, report: &mut Report) -> Option<ServiceType> {
    match spec.r#type.as_deref().unwrap_or_default() {
        "" | "ClusterIP" => Some(ServiceType::ClusterIp),
        "NodePort" => Some(ServiceType::NodePort),
        "LoadBalancer" => Some(ServiceType::LoadBalancer),
        "ExternalName" => None,
        other => {
            let message = format!(
                "unknown type {other:?}; write ClusterIP, NodePort, LoadBalancer or ExternalName"
            );
            report.refuse("spec.type", message);
            None
        }
    }
}

/// `None` if the Service is headless or has no address.
fn cluster_ips(spec: &Spec, report: &mut Report) -> Option<Box<[IpAddr]>> {
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    if single == "None" || listed.first().is_some_and(|text| text == "None") {
        return None;
    }
    let addresses: Vec<IpAddr> = if listed.is_empty() {
        if single.is_empty() {
            let message = "has no address, and nothing here gives it one; write one, or None";
            report.note(ProblemKind::Ignored, "spec.clusterIP", message);
            return None;
        }
        report.address("spec.clusterIP", single, Use::Reachable).into_iter().collect()
    } else {
        if !single.is_empty() && listed[0] != single {
            let message = format!("is not {single} as spec.clusterIP says; make them equal");
            report.refuse("spec.clusterIPs[0]", message);
        }
        addresses(listed, "spec.clusterIPs", report)
    };
    let families: HashSet<IpFamily> = addresses.iter().map(IpFamily::of).collect();
    if families.len() < addresses.len() {
        report.refuse("spec.clusterIPs", "has two addresses of one family; leave one out");
    }
    Some(addresses.into())
}

fn addresses(texts: &[String], field: &str, report: &mut Report) -> Vec<IpAddr> {
    let texts = texts.iter().enumerate();
    texts
        .filter_map(|(index, text)| {
            report.address(&format!("{field}[{index}]"), text, Use::Reachable)
        })
        .collect()
}

fn external_ips(spec: &Spec, cluster_ips: &[IpAddr], report: &mut Report) -> Box<[IpAddr]> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let addresses = addresses(texts, "spec.externalIPs", report);
    of_families(addresses, cluster_ips, "spec.externalIPs", report)
}

/// kube-proxy drops what belongs to a family that the Service lacks, with a line in its log
/// (newBaseServiceInfo of pkg/proxy/serviceport.go).
fn of_families(
    mut addresses: Vec<IpAddr>,
    cluster_ips: &[IpAddr],
    field: &str,
    report: &mut Report,
) -> Box<[IpAddr]> {
    addresses.retain(|address| is_of_families(address, address, cluster_ips, field, report));
    addresses.into()
}

/// Whether something counts that is of an address' family; tells if not.
fn is_of_families(
    what: &dyn Display,
    address: &IpAddr,
    cluster_ips: &[IpAddr],
    field: &str,
    report: &mut Report,
) -> bool {
    let counts = has_family(cluster_ips, IpFamily::of(address));
    if !counts {
        let message = format!("{what} is left out: the Service has no such family");
        report.note(ProblemKind::Ignored, field, message);
    }
    counts
}

fn has_family(cluster_ips: &[IpAddr], family: IpFamily) -> bool {
    cluster_ips.iter().any(|address| IpFamily::of(address) == family)
}

/// An ingress of mode Proxy is reached through the real load balancer (KEP-1860).
fn load_balancer_ips(
    ingress: Option<&[LoadBalancerIngress]>,
    cluster_ips: &[IpAddr],
    report: &mut Report,
) -> Box<[IpAddr]> {
    let field = "status.loadBalancer.ingress";
    let mut addresses = Vec::new();
    for (index, ingress) in ingress.unwrap_or_default().iter().enumerate() {
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        if matches!(ingress.ip_mode.as_deref(), None | Some("VIP")) {
            addresses.extend(report.address(&format!("{field}[{index}].ip"), text, Use::Any));
        }
    }
    of_families(addresses, cluster_ips, field, report)
}

fn source_ranges(spec: &Spec, cluster_ips: &[IpAddr], report: &mut Report) -> Box<[IpNetwork]> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let texts = texts.iter().enumerate();
    texts
        .filter_map(|(index, text)| {
            let field = format!("spec.loadBalancerSourceRanges[{index}]");
            let range = report.network(&field, text)?;
            is_of_families(&range, &range.ip(), cluster_ips, &field, report).then_some(range)
        })
        .collect()
}

fn is_local(which: &str, policy: Option<&str>, report: &mut Report) -> bool {
    match policy.unwrap_or_default() {
        "" | "Cluster" => false,
        "Local" => true,
        other => {
            let message = format!("unknown policy {other:?}; write Cluster or Local");
            report.refuse(format!("spec.{which}TrafficPolicy"), message);
            false
        }
    }
}

/// Only load balancers with externalTrafficPolicy Local are asked for it (NeedsHealthCheck of
/// pkg/api/v1/service); elsewhere it has no meaning.
fn health_check_node_port(spec: &Spec, kind: ServiceType, report: &mut Report) -> u16 {
    let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
    if kind != ServiceType::LoadBalancer || !is_local {
        return 0;
    }
    let field = "spec.healthCheckNodePort";
    match spec.health_check_node_port {
        None | Some(0) => {
            let message = "is missing: a load balancer cannot ask which nodes have endpoints, as \
                           externalTrafficPolicy Local needs; write a port";
            report.note(ProblemKind::Ignored, field, message);
            0
        }
        Some(number) => report.port(field, number),
    }
}

fn affinity(spec: &Spec, report: &mut Report) -> Option<u32> {
    match spec.session_affinity.as_deref().unwrap_or_default() {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            let message = format!("unknown affinity {other:?}; write None or ClientIP");
            report.refuse("spec.sessionAffinity", message);
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let timeout = timeout.unwrap_or(AFFINITY_TIMEOUT_SEC);
    if !(1..=AFFINITY_TIMEOUT_MAX_SEC).contains(&timeout) {
        let message = format!("{timeout} s is no timeout; write 1 to {AFFINITY_TIMEOUT_MAX_SEC}");
        report.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message);
    }
    u32::try_from(timeout).ok()
}

fn ports(spec: &Spec, report: &mut Report) -> Box<[ServicePort]> {
    let documents = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Vec<ServicePort> = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if let Some(port) = port(document, &field, report) {
            check_apart(&port, &ports, &field, report);
            ports.push(port);
        }
    }
    ports.into()
}

fn port(document: &PortDocument, field: &str, report: &mut Report) -> Option<ServicePort> {
    let proto = report.protocol(&format!("{field}.protocol"), document.protocol.as_deref())?;
    let port = if let Some(number) = document.port {
        report.port(&format!("{field}.port"), number)
    } else {
        report.refuse(format!("{field}.port"), "is missing; write 1 to 65535");
        0
    };
    let node_port = match document.node_port {
        None | Some(0) => 0,
        Some(number) => report.port(&format!("{field}.nodePort"), number),
    };
    let name = report.strings.share(document.name.as_deref().unwrap_or_default());
    Some(ServicePort { name, proto, port, node_port })
}

/// The API server's rules, without which a client's packet would have two answers.
fn check_apart(port: &ServicePort, others: &[ServicePort], field: &str, report: &mut Report) {
    let same_protocol = || others.iter().filter(|other| other.proto == port.proto);
    if others.iter().any(|other| other.name == port.name) {
        let message = format!("two ports are named {:?}; name them differently", port.name);
        report.refuse(format!("{field}.name"), message);
    }
    if port.port != 0 && same_protocol().any(|other| other.port == port.port) {
        let message = format!("two ports have number {}; leave one out", port.port);
        report.refuse(format!("{field}.port"), message);
    }
    if port.node_port != 0 && same_protocol().any(|other| other.node_port == port.node_port) {
        let message = format!("two ports have node port {}; leave one out", port.node_port);
        report.refuse(format!("{field}.nodePort"), message);
    }
}

/// Digits of a time as the API writes it, 2026-01-31T12:00:00Z: enough to tell which is older.
fn digits(time: &str) -> Option<u64> {
    let digits: String = time.chars().filter(char::is_ascii_digit).take(14).collect();
    (digits.len() == 14).then(|| digits.parse().ok()).flatten()
}
