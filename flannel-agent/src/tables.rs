//! The tables that the overlay's programs read: where tunnels end, who may send through them, and
//! what this node is.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use agent_kit::table::{MapTable, Table, TableError};
use datapath::{
    address::{Ipv4, Ipv6},
    counter::{Hook, Reason, drop_index},
    tunnel::{NetworkKey, Sender, Tunnel, Vtep},
};
use ipnetwork::IpNetwork;

use crate::{
    entries::{Entries, Op, Remote},
    mac::Mac,
};

/// Why a table is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot open table {name}: {source}")]
pub struct OpenError {
    name: &'static str,
    source: io::Error,
}

/// What a table refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{hint}", hint = hint(source))]
pub struct RefusedError {
    what: String,
    source: TableError,
}

fn hint(err: &TableError) -> &'static str {
    match err {
        TableError::Full => "; there are more pod networks than it has rows",
        _ => "",
    }
}

pub struct Tables {
    vteps4: MapTable<NetworkKey<Ipv4>, Vtep<Ipv4>>,
    vteps6: MapTable<NetworkKey<Ipv6>, Vtep<Ipv6>>,
    senders: MapTable<Sender, u32>,
    tunnels: MapTable<u32, Tunnel>,
    drops: aya::maps::PerCpuArray<aya::maps::MapData, u64>,
}

impl Tables {
    /// Opens the tables pinned in a directory.
    pub fn open(maps: &Path) -> Result<Self, OpenError> {
        let drops = || {
            let data = aya::maps::MapData::from_pin(maps.join("DROPS"))?;
            aya::maps::PerCpuArray::try_from(aya::maps::Map::PerCpuArray(data))
        };
        Ok(Self {
            vteps4: table(maps, "VTEPS4")?,
            vteps6: table(maps, "VTEPS6")?,
            senders: table(maps, "SENDERS")?,
            tunnels: table(maps, "TUNNELS")?,
            drops: drops()
                .map_err(|err| OpenError { name: "DROPS", source: io::Error::other(err) })?,
        })
    }

    /// Adds what the tables hold to what the kernel has.
    pub fn read(&self, entries: &mut Entries) -> Result<(), TableError> {
        for (key, vtep) in self.vteps4.rows()? {
            let remote = Remote { address: IpAddr::from(vtep.underlay), mac: Mac(vtep.mac.0) };
            entries.vteps.extend(network(IpAddr::from(key.network), key.prefix_len).zip(Some(remote)));
        }
        for (key, vtep) in self.vteps6.rows()? {
            let remote = Remote { address: IpAddr::from(vtep.underlay), mac: Mac(vtep.mac.0) };
            entries.vteps.extend(network(IpAddr::from(key.network), key.prefix_len).zip(Some(remote)));
        }
        entries.senders.extend(self.senders.rows()?.into_iter().map(|(key, _)| Mac(key.mac.0)));
        Ok(())
    }

    /// Does one write, if it is one of a table.
    pub fn apply(&mut self, op: &Op) -> Result<(), RefusedError> {
        let result = match *op {
            Op::SetVtep { network, to } => self.set_vtep(network, to),
            Op::RemoveVtep { network } => match network {
                IpNetwork::V4(net) => self.vteps4.remove(&key(net.network().into(), net.prefix())),
                IpNetwork::V6(net) => self.vteps6.remove(&key(net.network().into(), net.prefix())),
            },
            Op::SetSender { mac } => self.senders.insert(&sender(mac), &1),
            Op::RemoveSender { mac } => self.senders.remove(&sender(mac)),
            _ => Ok(()),
        };
        match result {
            // Gone is what it was to be.
            Err(TableError::Missing) | Ok(()) => Ok(()),
            Err(source) => Err(RefusedError { what: op.to_string(), source }),
        }
    }

    fn set_vtep(&mut self, network: IpNetwork, to: Remote) -> Result<(), TableError> {
        let mac = datapath::tunnel::Mac(to.mac.0);
        match (network, to.address) {
            (IpNetwork::V4(net), IpAddr::V4(underlay)) => {
                let vtep = Vtep { underlay: underlay.into(), mac, pad: 0 };
                self.vteps4.insert(&key(net.network().into(), net.prefix()), &vtep)
            }
            (IpNetwork::V6(net), IpAddr::V6(underlay)) => {
                let vtep = Vtep { underlay: underlay.into(), mac, pad: 0 };
                self.vteps6.insert(&key(net.network().into(), net.prefix()), &vtep)
            }
            _ => Err(TableError::Kernel(io::ErrorKind::InvalidInput.into())),
        }
    }

    /// Tells the programs what this node is; true if they were told otherwise before.
    pub fn set_tunnel(&mut self, tunnel: &Tunnel) -> Result<bool, TableError> {
        if self.tunnels.get(&0)? == Some(*tunnel) {
            return Ok(false);
        }
        self.tunnels.insert(&0, tunnel)?;
        Ok(true)
    }

    /// Packets that programs refused, by hook and reason.
    pub fn drops(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut drops = BTreeMap::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let Ok(counts) = self.drops.get(&drop_index(hook, reason), 0) else { continue };
                let count: u64 = counts.iter().sum();
                if count > 0 {
                    drops.insert((hook.name(), reason.name()), count);
                }
            }
        }
        drops
    }
}

fn table<K: aya::Pod, V: aya::Pod>(
    maps: &Path,
    name: &'static str,
) -> Result<MapTable<K, V>, OpenError> {
    MapTable::open(&maps.join(name)).map_err(|source| OpenError { name, source })
}

fn key<A>(network: A, prefix: u8) -> NetworkKey<A> {
    NetworkKey { prefix_len: prefix.into(), network }
}

fn sender(mac: Mac) -> Sender {
    Sender { mac: datapath::tunnel::Mac(mac.0), pad: 0 }
}

fn network(address: IpAddr, prefix: u32) -> Option<IpNetwork> {
    IpNetwork::new(address, u8::try_from(prefix).ok()?).ok()
}
