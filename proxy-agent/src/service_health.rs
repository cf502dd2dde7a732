//! What a node tells a load balancer of a Service with externalTrafficPolicy Local: how many of
//! the Service's endpoints here could take its traffic. Pure, as `compile` is.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use serde::Serialize;

use crate::{
    desired::IpFamily,
    model::{EndpointSet, Name, Service},
};

/// What is to be answered, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceHealth {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
}

/// Those of all Services that have a health check.
pub type ServicesHealth = BTreeMap<Name, ServiceHealth>;

/// `None` if the Service has no health check.
///
/// An endpoint counts once, however many ports it has, if it is ready: one that is terminating is
/// not, though it still serves (KEP-1669), and the load balancer is to look for another node by then.
/// Where the Service publishes addresses that are not ready, all are said to be ready, and count. Of
/// a Service with two families, that with more endpoints counts, because a pod has an address in
/// each.
#[must_use]
pub fn service_health(
    service: &Service,
    sets: &[&EndpointSet],
    node: &str,
) -> Option<ServiceHealth> {
    let port = service.health_check_node_port;
    if port == 0 {
        return None;
    }
    let families = service.cluster_ips.iter().map(IpFamily::of);
    let counts = families.map(|family| ready_here(sets, family, node).len());
    Some(ServiceHealth { port, local_endpoints: counts.max().unwrap_or(0) })
}

/// What has no port serves nobody.
fn ready_here(sets: &[&EndpointSet], family: IpFamily, node: &str) -> HashSet<IpAddr> {
    let slices = EndpointSet::slices(sets, family).filter(|slice| !slice.ports.is_empty());
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    endpoints
        .filter(|endpoint| endpoint.ready)
        .filter(|endpoint| endpoint.node.as_deref() == Some(node))
        .map(|endpoint| endpoint.address)
        .collect()
}

/// The body of an answer, as pkg/proxy/healthcheck/service_health.go of kube-proxy writes it.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Answer<'a> {
    pub service: AnswerName<'a>,
    pub local_endpoints: usize,
    pub service_proxy_healthy: bool,
}

#[derive(Serialize, Debug)]
pub struct AnswerName<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Answer<'a> {
    #[must_use]
    pub fn new(name: &'a Name, local_endpoints: usize, service_proxy_healthy: bool) -> Self {
        let service = AnswerName { namespace: &name.namespace, name: &name.name };
        Self { service, local_endpoints, service_proxy_healthy }
    }

    /// Whether the load balancer is to send traffic here.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.local_endpoints > 0 && self.service_proxy_healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Object, Strings},
        reflect::{self, Outcome},
    };

    const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  clusterIPs: [10.0.0.1, 'fd00::1']
  ports: [{name: a, port: 80}, {name: b, port: 81}]
";

    fn objects(text: &str) -> impl Iterator<Item = Object> {
        let reading = reflect::read(text, &mut Strings::default()).expect("is YAML");
        assert_eq!(reading.problems, []);
        reading.objects.into_iter().map(|(key, outcome)| match outcome {
            Outcome::Good(object) => object,
            other => panic!("{key}: {other:?}"),
        })
    }

    /// The count for a dual-stack Service with these slices: family, ports, endpoints.
    fn count(slices: &[(&str, &str, &str)]) -> usize {
        let Some(Object::Service(service)) = objects(SERVICE).next() else { panic!("a Service") };
        let texts = slices.iter().enumerate().map(|(index, (family, ports, endpoints))| {
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
                 metadata: {{name: s{index}, labels: {{kubernetes.io/service-name: web}}}}\n\
                 ports: {ports}\nendpoints: {endpoints}\n"
            )
        });
        let sets: Vec<_> = texts
            .flat_map(|text| objects(&text).collect::<Vec<_>>())
            .filter_map(|object| match object {
                Object::Endpoints(set) => Some(set),
                _ => None,
            })
            .collect();
        let sets: Vec<&EndpointSet> = sets.iter().map(|set| &**set).collect();
        let health = service_health(&service, &sets, "here").expect("a health check");
        assert_eq!(health.port, 32_000);
        health.local_endpoints
    }

    const PORTS: &str = "[{name: a, port: 8080}, {name: b, port: 8081}]";

    #[test]
    fn an_endpoint_counts_once_whatever_ports_slices_and_families_it_has() {
        let v4 =
            "[{addresses: [10.1.0.1], nodeName: here}, {addresses: [10.1.0.2], nodeName: here}]";
        let again = "[{addresses: [10.1.0.2], nodeName: here}]";
        let v6 = "[{addresses: ['fd01::1'], nodeName: here}]";
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[("IPv4", PORTS, v4)]), 2);
        assert_eq!(count(&[("IPv4", PORTS, v4), ("IPv4", PORTS, again), ("IPv6", PORTS, v6)]), 2);
        assert_eq!(count(&[("IPv6", PORTS, v6)]), 1);
        assert_eq!(count(&[("IPv4", "[{name: a, port: 1, protocol: SCTP}]", v4)]), 2);
        assert_eq!(count(&[("IPv4", "[]", v4)]), 0);
    }

    #[test]
    fn only_what_is_ready_and_here_counts() {
        let counted = |endpoint: &str| {
            count(&[("IPv4", PORTS, &format!("[{{addresses: [10.1.0.1], {endpoint}}}]"))])
        };
        assert_eq!(counted("nodeName: here"), 1);
        assert_eq!(counted("nodeName: there"), 0);
        assert_eq!(counted("conditions: {ready: true}"), 0);
        assert_eq!(counted("nodeName: here, conditions: {ready: false, serving: true}"), 0);
        let leaving =
            "nodeName: here, conditions: {ready: false, serving: true, terminating: true}";
        assert_eq!(counted(leaving), 0);
        // As an EndpointSlice says of all pods with publishNotReadyAddresses.
        let published = "nodeName: here, conditions: {ready: true, terminating: true}";
        assert_eq!(counted(published), 1);
    }

    #[test]
    fn answers_read_as_kube_proxys() {
        let name = Name { namespace: "shop".into(), name: "web".into() };
        let answer = Answer::new(&name, 3, true);
        assert!(answer.is_good());
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":3,"serviceProxyHealthy":true}"#
        );
        assert!(!Answer::new(&name, 0, true).is_good() && !Answer::new(&name, 3, false).is_good());
    }
}
