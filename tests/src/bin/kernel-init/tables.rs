//! The object's tables, filled by hand: one Service with one backend, and one with none.

use std::{net::SocketAddr, path::Path};

use agent_kit::table::{MapTable, Table};
use anyhow::{Context, Result};
use datapath::{
    address::{Be16, Ipv4, Ipv6, protocol},
    backend::{Backend, backend_flags},
    frontend::{AddressUse, Frontend, FrontendKey, address_mark, address_use, kind, mark},
    maps::MARKS_LEN,
    service::{Service, ServiceCounters, SetRef, service_flags},
    settings::Settings,
};

/// Generation of every set that is written here.
const GENERATION: u16 = 1;

pub(crate) struct Tables {
    frontends4: MapTable<FrontendKey<Ipv4>, Frontend>,
    frontends6: MapTable<FrontendKey<Ipv6>, Frontend>,
    addresses4: MapTable<Ipv4, AddressUse>,
    addresses6: MapTable<Ipv6, AddressUse>,
    address_marks: MapTable<u32, [u8; MARKS_LEN]>,
    services: MapTable<u32, Service>,
    backends4: MapTable<u32, Backend<Ipv4>>,
    backends6: MapTable<u32, Backend<Ipv6>>,
    stats: MapTable<u32, ServiceCounters>,
    settings: MapTable<u32, Settings>,
    /// Rows of `SERVICES` in use, and of both tables of backends.
    used: u32,
}

impl Tables {
    pub(crate) fn open(maps: &Path) -> Result<Self> {
        Ok(Self {
            frontends4: open(maps, "FRONTENDS4")?,
            frontends6: open(maps, "FRONTENDS6")?,
            addresses4: open(maps, "ADDRESSES4")?,
            addresses6: open(maps, "ADDRESSES6")?,
            address_marks: open(maps, "ADDRESSMARKS")?,
            services: open(maps, "SERVICES")?,
            backends4: open(maps, "BACKENDS4")?,
            backends6: open(maps, "BACKENDS6")?,
            stats: open(maps, "STATS")?,
            settings: open(maps, "SETTINGS")?,
            used: 1,
        })
    }

    /// Whether the socket path serves everybody or nobody; one of
    /// [`datapath::settings::socket_lb`].
    pub(crate) fn serve(&mut self, socket_lb: u8) -> Result<()> {
        Ok(self.settings.insert(&0, &Settings { socket_lb, ..Settings::default() })?)
    }

    /// A Service at a cluster IP, for TCP and UDP; its row.
    pub(crate) fn service(
        &mut self,
        frontend: SocketAddr,
        backend: Option<SocketAddr>,
    ) -> Result<u32> {
        let row = self.used;
        self.used += 1;
        let set = match backend {
            Some(_) => SetRef { block: row, count: 1, generation: GENERATION },
            None => SetRef::REJECT,
        };
        match backend {
            Some(SocketAddr::V4(to)) => self.backends4.insert(&row, &local(*to.ip(), to.port()))?,
            Some(SocketAddr::V6(to)) => self.backends6.insert(&row, &local(*to.ip(), to.port()))?,
            None => {}
        }
        let family = if frontend.is_ipv6() { service_flags::IPV6 } else { 0 };
        let flags = service_flags::USED | family;
        self.services.insert(&row, &Service { cluster: set, local: set, flags, affinity: 0 })?;
        let value = Frontend { service: row, kind: kind::CLUSTER_IP, pad: [0; 3] };
        let usage = AddressUse { flags: address_use::CLUSTER_IP };
        let port = Be16::new(frontend.port());
        for proto in [protocol::TCP, protocol::UDP] {
            match frontend {
                SocketAddr::V4(at) => {
                    let key = FrontendKey::new(Ipv4::from(*at.ip()), port, proto);
                    self.mark(address_mark(key.addr))?;
                    self.addresses4.insert(&key.addr, &usage)?;
                    self.frontends4.insert(&key, &value)?;
                }
                SocketAddr::V6(at) => {
                    let key = FrontendKey::new(Ipv6::from(*at.ip()), port, proto);
                    self.mark(address_mark(key.addr))?;
                    self.addresses6.insert(&key.addr, &usage)?;
                    self.frontends6.insert(&key, &value)?;
                }
            }
        }
        Ok(row)
    }

    fn mark(&mut self, place: usize) -> Result<()> {
        let mut marks = self.address_marks.get(&0)?.context("an array of one row")?;
        marks[place] = mark::WHOLE;
        Ok(self.address_marks.insert(&0, &marks)?)
    }

    pub(crate) fn counters(&self, service: u32) -> Result<ServiceCounters> {
        self.stats.get(&service)?.context("an array's row")
    }
}

fn open<K: agent_kit::Pod, V: agent_kit::Pod>(maps: &Path, name: &str) -> Result<MapTable<K, V>> {
    Ok(MapTable::open(maps, name)?)
}

fn local<A>(address: impl Into<A>, port: u16) -> Backend<A> {
    Backend {
        addr: address.into(),
        port: Be16::new(port),
        generation: GENERATION,
        flags: backend_flags::LOCAL,
    }
}
