//! The choice of a backend, the same for every hook.

use crate::{
    backend::Backend,
    frontend::kind,
    header::Network,
    service::{empty_set, service_flags},
    tables::{Scope, Tables},
};

/// Where a new connection goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice<A> {
    Backend(Backend<A>),
    /// No endpoint anywhere: refuse.
    Reject,
    /// None that the traffic policy allows: drop.
    Drop,
    /// The set changed under the reader each time it looked.
    Torn,
}

/// How often a set that changes under the reader is read again. The writer takes milliseconds
/// between two changes that could meet the same reader, so one repetition is luck enough.
const READS: u32 = 4;

/// The set that applies to a connection. Those from the node itself and from its pods reach
/// every backend even where the external policy is `Local`, as with kube-proxy (its
/// short-circuit for internal sources).
#[inline(always)]
#[must_use]
pub const fn scope(frontend_kind: u8, flags: u32, inside: bool) -> Scope {
    let local = if frontend_kind == kind::CLUSTER_IP {
        flags & service_flags::INTERNAL_LOCAL != 0
    } else {
        flags & service_flags::EXTERNAL_LOCAL != 0 && !inside
    };
    if local { Scope::Local } else { Scope::Cluster }
}

/// Chooses with equal chance for each backend, if `entropy` is spread evenly over 32 bits.
#[inline(always)]
pub fn select<F: Network, T: Tables<F>>(
    tables: &mut T,
    service: u32,
    scope: Scope,
    entropy: u32,
) -> Choice<F::Address> {
    for _ in 0..READS {
        let Some(set) = tables.set(service, scope) else { return Choice::Reject };
        if set.count == 0 {
            return if set.block == empty_set::DROP { Choice::Drop } else { Choice::Reject };
        }
        let place = (u64::from(entropy) * u64::from(set.count)) >> 32;
        if let Some(backend) = tables.backend(set.block + place as u32)
            && backend.generation == set.generation
        {
            return Choice::Backend(backend);
        }
    }
    Choice::Torn
}
