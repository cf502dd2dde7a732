//! What stands in the pinned tables, read by path: the same with or without an agent.

pub mod flows;
pub mod services;
pub mod status;

use std::{collections::BTreeMap, io, path::Path};

pub use agent_kit::{
    array::ArrayView,
    counts::Counts,
    drops::Drops,
    print,
    reason::hint,
    table::{MapTable, OpenError, Table},
};
use datapath::{
    address::{Ipv4, Ipv6},
    counter::{Hook, Reason},
    flow::{Flow, FlowKey},
    forward::Way,
    service::{ServiceCounters, ServiceName},
    socket::Connected,
    wire::Leg,
};

use crate::apply::tables::decode_name;

/// Nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error("{0}{hint}", hint = advice(.0))]
    Open(#[from] OpenError),
    #[error("cannot read the pinned tables: {0}")]
    Read(#[from] agent_kit::table::TableError),
    #[error(transparent)]
    Attachments(#[from] crate::status::AttachmentsError),
    #[error("no Service is called {0:?}; `proxy-agent services` lists them")]
    NoSuchService(String),
}

fn advice(err: &OpenError) -> &'static str {
    match err.source.kind() {
        io::ErrorKind::NotFound => {
            "; is the agent's --bpffs another, or was it never started here?"
        }
        _ => hint(&err.source),
    }
}

/// What a row of `SERVICES` is called.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub service: String,
    pub port: String,
}

impl Name {
    fn decode(name: &ServiceName) -> Option<Self> {
        let (namespace, service, port) = decode_name(name)?;
        Some(Self { namespace, service, port })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// What the programs count.
pub struct Counters {
    names: MapTable<u32, ServiceName>,
    services: ArrayView<ServiceCounters>,
    drops: Option<Drops>,
    carried: Option<Counts>,
    forwarded: Option<Counts>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Those pinned in `maps`, with the view of `STATS` that is mapped already.
    pub fn open(maps: &Path, services: ArrayView<ServiceCounters>) -> Result<Self, OpenError> {
        Ok(Self {
            names: MapTable::open(maps, "NAMES")?,
            services,
            drops: Drops::open(maps).ok(),
            carried: Counts::open(maps, "CARRIED").ok(),
            forwarded: Counts::open(maps, "FORWARDED").ok(),
        })
    }

    /// Of each Service's port, both families together.
    pub fn services(&self) -> BTreeMap<Name, ServiceCounters> {
        let mut services = BTreeMap::new();
        for (index, name) in self.names.rows().unwrap_or_default() {
            let (Some(name), Some(count)) = (Name::decode(&name), self.services.read(index)) else {
                continue;
            };
            let sum: &mut ServiceCounters = services.entry(name).or_default();
            sum.socket_connections += count.socket_connections;
            sum.packet_connections += count.packet_connections;
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        }
        services
    }

    /// Packets that the kernel never saw, by what was done with them.
    pub fn carried(&self) -> Vec<(Leg, u64)> {
        let carried = self.carried.iter();
        carried.flat_map(|counts| Leg::ALL.map(|leg| (leg, counts.sum(leg as u32)))).collect()
    }

    /// Packets that passed bridge and IP stack by.
    pub fn forwarded(&self) -> Vec<(Way, u64)> {
        let forwarded = self.forwarded.iter();
        forwarded.flat_map(|counts| Way::ALL.map(|way| (way, counts.sum(way as u32)))).collect()
    }

    /// Of each hook and reason.
    pub fn drops(&self) -> Vec<(Hook, Reason, u64)> {
        self.drops.iter().flat_map(Drops::all).collect()
    }
}

/// Rows and capacity of the tables that the programs fill.
pub fn filled_by_programs(maps: &Path) -> Vec<(String, u32, u32)> {
    let mut fill = Vec::new();
    for name in ["FLOWS4", "PENDING4"] {
        fill.extend(count::<FlowKey<Ipv4>, Flow<Ipv4>>(maps, name, |_| true));
    }
    for name in ["FLOWS6", "PENDING6"] {
        fill.extend(count::<FlowKey<Ipv6>, Flow<Ipv6>>(maps, name, |_| true));
    }
    fill.extend(count::<u32, Connected<Ipv4>>(maps, "SOCKETS4", |row| row.cookie != 0));
    fill.extend(count::<u32, Connected<Ipv6>>(maps, "SOCKETS6", |row| row.cookie != 0));
    fill
}

fn count<K: agent_kit::Pod, V: agent_kit::Pod>(
    maps: &Path,
    name: &str,
    is_taken: fn(&V) -> bool,
) -> Option<(String, u32, u32)>
where
    MapTable<K, V>: Table<K, V>,
{
    let table: MapTable<K, V> = MapTable::open(maps, name).ok()?;
    let mut rows = 0;
    table.visit(|_, row| rows += u32::from(is_taken(row))).ok()?;
    Some((name.to_owned(), rows, table.capacity()))
}
