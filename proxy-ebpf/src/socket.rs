//! The socket path's hooks: from the kernel's context to the engine and back.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    btf_maps::{LruHashMap, SkStorage},
    helpers::generated as helper,
    programs::SockAddrContext,
};
use datapath::{
    address::{Be16, Ipv4, Ipv6, V4, V6},
    connect::{self, Call, place},
    counter::{Hook, Reason},
    flow::Place,
    maps::PEERS_CAPACITY,
    settings::socket_lb,
    socket::{Connected, Peer, PeerKey},
    tables::Tables,
};

use crate::{
    maps::{PEERS4, PEERS6, SOCKETS4, SOCKETS6},
    tables::{FamilyMaps, Maps, count_socket_connection, settings},
};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails, with EPERM unless another error was set.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// What the socket path remembers, by family.
pub trait SocketMaps: FamilyMaps {
    const SOCKETS: &'static SkStorage<Connected<Self::Address>>;
    const PEERS: &'static LruHashMap<PeerKey<Self::Address>, Peer<Self::Address>, PEERS_CAPACITY>;
}

impl SocketMaps for V4 {
    const SOCKETS: &'static SkStorage<Connected<Ipv4>> = &SOCKETS4;
    const PEERS: &'static LruHashMap<PeerKey<Ipv4>, Peer<Ipv4>, PEERS_CAPACITY> = &PEERS4;
}

impl SocketMaps for V6 {
    const SOCKETS: &'static SkStorage<Connected<Ipv6>> = &SOCKETS6;
    const PEERS: &'static LruHashMap<PeerKey<Ipv6>, Peer<Ipv6>, PEERS_CAPACITY> = &PEERS6;
}

/// The address in a call's context, of whatever kind the socket is.
trait Peerage: SocketMaps {
    fn set_address(context: &SockAddrContext, address: Self::Address, mapped: bool);
}

impl Peerage for V4 {
    #[inline(always)]
    fn set_address(context: &SockAddrContext, address: Ipv4, mapped: bool) {
        // SAFETY: the kernel's context, whose address fields programs of this type may write.
        unsafe {
            if mapped {
                (*context.sock_addr).user_ip6[3] = address.raw();
            } else {
                (*context.sock_addr).user_ip4 = address.raw();
            }
        }
    }
}

impl Peerage for V6 {
    #[inline(always)]
    fn set_address(context: &SockAddrContext, address: Ipv6, _: bool) {
        let [a, b, c, d] = address.raw();
        // SAFETY: the kernel's context, whose address fields programs of this type may write;
        // word by word, as the verifier asks.
        unsafe {
            let words = &raw mut (*context.sock_addr).user_ip6;
            core::ptr::write_volatile(words.cast::<u32>(), a);
            core::ptr::write_volatile(words.cast::<u32>().add(1), b);
            core::ptr::write_volatile(words.cast::<u32>().add(2), c);
            core::ptr::write_volatile(words.cast::<u32>().add(3), d);
        }
    }
}

/// Which call a hook belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `connect`.
    Connect,
    /// `sendto`, `sendmsg` with a destination.
    Send,
    /// `recvfrom`, `recvmsg`: the sender's address on its way to the application.
    Receive,
    /// `getpeername`.
    PeerName,
}

#[inline(always)]
fn address4(context: &SockAddrContext) -> Ipv4 {
    // SAFETY: the kernel's context.
    Ipv4::from_raw(unsafe { (*context.sock_addr).user_ip4 })
}

#[inline(always)]
fn address6(context: &SockAddrContext) -> Ipv6 {
    // SAFETY: the kernel's context; word by word, as the verifier asks.
    unsafe {
        let words = (&raw const (*context.sock_addr).user_ip6).cast::<u32>();
        Ipv6::from_raw([
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ])
    }
}

#[inline(always)]
fn port(context: &SockAddrContext) -> u32 {
    // SAFETY: the kernel's context.
    unsafe { (*context.sock_addr).user_port }
}

/// A call on an IPv4 socket.
#[inline(always)]
pub fn call4(context: &SockAddrContext, operation: Operation) -> i32 {
    let peer = place(address4(context), port(context));
    call::<V4>(context, operation, peer, false)
}

/// A call on an IPv6 socket, whose peer may be an IPv4 address in disguise.
#[inline(always)]
pub fn call6(context: &SockAddrContext, operation: Operation) -> i32 {
    let address = address6(context);
    match address.v4_mapped() {
        Some(mapped) => call::<V4>(context, operation, place(mapped, port(context)), true),
        None => call::<V6>(context, operation, place(address, port(context)), false),
    }
}

#[inline(always)]
fn call<F: Peerage>(
    context: &SockAddrContext,
    operation: Operation,
    peer: Place<F::Address>,
    mapped: bool,
) -> i32 {
    match operation {
        Operation::Connect | Operation::Send => outward::<F>(context, operation, peer, mapped),
        Operation::Receive | Operation::PeerName => {
            inward::<F>(context, operation, peer, mapped);
            ALLOW
        }
    }
}

