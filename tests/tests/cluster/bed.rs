//! A cluster with both agents deployed, and pods whose servers say who they are.

use std::path::{Path, PathBuf};

use lab::{address::Families, containerd::archive, kubernetes::Kubernetes};
use serde_json::{Value, json};

use crate::manifest::{deploy, kustomize, ok};

/// What holds a pod's namespaces, and what serves in it.
pub(crate) const PEER: &str = "localhost/millrace/lab-peer:0.1.0";
const DNS: &str = "localhost/millrace/coredns:0.1.0";

/// Namespace and name of each agent's DaemonSet.
pub(crate) const AGENTS: [(&str, &str); 2] =
    [("kube-flannel", "flannel-agent"), ("kube-system", "proxy-agent")];

/// Nodes with both agents as an administrator installs them in a new cluster, and ready. `further`
/// are archives of images beside those of the agents and of [`PEER`].
pub(crate) fn deployed(nodes: u8, further: &[&str]) -> Kubernetes {
    deployed_with(nodes, further, |_| ())
}

/// The same, once `change` has changed the objects of both agents.
pub(crate) fn deployed_with(
    nodes: u8,
    further: &[&str],
    change: impl Fn(&mut Value),
) -> Kubernetes {
    let cluster = bare(nodes, Families::Ipv4, further);
    let mut objects = Vec::new();
    for part in ["flannel-agent/overlays/new", "proxy-agent/base"] {
        objects.extend(kustomize(&deploy().join("kustomize").join(part)));
    }
    if is_old(&cluster) {
        // As components/seccomp-unconfined has it.
        for object in objects.iter_mut().filter(|object| object["kind"] == "DaemonSet") {
            object["spec"]["template"]["spec"]["securityContext"]["seccompProfile"]["type"] =
                json!("Unconfined");
        }
    }
    objects.iter_mut().for_each(change);
    // The namespace is made before what is in it.
    objects.sort_by_key(|object| object["kind"] != "Namespace");
    let (host, port) = cluster.api.endpoint();
    for (namespace, _) in AGENTS {
        objects.insert(
            1,
            json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "kubernetes-services-endpoint", "namespace": namespace},
                "data": {
                    "KUBERNETES_SERVICE_HOST": host,
                    "KUBERNETES_SERVICE_PORT": port.to_string(),
                },
            }),
        );
    }
    ok(cluster.apply(&objects));
    for (namespace, agent) in AGENTS {
        ok(cluster.rolled_out(namespace, &format!("daemonset/{agent}")));
    }
    cluster
}

/// Nodes with images, and with nobody who joins them or balances Services.
fn bare(nodes: u8, families: Families, further: &[&str]) -> Kubernetes {
    let names = ["millrace.tar", "pods.tar"].iter().chain(further);
    let archives: Vec<PathBuf> = names.map(|name| archive(name)).collect();
    let archives: Vec<&Path> = archives.iter().map(PathBuf::as_path).collect();
    ok(Kubernetes::up(nodes, families, &archives, PEER))
}

/// Whether containers are refused bpf(2) by default.
fn is_old(cluster: &Kubernetes) -> bool {
    let versions = cluster.machines.iter().map(lab::containerd::Containerd::version);
    versions.map(ok).any(|version| version < (1, 7))
}

/// Nodes of both families with both agents as helm installs them in a new cluster, and ready.
pub(crate) fn installed_by_helm(nodes: u8) -> Kubernetes {
    let cluster = bare(nodes, Families::Both, &[]);
    let (host, port) = cluster.api.endpoint();
    let (host, port) = (format!("apiServer.host={host}"), format!("apiServer.port={port}"));
    let mut values =
        vec!["flannelAgent.createConfig=true", "flannelAgent.ipv6Network=fd00:10:244::/48"];
    values.extend([host.as_str(), port.as_str()]);
    if is_old(&cluster) {
        values.push("seccompProfile=Unconfined");
    }
    ok(cluster.helm_install(&deploy().join("helm/millrace"), &values));
    for (namespace, agent) in AGENTS {
        ok(cluster.rolled_out(namespace, &format!("daemonset/{agent}")));
    }
    cluster
}

/// A pod on each node that serves on port 8080 by TCP and UDP, by a DaemonSet of that name; and a
/// Service of it with a NodePort.
pub(crate) fn servers(name: &str, node_port: u16) -> [Value; 2] {
    let labels = json!({"app": name});
    let port = |protocol: &str| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80,
               "targetPort": 8080, "nodePort": node_port})
    };
    [
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{
                            "name": "server",
                            "image": PEER,
                            "args": ["serve", "--name=$(NODE)", "--tcp=8080", "--udp=8080"],
                            "env": [{
                                "name": "NODE",
                                "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
                            }],
                            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                        }],
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "selector": labels, "ports": [port("TCP"), port("UDP")]},
        }),
    ]
}

/// The cluster's DNS: CoreDNS on one node, its Service at the address that pods are told.
pub(crate) fn dns() -> Vec<Value> {
    let labels = json!({"k8s-app": "kube-dns"});
    let of = |kind: &str, version: &str| {
        json!({"apiVersion": version, "kind": kind,
               "metadata": {"name": "coredns", "namespace": "kube-system"}})
    };
    let with = |mut object: Value, field: &str, value: Value| {
        object[field] = value;
        object
    };
    let corefile = ".:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa
    cache 5
    loadbalance
}
";
    let rbac = "rbac.authorization.k8s.io/v1";
    let role = with(
        of("ClusterRole", rbac),
        "rules",
        json!([
            {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]),
    );
    let mut binding = with(
        of("ClusterRoleBinding", rbac),
        "roleRef",
        json!({
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns",
        }),
    );
    binding["subjects"] =
        json!([{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}]);
    let deployment = json!({
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "serviceAccountName": "coredns",
                "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "coredns",
                    "image": DNS,
                    "args": ["-conf", "/etc/coredns/Corefile"],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
                }],
                "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
            },
        },
    });
    let mut service = with(
        of("Service", "v1"),
        "spec",
        json!({
            "clusterIP": lab::kubelet::DNS,
            "selector": labels,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        }),
    );
    service["metadata"]["name"] = json!("kube-dns");
    vec![
        of("ServiceAccount", "v1"),
        role,
        binding,
        with(of("ConfigMap", "v1"), "data", json!({"Corefile": corefile})),
        with(of("Deployment", "apps/v1"), "spec", deployment),
        service,
    ]
}
