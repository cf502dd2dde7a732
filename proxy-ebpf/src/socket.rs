//! The socket path's hooks: from the kernel's context to the engine and back.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    helpers::generated as helper,
    programs::{SockAddrContext, SockContext},
};
use datapath::{
    address::{Be16, Ipv4, Ipv6, V4, V6, protocol},
    connect::{self, Call, Caller, place},
    counter::{Hook, Reason},
    flow::Place,
    settings::socket_lb,
    socket::{PeerKey, side},
    tables::{FlowTables, Tables},
};

use crate::{
    connected::{self, ConnectedMaps},
    flows::Maps,
    known::{is_foreign, is_peer, mark_peer},
    maps::BYPASSCGROUPS,
    tables::{FamilyMaps, count_socket_connection, settings},
};

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails, with EPERM unless another error was set.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
const AF_INET6: u32 = 10;

/// The address in a call's context, of whatever kind the socket is.
trait Peerage: FamilyMaps + ConnectedMaps {
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
        socket_lb::ON_BUT => is_of_node(context) || !is_left_out(),
        socket_lb::HOST => is_of_node(context),
        _ => false,
    }
}

/// How far below the root of all cgroups a pod's may be. Kubelets in containers of a user's systemd
/// have theirs ten below.
const DEPTH: i32 = 16;

/// True for the processes of a pod that is left out of the socket path.
#[inline(always)]
fn is_left_out() -> bool {
    for level in 1..=DEPTH {
        // SAFETY: the helper takes a number.
        let id = unsafe { helper::bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        if BYPASSCGROUPS.get_ptr(&id).is_some() {
            return true;
        }
    }
    false
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

/// A process, by the context of its call.
struct Process<'a>(&'a SockAddrContext);

impl Caller for Process<'_> {
    #[inline(always)]
    fn is_of_node(&self) -> bool {
        is_of_node(self.0)
    }

    /// The kernel shows the hook of `sendmsg` each datagram of an IPv6 socket whose peer is an IPv4
    /// address in disguise, although it is sent to nobody else.
    #[inline(always)]
    fn has_peer(&self) -> bool {
        // SAFETY: the kernel's context, and its socket, which is never null.
        unsafe { (*(*self.0.sock_addr).__bindgen_anon_1.sk).dst_port != 0 }
    }
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
            connected::forget::<F>(cookie(context));
        }
        return ALLOW;
    }
    let mut maps = Maps { packet: None };
    let caller = &Process(context);
    let call = if operation == Operation::Send {
        connect::send::<F, _>(&mut maps, peer, cookie(context), caller)
    } else {
        connect::connect::<F, _>(&mut maps, peer, protocol(context), caller)
    };
    match call {
        Call::Backend(backend, service) => {
            if operation == Operation::Send {
                mark_peer(backend.port);
            } else if !connected::remember::<F>(cookie(context), peer, backend, service)
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
            FlowTables::<F>::count_drop(&mut maps, Hook::Socket, Reason::NoEndpoints);
            // SAFETY: the helper takes a number.
            unsafe { helper::bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
        Call::Pass => {
            if operation == Operation::Connect {
                connected::forget::<F>(cookie(context));
            }
            ALLOW
        }
    }
}

/// The process lets go of a socket. One without a peer may have had one; one of IPv6 may have
/// been connected to IPv4's in disguise.
#[inline(always)]
pub fn release(context: &SockContext) -> i32 {
    // SAFETY: the kernel's context.
    let (family, port) = unsafe { ((*context.sock).family, (*context.sock).dst_port) };
    let port = Be16::from_bytes(port.to_ne_bytes());
    if port == Be16::ZERO || is_peer(port) {
        // SAFETY: the helper takes the program's context.
        let cookie = unsafe { helper::bpf_get_socket_cookie(context.as_ptr()) };
        connected::forget::<V4>(cookie);
        if family == AF_INET6 {
            connected::forget::<V6>(cookie);
        }
    }
    ALLOW
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
    let row = connected::row::<F>(cookie(context)).map(|row| unsafe { *row });
    if let Some(row) = row
        && row.backend == peer.addr
        && row.backend_port == peer.port
        && row.frontend_port != Be16::ZERO
    {
        return Some(Place::new(row.frontend, row.frontend_port));
    }
    if operation == Operation::PeerName {
        return None;
    }
    let key = PeerKey::new(cookie(context), peer, side::BACKEND);
    let row = Tables::<F>::peer(&mut Maps { packet: None }, &key)?;
    Some(Place::new(row.addr, row.port))
}
