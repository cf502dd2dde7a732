//! The tables that `apply` writes, in the kernel or in memory.

use std::{io, net::IpAddr, path::Path};

use agent_kit::{
    Pod,
    array::Array,
    table::{MapTable, MemoryTable, OpenError, Table, TableError, open_pinned},
};
use datapath::{
    address::{Be16, Ipv4, Ipv6},
    backend::{Backend, backend_flags},
    frontend::{AddressUse, Frontend, FrontendKey, address_mark, kind, mark, port_mark},
    maps::{MARKS_LEN, PORTMARKS_LEN},
    service::{Service, ServiceCounters, ServiceName, ServicePolicy, SetRef},
    source_range::{ADMITTED, RangeKey, SERVICE_BITS, Source},
};
use ipnetwork::IpNetwork;

use super::op::{FrontendAt, FrontendTo, RangeAt, Scope};
use crate::desired::{DesiredBackend, IpFamily, ServicePortKey};

type Rows<K, V> = Box<dyn Table<K, V>>;

/// The tables of Services: everything that decides where a new connection goes.
pub struct Tables {
    pub services: Array<Service>,
    pub counters: Array<ServiceCounters>,
    pub backends4: Array<Backend<Ipv4>>,
    pub backends6: Array<Backend<Ipv6>>,
    pub names: Rows<u32, ServiceName>,
    pub frontends4: Rows<FrontendKey<Ipv4>, Frontend>,
    pub frontends6: Rows<FrontendKey<Ipv6>, Frontend>,
    pub addresses4: Rows<Ipv4, AddressUse>,
    pub addresses6: Rows<Ipv6, AddressUse>,
    pub ranges4: Rows<RangeKey<Ipv4>, u32>,
    pub ranges6: Rows<RangeKey<Ipv6>, u32>,
    address_marks: Array<[u8; MARKS_LEN]>,
    port_marks: Array<[u8; PORTMARKS_LEN]>,
}

/// Words of a [`Service`] row.
const CLUSTER_WORD: usize = 0;
const LOCAL_WORD: usize = 1;
const POLICY_WORD: usize = 2;

