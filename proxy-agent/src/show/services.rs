//! Services and backends as they are programmed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use agent_kit::{
    array::Array,
    table::{MapTable, Table},
};
use datapath::{
    address::{Ipv4, Ipv6, protocol},
    affinity,
    algorithm::Algorithm,
    backend::{Backend, backend_flags},
    frontend::{Frontend, FrontendKey, kind},
    service::{Service, ServiceCounters, ServiceName, SetRef, service_flags},
    source_range::RangeKey,
};
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Name, ShowError, print};
use crate::apply::tables::{array, range};

#[derive(Clone, Debug, Serialize)]
pub struct ShownService {
    pub namespace: String,
    pub name: String,
    pub port: String,
    pub protocol: &'static str,
    pub family: &'static str,
    pub index: u32,
    pub frontends: Vec<ShownFrontend>,
    pub internal_traffic_policy: &'static str,
    pub external_traffic_policy: &'static str,
    /// How a backend is chosen.
    pub algorithm: &'static str,
    /// Of session affinity, as near as the tables have it; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_timeout_seconds: Option<u32>,
    /// Sources that may begin connections to a load balancer's address; absent if all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<Vec<IpNetwork>>,
    pub backends: Vec<ShownBackend>,
    /// What happens to connections if there are none: `reject` or `drop`.
    pub without_backends: Option<&'static str>,
    pub local_backends: Vec<ShownBackend>,
    pub local_without_backends: Option<&'static str>,
    pub socket_connections: u64,
    pub packet_connections: u64,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct ShownFrontend {
    pub kind: &'static str,
    pub address: IpAddr,
    pub port: u16,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct ShownBackend {
    pub address: IpAddr,
    pub port: u16,
    pub local: bool,
    /// How often it stands in its set: its share of new connections.
    pub slots: u32,
}

/// One backend with all that use it.
#[derive(Clone, Debug, Serialize)]
pub struct BackendUse {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: &'static str,
    pub local: bool,
    pub services: Vec<String>,
}

struct Tables {
    services: Array<Service>,
    counters: Array<ServiceCounters>,
    backends4: Array<Backend<Ipv4>>,
    backends6: Array<Backend<Ipv6>>,
    ranges: BTreeMap<u32, Vec<IpNetwork>>,
}

/// All Services, or those of a name.
pub fn read(maps: &Path, name: Option<&str>) -> Result<Vec<ShownService>, ShowError> {
    let tables = Tables {
        services: array(maps, "SERVICES")?,
        counters: array(maps, "STATS")?,
        backends4: array(maps, "BACKENDS4")?,
        backends6: array(maps, "BACKENDS6")?,
        ranges: ranges(maps)?,
    };
    let names: MapTable<u32, ServiceName> = MapTable::open(maps, "NAMES")?;
    let frontends4: MapTable<FrontendKey<Ipv4>, Frontend> = MapTable::open(maps, "FRONTENDS4")?;
    let frontends6: MapTable<FrontendKey<Ipv6>, Frontend> = MapTable::open(maps, "FRONTENDS6")?;
    let mut frontends: BTreeMap<u32, Vec<(u8, ShownFrontend)>> = BTreeMap::new();
    for (key, row) in frontends4.rows()? {
        frontends.entry(row.service).or_default().push(frontend(&key, row));
    }
    for (key, row) in frontends6.rows()? {
        frontends.entry(row.service).or_default().push(frontend(&key, row));
    }
    let mut shown = Vec::new();
    for (index, row) in names.rows()? {
        let Some(name) = Name::decode(&row) else { continue };
        let leads = frontends.remove(&index).unwrap_or_default();
        shown.push(tables.show(index, name, &leads));
    }
    shown.sort_by(|a, b| {
        let key = |s: &ShownService| {
            (s.namespace.clone(), s.name.clone(), s.port.clone(), s.protocol, s.family)
        };
        key(a).cmp(&key(b))
    });
    if let Some(wanted) = name {
        shown.retain(|service| is_called(service, wanted));
        if shown.is_empty() {
            return Err(ShowError::NoSuchService(wanted.into()));
        }
    }
    Ok(shown)
}

/// Source ranges by index into `SERVICES`.
fn ranges(maps: &Path) -> Result<BTreeMap<u32, Vec<IpNetwork>>, ShowError> {
    let v4: MapTable<RangeKey<Ipv4>, u32> = MapTable::open(maps, "RANGES4")?;
    let v6: MapTable<RangeKey<Ipv6>, u32> = MapTable::open(maps, "RANGES6")?;
    let (v4, v6) = (v4.rows()?, v6.rows()?);
    let v4 = v4.iter().filter_map(|(key, _)| range(key));
    let mut ranges: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
    for at in v4.chain(v6.iter().filter_map(|(key, _)| range(key))) {
        ranges.entry(at.service).or_default().push(at.range);
    }
    for ranges in ranges.values_mut() {
        ranges.sort();
    }
    Ok(ranges)
}

fn is_called(service: &ShownService, wanted: &str) -> bool {
    let (path, port) = match wanted.split_once(':') {
        Some((path, port)) => (path, Some(port)),
        None => (wanted, None),
    };
    let is_path = match path.split_once('/') {
        Some((namespace, name)) => service.namespace == namespace && service.name == name,
        None => service.name == path,
    };
    is_path && port.is_none_or(|port| service.port == port)
}

fn frontend<A: Into<IpAddr> + Copy>(key: &FrontendKey<A>, row: Frontend) -> (u8, ShownFrontend) {
    let kind = match row.kind {
        kind::CLUSTER_IP => "cluster_ip",
        kind::NODE_PORT => "node_port",
        kind::EXTERNAL_IP => "external_ip",
        kind::LOAD_BALANCER => "load_balancer",
        _ => "unknown",
    };
    (key.proto, ShownFrontend { kind, address: key.addr.into(), port: key.port.get() })
}

impl Tables {
    fn show(&self, index: u32, name: Name, frontends: &[(u8, ShownFrontend)]) -> ShownService {
        let service = self.services.read(index).unwrap_or_default();
        let count = self.counters.read(index).unwrap_or_default();
        let is_v6 = service.flags & service_flags::IPV6 != 0;
        let policy = |bit| if service.flags & bit == 0 { "Cluster" } else { "Local" };
        let mut leads: Vec<ShownFrontend> =
            frontends.iter().map(|(_, frontend)| frontend.clone()).collect();
        leads.sort();
        ShownService {
            namespace: name.namespace,
            name: name.service,
            port: name.port,
            protocol: frontends.first().map_or("", |(proto, _)| protocol::name(*proto)),
            family: if is_v6 { "IPv6" } else { "IPv4" },
            index,
            frontends: leads,
            internal_traffic_policy: policy(service_flags::INTERNAL_LOCAL),
            external_traffic_policy: policy(service_flags::EXTERNAL_LOCAL),
            algorithm: algorithm_name(Algorithm::of(service.flags)),
            affinity_timeout_seconds: service
                .policy()
                .is_sticky()
                .then(|| affinity::seconds(service.affinity)),
            source_ranges: (service.flags & service_flags::SOURCE_RANGES != 0)
                .then(|| self.ranges.get(&index).cloned().unwrap_or_default()),
            backends: self.set(service.cluster, is_v6),
            without_backends: verdict(service.cluster),
            local_backends: self.set(service.local, is_v6),
            local_without_backends: verdict(service.local),
            socket_connections: count.socket_connections,
            packet_connections: count.packet_connections,
            packets: count.packets,
            bytes: count.bytes,
        }
    }

    fn set(&self, set: SetRef, is_v6: bool) -> Vec<ShownBackend> {
        let slots = set.block..set.block.saturating_add(u32::from(set.count));
        let slots = if set.count == 0 { 0..0 } else { slots };
        let shown: Vec<ShownBackend> = if is_v6 {
            slots.filter_map(|slot| self.backends6.read(slot).map(|row| backend(&row))).collect()
        } else {
            slots.filter_map(|slot| self.backends4.read(slot).map(|row| backend(&row))).collect()
        };
        each_once(shown)
    }
}

/// Sorted, with what stands in several slots once.
fn each_once(mut slots: Vec<ShownBackend>) -> Vec<ShownBackend> {
    slots.sort();
    slots.dedup_by(|next, first| {
        let is_same = (next.address, next.port) == (first.address, first.port);
        first.slots += if is_same { next.slots } else { 0 };
        is_same
    });
    slots
}

fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Random => "random",
        Algorithm::RoundRobin => "round-robin",
        Algorithm::LeastConn => "least-conn",
        Algorithm::SourceHash => "source-hash",
        Algorithm::Maglev => "maglev",
    }
}

