//! The real kube-proxy on a stage's node, and the API server that tells it of the Services which
//! stand in the stage's manifests.
//!
//! The API server is a real one too. kube-proxy lists and watches by streams of protobuf, and
//! what a change costs it includes how such a stream brings it: something made up in its place
//! would have to imitate all that, and one would have to trust that it does. It runs only while
//! kube-proxy does, in a namespace of its own, so the agent is measured without it.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use lab::{
    Lab,
    api_server::{ApiServer, Verb},
    kube_proxy::{self, KubeProxy},
    manifests,
};
use serde_json::Value;

use super::fleet;

/// Where the API server runs: it stands for a machine that is no node.
const CONTROL_PLANE: &str = "fabric";

pub(super) struct Peer {
    // Dropped first: it watches the other.
    proxy: KubeProxy,
    api: ApiServer,
    /// Files whose objects the API server has.
    sent: BTreeSet<String>,
}

impl Peer {
    /// Raises the API server; kube-proxy is not started.
    pub(super) fn raise(lab: &Lab, node: &str, binaries: &Path) -> Result<Self> {
        let api = ApiServer::start(lab, CONTROL_PLANE, &binaries.join("kube-apiserver"))?;
        let binary = binaries.join("kube-proxy");
        let proxy = KubeProxy::prepare(lab, node, &binary, &api.kubeconfig())?;
        Ok(Self { proxy, api, sent: BTreeSet::new() })
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
        if fresh.len() > 1_000 {
            println!("  telling kube-apiserver of {} objects", fresh.len());
        }
        Ok(self.api.send(Verb::Create, &fresh)?)
    }

    /// Changes objects; they are in force when this returns.
    pub(super) fn replace(&self, objects: &[Value]) -> Result<()> {
        Ok(self.api.send(Verb::Replace, objects)?)
    }

    pub(super) fn launch(&mut self) -> Result<()> {
        Ok(self.proxy.launch()?)
    }

    pub(super) fn id(&self) -> Result<u32> {
        self.proxy.id().context("kube-proxy is not running")
    }

    /// What its log ends with, for who waited in vain.
    pub(super) fn log_tail(&self) -> String {
        self.proxy.log_tail()
    }

    /// Has the node's kernel forget the connections that it tracks.
    pub(super) fn forget(&self) -> Result<()> {
        Ok(self.proxy.forget()?)
    }

    /// Ends kube-proxy and removes its rules; the API server goes on.
    pub(super) fn remove_proxy(&mut self) -> Result<()> {
        Ok(self.proxy.remove()?)
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