impl Tables {
    /// Those pinned in `maps`.
    pub fn open(maps: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            services: array(maps, "SERVICES")?,
            counters: array(maps, "STATS")?,
            backends4: array(maps, "BACKENDS4")?,
            backends6: array(maps, "BACKENDS6")?,
            names: Box::new(MapTable::<u32, ServiceName>::open(maps, "NAMES")?),
            frontends4: Box::new(MapTable::<FrontendKey<Ipv4>, Frontend>::open(
                maps,
                "FRONTENDS4",
            )?),
            frontends6: Box::new(MapTable::<FrontendKey<Ipv6>, Frontend>::open(
                maps,
                "FRONTENDS6",
            )?),
            addresses4: Box::new(MapTable::<Ipv4, AddressUse>::open(maps, "ADDRESSES4")?),
            addresses6: Box::new(MapTable::<Ipv6, AddressUse>::open(maps, "ADDRESSES6")?),
            ranges4: Box::new(MapTable::<RangeKey<Ipv4>, u32>::open(maps, "RANGES4")?),
            ranges6: Box::new(MapTable::<RangeKey<Ipv6>, u32>::open(maps, "RANGES6")?),
            address_marks: array(maps, "ADDRESSMARKS")?,
            port_marks: array(maps, "PORTMARKS")?,
        })
    }

    /// Tables of this process alone, with so many rows each.
    pub fn private(services: u32, backends: u32, frontends: u32) -> io::Result<Self> {
        Ok(Self {
            services: Array::private(services)?,
            counters: Array::private(services)?,
            backends4: Array::private(backends)?,
            backends6: Array::private(backends)?,
            names: Box::new(MemoryTable::new(services)),
            frontends4: Box::new(MemoryTable::new(frontends)),
            frontends6: Box::new(MemoryTable::new(frontends)),
            addresses4: Box::new(MemoryTable::new(frontends)),
            addresses6: Box::new(MemoryTable::new(frontends)),
            ranges4: Box::new(MemoryTable::new(frontends)),
            ranges6: Box::new(MemoryTable::new(frontends)),
            address_marks: Array::private(1)?,
            port_marks: Array::private(1)?,
        })
    }

    pub(super) fn write_block(
        &mut self,
        family: IpFamily,
        first: u32,
        generation: u16,
        backends: &[DesiredBackend],
    ) {
        for (slot, backend) in (first..).zip(backends) {
            let port = Be16::new(backend.port);
            let flags = if backend.local { backend_flags::LOCAL } else { 0 };
            match (family, backend.address) {
                (IpFamily::V4, IpAddr::V4(addr)) => {
                    let backend = Backend { addr: addr.into(), port, generation, flags };
                    self.backends4.write(slot, &backend);
                }
                (IpFamily::V6, IpAddr::V6(addr)) => {
                    let backend = Backend { addr: addr.into(), port, generation, flags };
                    self.backends6.write(slot, &backend);
                }
                // `DesiredSet` holds backends of the row's family only.
                _ => {}
            }
        }
    }

    /// Makes a set the one in use, for all readers at once.
    pub(super) fn write_set(&mut self, index: u32, scope: Scope, set: SetRef) {
        let word = match scope {
            Scope::Cluster => CLUSTER_WORD,
            Scope::Local => LOCAL_WORD,
        };
        self.services.store(index, word, set.word());
    }

    pub(super) fn write_policy(&mut self, index: u32, policy: ServicePolicy) {
        self.services.store(index, POLICY_WORD, policy.word());
    }

    pub(super) fn reset_counters(&mut self, index: u32) {
        self.counters.write(index, &ServiceCounters::default());
    }

    pub(super) fn write_name(
        &mut self,
        index: u32,
        key: &ServicePortKey,
    ) -> Result<(), TableError> {
        self.names.insert(&index, &encode_name(key))
    }

    /// Writes frontends of one family in order; says how many, and why no more.
    pub(super) fn put_frontends(
        &mut self,
        rows: &[(FrontendAt, FrontendTo)],
    ) -> (usize, Result<(), TableError>) {
        for (at, to) in rows {
            self.mark_port(at, to.kind);
        }
        let values: Vec<Frontend> = rows
            .iter()
            .map(|(_, to)| Frontend { service: to.service, kind: to.kind, pad: [0; 3] })
            .collect();
        let v4: Vec<_> = rows.iter().filter_map(|(at, _)| key4(at)).collect();
        if v4.len() == rows.len() {
            self.frontends4.insert_all(&v4, &values)
        } else {
            let v6: Vec<_> = rows.iter().filter_map(|(at, _)| key6(at)).collect();
            self.frontends6.insert_all(&v6, &values)
        }
    }

    pub(super) fn frontends(
        &self,
        family: IpFamily,
    ) -> Result<Vec<(FrontendAt, FrontendTo)>, TableError> {
        Ok(match family {
            IpFamily::V4 => self.frontends4.rows()?.iter().map(frontend).collect(),
            IpFamily::V6 => self.frontends6.rows()?.iter().map(frontend).collect(),
        })
    }

    pub(super) fn addresses(&self, family: IpFamily) -> Result<Vec<(IpAddr, u32)>, TableError> {
        Ok(match family {
            IpFamily::V4 => self.addresses4.rows()?.iter().map(address).collect(),
            IpFamily::V6 => self.addresses6.rows()?.iter().map(address).collect(),
        })
    }

    /// What a slot of the backends was last marked with.
    pub(super) fn generation(&self, family: IpFamily, slot: u32) -> u16 {
        let generation = match family {
            IpFamily::V4 => self.backends4.read(slot).map(|backend| backend.generation),
            IpFamily::V6 => self.backends6.read(slot).map(|backend| backend.generation),
        };
        generation.unwrap_or(0)
    }

    pub(super) fn remove_frontend(&mut self, at: &FrontendAt) -> Result<(), TableError> {
        match (key4(at), key6(at)) {
            (Some(key), _) => self.frontends4.remove(&key),
            (_, Some(key)) => self.frontends6.remove(&key),
            (None, None) => Ok(()),
        }
    }

    /// Writes addresses of one family in order; says how many, and why no more.
    pub(super) fn put_addresses(
        &mut self,
        rows: &[(IpAddr, u32)],
    ) -> (usize, Result<(), TableError>) {
        for (address, flags) in rows {
            self.mark_address(address, *flags);
        }
        let values: Vec<AddressUse> = rows.iter().map(|&(_, flags)| AddressUse { flags }).collect();
        let v4: Vec<Ipv4> = rows.iter().filter_map(|(address, _)| v4(address)).collect();
        if v4.len() == rows.len() {
            self.addresses4.insert_all(&v4, &values)
        } else {
            let v6: Vec<Ipv6> = rows.iter().filter_map(|(address, _)| v6(address)).collect();
            self.addresses6.insert_all(&v6, &values)
        }
    }

    /// Marks an address with bits of [`datapath::frontend::address_use`] for the programs, which look
    /// at marks before they look an address up; false if it was marked.
    pub(super) fn mark_address(&mut self, address: &IpAddr, flags: u32) -> bool {
        let place = match *address {
            IpAddr::V4(address) => address_mark(Ipv4::from(address)),
            IpAddr::V6(address) => address_mark(Ipv6::from(address)),
        };
        set(&mut self.address_marks, place, mark::of_use(flags))
    }

    /// Marks the port of a frontend of a [`kind`] whose address is not ours as a whole; false if it
    /// was marked, or needs no mark.
    pub(super) fn mark_port(&mut self, at: &FrontendAt, kind: u8) -> bool {
        let place = port_mark(Be16::new(at.port));
        kind != kind::CLUSTER_IP && set(&mut self.port_marks, place, mark::of_protocol(at.proto))
    }

    pub(super) fn remove_address(&mut self, address: &IpAddr) -> Result<(), TableError> {
        match address {
            IpAddr::V4(address) => self.addresses4.remove(&(*address).into()),
            IpAddr::V6(address) => self.addresses6.remove(&(*address).into()),
        }
    }
}

