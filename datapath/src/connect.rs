//! The socket path: a process names a frontend, its socket gets a backend. No packet has been
//! made yet, so none needs to be rewritten later.

use crate::{
    address::{Be16, protocol},
    flow::Place,
    frontend::FrontendKey,
    hash,
    header::Network,
    select::{Choice, scope, select},
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

/// Where `connect` goes. Every connection is chosen anew.
#[inline(always)]
pub fn connect<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: Place<F::Address>,
    proto: u8,
) -> Call<F::Address> {
    let entropy = tables.random();
    call::<F, T>(tables, frontend, proto, entropy)
}

/// Where a datagram of an unconnected socket goes: to the same backend as the one before it,
/// as long as the set is the same, because an application expects its peer to stay.
#[inline(always)]
pub fn send<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: Place<F::Address>,
    cookie: u64,
) -> Call<F::Address> {
    use crate::address::Address;
    let socket = hash::mix(cookie as u32 ^ (cookie >> 32) as u32);
    let entropy = hash::mix(socket ^ frontend.addr.fold() ^ frontend.port.raw() as u32);
    call::<F, T>(tables, frontend, protocol::UDP, entropy)
}

#[inline(always)]
fn call<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: Place<F::Address>,
    proto: u8,
    entropy: u32,
) -> Call<F::Address> {
    let key = FrontendKey::new(frontend.addr, frontend.port, proto);
    let Some(found) = tables.frontend(&key) else { return Call::Pass };
    let flags = tables.service_flags(found.service).unwrap_or(0);
    match select::<F, T>(tables, found.service, scope(found.kind, flags, true), entropy) {
        Choice::Backend(backend) => {
            Call::Backend(Place::new(backend.addr, backend.port), found.service)
        }
        Choice::Reject => Call::Refuse,
        Choice::Drop | Choice::Torn => Call::Pass,
    }
}

/// A place from the address and port of a socket call.
#[inline(always)]
pub const fn place<A>(addr: A, port: u32) -> Place<A> {
    // `bpf_sock_addr.user_port` holds the port in network byte order in its low half.
    Place::new(addr, Be16::from_bytes((port as u16).to_ne_bytes()))
}
