//! Word of the kernel that devices, addresses or routes of this network namespace changed, or
//! something else that it tells a group of sockets of.
//!
//! A notification is only a reason to look again: the whole list is read anew, so that none
//! that was lost (the socket's buffer overran) is missed for good.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkMessage, sys::SocketAddr};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink, recv, socket_with,
    },
};
use tokio::io::unix::AsyncFd;

/// Notifications this close together are one reason to look.
const COALESCE: Duration = Duration::from_millis(5);

/// A listening socket. Needs a tokio runtime.
pub struct Notices {
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Word came, and no list was asked for since.
    is_due: bool,
}

impl Notices {
    pub fn open() -> io::Result<Self> {
        let (connection, _, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        tokio::spawn(connection);
        Ok(Self { events, is_due: false })
    }

    /// Returns when something may have changed; `None` once the kernel says no more. May be
    /// dropped half way: no word is lost by that.
    pub async fn changed(&mut self) -> Option<()> {
        if !self.is_due {
            self.events.next().await?;
            self.is_due = true;
        }
        // Devices come with a burst of notifications, and routing daemons send many.
        tokio::time::sleep(COALESCE).await;
        while self.events.try_recv().is_ok() {}
        self.is_due = false;
        Some(())
    }
}

/// A socket that listens to one group of a netlink protocol. Needs a tokio runtime.
pub struct Word {
    socket: AsyncFd<OwnedFd>,
    /// Whether what the kernel said is a reason to look.
    is_wanted: fn(&[u8]) -> bool,
}

impl Word {
    /// `group` is the group's bit.
    pub fn of(
        protocol: Option<Protocol>,
        group: u32,
        is_wanted: fn(&[u8]) -> bool,
    ) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, group))?;
        // SAFETY: an owned descriptor is open, and the same, for as long as it lives.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self { socket: socket.map_err(io::Error::other)?, is_wanted })
    }

    /// The same by the group's number, of those that a bit cannot tell.
    pub fn of_group(
        protocol: Option<Protocol>,
        group: u32,
        is_wanted: fn(&[u8]) -> bool,
    ) -> io::Result<Self> {
        let this = Self::of(protocol, 0, is_wanted)?;
        let length = size_of_val(&group) as u32;
        // SAFETY: the kernel reads a number of that length.
        let joined = unsafe {
            libc::setsockopt(
                this.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const group).cast(),
                length,
            )
        };
        if joined == 0 { Ok(this) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns when there is a reason to look. May be dropped half way: no word is lost by that.
    async fn come(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut any = false;
            loop {
                match recv(&self.socket, &mut buffer, RecvFlags::TRUNC) {
                    Ok((length, _)) => any |= (self.is_wanted)(&buffer[..length]),
                    // What was lost may have been a reason.
                    Err(Errno::NOBUFS) => any = true,
                    Err(Errno::AGAIN) => break,
                    Err(err) => return Err(err.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}

/// Waits for word; false if there will be none.
pub async fn word(socket: &mut Option<Word>) -> bool {
    match socket {
        Some(socket) => socket.come().await.is_ok(),
        None => std::future::pending().await,
    }
}