impl Tables {
    /// Writes source ranges of one family in order; says how many, and why no more.
    pub(super) fn put_ranges(&mut self, rows: &[RangeAt]) -> (usize, Result<(), TableError>) {
        let values = vec![ADMITTED; rows.len()];
        let v4: Vec<_> = rows.iter().filter_map(range4).collect();
        if v4.len() == rows.len() {
            self.ranges4.insert_all(&v4, &values)
        } else {
            let v6: Vec<_> = rows.iter().filter_map(range6).collect();
            self.ranges6.insert_all(&v6, &values)
        }
    }

    pub(super) fn remove_range(&mut self, at: &RangeAt) -> Result<(), TableError> {
        match (range4(at), range6(at)) {
            (Some(key), _) => self.ranges4.remove(&key),
            (_, Some(key)) => self.ranges6.remove(&key),
            (None, None) => Ok(()),
        }
    }

    /// Those of a family, as far as they are whole.
    pub fn ranges(&self, family: IpFamily) -> Result<Vec<RangeAt>, TableError> {
        Ok(match family {
            IpFamily::V4 => self.ranges4.rows()?.iter().filter_map(|(key, _)| range(key)).collect(),
            IpFamily::V6 => self.ranges6.rows()?.iter().filter_map(|(key, _)| range(key)).collect(),
        })
    }
}

fn range4(at: &RangeAt) -> Option<RangeKey<Ipv4>> {
    let IpNetwork::V4(range) = at.range else { return None };
    Some(range_key(at.service, range.network().into(), range.prefix()))
}

fn range6(at: &RangeAt) -> Option<RangeKey<Ipv6>> {
    let IpNetwork::V6(range) = at.range else { return None };
    Some(range_key(at.service, range.network().into(), range.prefix()))
}