fn backend<A: Into<IpAddr> + Copy>(row: &Backend<A>) -> ShownBackend {
    let local = row.flags & backend_flags::LOCAL != 0;
    ShownBackend { address: row.addr.into(), port: row.port.get(), local, slots: 1 }
}

fn verdict(set: SetRef) -> Option<&'static str> {
    (set.count == 0).then_some(if set == SetRef::DROP { "drop" } else { "reject" })
}

/// Every backend with the Services that use it.
pub fn backends(services: &[ShownService]) -> Vec<BackendUse> {
    let mut uses: BTreeMap<(IpAddr, u16, &str), BackendUse> = BTreeMap::new();
    for service in services {
        let name = Name {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            port: service.port.clone(),
        };
        for backend in service.backends.iter().chain(&service.local_backends) {
            let key = (backend.address, backend.port, service.protocol);
            let used = uses.entry(key).or_insert_with(|| BackendUse {
                address: backend.address,
                port: backend.port,
                protocol: service.protocol,
                local: backend.local,
                services: Vec::new(),
            });
            if !used.services.contains(&name.to_string()) {
                used.services.push(name.to_string());
            }
        }
    }
    uses.into_values().collect()
}

/// Lines shown in a cell before the rest is only counted.
const SHOWN_LINES: usize = 8;

