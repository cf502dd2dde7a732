//! What the programs are told of this node, and the ports that are kept free for them.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use agent_kit::kernel;
use datapath::settings::{Settings, socket_lb};

use crate::config::{PortRange, SocketLb};

/// The row of `SETTINGS`.
pub fn settings(
    socket_lb: SocketLb,
    nat_ports: PortRange,
    foreign_proxy: bool,
) -> io::Result<Settings> {
    Ok(Settings {
        host_netns_cookie: netns_cookie()?,
        nat_port_first: nat_ports.first,
        nat_port_last: nat_ports.last,
        socket_lb: match socket_lb {
            SocketLb::Off => socket_lb::OFF,
            SocketLb::Host => socket_lb::HOST,
            SocketLb::On => socket_lb::ON,
        },
        foreign_proxy: foreign_proxy.into(),
        ipv6_checksum_flags: kernel::ipv6_checksum_flags()?,
        ..Settings::default()
    })
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

/// Ports that the kernel gives to no socket by itself, in this network namespace.
const RESERVED_PORTS: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Ports that are set aside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReservedPorts(Vec<PortRange>);

impl ReservedPorts {
    /// As the kernel has them.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string(RESERVED_PORTS).map(|text| Self::parse(&text))
    }

    pub fn write(&self) -> io::Result<()> {
        fs::write(Path::new(RESERVED_PORTS), format!("{self}\n"))
    }

    fn parse(text: &str) -> Self {
        let ranges = text.trim().split(',').filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(PortRange { first: first.parse().ok()?, last: last.parse().ok()? })
        });
        let mut ports = Self::default();
        ranges.for_each(|range| ports.insert(range));
        ports
    }

    pub fn contains(&self, range: PortRange) -> bool {
        self.0.iter().any(|held| held.first <= range.first && held.last >= range.last)
    }

    /// Adds a range, joined to its neighbours as the kernel would print it.
    pub fn insert(&mut self, range: PortRange) {
        let mut joined = range;
        self.0.retain(|held| {
            let apart = u32::from(held.last) + 1 < u32::from(range.first)
                || u32::from(range.last) + 1 < u32::from(held.first);
            if !apart {
                joined.first = joined.first.min(held.first);
                joined.last = joined.last.max(held.last);
            }
            apart
        });
        self.0.push(joined);
        self.0.sort_by_key(|held| held.first);
    }

    /// Takes a range out of whatever holds it.
    pub fn remove(&mut self, range: PortRange) {
        let held = std::mem::take(&mut self.0);
        for PortRange { first, last } in held {
            if last < range.first || first > range.last {
                self.0.push(PortRange { first, last });
                continue;
            }
            if first < range.first {
                self.0.push(PortRange { first, last: range.first - 1 });
            }
            if last > range.last {
                self.0.push(PortRange { first: range.last + 1, last });
            }
        }
    }
}

impl std::fmt::Display for ReservedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, range) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            if range.first == range.last {
                write!(f, "{comma}{}", range.first)?;
            } else {
                write!(f, "{comma}{range}")?;
            }
        }
        Ok(())
    }
}

/// Sets our ports aside; true if they were not yet.
pub fn reserve_ports(range: PortRange) -> io::Result<bool> {
    let mut ports = ReservedPorts::read()?;
    if ports.contains(range) {
        return Ok(false);
    }
    ports.insert(range);
    ports.write()?;
    Ok(true)
}

/// Gives our ports back; true if they were set aside.
pub fn release_ports(range: PortRange) -> io::Result<bool> {
    let before = ReservedPorts::read()?;
    let mut ports = before.clone();
    ports.remove(range);
    if ports == before {
        return Ok(false);
    }
    ports.write()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: PortRange = PortRange { first: 50_000, last: 59_999 };

    fn after(text: &str, change: impl FnOnce(&mut ReservedPorts)) -> String {
        let mut ports = ReservedPorts::parse(text);
        change(&mut ports);
        ports.to_string()
    }

    #[test]
    fn ports_are_merged_and_taken_out_again() {
        let add = |text| after(text, |ports| ports.insert(OURS));
        let take = |text| after(text, |ports| ports.remove(OURS));
        assert_eq!(add("\n"), "50000-59999");
        assert_eq!(take("50000-59999\n"), "");
        assert_eq!(add("8080,60000-65535"), "8080,50000-65535");
        assert_eq!(take("8080,50000-65535"), "8080,60000-65535");
        assert_eq!(add("49000-55000"), "49000-59999");
        assert_eq!(take("1-65535"), "1-49999,60000-65535");
    }
}
