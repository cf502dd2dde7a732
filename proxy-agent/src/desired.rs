//! What the tables should hold, in Kubernetes' terms: the output of `compile`, the input of
//! `apply`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;

/// IPv4 or IPv6, where it is data and not a type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    #[must_use]
    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Names one row of `SERVICES`: a Service's port, in one family.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ServicePortKey {
    pub namespace: String,
    pub name: String,
    /// Name of the port; empty if it has none.
    pub port: String,
    /// [`datapath::address::protocol`].
    pub proto: u8,
    pub family: IpFamily,
}

/// What clients address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct DesiredFrontend {
    pub address: IpAddr,
    pub port: u16,
    /// [`datapath::frontend::kind`].
    pub kind: u8,
}

/// Where traffic goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct DesiredBackend {
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

impl DesiredBackend {
    #[must_use]
    pub const fn place(&self) -> (IpAddr, u16) {
        (self.address, self.port)
    }
}

/// A set of backends, or what to do for want of any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DesiredSet {
    /// One for each slot, and at least one; sorted, without duplicates, unless weights or the
    /// algorithm ask for more ([`crate::slots`]).
    Backends(Vec<DesiredBackend>),
    /// No endpoint anywhere: refuse.
    Reject,
    /// Endpoints exist, but none that the traffic policy allows: drop.
    Drop,
}

/// One row of `SERVICES`, with the frontends that lead to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// Sorted, of the key's family. A frontend that another Service holds is not here.
    pub frontends: Vec<DesiredFrontend>,
    pub cluster: DesiredSet,
    pub local: DesiredSet,
    /// [`datapath::service::service_flags`], without `USED` and `IPV6`, which `apply` knows.
    pub flags: u32,
    /// Timeout of session affinity in [`datapath::flow::TICK_NS`]; 0 if there is none.
    pub affinity: u32,
    /// Sources that may begin connections to the addresses of load balancers, where the flags say
    /// that there are such: sorted, of the key's family, without host bits, each once.
    pub ranges: Vec<IpNetwork>,
}

/// Everything that should be programmed.
pub type Desired = BTreeMap<ServicePortKey, DesiredService>;
