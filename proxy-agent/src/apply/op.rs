//! One write to the tables.

use std::{net::IpAddr, sync::Arc};

use datapath::service::{ServicePolicy, SetRef};
use ipnetwork::IpNetwork;

use crate::desired::{DesiredBackend, DesiredFrontend, IpFamily, ServicePortKey};

/// Key of a frontend, of either family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct FrontendAt {
    pub address: IpAddr,
    pub port: u16,
    pub proto: u8,
}

impl FrontendAt {
    pub fn new(frontend: &DesiredFrontend, proto: u8) -> Self {
        Self { address: frontend.address, port: frontend.port, proto }
    }

    pub fn family(&self) -> IpFamily {
        IpFamily::of(&self.address)
    }
}

/// Where a frontend leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendTo {
    pub service: u32,
    pub kind: u8,
}

/// A hash table that programs look up in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Hash {
    Frontends(IpFamily),
    Addresses(IpFamily),
}

impl Hash {
    pub const ALL: [Self; 4] = [
        Self::Frontends(IpFamily::V4),
        Self::Frontends(IpFamily::V6),
        Self::Addresses(IpFamily::V4),
        Self::Addresses(IpFamily::V6),
    ];

    /// Its place in [`Hash::ALL`].
    pub fn place(self) -> usize {
        match self {
            Self::Frontends(family) => family as usize,
            Self::Addresses(family) => 2 + family as usize,
        }
    }
}

/// Which of a row's sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Cluster,
    Local,
}

/// A source range of a Service's port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RangeAt {
    /// Index into `SERVICES`.
    pub service: u32,
    pub range: IpNetwork,
}

impl RangeAt {
    pub fn family(&self) -> IpFamily {
        IpFamily::of(&self.range.ip())
    }
}

/// One write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a set into free space.
    Block {
        family: IpFamily,
        first: u32,
        generation: u16,
        backends: Vec<DesiredBackend>,
    },
    /// Has a row use a set, at once.
    Set {
        index: u32,
        scope: Scope,
        set: SetRef,
    },
    Policy {
        index: u32,
        policy: ServicePolicy,
    },
    ResetCounters {
        index: u32,
    },
    Name {
        index: u32,
        name: Arc<ServicePortKey>,
    },
    RemoveName {
        index: u32,
    },
    /// Rows of one family.
    PutFrontends(Vec<(FrontendAt, FrontendTo)>),
    /// Rows of one family.
    PutAddresses(Vec<(IpAddr, u32)>),
    RemoveFrontend(FrontendAt),
    RemoveAddress(IpAddr),
    /// Rows of one family.
    PutRanges(Vec<RangeAt>),
    RemoveRange(RangeAt),
    /// Waits until programs that run now have ended.
    Wait,
}
