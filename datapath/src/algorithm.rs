//! Where a new connection goes if its Service asks for more than a random choice: an algorithm, by
//! the name that IPVS' users know it by, session affinity, or both.

use crate::{
    affinity::{self, Client},
    hash,
    header::Network,
    service::SetRef,
    tables::Tables,
};

/// How a backend is chosen; a number in `Service::flags` (see
/// [`crate::service::service_flags::ALGORITHM`]).
///
/// Weights, and Maglev's table, are how often a backend stands in its set: of that nothing is to be
/// seen here.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Algorithm {
    /// Each with equal chance.
    #[default]
    Random = 0,
    /// One after the other, over all connections of a Service's port on this node.
    RoundRobin = 1,
    /// Of two at random, the one with fewer connections (Mitzenmacher, The Power of Two Choices in
    /// Randomized Load Balancing): without the herd that runs to the one with fewest, as all would
    /// between two counts.
    LeastConn = 2,
    /// By the client's address.
    SourceHash = 3,
    /// By the client's address and port, out of a table in which few places change when backends
    /// come and go (Eisenbud et al., Maglev, NSDI 2016). Nodes agree.
    Maglev = 4,
}

impl Algorithm {
    /// That of a row of `SERVICES`.
    #[inline(always)]
    #[must_use]
    pub const fn of(flags: u32) -> Self {
        match flags >> SHIFT & MASK {
            1 => Self::RoundRobin,
            2 => Self::LeastConn,
            3 => Self::SourceHash,
            4 => Self::Maglev,
            _ => Self::Random,
        }
    }

    /// The bits of `Service::flags`.
    #[must_use]
    pub const fn flags(self) -> u32 {
        (self as u32) << SHIFT
    }
}

/// Where the number begins in `Service::flags`, and its bits there.
pub(crate) const SHIFT: u32 = 8;
pub(crate) const MASK: u32 = 7;

/// The slot of the set, which is not empty, that a new connection goes to.
#[inline(always)]
pub fn choose<F: Network, T: Tables<F>>(
    tables: &mut T,
    service: u32,
    client: Client,
    set: SetRef,
    entropy: u32,
) -> u32 {
    let policy = tables.policy(service);
    let slot = match Algorithm::of(policy.flags) {
        Algorithm::Random => set.slot(entropy),
        Algorithm::RoundRobin => set.turn(tables.turn(service)),
        Algorithm::LeastConn => less_loaded::<F, T>(tables, set, entropy),
        Algorithm::SourceHash => set.slot(source::<F, T>(tables, client)),
        Algorithm::Maglev => match client {
            Client::Sender => set.slot(source_and_port::<F, T>(tables)),
            // Which port it will have is not known, and no other node will see it.
            Client::Node => set.slot(entropy),
        },
    };
    if policy.is_sticky() {
        affinity::stick::<F, T>(tables, service, client, set, slot)
    } else {
        slot
    }
}

/// Of two slots at random the one with fewer connections, to which this one is added. The agent
/// counts them anew every second.
#[inline(always)]
fn less_loaded<F: Network, T: Tables<F>>(tables: &mut T, set: SetRef, entropy: u32) -> u32 {
    let (first, second) = (set.slot(entropy), set.slot(hash::mix(entropy)));
    let slot = if tables.load(second) < tables.load(first) { second } else { first };
    tables.add_load(slot);
    slot
}

/// The same on every node, and after each start.
#[inline(always)]
fn source<F: Network, T: Tables<F>>(tables: &mut T, client: Client) -> u32 {
    match client {
        Client::Sender => hash::address(tables.parties().client.addr),
        Client::Node => tables.settings().node_hash,
    }
}

#[inline(always)]
fn source_and_port<F: Network, T: Tables<F>>(tables: &mut T) -> u32 {
    let client = tables.parties().client;
    hash::mix(hash::address(client.addr) ^ u32::from(client.port.get()))
}
