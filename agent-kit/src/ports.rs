//! Source ports for masquerading, kept free of sockets.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::Args;
use serde::{Serialize, Serializer};
use tracing::info;

/// Neighbouring ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            Some(Self { first: first.parse().ok()?, last: last.parse().ok()? })
        };
        match parse() {
            Some(range) if range.first >= 1024 && range.last >= range.first => Ok(range),
            _ => Err("expected FROM-TO, ports from 1024 to 65535, FROM not above TO".into()),
        }
    }
}

/// Where the kernel is told of ports that it shall give to no socket by itself, in this network
/// namespace.
#[derive(Args, Clone, Debug, Serialize)]
pub struct ReservedPortsArgs {
    /// Where ports are set aside; another path for the same, where containers have /proc/sys
    /// read-only
    #[arg(
        long,
        env = "MILLRACE_RESERVED_PORTS_FILE",
        value_name = "FILE",
        default_value = "/proc/sys/net/ipv4/ip_local_reserved_ports"
    )]
    pub reserved_ports_file: PathBuf,
}

/// Ports that are set aside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReservedPorts(Vec<PortRange>);

impl ReservedPorts {
    /// As the kernel has them; from [`ReservedPortsArgs`]' file.
    pub fn read(file: &Path) -> io::Result<Self> {
        fs::read_to_string(file).map(|text| Self::parse(&text))
    }

    pub fn write(&self, file: &Path) -> io::Result<()> {
        fs::write(file, format!("{self}\n"))
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

impl fmt::Display for ReservedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// What says which ports are set aside, as `sysctl` calls it.
pub const SYSCTL: &str = "net.ipv4.ip_local_reserved_ports";

/// Why sockets may come to have our ports.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot reserve {range}: {source}; sockets of the node may take ports that masqueraded \
     connections use; make {file} writable, name another path for it by --reserved-ports-file, or \
     set {SYSCTL} beforehand"
)]
pub struct ReserveError {
    range: PortRange,
    file: PathBuf,
    source: io::Error,
}

/// Sets our ports aside, where they are not yet.
pub fn reserve(file: &Path, range: PortRange) -> Result<(), ReserveError> {
    let failed = |source| ReserveError { range, file: file.into(), source };
    let mut ports = ReservedPorts::read(file).map_err(failed)?;
    if ports.contains(range) {
        return Ok(());
    }
    ports.insert(range);
    ports.write(file).map_err(failed)?;
    info!(%range, "reserved source ports for masquerading");
    Ok(())
}

/// Gives our ports back; true if they were set aside.
pub fn release(file: &Path, range: PortRange) -> io::Result<bool> {
    let before = ReservedPorts::read(file)?;
    let mut ports = before.clone();
    ports.remove(range);
    if ports == before {
        return Ok(false);
    }
    ports.write(file)?;
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
