//! The real kube-proxy on the nodes of a lab, and the API server that tells it of the Services which
//! stand in its manifests.
//!
//! The API server is a real one too. kube-proxy lists and watches by streams of protobuf, and
//! what a change costs it includes how such a stream brings it: something made up in its place
//! would have to imitate all that, and one would have to trust that it does. It stands in a namespace
//! of its own, and runs only while somebody watches it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use lab::{
    Lab, NodeSpec,
    api_server::{ApiServer, Verb},
    kube_proxy::{self, KubeProxy},
    manifests,
};
use serde_json::Value;

use super::{fleet, proxy::Mode};

/// Where the API server runs: it stands for a machine that is no node.
const CONTROL_PLANE: &str = "fabric";
/// Objects that are sent between two words of how far it is.
const AT_ONCE: usize = 4_000;

pub(super) struct Peer {
    /// One for each node, by mode. Dropped first: they watch the other.
    proxies: BTreeMap<Mode, Vec<KubeProxy>>,
    pub(super) api: ApiServer,
    /// Files whose objects the API server has.
    sent: BTreeSet<String>,
}

impl Peer {
    /// Raises the API server; no kube-proxy is started.
    pub(super) fn raise(lab: &Lab, binaries: &Path) -> Result<Self> {
        let api = ApiServer::start(lab, CONTROL_PLANE, &binaries.join("kube-apiserver"))?;
        let binary = binaries.join("kube-proxy");
        let mut proxies = BTreeMap::new();
        for mode in Mode::ALL {
            let of_node = |node: &NodeSpec| {
                let proxy = KubeProxy::prepare(lab, &node.name, &binary, &api.kubeconfig())?;
                Ok(proxy.mode(mode.name()))
            };
            let of_nodes: lab::Result<Vec<_>> = lab.spec().nodes.iter().map(of_node).collect();
            proxies.insert(mode, of_nodes?);
        }
        Ok(Self { proxies, api, sent: BTreeSet::new() })
    }

    /// Starts the API server again, if it was stopped, and tells it what the manifests say.
    pub(super) fn tell(&mut self, directory: &Path) -> Result<()> {
        self.api.resume()?;
        let mut fresh = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let known = !self.sent.insert(name.clone());
            match known {
                false => fresh.extend(manifests::read(&path)?),
                // The only file that is ever written anew.
                true if name == fleet::BENCH_SLICE => self.replace(&manifests::read(&path)?)?,
                true => {}
            }
        }
        self.create(&fresh)
    }

    /// Changes objects; they are in force when this returns.
    pub(super) fn replace(&self, objects: &[Value]) -> Result<()> {
        Ok(self.api.send(Verb::Replace, objects)?)
    }

    /// Tells the API server of new objects.
    pub(super) fn create(&self, objects: &[Value]) -> Result<()> {
        let mut told = 0;
        for some in objects.chunks(AT_ONCE) {
            self.api.send(Verb::Create, some)?;
            told += some.len();
            if objects.len() > AT_ONCE {
                println!("  told kube-apiserver of {told} objects of {}", objects.len());
            }
        }
        Ok(())
    }

    /// Starts kube-proxy on each node.
    pub(super) fn launch(&mut self, mode: Mode) -> Result<()> {
        let proxies = self.proxies.get_mut(&mode).into_iter().flatten();
        for proxy in proxies {
            proxy.launch()?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &KubeProxy> {
        self.proxies.values().flatten()
    }

    /// Of the kube-proxy that runs on the first node.
    pub(super) fn id(&self) -> Result<u32> {
        self.all().find_map(KubeProxy::id).context("kube-proxy is not running")
    }

    /// What its log ends with, for who waited in vain.
    pub(super) fn log_tail(&self) -> String {
        self.all().next().map(KubeProxy::log_tail).unwrap_or_default()
    }

    /// Has the nodes' kernels forget the connections that they track.
    pub(super) fn forget(&self) -> Result<()> {
        // Whatever its mode.
        let mut each_node = self.proxies.values().next().into_iter().flatten();
        Ok(each_node.try_for_each(KubeProxy::forget)?)
    }

    /// Ends kube-proxy and removes its rules; the API server goes on.
    pub(super) fn remove_proxy(&mut self) -> Result<()> {
        Ok(self.proxies.values_mut().flatten().try_for_each(KubeProxy::remove)?)
    }

    /// Ends both; nothing of them runs or stays on the node.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.remove_proxy()?;
        self.api.stop();
        Ok(())
    }
}

/// Connections tracked on a node.
pub(super) fn tracked(lab: &Lab, node: &str) -> Result<u64> {
    Ok(kube_proxy::tracked(&lab.place(node)?)?)
}
