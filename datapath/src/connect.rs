//! The socket path: a process names a frontend, its socket gets a backend. No packet has been
//! made yet, so none needs to be rewritten later.

use crate::{
    address::{Address, Be16, protocol},
    affinity::Client,
    flow::Place,
    frontend::FrontendKey,
    hash,
    header::Network,
    select::{Choice, Origin, scope, select},
    service::{ServicePolicy, service_flags},
    socket::{Peer, PeerKey, side},
    source_range::is_guarded,
    tables::Tables,
};

/// What a socket call becomes.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call<A> {
    /// As it is: not to a frontend, or the packet path decides.
    Pass,
    /// To a backend of this service.
    Backend(Place<A>, u32),
    /// Fails with ECONNREFUSED.
    Refuse,
}

/// The process that calls.
pub trait Caller {
    /// True for the node's own processes, false for those of pods. Asked only where it matters:
    /// to tell takes a helper of the kernel.
    fn is_of_node(&self) -> bool;
    /// True if the socket has a peer when it sends, although the kernel asks where to.
    fn has_peer(&self) -> bool;
}

/// True for pods whose packets the packet path sees. Their datagram sockets with a peer are left to
/// it: such a socket asks nobody again, and would stay with an endpoint that is gone. So are their
/// connections of TCP if these are to end with their endpoint.
#[inline(always)]
fn is_balanced_by_packet<F: Network, T: Tables<F>>(tables: &mut T, caller: &impl Caller) -> bool {
    tables.settings().sees_pods != 0 && !caller.is_of_node()
}

/// True if the frontend is a NodePort on a loopback address and the caller a pod, which has that
/// address for itself.
#[inline(always)]
fn is_callers_own<A: Address>(frontend: Place<A>, caller: &impl Caller) -> bool {
    frontend.addr.is_loopback() && !caller.is_of_node()
}

/// True if the answer hangs on who asks, and this one's address shows only in its packets; or if the
/// Service is to be left to them. Pods' are seen by the packet path; the node's own processes are
/// one client, which source ranges admit or not ([`crate::refusal`]).
#[inline(always)]
fn is_left_to_packets(policy: ServicePolicy, frontend_kind: u8, caller: &impl Caller) -> bool {
    let is_guarded = is_guarded(frontend_kind, policy.flags);
    let is_pods = is_guarded || policy.is_by_client() || policy.flags & service_flags::PACKETS != 0;
    (is_guarded && policy.flags & service_flags::NODE_ADMITTED == 0)
        || (is_pods && !caller.is_of_node())
}

/// Where `connect` goes. Every connection is chosen anew.
#[inline(always)]
pub fn connect<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: Place<F::Address>,
    proto: u8,
    caller: &impl Caller,
) -> Call<F::Address> {
    let key = FrontendKey::new(frontend.addr, frontend.port, proto);
    let Some(found) = tables.frontend(&key) else { return Call::Pass };
    if is_callers_own(frontend, caller) {
        return Call::Pass;
    }
    let is_ended = proto != protocol::TCP || tables.settings().resets_tcp != 0;
    if is_ended && is_balanced_by_packet::<F, T>(tables, caller) {
        return Call::Pass;
    }
    let service = found.service;
    let policy = tables.policy(service);
    if is_left_to_packets(policy, found.kind, caller) {
        return Call::Pass;
    }
    let scope = scope(found.kind, policy.flags, Origin::Inside);
    let entropy = tables.random();
    match select::<F, T>(tables, service, policy, scope, Client::Node, entropy) {
        Choice::Backend(backend) => Call::Backend(Place::new(backend.addr, backend.port), service),
        other => without(&other),
    }
}

/// Where a datagram of a socket without a peer goes: to the same backend as the one before it, as
/// long as that is in the set, because an application expects its peer to stay. A first one goes
/// where the socket's cookie tells, so that to be forgotten changes nothing while the set is the
/// same.
#[inline(always)]
pub fn send<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: Place<F::Address>,
    cookie: u64,
    caller: &impl Caller,
) -> Call<F::Address> {
    let key = FrontendKey::new(frontend.addr, frontend.port, protocol::UDP);
    let Some(found) = tables.frontend(&key) else { return Call::Pass };
    if is_callers_own(frontend, caller) {
        return Call::Pass;
    }
    if caller.has_peer() && is_balanced_by_packet::<F, T>(tables, caller) {
        return Call::Pass;
    }
    let service = found.service;
    let policy = tables.policy(service);
    let scope = scope(found.kind, policy.flags, Origin::Inside);
    let Some(set) = tables.set(service, scope) else { return Call::Refuse };
    let key = PeerKey::new(cookie, frontend, side::FRONTEND);
    let last = tables.peer(&key).filter(|last| last.service == service);
    let (backend, is_known) = match last {
        Some(last) if set.count != 0 && last.generation == set.generation => {
            (Place::new(last.addr, last.port), true)
        }
        Some(last) if tables.find_backend(set, Place::new(last.addr, last.port)).is_some() => {
            (Place::new(last.addr, last.port), false)
        }
        _ if is_left_to_packets(policy, found.kind, caller) => return Call::Pass,
        _ => {
            let entropy = entropy(frontend, cookie);
            match select::<F, T>(tables, service, policy, scope, Client::Node, entropy) {
                Choice::Backend(backend) => (Place::new(backend.addr, backend.port), false),
                other => return without(&other),
            }
        }
    };
    if !is_known {
        let Place { addr, port, .. } = backend;
        tables.remember_peer(&key, &Peer { addr, port, generation: set.generation, service });
    }
    // A socket may reach one backend by two frontends; the application means the last.
    let Place { addr, port, .. } = frontend;
    let key = PeerKey::new(cookie, backend, side::BACKEND);
    if tables.peer(&key).is_none_or(|meant| meant.addr != addr || meant.port != port) {
        tables.remember_peer(&key, &Peer { addr, port, generation: 0, service });
    }
    Call::Backend(backend, service)
}

#[inline(always)]
fn entropy<A: Address>(frontend: Place<A>, cookie: u64) -> u32 {
    let socket = hash::mix(cookie as u32 ^ (cookie >> 32) as u32);
    hash::mix(socket ^ frontend.addr.fold() ^ frontend.port.raw() as u32)
}

/// What becomes of a call if no backend was chosen.
#[inline(always)]
const fn without<A, B>(choice: &Choice<B>) -> Call<A> {
    match choice {
        Choice::Reject => Call::Refuse,
        Choice::Backend(_) | Choice::Drop | Choice::Torn => Call::Pass,
    }
}

/// A place from the address and port of a socket call.
#[inline(always)]
pub const fn place<A>(addr: A, port: u32) -> Place<A> {
    // `bpf_sock_addr.user_port` holds the port in network byte order in its low half.
    Place::new(addr, Be16::from_bytes((port as u16).to_ne_bytes()))
}
