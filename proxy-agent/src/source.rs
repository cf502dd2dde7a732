//! From manifests to changed rows: the directory's watch and the state behind it.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tokio::sync::mpsc;

use crate::{
    compile::NodeFacts,
    desired::{Desired, IpFamily},
    directory::{self, Batch},
    doubt::Doubt,
    model::Node,
    problem::Problem,
    state::{RowChange, State},
    status,
};

/// News.
#[derive(Debug)]
pub struct Feed {
    pub changes: Vec<RowChange>,
    /// Everything has been told once.
    pub is_synced: bool,
    /// When the first word of it came.
    pub since: Instant,
}

/// The directory and the state.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    batches: mpsc::Receiver<Batch>,
    state: State,
    /// As the directory told last.
    problems: Arc<[Problem]>,
    doubts: Arc<[Doubt]>,
}

impl Source {
    /// Begins to read at once.
    pub fn open(path: PathBuf, node: String) -> io::Result<Self> {
        let facts = NodeFacts { name: node, ..NodeFacts::default() };
        let batches = directory::watch(path.clone())?;
        let (problems, doubts) = (Arc::default(), Arc::default());
        Ok(Self { path, batches, state: State::new(facts), problems, doubts })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for news; `None` if there will be none.
    pub async fn next(&mut self) -> Option<Feed> {
        let batch = self.batches.recv().await?;
        let mut changes = self.state.apply(batch.changes);
        if batch.synced {
            changes.extend(self.state.doubt(&batch.doubts));
        }
        (self.problems, self.doubts) = (batch.problems, batch.doubts);
        Some(Feed { changes, is_synced: batch.synced, since: batch.since })
    }

    /// Whether there is something that cannot be read and never was.
    pub fn is_doubtful(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// Takes over what the last agent left, once the source has told everything; gives what is
    /// to be kept of it.
    pub fn adopt(&mut self, rows: Desired) -> Vec<RowChange> {
        self.state.adopt(rows)
    }

    /// All that is wrong now.
    pub fn problems(&self) -> Vec<status::Problem> {
        let problems = self.state.problems();
        self.problems.iter().chain(&problems).map(status::Problem::from).collect()
    }

    /// Has NodePorts answer at these addresses, on a node that has those as its own; gives what
    /// changes by that.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>, own: Vec<IpAddr>) -> Vec<RowChange> {
        self.state.set_addresses(addresses, own)
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