/// True if this process's calls are to be translated.
#[inline(always)]
fn is_served(context: &SockAddrContext) -> bool {
    let settings = settings();
    match settings.socket_lb {
        socket_lb::ON => true,
        // SAFETY: the helper takes the program's context.
        socket_lb::HOST => unsafe {
            helper::bpf_get_netns_cookie(context.as_ptr()) == settings.host_netns_cookie
        },
        _ => false,
    }
}

#[inline(always)]
fn cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's context.
    unsafe { helper::bpf_get_socket_cookie(context.as_ptr()) }
}

/// The application names its peer.
#[inline(always)]
fn outward<F: Peerage>(
    context: &SockAddrContext,
    operation: Operation,
    peer: Place<F::Address>,
    mapped: bool,
) -> i32 {
    if !is_served(context) {
        return ALLOW;
    }
    let mut maps = Maps { packet: None };
    let call = if operation == Operation::Send {
        connect::send::<F, _>(&mut maps, peer, cookie(context))
    } else {
        // SAFETY: the kernel's context.
        let proto = unsafe { (*context.sock_addr).protocol } as u8;
        connect::connect::<F, _>(&mut maps, peer, proto)
    };
    match call {
        Call::Backend(backend, service) => {
            if operation == Operation::Send {
                remember_peer::<F>(context, peer, backend, service);
            } else if !remember_connection::<F>(context, peer, backend, service) {
                return ALLOW;
            }
            F::set_address(context, backend.addr, mapped);
            // SAFETY: the kernel's context, whose port programs of this type may write.
            unsafe { (*context.sock_addr).user_port = backend.port.raw() as u32 };
            count_socket_connection(service);
            ALLOW
        }
        Call::Refuse => {
            Tables::<F>::count_drop(&mut maps, Hook::Socket, Reason::NoEndpoints);
            // SAFETY: the helper takes a number.
            unsafe { helper::bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
        Call::Pass => {
            if operation == Operation::Connect {
                forget_connection::<F>(context);
            }
            ALLOW
        }
    }
}

/// Notes the translation of a `connect` with its socket; false if the kernel has no memory
/// for it, and then the packet path serves.
#[inline(always)]
fn remember_connection<F: Peerage>(
    context: &SockAddrContext,
    frontend: Place<F::Address>,
    backend: Place<F::Address>,
    service: u32,
) -> bool {
    let connected = Connected {
        frontend: frontend.addr,
        backend: backend.addr,
        frontend_port: frontend.port,
        backend_port: backend.port,
        service,
    };
    // SAFETY: the helper gives this socket's own row, or null.
    unsafe {
        let row = F::SOCKETS.get_or_insert_ptr_mut(context, None);
        if row.is_null() {
            return false;
        }
        *row = connected;
    }
    true
}

/// The socket connects to something else now.
#[inline(always)]
fn forget_connection<F: Peerage>(context: &SockAddrContext) {
    // SAFETY: the helper gives this socket's own row, or null.
    unsafe {
        let row = F::SOCKETS.get_ptr_mut(context);
        if !row.is_null() {
            *row = Connected::default();
        }
    }
}

#[inline(always)]
fn peer_key<F: Peerage>(
    context: &SockAddrContext,
    backend: Place<F::Address>,
) -> PeerKey<F::Address> {
    let cookie = cookie(context);
    PeerKey {
        cookie: [cookie as u32, (cookie >> 32) as u32],
        backend: backend.addr,
        backend_port: backend.port,
        pad: 0,
    }
}

/// Notes which frontend the socket means by this backend.
#[inline(always)]
fn remember_peer<F: Peerage>(
    context: &SockAddrContext,
    frontend: Place<F::Address>,
    backend: Place<F::Address>,
    service: u32,
) {
    let peer = Peer { frontend: frontend.addr, frontend_port: frontend.port, pad: 0, service };
    let _ = F::PEERS.insert(peer_key::<F>(context, backend), peer, BPF_ANY.into());
}

/// The kernel names the peer: the application shall see the frontend.
#[inline(always)]
fn inward<F: Peerage>(
    context: &SockAddrContext,
    operation: Operation,
    peer: Place<F::Address>,
    mapped: bool,
) {
    let Some(frontend) = frontend::<F>(context, operation, peer) else { return };
    F::set_address(context, frontend.addr, mapped);
    // SAFETY: the kernel's context, whose port programs of this type may write.
    unsafe { (*context.sock_addr).user_port = frontend.port.raw() as u32 };
}

/// The frontend that the socket means by this backend.
#[inline(always)]
fn frontend<F: Peerage>(
    context: &SockAddrContext,
    operation: Operation,
    peer: Place<F::Address>,
) -> Option<Place<F::Address>> {
    // SAFETY: the helper gives this socket's own row, or null.
    let connected = unsafe { F::SOCKETS.get_ptr_mut(context).as_ref() };
    if let Some(row) = connected
        && row.backend == peer.addr
        && row.backend_port == peer.port
        && row.frontend_port != Be16::ZERO
    {
        return Some(Place::new(row.frontend, row.frontend_port));
    }
    if operation == Operation::PeerName {
        return None;
    }
    // SAFETY: the row is copied at once.
    let row = unsafe { F::PEERS.get(peer_key::<F>(context, peer)).copied() }?;
    Some(Place::new(row.frontend, row.frontend_port))
}
