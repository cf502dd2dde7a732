//! What the programs are told of this node.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use agent_kit::kernel;
use datapath::{
    address::{Ipv4, Ipv6},
    hash,
    settings::{Settings, socket_lb},
    source_rate,
};

use crate::config::{OnRemovedEndpoint, PodLink, RunArgs, SocketLb};

/// The row of `SETTINGS`, but for what may change while the agent runs.
pub fn settings(args: &RunArgs) -> io::Result<Settings> {
    Ok(Settings {
        host_netns_cookie: netns_cookie()?,
        nat_port_first: args.nat_ports.first,
        nat_port_last: args.nat_ports.last,
        socket_lb: match args.socket_lb {
            SocketLb::Off => socket_lb::OFF,
            SocketLb::Host => socket_lb::HOST,
            SocketLb::On => socket_lb::ON,
        },
        sees_pods: (args.pod_link != PodLink::None).into(),
        resets_tcp: (args.tcp_on_removed_endpoint == OnRemovedEndpoint::Reset).into(),
        new_flow_interval: source_rate::interval(args.new_flows_per_source),
        ipv6_checksum_flags: kernel::ipv6_checksum_flags()?,
        ..Settings::default()
    })
}

/// `Settings::node_hash` of a node's address.
pub fn node_hash(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => hash::address(Ipv4::from(address)),
        IpAddr::V6(address) => hash::address(Ipv6::from(address)),
    }
}

/// `SO_NETNS_COOKIE`: tells network namespaces apart in socket programs.
fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live variables, and `length` is that of the buffer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
