//! The fields of Kubernetes objects that are read, in one structure for all kinds, because the
//! kind often stands behind the content and reading everything twice costs twice the time.
//!
//! k8s-openapi's types, once the kind is known, take 8 % longer than these by YAML and 80 % by
//! JSON; what decides against them is that second pass, and that they refuse an object for a
//! field nobody here reads. Everything is optional: manifests say `null` where they may.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Enough of an object to tell which it is.
#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Head {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub metadata: Option<HeadMetadata>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct HeadMetadata {
    pub name: Option<String>,
    pub namespace: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Document {
    pub api_version: Option<String>,
    pub kind: Option<String>,
    pub metadata: Option<Metadata>,
    pub spec: Option<Spec>,
    pub status: Option<Status>,
    /// EndpointSlice.
    pub address_type: Option<String>,
    /// EndpointSlice.
    pub endpoints: Option<Vec<Endpoint>>,
    /// EndpointSlice.
    pub ports: Option<Vec<EndpointPort>>,
    /// Endpoints.
    pub subsets: Option<Vec<Subset>>,
    /// List.
    pub items: Option<Vec<Option<Document>>>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Metadata {
    pub name: Option<String>,
    pub namespace: Option<String>,
    /// Pod.
    pub uid: Option<String>,
    pub labels: Option<Labels>,
    pub annotations: Option<Annotations>,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct Labels {
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Option<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Option<String>,
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change_trigger_time: Option<String>,
    #[serde(rename = "millrace.io/algorithm")]
    pub algorithm: Option<String>,
    #[serde(rename = "millrace.io/weights")]
    pub weights: Option<String>,
    #[serde(rename = "millrace.io/socket-lb")]
    pub socket_lb: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub config_mirror: Option<String>,
}

/// Of all kinds.
#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Spec {
    pub r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    pub ports: Option<Vec<ServicePort>>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<String>>,
    pub load_balancer_source_ranges: Option<Vec<String>>,
    pub internal_traffic_policy: Option<String>,
    pub external_traffic_policy: Option<String>,
    pub health_check_node_port: Option<i64>,
    pub session_affinity: Option<String>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
    pub taints: Option<Vec<Taint>>,
    /// ServiceCIDR.
    pub cidrs: Option<Vec<String>>,
    /// Pod.
    pub node_name: Option<String>,
    /// Pod.
    pub host_network: Option<bool>,
}

/// Numbers are wide, so that one out of range can be named by its field.
#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i64>,
    pub node_port: Option<i64>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i64>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct Taint {
    pub key: Option<String>,
}

/// Of Services, Nodes and pods.
#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Status {
    pub load_balancer: Option<LoadBalancerStatus>,
    pub addresses: Option<Vec<NodeAddress>>,
    /// Pod.
    pub phase: Option<String>,
    pub container_statuses: Option<Vec<ContainerStatus>>,
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
    pub ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct ContainerStatus {
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct LoadBalancerStatus {
    pub ingress: Option<Vec<LoadBalancerIngress>>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct LoadBalancerIngress {
    pub ip: Option<String>,
    pub ip_mode: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct NodeAddress {
    pub r#type: Option<String>,
    pub address: Option<String>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Endpoint {
    pub addresses: Option<Vec<String>>,
    pub conditions: Option<Conditions>,
    pub node_name: Option<String>,
    pub hints: Option<EndpointHints>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct EndpointHints {
    pub for_zones: Option<Vec<Hint>>,
    pub for_nodes: Option<Vec<Hint>>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct Hint {
    pub name: Option<String>,
}

/// Of EndpointSlices and of Endpoints.
#[derive(Clone, Deserialize, Default, Debug)]
#[serde(default, remote = "Self")]
pub struct EndpointPort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: Option<i64>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Subset {
    pub addresses: Option<Vec<EndpointAddress>>,
    pub not_ready_addresses: Option<Vec<EndpointAddress>>,
    pub ports: Option<Vec<EndpointPort>>,
}

#[derive(Clone, Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct EndpointAddress {
    pub ip: Option<String>,
    pub node_name: Option<String>,
}

/// Derived code would take an array for a structure, field by field, and serde_json hands it
/// one: `conditions: [true]` is a mistake, not a ready endpoint.
struct Mapping<T>(PhantomData<T>);

trait FromMap: Sized {
    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error>;
}

impl<'de, T: FromMap> Visitor<'de> for Mapping<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}

macro_rules! only_from_mappings {
    ($($name:ident)*) => {$(
        impl FromMap for $name {
            fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
                Self::deserialize(MapAccessDeserializer::new(map))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(Mapping(PhantomData))
            }
        }
    )*};
}

only_from_mappings! {
    Head HeadMetadata Document Metadata Labels Annotations Spec ServicePort SessionAffinityConfig ClientIpConfig Taint Status LoadBalancerStatus LoadBalancerIngress NodeAddress ContainerStatus Endpoint Conditions EndpointHints Hint EndpointPort Subset EndpointAddress
}
