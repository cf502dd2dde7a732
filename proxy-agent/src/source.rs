//! From objects to changed rows: one of the places where objects live, and the state behind it.

#[cfg(feature = "etcd")]
mod etcd;
mod gather;
mod kubernetes;
pub mod listing;

use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf, sync::Arc, time::Instant};

use agent_kit::kubernetes::{Access, AccessError};
use ipnetwork::IpNetwork;
use tokio::sync::mpsc;

use crate::{
    compile::NodeFacts,
    desired::{Desired, IpFamily},
    directory,
    doubt::Doubt,
    events::Events,
    model::{Change, Node, Pod},
    problem::Problem,
    service_health::ServicesHealth,
    serving::Serving,
    state::{RowChange, State},
    status,
    told::{NoLocal, Told},
};

/// Where objects live.
#[derive(Clone, Debug)]
pub enum Origin {
    Directory(PathBuf),
    Kubernetes(Access),
    /// Below a prefix.
    #[cfg(feature = "etcd")]
    Etcd(agent_kit::etcd::Access, String),
}

/// Why a source cannot be listened to at all. One that is only out of reach is waited for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("--source {0}: cannot begin to watch: {1}")]
    Directory(String, io::Error),
    #[error(transparent)]
    Kubernetes(#[from] AccessError),
}

/// What an origin tells at once.
#[derive(Debug)]
pub struct Batch {
    /// Everything has been told as a whole, in this batch or an earlier one.
    pub synced: bool,
    /// When the first of it was noticed.
    pub since: Instant,
    /// The first synced batch completes all objects, later ones hold what changed.
    pub changes: Vec<Change>,
    /// All problems there are now, not only new ones.
    pub problems: Arc<[Problem]>,
    /// All there is now that cannot be read and never was.
    pub doubts: Arc<[Doubt]>,
    /// Since when nothing can be heard, if that is so.
    pub silent_since: Option<Instant>,
}

/// News.
#[derive(Debug)]
pub struct Feed {
    pub changes: Vec<RowChange>,
    /// Everything has been told once.
    pub is_synced: bool,
    /// When the first word of it came.
    pub since: Instant,
    /// Since when nothing can be heard, if that is so.
    pub silent_since: Option<Instant>,
}

/// An origin and the state.
#[derive(Debug)]
pub struct Source {
    name: String,
    events: Events,
    batches: mpsc::Receiver<Batch>,
    state: State,
    /// As the origin told last.
    problems: Arc<[Problem]>,
    doubts: Arc<[Doubt]>,
}

impl Source {
    /// Begins to read at once.
    pub async fn open(origin: Origin, facts: NodeFacts) -> Result<Self, OpenError> {
        let node = facts.name.clone();
        let mut events = Events::unheard();
        let (name, batches) = match origin {
            Origin::Directory(path) => {
                let name = format!("dir:{}", path.display());
                let batches = directory::watch(path);
                let batches = batches.map_err(|err| OpenError::Directory(name.clone(), err))?;
                (name, batches)
            }
            Origin::Kubernetes(access) => {
                let (client, url) = access.open().await?;
                let name = format!("kubernetes {url}");
                let batches = kubernetes::watch(&client, &name, &node);
                events = Events::publish(client, node.clone());
                (name, batches)
            }
            #[cfg(feature = "etcd")]
            Origin::Etcd(access, prefix) => {
                let name = format!("etcd:{}{prefix}", access.endpoints.join(","));
                let batches = etcd::watch(access, &name, &prefix);
                (name, batches)
            }
        };
        let (problems, doubts) = (Arc::default(), Arc::default());
        Ok(Self { name, events, batches, state: State::new(facts), problems, doubts })
    }

    /// Where events are told.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for news; `None` if there will be none.
    pub async fn next(&mut self) -> Option<Feed> {
        let batch = self.batches.recv().await?;
        let mut changes = self.state.apply(batch.changes);
        if batch.synced {
            changes.extend(self.state.doubt(&batch.doubts));
        }
        (self.problems, self.doubts) = (batch.problems, batch.doubts);
        let Batch { synced, since, silent_since, .. } = batch;
        Some(Feed { changes, is_synced: synced, since, silent_since })
    }

    /// The networks that cluster IPs are given out of.
    pub fn service_networks(&self) -> BTreeSet<IpNetwork> {
        self.state.service_networks()
    }

    /// [`State::pods_without_sockets`].
    pub fn pods_without_sockets(&self) -> Vec<Arc<Pod>> {
        self.state.pods_without_sockets()
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

    /// [`State::take_serving`].
    pub fn take_serving(&mut self, is_whole: bool) -> Serving {
        self.state.take_serving(is_whole)
    }

    /// What load balancers are to be told of Services.
    pub fn health(&self) -> &ServicesHealth {
        self.state.health()
    }

    /// What was told since this was last asked, for metrics.
    pub fn take_told(&mut self) -> Told {
        self.state.take_told()
    }

    /// Services' ports without endpoints where their policy wants them, for metrics.
    pub fn no_local(&self) -> NoLocal {
        self.state.no_local()
    }

    /// [`State::is_node_leaving`].
    pub fn is_node_leaving(&self) -> bool {
        self.state.is_node_leaving()
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
