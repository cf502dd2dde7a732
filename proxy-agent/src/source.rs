//! From manifests to changes: the directory's watch, the model behind it, and what the agent
//! is to know of both.

use std::{net::IpAddr, path::PathBuf, time::Instant};

use crate::{
    config::RunArgs,
    desired::{DesiredService, ServicePortKey},
    status::Problem,
};

/// Why there is nothing to listen to.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("--source dir:{path}: {reason}")]
    Directory { path: PathBuf, reason: String },
}

/// What the model must know of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    pub addresses: Vec<IpAddr>,
}

/// News.
#[derive(Debug)]
pub struct Feed {
    pub changes: Vec<(ServicePortKey, Option<DesiredService>)>,
    /// Everything has been told once.
    pub is_synced: bool,
    /// When the first word of it came.
    pub since: Instant,
    pub problems: Vec<Problem>,
    pub source: String,
    pub node: String,
    /// Addresses that the Node object tells.
    pub node_addresses: Vec<IpAddr>,
    pub node_is_leaving: bool,
}

/// The directory and the model.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    told: bool,
}

impl Source {
    pub fn open(_args: &RunArgs, path: PathBuf) -> Result<Self, SourceError> {
        Ok(Self { path, told: false })
    }

    pub fn set_node(&mut self, _node: Node) {}

    pub async fn next(&mut self) -> Option<Feed> {
        if self.told {
            std::future::pending::<()>().await;
        }
        self.told = true;
        Some(Feed {
            changes: Vec::new(),
            is_synced: true,
            since: Instant::now(),
            problems: Vec::new(),
            source: format!("dir:{}", self.path.display()),
            node: String::new(),
            node_addresses: Vec::new(),
            node_is_leaving: false,
        })
    }
}
