//! Where leases live: one trait over a directory, etcd and Kubernetes. A store only keeps
//! leases; which subnet a node takes is decided in [`crate::acquire`].

pub mod dir;
pub mod etcd;
pub mod kubernetes;
mod registry;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::{
    lease::{Attrs, Expiry, Lease},
    net_config::{NetConfig, NetConfigError},
    subnet::Subnet,
};

pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Why a store did not do what it was asked for. `place` is where: a URL or a path.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{place}: cannot {what}: {reason}")]
    Failed { place: String, what: &'static str, reason: String },
    #[error("{place} does not exist; put flannel's configuration there")]
    NoConfig { place: String },
    #[error("{place}: {error}")]
    Config { place: String, error: NetConfigError },
    #[error(
        "{place}: all subnets of {networks} are taken; remove leases of nodes that are gone, or \
         configure a larger network"
    )]
    Exhausted { place: String, networks: String },
    #[error("the lease of {subnet} is gone")]
    Lost { subnet: Subnet },
    #[error("the lease of {subnet} belongs to {to} now")]
    Stolen { subnet: Subnet, to: IpAddr },
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether another try may help: something is out of reach, and nothing is wrong.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// Whether the subnet is ours no more.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Stolen { .. })
    }
}

/// What a node asks for.
#[derive(Clone, Debug)]
pub struct Request {
    pub config: NetConfig,
    pub attrs: Attrs,
    /// The subnet it had before, which it takes again if nobody else has.
    pub previous: Subnet,
}

/// A lease that is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    pub subnet: Subnet,
    pub expires: Expiry,
}

/// One lease of the store, or why it cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub key: String,
    pub lease: Result<Lease, String>,
}

impl Entry {
    /// What it takes of the network: a subnet whose value cannot be read is somebody's too.
    fn taken(self) -> Option<Lease> {
        let unread = |key: &str| {
            let subnet = Subnet::parse_key(key)?;
            Some(Lease { subnet, attrs: Attrs::default(), expires: Expiry::Untold })
        };
        self.lease.ok().or_else(|| unread(&self.key))
    }
}

/// What a watch tells; what is gone, by its key.
pub type Event = agent_kit::watch::Event<Entry>;

/// Where leases live.
pub trait Store: Send + Sync {
    /// For people: a path or a URL.
    fn place(&self) -> String;

    /// The network's configuration, parsed.
    fn config(&self) -> Answer<'_, NetConfig>;

    /// What this node published last, if it is still there; from it a device's address is
    /// kept over a reboot.
    fn published<'a>(&'a self, public: &'a [IpAddr]) -> Answer<'a, Option<Attrs>>;

    /// Takes a subnet and publishes the attributes with it.
    fn acquire<'a>(&'a self, request: &'a Request) -> Answer<'a, Held>;

    /// Keeps a subnet for another term, with these attributes.
    fn renew<'a>(&'a self, held: &'a Held, attrs: &'a Attrs) -> Answer<'a, Held>;

    /// Tells of all leases, at first all at once, until the receiver is dropped.
    fn watch(self: Arc<Self>) -> mpsc::Receiver<Event>;

    /// Addresses by which an operator wants this node to be known, where the store can tell.
    fn public(&self) -> Answer<'_, (Option<Ipv4Addr>, Option<Ipv6Addr>)> {
        Box::pin(async { Ok((None, None)) })
    }

    /// Whether subnets are assigned to nodes rather than taken by them.
    fn is_assigned(&self) -> bool {
        false
    }

    /// Says that pods can be reached on this node, where there is somebody to tell.
    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// The key under which a subnet of ours is told by the watch.
    fn own_key(&self, held: &Held) -> String {
        held.subnet.key().unwrap_or_default()
    }
}

/// The network's configuration in a file.
fn read_config(
    path: &Path,
    parse: fn(&str) -> Result<NetConfig, NetConfigError>,
) -> Result<NetConfig, StoreError> {
    let place = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::NoConfig { place });
        }
        Err(err) => {
            let what = "read the configuration";
            return Err(StoreError::Failed { place, what, reason: err.to_string() });
        }
    };
    parse(&text).map_err(|error| StoreError::Config { place, error })
}

/// Events that may wait; a watch that is ahead waits.
const QUEUE: usize = 64;