fn range_key<A>(service: u32, addr: A, prefix: u8) -> RangeKey<A> {
    let source = Source { service, addr };
    RangeKey { prefix_len: SERVICE_BITS + u32::from(prefix), source }
}

/// A row's range; none if it has not even all of a Service.
pub fn range<A: Copy + Into<IpAddr>>(key: &RangeKey<A>) -> Option<RangeAt> {
    let prefix = u8::try_from(key.prefix_len.checked_sub(SERVICE_BITS)?).ok()?;
    let range = IpNetwork::new(key.source.addr.into(), prefix).ok()?;
    Some(RangeAt { service: key.source.service, range })
}

fn v4(address: &IpAddr) -> Option<Ipv4> {
    match address {
        IpAddr::V4(address) => Some((*address).into()),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: &IpAddr) -> Option<Ipv6> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some((*address).into()),
    }
}

fn key4(at: &FrontendAt) -> Option<FrontendKey<Ipv4>> {
    Some(FrontendKey::new(v4(&at.address)?, Be16::new(at.port), at.proto))
}

fn key6(at: &FrontendAt) -> Option<FrontendKey<Ipv6>> {
    Some(FrontendKey::new(v6(&at.address)?, Be16::new(at.port), at.proto))
}

fn frontend<A: Copy + Into<IpAddr>>(
    (key, row): &(FrontendKey<A>, Frontend),
) -> (FrontendAt, FrontendTo) {
    let at = FrontendAt { address: key.addr.into(), port: key.port.get(), proto: key.proto };
    (at, FrontendTo { service: row.service, kind: row.kind })
}

fn address<A: Copy + Into<IpAddr>>((address, used): &(A, AddressUse)) -> (IpAddr, u32) {
    ((*address).into(), used.flags)
}

/// `NAMESPACE/NAME:PORT`.
pub fn encode_name(key: &ServicePortKey) -> ServiceName {
    let mut text = [0; 144];
    for (to, from) in text.iter_mut().zip(name_bytes(key)) {
        *to = from;
    }
    ServiceName { text }
}

fn name_bytes(key: &ServicePortKey) -> impl Iterator<Item = u8> {
    let parts = [key.namespace.as_str(), "/", &key.name, ":", &key.port];
    parts.into_iter().flat_map(str::bytes)
}

/// Whether a row of `NAMES` is this one's: without a copy, as there may be many to compare.
pub(super) fn is_name_of(name: &ServiceName, key: &ServicePortKey) -> bool {
    let expected = name_bytes(key).chain(std::iter::repeat(0));
    name.text.iter().zip(expected).all(|(byte, expected)| *byte == expected)
}

/// Namespace, name and port of a row of `NAMES`.
pub fn decode_name(name: &ServiceName) -> Option<(String, String, String)> {
    let end = name.text.iter().position(|&byte| byte == 0).unwrap_or(name.text.len());
    let text = std::str::from_utf8(&name.text[..end]).ok()?;
    let (namespace, rest) = text.split_once('/')?;
    let (name, port) = rest.rsplit_once(':')?;
    Some((namespace.into(), name.into(), port.into()))
}

/// Sets bits of a byte; false if they were.
fn set<const LEN: usize>(marks: &mut Array<[u8; LEN]>, place: usize, bits: u8) -> bool
where
    [u8; LEN]: Pod,
{
    let (word, byte) = (place / size_of::<u64>(), place % size_of::<u64>());
    let mut bytes = marks.load(0, word).unwrap_or_default().to_ne_bytes();
    if bytes[byte] & bits == bits {
        return false;
    }
    bytes[byte] |= bits;
    marks.store(0, word, u64::from_ne_bytes(bytes));
    true
}

/// The array pinned by this name.
pub fn array<V: agent_kit::Pod>(maps: &Path, name: &str) -> Result<Array<V>, OpenError> {
    use std::os::fd::AsFd;
    open_pinned(maps, name, |map| Array::map(map.as_fd()))
}
