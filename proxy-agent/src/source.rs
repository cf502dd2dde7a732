//! From manifests to changed rows: the directory's watch and the state behind it.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::sync::mpsc;

use crate::{
    compile::NodeFacts,
    desired::IpFamily,
    directory::{self, Batch},
    model::Node,
    state::{RowChange, State},
    status::Problem,
};

/// News.
#[derive(Debug)]
pub struct Feed {
    pub changes: Vec<RowChange>,
    /// Everything has been told once.
    pub is_synced: bool,
    /// When the first word of it came.
    pub since: Instant,
    pub problems: Vec<Problem>,
}

/// The directory and the state.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    batches: mpsc::Receiver<Batch>,
    state: State,
}

impl Source {
    /// Begins to read at once.
    pub fn open(path: PathBuf, node: String) -> io::Result<Self> {
        let facts = NodeFacts { name: node, addresses: Vec::new() };
        let batches = directory::watch(path.clone())?;
        Ok(Self { path, batches, state: State::new(facts) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for news; `None` if there will be none.
    pub async fn next(&mut self) -> Option<Feed> {
        let batch = self.batches.recv().await?;
        let changes = self.state.apply(batch.changes);
        let problems = self.state.problems();
        let problems = batch.problems.iter().chain(&problems).map(Problem::from).collect();
        Some(Feed { changes, is_synced: batch.synced, since: batch.since, problems })
    }

    /// Has NodePorts answer at these addresses; gives what changes by that.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>) -> Vec<RowChange> {
        self.state.set_addresses(addresses)
    }

    /// This node's object, if there is one.
    pub fn node(&self) -> Option<&Node> {
        self.state.node()
    }
}

/// The primary address of each family: internal before external, as kube-proxy.
pub fn node_addresses(node: &Node) -> Vec<IpAddr> {
    [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .filter_map(|family| {
            let all = node.internal_ips.iter().chain(&node.external_ips);
            all.copied().find(|address| IpFamily::of(address) == family)
        })
        .collect()
}
