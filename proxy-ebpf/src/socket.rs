//! The socket path's hooks: from the kernel's context to the engine and back.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_ANY,
    btf_maps::{Array, LruHashMap},
    helpers::generated as helper,
    programs::{SockAddrContext, SockContext},
};
use datapath::{
    address::{Be16, Ipv4, Ipv6, V4, V6, protocol},
    connect::{self, Call, place},
    counter::{Hook, Reason},
    flow::Place,
    maps::{PEERS_CAPACITY, SOCKETS_CAPACITY},
    settings::socket_lb,
    socket::{Connected, Peer, PeerKey, WAYS, place as place_of_row},
    tables::Tables,
};

use crate::{
    gate::{is_foreign, is_peer, mark_peer},
    maps::{MMAP, PEERS4, PEERS6, SOCKETS4, SOCKETS6},
    tables::{FamilyMaps, Maps, count_socket_connection, settings},
};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails, with EPERM unless another error was set.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

type Sockets<A> = Array<Connected<A>, SOCKETS_CAPACITY, MMAP>;
type Peers<A> = LruHashMap<PeerKey<A>, Peer<A>, PEERS_CAPACITY>;

/// What the socket path remembers, by family.
pub trait SocketMaps: FamilyMaps {
    const SOCKETS: &'static Sockets<Self::Address>;
    const PEERS: &'static Peers<Self::Address>;
}

impl SocketMaps for V4 {
    const SOCKETS: &'static Sockets<Ipv4> = &SOCKETS4;
    const PEERS: &'static Peers<Ipv4> = &PEERS4;
}

impl SocketMaps for V6 {
    const SOCKETS: &'static Sockets<Ipv6> = &SOCKETS6;
    const PEERS: &'static Peers<Ipv6> = &PEERS6;
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
            write_volatile(words.cast::<u32>(), a);
            write_volatile(words.cast::<u32>().add(1), b);
            write_volatile(words.cast::<u32>().add(2), c);
            write_volatile(words.cast::<u32>().add(3), d);
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
            read_volatile(words),
            read_volatile(words.add(1)),
            read_volatile(words.add(2)),
            read_volatile(words.add(3)),
        ])
    }
}

#[inline(always)]
fn port(context: &SockAddrContext) -> u32 {
    // SAFETY: the kernel's context.
    unsafe { (*context.sock_addr).user_port }
}

#[inline(always)]
fn protocol(context: &SockAddrContext) -> u8 {
    // SAFETY: the kernel's context.
    unsafe { (*context.sock_addr).protocol as u8 }
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
        socket_lb::HOST => is_of_node(context),
        _ => false,
    }
}

/// True for the node's own processes, which no packet path serves.
#[inline(always)]
fn is_of_node(context: &SockAddrContext) -> bool {
    // SAFETY: the helper takes the program's context.
    unsafe { helper::bpf_get_netns_cookie(context.as_ptr()) == settings().host_netns_cookie }
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
    if is_foreign::<F>(peer.addr) {
        // Only a datagram socket can be connected again before it is let go. (One of TCP can
        // after a failure, which leaves a row that no other peer matches.)
        if operation == Operation::Connect && protocol(context) != protocol::TCP {
            forget::<F>(cookie(context));
        }
        return ALLOW;
    }
    let mut maps = Maps { packet: None };
    let call = if operation == Operation::Send {
        connect::send::<F, _>(&mut maps, peer, cookie(context))
    } else {
        connect::connect::<F, _>(&mut maps, peer, protocol(context))
    };
    match call {
        Call::Backend(backend, service) => {
            if operation == Operation::Send {
                remember_peer::<F>(context, peer, backend, service);
            } else if !remember_connection::<F>(context, peer, backend, service)
                && !is_of_node(context)
            {
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
                forget::<F>(cookie(context));
            }
            ALLOW
        }
    }
}

