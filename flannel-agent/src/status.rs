//! How the agent fares: what `/status` answers and `flannel-agent status` prints.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use agent_kit::{drops::Drops, problems::Problems};
use datapath::tunnel::Traffic;
use serde::{Deserialize, Serialize};

use crate::peers::Peer;

/// Something that a person should see to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub kind: Kind,
    /// The lease, device, file or flag at fault.
    pub object: String,
    pub message: String,
}

/// The kinds of problem. Closed, because they label a metric.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The store cannot be reached, or its configuration not used.
    Store,
    /// Our own lease.
    Lease,
    /// Another node's lease.
    Peer,
    /// A device, or the uplink.
    Device,
    /// The kernel refused an entry.
    Entry,
    /// Something else of this node.
    Node,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Store, Self::Lease, Self::Peer, Self::Device, Self::Entry, Self::Node];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Lease => "lease",
            Self::Peer => "peer",
            Self::Device => "device",
            Self::Entry => "entry",
            Self::Node => "node",
        }
    }
}

impl Problem {
    #[allow(clippy::needless_pass_by_value, reason = "errors are given away here")]
    pub fn new(kind: Kind, object: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { kind, object: object.into(), message: message.to_string() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.object.is_empty() || self.message.starts_with(&self.object) {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.object, self.message)
    }
}

/// A tunnel device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub name: String,
    pub ifindex: u32,
    pub mac: String,
    pub mtu: u32,
    pub local: String,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "independent states")]
pub struct Status {
    pub running: bool,
    pub ready: bool,
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: f64,
    pub store: String,
    pub store_reached: bool,
    pub backend: String,
    pub networks: Vec<String>,
    pub subnet: Vec<String>,
    /// Seconds since 1970; none if it never expires.
    pub lease_expires: Option<u64>,
    pub uplink: String,
    pub public_addresses: Vec<String>,
    /// What pods are told.
    pub mtu: u32,
    pub devices: Vec<DeviceStatus>,
    /// Whether packets of pods pass bridge and IP stack by, and why; empty without programs.
    pub fast_path: String,
    /// Whether our lease says that this node answers clients outside by itself.
    #[serde(default)]
    pub answers: bool,
    pub peers: usize,
    /// Leases of another kind of network.
    pub other_leases: usize,
    pub repairs: u64,
    pub problems: Vec<Problem>,
}

/// What the parts of the agent write and the server reads.
#[derive(Debug)]
pub struct Board {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    pub status: Status,
    pub peers: Vec<Peer>,
    pub traffic: Traffic,
    /// What programs refuse, where there are programs.
    pub drops: Option<Drops>,
    problems: Problems<Problem>,
}

impl Default for Board {
    fn default() -> Self {
        Self { began: Instant::now(), state: Mutex::default() }
    }
}

impl Board {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All as of now.
    pub fn status(&self) -> Status {
        let state = self.state();
        Status {
            running: true,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            problems: state.problems.all(),
            ..state.status.clone()
        }
    }

    /// Replaces what one part has to complain about.
    pub fn set_problems(&self, origin: &'static str, problems: Vec<Problem>) {
        self.state().problems.set(origin, problems);
    }
}
