//! The choice of a backend, the same for every hook.

use crate::{
    affinity::Client,
    backend::Backend,
    counter::Hook,
    flow::Place,
    frontend::kind,
    header::Network,
    service::{ServicePolicy, empty_set, service_flags},
    tables::{Scope, Tables},
};

/// Where a new connection goes: to a backend, of which it tells a `B`, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice<B> {
    Backend(B),
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

/// Where a connection begins.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On this node.
    Inside = 0,
    Outside = 1,
    /// Outside, by way of a node that chose this one for it ([`crate::direct`]).
    Tunnel = 2,
}

impl Origin {
    /// Of what a hook sees; what pods begin is the node's own.
    #[inline(always)]
    #[must_use]
    pub const fn of(hook: Hook) -> Self {
        match hook {
            Hook::UplinkIngress => Self::Outside,
            Hook::TunnelIngress => Self::Tunnel,
            _ => Self::Inside,
        }
    }

    /// The reverse of `as u32`.
    #[inline(always)]
    #[must_use]
    pub const fn numbered(number: u32) -> Self {
        match number {
            0 => Self::Inside,
            1 => Self::Outside,
            _ => Self::Tunnel,
        }
    }
}

/// The set that applies to a connection. Those from the node itself and from its pods reach
/// every backend even where the external policy is `Local`, as with kube-proxy (its
/// short-circuit for internal sources).
#[inline(always)]
#[must_use]
pub const fn scope(frontend_kind: u8, flags: u32, origin: Origin) -> Scope {
    let local = if frontend_kind == kind::CLUSTER_IP {
        flags & service_flags::INTERNAL_LOCAL != 0
    } else {
        flags & service_flags::EXTERNAL_LOCAL != 0 && !matches!(origin, Origin::Inside)
    };
    if local { Scope::Local } else { Scope::Cluster }
}

/// Chooses with equal chance for each backend, if `entropy` is spread evenly over 32 bits, unless the
/// Service has another algorithm; with session affinity the backend that the client has.
#[inline(always)]
pub fn select<F: Network, T: Tables<F>>(
    tables: &mut T,
    service: u32,
    policy: ServicePolicy,
    scope: Scope,
    client: Client,
    entropy: u32,
) -> Choice<Backend<F::Address>> {
    for _ in 0..READS {
        let Some(set) = tables.set(service, scope) else { return Choice::Reject };
        if set.count == 0 {
            return if set.block == empty_set::DROP { Choice::Drop } else { Choice::Reject };
        }
        let slot = if policy.is_random() {
            set.slot(entropy)
        } else {
            tables.choose(service, client, set, entropy)
        };
        if let Some(backend) = tables.backend(slot)
            && backend.generation == set.generation
        {
            return Choice::Backend(backend);
        }
    }
    Choice::Torn
}

/// Chooses for the client in [`crate::tables::FlowTables::parties`], and puts the backend there;
/// tells the backend's flags.
#[inline(always)]
pub fn select_for_sender<F: Network, T: Tables<F>>(
    tables: &mut T,
    service: u32,
    frontend_kind: u8,
    origin: Origin,
) -> Choice<u32> {
    let policy = tables.policy(service);
    let mut scope = scope(frontend_kind, policy.flags, origin);
    // The other node has chosen this one; unless what it meant has gone meanwhile.
    if origin == Origin::Tunnel
        && tables.set(service, Scope::Local).is_some_and(|set| set.count != 0)
    {
        scope = Scope::Local;
    }
    let entropy = if policy.is_by_chance() { tables.random() } else { 0 };
    match select::<F, T>(tables, service, policy, scope, Client::Sender, entropy) {
        Choice::Backend(backend) => {
            tables.parties().backend = Place::new(backend.addr, backend.port);
            Choice::Backend(backend.flags)
        }
        Choice::Reject => Choice::Reject,
        Choice::Drop => Choice::Drop,
        Choice::Torn => Choice::Torn,
    }
}

impl Choice<u32> {
    /// As one number that a function of eBPF can return.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        match self {
            Self::Backend(flags) => flags as u64,
            Self::Reject => NONE,
            Self::Drop => NONE_ALLOWED,
            Self::Torn => NONE_ALLOWED + 1,
        }
    }

    /// The reverse of [`Choice::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(number: u64) -> Self {
        match number {
            NONE => Self::Reject,
            NONE_ALLOWED => Self::Drop,
            flags if flags < NONE => Self::Backend(flags as u32),
            _ => Self::Torn,
        }
    }
}

/// Packed choices of no backend begin above all flags.
const NONE: u64 = 1 << 32;
const NONE_ALLOWED: u64 = NONE + 1;