/// Notes the translation of a `connect`; false if there is no room. Then the packet path serves
/// pods, and the node's own processes see the backend as their peer.
#[inline(always)]
fn remember_connection<F: Peerage>(
    context: &SockAddrContext,
    frontend: Place<F::Address>,
    backend: Place<F::Address>,
    service: u32,
) -> bool {
    mark_peer(backend.port);
    let cookie = cookie(context);
    let Some(row) = row::<F>(cookie).or_else(|| claim::<F>(cookie)) else { return false };
    // SAFETY: the map's rows are never freed, and this one is the socket's own.
    unsafe {
        *row = Connected {
            cookie,
            frontend: frontend.addr,
            backend: backend.addr,
            frontend_port: frontend.port,
            backend_port: backend.port,
            service,
        };
    }
    true
}

/// The row of a socket, if it has one.
#[inline(always)]
fn row<F: SocketMaps>(cookie: u64) -> Option<*mut Connected<F::Address>> {
    (0..WAYS).find_map(|way| {
        let row = F::SOCKETS.get_ptr_mut(place_of_row(cookie, way))?;
        // SAFETY: the map's rows are never freed; volatile because others are being taken.
        (unsafe { read_volatile(&raw const (*row).cookie) } == cookie).then_some(row)
    })
}

/// Takes a row for a socket, if one of its places is free.
#[inline(always)]
fn claim<F: SocketMaps>(cookie: u64) -> Option<*mut Connected<F::Address>> {
    (0..WAYS).find_map(|way| {
        let row = F::SOCKETS.get_ptr_mut(place_of_row(cookie, way))?;
        // SAFETY: the map's rows are never freed.
        unsafe { take(&raw mut (*row).cookie, cookie) }.then_some(row)
    })
}

/// Writes a word where zero stands; false if something else does.
///
/// # Safety
/// The word lies in a row of a map.
#[inline(always)]
unsafe fn take(word: *mut u64, value: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's. The target has no compare-and-exchange in Rust.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word,
            value = in(reg) value,
            inout("r0") 0_u64 => found,
        );
    }
    found == 0
}

/// Frees a socket's row, if it has one.
#[inline(always)]
fn forget<F: SocketMaps>(cookie: u64) {
    if let Some(row) = row::<F>(cookie) {
        // SAFETY: the map's rows are never freed, and this one is the socket's own.
        unsafe { write_volatile(&raw mut (*row).cookie, 0) };
    }
}

/// The process lets go of a socket.
#[inline(always)]
pub fn release(context: &SockContext) -> i32 {
    // SAFETY: the kernel's context.
    let (family, port) = unsafe { ((*context.sock).family, (*context.sock).dst_port) };
    let port = Be16::from_bytes(port.to_ne_bytes());
    if family == AF_INET {
        // SAFETY: the kernel's context.
        let address = Ipv4::from_raw(unsafe { (*context.sock).dst_ip4 });
        forget_released::<V4>(context, Place::new(address, port));
    } else if family == AF_INET6 {
        // SAFETY: the kernel's context; word by word, as the verifier asks.
        let address = Ipv6::from_raw(unsafe {
            let words = (&raw const (*context.sock).dst_ip6).cast::<u32>();
            [
                read_volatile(words),
                read_volatile(words.add(1)),
                read_volatile(words.add(2)),
                read_volatile(words.add(3)),
            ]
        });
        let place = Place::new(address, port);
        forget_released::<V6>(context, place);
        if port == Be16::ZERO || address.v4_mapped().is_some() {
            let address = address.v4_mapped().unwrap_or_default();
            forget_released::<V4>(context, Place::new(address, port));
        }
    }
    ALLOW
}

/// Removes the row of a socket whose peer is now `peer`: without a port if it is connected to
/// nothing, or nothing any more.
#[inline(always)]
fn forget_released<F: SocketMaps>(context: &SockContext, peer: Place<F::Address>) {
    if peer.port == Be16::ZERO || is_peer(peer.port) {
        // SAFETY: the helper takes the program's context.
        let cookie = unsafe { helper::bpf_get_socket_cookie(context.as_ptr()) };
        forget::<F>(cookie);
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
    mark_peer(backend.port);
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
    if !is_peer(peer.port) {
        return None;
    }
    // SAFETY: the map's rows are never freed, and this one is the socket's own.
    let connected = row::<F>(cookie(context)).map(|row| unsafe { *row });
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
