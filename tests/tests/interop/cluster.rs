//! The two nodes in a cluster of Kubernetes: what they tell each other stands in their Nodes, at a
//! real API server, of which they may ask what flannel's manifest allows.

use std::{collections::BTreeMap, fs};

use lab::{
    LabSpec,
    agent::Agent,
    api_server::{ApiServer, Verb, flannel_roles},
    flanneld::Flanneld,
    manifests, peers,
};
use serde_json::{Value, json};

use crate::{
    bed::{self, Bed, DUAL, ok},
    mixed::{Mixed, NODES},
};

/// What names of flannel's annotations begin with, unless told otherwise.
pub(crate) const PREFIX: &str = "flannel.alpha.coreos.com/";

/// Where flannel's manifest has its pods.
const NAMESPACE: &str = "kube-flannel";

/// An annotation that each kubelet gives its Node.
const OF_KUBELET: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

pub(crate) type Cluster = Mixed<ApiServer>;

impl Cluster {
    /// Two nodes with two pods each and both programs, of which none runs yet. Their Nodes are
    /// known and have the podCIDRs that the pods are in; whether pods can be reached, nobody has
    /// said. `common` is for both programs, `own` for the agent.
    pub(crate) fn furnished_with_api(common: &[&str], own: &[&str]) -> Self {
        let lab = bed::places(LabSpec::default().nodes);
        let api = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
        let nodes = manifests::nodes(&lab).into_iter().map(unavailable);
        let objects = nodes.chain(NODES.map(pod)).chain(flannel_roles());
        ok(api.send(Verb::Create, &objects.collect::<Vec<_>>()));
        let net_config = lab.directory("fabric").join("net-conf.json");
        ok(fs::write(&net_config, DUAL));
        let flags = [
            "-kube-subnet-mgr".to_owned(),
            format!("-kubeconfig-file={}", api.flannel_kubeconfig().display()),
            format!("-net-config-path={}", net_config.display()),
        ];
        let common: Vec<String> =
            flags.into_iter().chain(common.iter().map(ToString::to_string)).collect();
        let own: Vec<String> =
            common.iter().cloned().chain(own.iter().map(ToString::to_string)).collect();
        let flannelds = NODES.map(|node| {
            let mut flanneld = ok(Flanneld::prepare(&lab, node, &common));
            for (name, value) in of_pod(node) {
                flanneld.set_variable(name, &value);
            }
            flanneld
        });
        // One agent is told its Node, the other finds it by its pod.
        let agents = NODES.map(|node| {
            let mut agent = ok(Agent::prepare_overlay(&lab, node, &own));
            match node {
                "node1" => agent.set_variable("NODE_NAME", node),
                _ => of_pod(node).iter().for_each(|(name, value)| agent.set_variable(name, value)),
            }
            agent
        });
        let servers = bed::serve(&lab);
        let bed = Bed { agents: agents.into(), servers, store: api, lab };
        Self { flannelds: flannelds.into(), bed }
    }

    /// Changes a Node as `kubectl patch` does.
    pub(crate) fn merge(&self, nth: usize, patch: &Value) {
        ok(self.bed.store.merge(&path(nth), patch));
    }

    /// Sets annotations of a Node; `null` takes one away.
    pub(crate) fn annotate(&self, nth: usize, annotations: &Value) {
        self.merge(nth, &json!({ "metadata": { "annotations": annotations } }));
    }

    pub(crate) fn node(&self, nth: usize) -> Value {
        ok(self.bed.store.read(&path(nth)))
    }

    /// Removes a Node.
    pub(crate) fn remove(&self, nth: usize) {
        ok(self.bed.store.delete(&path(nth)));
    }

    /// Makes a Node anew, as its kubelet does: without podCIDRs, which are assigned later.
    pub(crate) fn register(&self, nth: usize) {
        let mut node = unavailable(manifests::nodes(&self.bed.lab).swap_remove(nth));
        node["spec"] = json!({});
        ok(self.bed.store.send(Verb::Create, &[node]));
    }

    /// All annotations of a Node but the kubelet's.
    pub(crate) fn annotations(&self, nth: usize) -> BTreeMap<String, String> {
        let annotations = self.node(nth)["metadata"]["annotations"].take();
        let mut annotations: BTreeMap<_, _> =
            serde_json::from_value(annotations).unwrap_or_default();
        annotations.remove(OF_KUBELET);
        annotations
    }

    pub(crate) fn annotation(&self, nth: usize, name: &str) -> Option<String> {
        self.annotations(nth).remove(&format!("{PREFIX}{name}"))
    }

    /// The condition that says whether a node's network is there, once its agent said that it is.
    pub(crate) fn available(&self, nth: usize) -> Option<Value> {
        let condition = condition(&self.node(nth), "NetworkUnavailable");
        (condition["status"] == "False").then_some(condition)
    }

    /// Takes away all that a node's agent said of itself.
    pub(crate) fn silence(&self, nth: usize) {
        let names = self.annotations(nth).into_keys().filter(|name| name.starts_with(PREFIX));
        let gone: serde_json::Map<_, _> = names.map(|name| (name, Value::Null)).collect();
        self.annotate(nth, &gone.into());
        let status = unavailable(json!({}))["status"].take();
        let path = format!("{}/status", path(nth));
        ok(self.bed.store.merge(&path, &json!({ "status": status })));
    }
}

fn path(nth: usize) -> String {
    format!("/api/v1/nodes/{}", NODES[nth])
}

/// The condition of that type, or `null`.
pub(crate) fn condition(node: &Value, kind: &str) -> Value {
    let conditions = node["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// The Node as a kubelet and a cloud's controller leave it: nothing routes to its pods. Where it
/// had no annotation at all, flanneld 0.28.4 would write into a map that is nil.
fn unavailable(mut node: Value) -> Value {
    node["metadata"]["annotations"] = json!({ OF_KUBELET: "true" });
    node["status"]["conditions"] = json!([
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"},
        {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated",
         "message": "Node created without a route"},
    ]);
    node
}

/// The pod of a node that flanneld or flannel-agent is a process of.
fn pod(node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("flannel-{node}"), "namespace": NAMESPACE},
        "spec": {"nodeName": node, "containers": [{"name": "flannel", "image": "flannel"}]},
    })
}

/// What flannel's manifest has such a pod told of itself.
fn of_pod(node: &str) -> [(&'static str, String); 2] {
    [("POD_NAME", format!("flannel-{node}")), ("POD_NAMESPACE", NAMESPACE.into())]
}
