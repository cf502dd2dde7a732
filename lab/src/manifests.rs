//! Ordinary Kubernetes manifests for a lab: Services, EndpointSlices and Nodes.
//!
//! The builders know only what labs need often; [`Service::set`] and [`Slice::set`] reach the rest.

use std::{fs, net::IpAddr, path::Path};

use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::{
    address,
    error::{At, Error, Result},
    lab::Lab,
};

const NAMESPACE: &str = "default";

/// A core/v1 Service, ClusterIP until told otherwise.
#[derive(Clone, Debug)]
pub struct Service {
    value: Value,
}

/// A discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug)]
pub struct Slice {
    value: Value,
}

/// One port of a Service, with the port its pods listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Port {
    pub name: &'static str,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    pub port: u16,
    pub target: u16,
}

impl Port {
    pub const fn tcp(name: &'static str, port: u16, target: u16) -> Self {
        Self { name, protocol: "TCP", port, target }
    }

    pub const fn udp(name: &'static str, port: u16, target: u16) -> Self {
        Self { name, protocol: "UDP", port, target }
    }
}

impl Service {
    pub fn new(name: &str) -> Self {
        let value = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "type": "ClusterIP",
                "clusterIPs": [],
                "ipFamilies": [],
                "ipFamilyPolicy": "PreferDualStack",
                "ports": [],
            },
        });
        Self { value }
    }

    /// The first address given is the primary one.
    #[must_use]
    pub fn cluster_ip(mut self, address: IpAddr) -> Self {
        let spec = &mut self.value["spec"];
        if spec["clusterIP"].is_null() {
            spec["clusterIP"] = json!(address);
        }
        push(&mut spec["clusterIPs"], json!(address));
        push(&mut spec["ipFamilies"], json!(family(address)));
        self
    }

    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        push(
            &mut self.value["spec"]["ports"],
            json!({
                "name": port.name,
                "protocol": port.protocol,
                "port": port.port,
                "targetPort": port.target,
            }),
        );
        self
    }

    /// Gives the port added last a NodePort, and the Service that type.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        let spec = &mut self.value["spec"];
        if spec["type"] == "ClusterIP" {
            spec["type"] = json!("NodePort");
        }
        if let Some(port) = spec["ports"].as_array_mut().and_then(|ports| ports.last_mut()) {
            port["nodePort"] = json!(number);
        }
        self
    }

    /// `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.set("/spec/externalTrafficPolicy", json!("Local"))
    }

    /// `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.set("/spec/internalTrafficPolicy", json!("Local"))
    }

    /// Sets any field, by path: `/spec/sessionAffinity`.
    #[must_use]
    pub fn set(mut self, path: &str, value: Value) -> Self {
        set(&mut self.value, path, value);
        self
    }

    pub fn build(self) -> Value {
        self.value
    }
}

impl Slice {
    /// A slice of the Service's endpoints of one family, with the Service's ports.
    pub fn new(service: &str, v6: bool, ports: &[Port]) -> Self {
        let suffix = if v6 { "v6" } else { "v4" };
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.target}))
            .collect();
        let value = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{suffix}"),
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "endpoints": [],
            "ports": ports,
        });
        Self { value }
    }

    /// Adds a ready endpoint.
    #[must_use]
    pub fn endpoint(mut self, address: IpAddr, node: &str) -> Self {
        push(
            &mut self.value["endpoints"],
            json!({
                "addresses": [address],
                "nodeName": node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            }),
        );
        self
    }

    /// Sets the conditions of the endpoint added last.
    #[must_use]
    pub fn conditions(mut self, ready: bool, serving: bool, terminating: bool) -> Self {
        let endpoints = self.value["endpoints"].as_array_mut();
        if let Some(endpoint) = endpoints.and_then(|endpoints| endpoints.last_mut()) {
            endpoint["conditions"] =
                json!({"ready": ready, "serving": serving, "terminating": terminating});
        }
        self
    }

    /// Sets any field, by path.
    #[must_use]
    pub fn set(mut self, path: &str, value: Value) -> Self {
        set(&mut self.value, path, value);
        self
    }

    pub fn build(self) -> Value {
        self.value
    }
}

