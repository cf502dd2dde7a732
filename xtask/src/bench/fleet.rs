//! A cluster's worth of manifests, one file for each Service and each slice, as
//! `kubectl get -o yaml` prints them.

use std::{fs, io, net::Ipv4Addr, ops::Range, path::Path};

use lab::{bench::port, manifests};
use serde_json::{Value, json};

/// The Service that is measured; the others stand beside it.
pub(super) const BENCH: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Its slice's file.
pub(super) const BENCH_SLICE: &str = "bench-slice.yaml";
/// Address of Service 0 of the fleet; the others follow.
pub(super) const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 0);
/// What each Service of a fleet has behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) endpoints: u32,
    /// Of the first Service's first endpoint; the others follow.
    first: Ipv4Addr,
    /// Where all of them are.
    pub(super) network: &'static str,
}
/// What traffic is measured beside, and what files tell.
pub(super) const SMALL: Shape =
    Shape { endpoints: 2, first: Ipv4Addr::new(10, 244, 128, 1), network: "10.244.128.0/17" };
/// What an API server tells.
pub(super) const LARGE: Shape =
    Shape { endpoints: 10, first: Ipv4Addr::new(10, 128, 0, 1), network: "10.128.0.0/14" };
/// Nodes that the endpoints are spread over; only the first is a real one.
const NODES: u32 = 100;
const CREATED: &str = "2026-01-07T09:30:00Z";

/// Writes Services `from..to` of the fleet with their slices.
pub(super) fn write(directory: &Path, from: u32, to: u32) -> io::Result<()> {
    for number in from..to {
        let name = format!("fleet-{number:05}");
        fs::write(directory.join(format!("{name}.yaml")), service(&name, number))?;
        fs::write(
            directory.join(format!("{name}-slice.yaml")),
            slice(&name, number, &endpoints(&name, number, SMALL)),
        )?;
    }
    Ok(())
}

/// The same as objects, with more endpoints. To read those as YAML would take minutes.
pub(super) fn large(count: u32) -> lab::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for number in 0..count {
        let name = format!("fleet-{number:05}");
        let parse = |text: &str| manifests::parse(text, Path::new(&name));
        objects.extend(parse(&service(&name, number))?);
        let endpoints: Vec<Value> = numbers(number, LARGE)
            .map(|number| endpoint_object(&name, number, after(LARGE.first, number)))
            .collect();
        for mut slice in parse(&slice(&name, number, ""))? {
            slice["endpoints"] = endpoints.clone().into();
            objects.push(slice);
        }
    }
    Ok(objects)
}

/// Of a Service's endpoints.
fn numbers(service: u32, shape: Shape) -> Range<u32> {
    service * shape.endpoints..(service + 1) * shape.endpoints
}

fn endpoints(name: &str, number: u32, shape: Shape) -> String {
    let all = numbers(number, shape);
    all.map(|number| endpoint(name, number, after(shape.first, number))).collect()
}

/// The Service that is measured and its only endpoint.
pub(super) fn write_bench(directory: &Path, backend: Ipv4Addr) -> lab::Result<()> {
    let behind = port::behind_service;
    let ports = [
        manifests::Port::tcp("connect", port::CONNECT, behind(port::CONNECT)),
        manifests::Port::tcp("latency", port::LATENCY, behind(port::LATENCY)),
        manifests::Port::tcp("bulk", port::BULK, behind(port::BULK)),
        manifests::Port::udp("echo", port::ECHO, behind(port::ECHO)),
    ];
    let service = manifests::Service::new("bench").cluster_ip(BENCH.into());
    let service = ports.into_iter().fold(service, manifests::Service::port);
    manifests::write(directory, "bench.yaml", &[service.build()])?;
    let slice = manifests::Slice::new("bench", false, &ports).endpoint(backend.into(), "node1");
    manifests::write(directory, BENCH_SLICE, &[slice.build()])
}

fn after(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + number)
}

fn uid(kind: u32, number: u32) -> String {
    format!("5f0c{kind:04x}-8d1e-4b52-9a37-0000{number:08x}")
}

fn service(name: &str, number: u32) -> String {
    let address = after(FIRST, number);
    let port = port::ECHO;
    let uid = uid(1, number);
    let version = 100_000 + number;
    format!(
        "apiVersion: v1
kind: Service
metadata:
  annotations:
    meta.helm.sh/release-name: {name}
    meta.helm.sh/release-namespace: fleet
  creationTimestamp: \"{CREATED}\"
  labels:
    app.kubernetes.io/managed-by: Helm
    app.kubernetes.io/name: {name}
  name: {name}
  namespace: fleet
  resourceVersion: \"{version}\"
  uid: {uid}
spec:
  clusterIP: {address}
  clusterIPs:
  - {address}
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: echo
    port: {port}
    protocol: UDP
    targetPort: {port}
  selector:
    app.kubernetes.io/name: {name}
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {{}}
"
    )
}

fn slice(name: &str, number: u32, endpoints: &str) -> String {
    let port = port::ECHO;
    let (own, owner) = (uid(2, number), uid(1, number));
    let version = 200_000 + number;
    format!(
        "addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints:
{endpoints}kind: EndpointSlice
metadata:
  creationTimestamp: \"{CREATED}\"
  generateName: {name}-
  generation: 1
  labels:
    app.kubernetes.io/name: {name}
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: {name}
  name: {name}-x7k2p
  namespace: fleet
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    controller: true
    kind: Service
    name: {name}
    uid: {owner}
  resourceVersion: \"{version}\"
  uid: {own}
ports:
- name: echo
  port: {port}
  protocol: UDP
"
    )
}

fn endpoint(name: &str, number: u32, address: Ipv4Addr) -> String {
    let node = number % NODES + 1;
    let uid = uid(3, number);
    format!(
        "- addresses:
  - {address}
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node{node}
  targetRef:
    kind: Pod
    name: {name}-{number}
    namespace: fleet
    uid: {uid}
"
    )
}

/// What [`endpoint`] says.
fn endpoint_object(name: &str, number: u32, address: Ipv4Addr) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node{}", number % NODES + 1),
        "targetRef": {
            "kind": "Pod",
            "name": format!("{name}-{number}"),
            "namespace": "fleet",
            "uid": uid(3, number),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_services_have_addresses_of_their_own() {
        let last = service("fleet-09999", 9_999);
        assert!(last.contains("clusterIP: 10.96.40.15\n"));
        let of = |shape| slice("fleet-09999", 9_999, &endpoints("fleet-09999", 9_999, shape));
        let last = of(SMALL);
        assert!(last.contains("- addresses:\n  - 10.244.206.31\n"), "{last}");
        assert!(last.contains("- addresses:\n  - 10.244.206.32\n"), "{last}");
        assert!(last.contains("nodeName: node100\n"));
        let last = of(LARGE);
        assert_eq!(last.matches("- addresses:\n").count(), 10);
        // The hundred thousandth after 10.128.0.0.
        assert!(last.contains("- addresses:\n  - 10.129.134.160\n"), "{last}");
    }

    #[test]
    fn a_fleet_of_objects_says_what_its_files_say() {
        let objects = large(2).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["Service", "EndpointSlice", "Service", "EndpointSlice"]);
        let text = slice("fleet-00001", 1, &endpoints("fleet-00001", 1, LARGE));
        assert_eq!(objects[3..], manifests::parse(&text, Path::new("")).unwrap());
    }
}
