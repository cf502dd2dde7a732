//! Leases in a Kubernetes cluster: the subnet is the Node's podCIDRs, and what a node says of
//! itself stands in its annotations, in flannel's words.

mod node;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agent_kit::kubernetes::{Access, Flags, RequestMetrics, follow};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::{
    sync::{
        OnceCell,
        mpsc::{self, Sender},
    },
    time::timeout,
};

use super::{Answer, Event, Held, QUEUE, Request, Store, StoreError, read_config};
use crate::{
    annotation::Annotations,
    lease::{Attrs, Expiry},
    net_config::NetConfig,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the cluster is reached, and who we are in it.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub kubeconfig: Option<PathBuf>,
    pub url: Option<String>,
    pub annotations: Annotations,
    pub net_config: PathBuf,
    /// Whether to say that the network of the node is available.
    pub sets_available: bool,
    pub node: Option<String>,
    /// Name and namespace of the pod that we are.
    pub pod: Option<(String, String)>,
}

pub struct Kubernetes {
    cluster: Cluster,
    client: Client,
    url: String,
    /// The name of our Node, once it is known: the cluster may have to be asked for it.
    node: OnceCell<String>,
}

impl Kubernetes {
    pub async fn open(cluster: Cluster) -> Result<Self, StoreError> {
        let access = Access {
            kubeconfig: cluster.kubeconfig.clone(),
            url: cluster.url.clone(),
            flags: Flags { kubeconfig: "--kubeconfig-file", url: "--kube-api-url" },
            requests: RequestMetrics::default(),
        };
        let opened = access.open().await;
        let (client, url) = opened.map_err(|err| StoreError::Refused(err.to_string()))?;
        if cluster.node.is_none() && cluster.pod.is_none() {
            let message = "NODE_NAME: give the Node's name in the environment";
            return Err(StoreError::Refused(message.into()));
        }
        let node = OnceCell::new_with(cluster.node.clone());
        Ok(Self { cluster, client, url, node })
    }

    /// The name of our Node: as we were told, else that of the pod that we are.
    async fn node(&self) -> Result<&str, StoreError> {
        let node = self.node.get_or_try_init(|| async {
            let (name, namespace) = self.cluster.pod.clone().unwrap_or_default();
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let pod = self.ask("read the pod of POD_NAME", pods.get(&name)).await?;
            pod.spec.and_then(|spec| spec.node_name).ok_or_else(|| StoreError::Failed {
                place: self.place(),
                what: "find our Node",
                reason: format!("pod {namespace}/{name} has none"),
            })
        });
        node.await.map(String::as_str)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Waits for an answer, but not for ever: meanwhile the agent does nothing else.
    async fn ask<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, StoreError> {
        let reason = match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(err)) => err.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        Err(StoreError::Failed { place: self.place(), what, reason })
    }

    async fn read(&self) -> Result<Node, StoreError> {
        let node = self.node().await?;
        self.ask("read the Node", self.nodes().get(node)).await
    }

    async fn patch(&self, what: &'static str, body: serde_json::Value) -> Result<(), StoreError> {
        let patch = Patch::Strategic(body);
        let (nodes, node) = (self.nodes(), self.node().await?);
        let parameters = PatchParams::default();
        self.ask(what, nodes.patch_status(node, &parameters, &patch)).await.map(drop)
    }

    /// Writes the annotations if they say something else.
    async fn publish(&self, node: &Node, attrs: &Attrs) -> Result<(), StoreError> {
        let names = &self.cluster.annotations;
        let wanted = node::annotations(names, attrs, node.annotations());
        if wanted.iter().all(|(name, value)| node.annotations().get(name) == Some(value)) {
            return Ok(());
        }
        self.patch("publish annotations", json!({ "metadata": { "annotations": wanted } })).await
    }

    async fn take(&self, config: &NetConfig, attrs: &Attrs) -> Result<Held, StoreError> {
        let node = self.read().await?;
        let subnet = node::subnet(&node);
        for family in crate::subnet::Family::BOTH {
            let Some(network) = config.network(family) else { continue };
            match subnet.of(family) {
                None => {
                    let reason = format!(
                        "Node {} has no podCIDR in {network}; does the controller manager \
                         allocate them (--allocate-node-cidrs)?",
                        node.name_any()
                    );
                    let what = "take a subnet";
                    return Err(StoreError::Failed { place: self.place(), what, reason });
                }
                Some(own)
                    if !network.contains(own.network()) || own.prefix() < network.prefix() =>
                {
                    return Err(StoreError::Refused(format!(
                        "Node {}: podCIDR {own} lies outside {network} of {}; make both agree",
                        node.name_any(),
                        self.cluster.net_config.display()
                    )));
                }
                Some(_) => {}
            }
        }
        self.publish(&node, attrs).await?;
        Ok(Held { subnet: node::only(subnet, config), expires: Expiry::Never })
    }

    async fn follow(&self, sender: &Sender<Event>) {
        let names = &self.cluster.annotations;
        let read = |node: Node| node::entry(names, &node);
        let config = watcher::Config::default();
        let kind = format!("Nodes at {}", self.url);
        follow(self.nodes(), config, sender, &kind, read, Node::name_any).await;
    }
}

impl Store for Kubernetes {
    fn place(&self) -> String {
        match (self.node.get(), &self.cluster.pod) {
            (Some(node), _) => format!("{} Node {node}", self.url),
            (None, Some((name, namespace))) => format!("{} Pod {namespace}/{name}", self.url),
            (None, None) => self.url.clone(),
        }
    }

    fn config(&self) -> Answer<'_, NetConfig> {
        Box::pin(async { read_config(&self.cluster.net_config, NetConfig::parse) })
    }

    fn published<'a>(&'a self, _public: &'a [IpAddr]) -> Answer<'a, Option<Attrs>> {
        Box::pin(async {
            let node = self.read().await?;
            let entry = node::entry(&self.cluster.annotations, &node);
            Ok(entry.and_then(|entry| entry.lease.ok()).map(|lease| lease.attrs))
        })
    }

    fn public(&self) -> Answer<'_, (Option<Ipv4Addr>, Option<Ipv6Addr>)> {
        Box::pin(async {
            let node = self.read().await?;
            let names = &self.cluster.annotations;
            let read = |name: &str| node.annotations().get(name);
            let v4 = read(&names.node_public_ip()).and_then(|text| text.parse().ok());
            let v6 = read(&names.node_public_ipv6()).and_then(|text| text.parse().ok());
            Ok((v4, v6))
        })
    }

    fn acquire<'a>(&'a self, request: &'a Request) -> Answer<'a, Held> {
        Box::pin(self.take(&request.config, &request.attrs))
    }

    fn renew<'a>(&'a self, held: &'a Held, attrs: &'a Attrs) -> Answer<'a, Held> {
        Box::pin(async {
            let node = self.read().await?;
            self.publish(&node, attrs).await?;
            Ok(*held)
        })
    }

    fn watch(self: Arc<Self>) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move { self.follow(&sender).await });
        receiver
    }

    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(async {
            if !self.cluster.sets_available {
                return Ok(());
            }
            let now = Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string();
            let condition = json!({
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": "FlannelIsUp",
                "message": "Flannel is running on this node",
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            });
            let body = json!({ "status": { "conditions": [condition] } });
            self.patch("say that the network is available", body).await
        })
    }

    fn own_key(&self, _held: &Held) -> String {
        self.node.get().cloned().unwrap_or_default()
    }

    fn is_assigned(&self) -> bool {
        true
    }
}