/// The two slices, v4 and v6, of a Service whose endpoints are places of the lab.
pub fn slices(lab: &Lab, service: &str, ports: &[Port], places: &[&str]) -> Result<[Value; 2]> {
    let mut v4 = Slice::new(service, false, ports);
    let mut v6 = Slice::new(service, true, ports);
    for place in places {
        let addresses = lab.addresses(place)?;
        // A process of the node itself runs on the node it is named after.
        let node = lab.node_of(place).unwrap_or(place);
        v4 = v4.endpoint(addresses.v4.into(), node);
        v6 = v6.endpoint(addresses.v6.into(), node);
    }
    Ok([v4.build(), v6.build()])
}

/// The core/v1 Nodes of a lab.
pub fn nodes(lab: &Lab) -> Vec<Value> {
    let node = |number: u8, name: &str| {
        let cidrs = address::pod_cidrs(number);
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/hostname": name,
                    "topology.kubernetes.io/zone": format!("zone{number}"),
                },
            },
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": [
                {"type": "InternalIP", "address": address::node4(number)},
                {"type": "InternalIP", "address": address::node6(number)},
                {"type": "Hostname", "address": name},
            ]},
        })
    };
    lab.spec().nodes().map(|(number, spec)| node(number, &spec.name)).collect()
}

/// Writes documents as one YAML file, by rename: a reader meets the old file or the new one.
pub fn write(directory: &Path, file: &str, documents: &[Value]) -> Result<()> {
    let path = directory.join(file);
    let mut text = String::new();
    for document in documents {
        let yaml = yaml_serde::to_string(document).map_err(|err| Error::Yaml {
            step: "write",
            path: path.clone(),
            message: err.to_string(),
        })?;
        text.push_str("---\n");
        text.push_str(&yaml);
    }
    // A name without the ending of a manifest, so that no agent reads it half written.
    let fresh = directory.join(format!(".{file}.new"));
    fs::write(&fresh, text).at("write", &fresh)?;
    fs::rename(&fresh, &path).at("write", &path)
}

/// The documents of a file.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).at("read", path)?;
    parse(&text, path)
}

/// The documents of a text; errors tell this path.
pub fn parse(text: &str, path: &Path) -> Result<Vec<Value>> {
    let documents: std::result::Result<_, yaml_serde::Error> =
        yaml_serde::Deserializer::from_str(text).map(Value::deserialize).collect();
    documents.map_err(|err| Error::Yaml {
        step: "read",
        path: path.into(),
        message: err.to_string(),
    })
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// Sets a field by its JSON pointer, making the objects on the way.
fn set(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for key in path.trim_start_matches('/').split('/') {
        // `~1` is how a pointer writes a slash, as in annotation names.
        at = match key.parse::<usize>() {
            Ok(index) if at.is_array() => &mut at[index],
            _ => &mut at[key.replace("~1", "/")],
        };
    }
    *at = new;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_reads_as_kubernetes_writes_it() {
        let service = Service::new("web")
            .cluster_ip("10.96.0.10".parse().unwrap())
            .cluster_ip("fd00:10:96::10".parse().unwrap())
            .port(Port::tcp("http", 80, 8080))
            .node_port(30080)
            .external_local()
            .set("/metadata/annotations/millrace.io~1algorithm", json!("maglev"))
            .build();
        assert_eq!(service["spec"]["type"], "NodePort");
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.10");
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(service["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
        assert_eq!(service["metadata"]["annotations"]["millrace.io/algorithm"], "maglev");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "---\nkind: Node\n---\nkind: Service\nmetadata:\n  name: a\n";
        let documents = parse(text, Path::new("a")).unwrap();
        assert_eq!(
            documents,
            [json!({"kind": "Node"}), json!({"kind": "Service", "metadata": {"name": "a"}})]
        );
        assert!(parse("a: [", Path::new("a")).is_err());
    }
}