/// A cell of lines.
fn lines(all: impl Iterator<Item = String>) -> String {
    let mut lines: Vec<String> = all.collect();
    let left = lines.len().saturating_sub(SHOWN_LINES);
    if left > 0 {
        lines.truncate(SHOWN_LINES);
        lines.push(format!("and {left} more"));
    }
    lines.join("\n")
}

/// For people.
pub fn print(services: &[ShownService]) -> String {
    let rows = services.iter().map(|service| {
        let name = Name {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            port: service.port.clone(),
        };
        let frontends = service.frontends.iter().map(|frontend| {
            let kind = frontend.kind.replace('_', " ");
            format!("{} ({kind})", SocketAddr::new(frontend.address, frontend.port))
        });
        let is_even = service.backends.iter().all(|b| b.slots == service.backends[0].slots);
        let backends = service.backends.iter().map(|backend| {
            let local = if backend.local { " (local)" } else { "" };
            let weight = if is_even { String::new() } else { format!(" ×{}", backend.slots) };
            format!("{}{local}{weight}", SocketAddr::new(backend.address, backend.port))
        });
        let none = service.without_backends.map(|verdict| format!("none: {verdict}"));
        let backends = lines(backends.chain(none));
        let mut policy = String::new();
        if service.internal_traffic_policy == "Local" {
            policy += "internal ";
        }
        if service.external_traffic_policy == "Local" {
            policy += "external";
        }
        vec![
            name.to_string(),
            service.protocol.into(),
            frontends.collect::<Vec<_>>().join("\n"),
            backends,
            policy.trim().into(),
            if service.algorithm == "random" { "" } else { service.algorithm }.into(),
            service
                .affinity_timeout_seconds
                .map_or_else(String::new, |seconds| format!("{seconds} s")),
            lines(service.source_ranges.iter().flatten().map(ToString::to_string)),
            (service.socket_connections + service.packet_connections).to_string(),
            service.packets.to_string(),
            print::bytes(service.bytes),
        ]
    });
    print::table(
        &[
            "SERVICE",
            "PROTO",
            "FRONTENDS",
            "BACKENDS",
            "LOCAL",
            "ALGORITHM",
            "AFFINITY",
            "SOURCES",
            "CONNS",
            "PACKETS",
            "BYTES",
        ],
        rows,
    )
}

/// For people.
pub fn print_backends(backends: &[BackendUse]) -> String {
    let rows = backends.iter().map(|backend| {
        vec![
            SocketAddr::new(backend.address, backend.port).to_string(),
            backend.protocol.into(),
            if backend.local { "yes" } else { "" }.into(),
            backend.services.join(", "),
        ]
    });
    print::table(&["BACKEND", "PROTO", "LOCAL", "SERVICES"], rows)
}
