//! Word of the kernel that devices, addresses or routes of this network namespace changed.
//!
//! A notification is only a reason to look again: the whole list is read anew, so that none
//! that was lost (the socket's buffer overran) is missed for good.

use std::{io, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkMessage, sys::SocketAddr};

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
