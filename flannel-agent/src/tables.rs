//! The tables that the overlay's programs read: where tunnels end, who may send through them, and
//! what this node is.

use std::{io, net::IpAddr, path::Path};

use agent_kit::{
    Pod,
    table::{MapTable, OpenError, Table, TableError},
};
use aya::maps::{Map, MapData, PerCpuArray};
use datapath::{
    address::{Ipv4, Ipv6},
    policy::Policy,
    tunnel::{NetworkKey, Sender, Traffic, Tunnel, Vtep},
};
use ipnetwork::IpNetwork;

use crate::{
    entries::{Entries, Op, Remote},
    mac::Mac,
};

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
    tunnels: OneRow<Tunnel>,
    policies: OneRow<Policy>,
    traffic: PerCpuArray<MapData, Traffic>,
}

impl Tables {
    /// Opens the tables pinned in a directory.
    pub fn open(maps: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            vteps4: MapTable::open(maps, "VTEPS4")?,
            vteps6: MapTable::open(maps, "VTEPS6")?,
            senders: MapTable::open(maps, "SENDERS")?,
            tunnels: OneRow::open(maps, "TUNNELS")?,
            policies: OneRow::open(maps, "POLICIES")?,
            traffic: traffic(maps)?,
        })
    }

    /// Adds what the tables hold to what the kernel has.
    pub fn read(&self, entries: &mut Entries) -> Result<(), TableError> {
        read(&self.vteps4, entries)?;
        read(&self.vteps6, entries)?;
        entries.senders.extend(self.senders.rows()?.into_iter().map(|(key, _)| Mac(key.mac.0)));
        Ok(())
    }

    /// Does one write, if it is one of a table.
    pub fn apply(&mut self, op: &Op) -> Result<(), RefusedError> {
        let result = match *op {
            Op::SetVtep { network, to } => self.set_vtep(network, to),
            Op::RemoveVtep { network: IpNetwork::V4(net) } => {
                self.vteps4.remove(&NetworkKey::new(net.network(), net.prefix()))
            }
            Op::RemoveVtep { network: IpNetwork::V6(net) } => {
                self.vteps6.remove(&NetworkKey::new(net.network(), net.prefix()))
            }
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
        let (mac, by_uplink, answers) = (to.mac, to.by_uplink.into(), to.answers.into());
        match (network, to.address) {
            (IpNetwork::V4(net), IpAddr::V4(underlay)) => {
                let vtep = Vtep { underlay: underlay.into(), mac, by_uplink, answers };
                self.vteps4.insert(&NetworkKey::new(net.network(), net.prefix()), &vtep)
            }
            (IpNetwork::V6(net), IpAddr::V6(underlay)) => {
                let vtep = Vtep { underlay: underlay.into(), mac, by_uplink, answers };
                self.vteps6.insert(&NetworkKey::new(net.network(), net.prefix()), &vtep)
            }
            _ => Err(TableError::Kernel(io::ErrorKind::InvalidInput.into())),
        }
    }

    /// Tells the programs what this node is; true if another hand had told them something else.
    pub fn set_tunnel(&mut self, tunnel: &Tunnel) -> Result<bool, TableError> {
        self.tunnels.set(tunnel)
    }

    /// What programs carried past the tunnel's device, on all processors together.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        let rows = self.traffic.get(&0, 0);
        for row in rows.iter().flat_map(|rows| rows.iter()) {
            sum.received_packets += row.received_packets;
            sum.received_bytes += row.received_bytes;
            sum.sent_packets += row.sent_packets;
            sum.sent_bytes += row.sent_bytes;
        }
        sum
    }

    /// Tells the programs what is masqueraded; true if another hand had told them something else.
    pub fn set_policy(&mut self, policy: &Policy) -> Result<bool, TableError> {
        self.policies.set(policy)
    }
}

/// An array of one row.
struct OneRow<V> {
    table: MapTable<u32, V>,
    /// As it was written last.
    written: Option<V>,
}

impl<V: Pod + PartialEq> OneRow<V> {
    fn open(maps: &Path, name: &str) -> Result<Self, OpenError> {
        Ok(Self { table: MapTable::open(maps, name)?, written: None })
    }

    /// Writes the row, unless it stands there: programs read it meanwhile. True if what stands
    /// there is not what was written last.
    fn set(&mut self, row: &V) -> Result<bool, TableError> {
        let found = self.table.get(&0)?;
        if found.as_ref() != Some(row) {
            self.table.insert(&0, row)?;
        }
        Ok(self.written.replace(*row).is_some_and(|written| found != Some(written)))
    }
}

/// Adds the rows of one family.
fn read<A>(
    table: &MapTable<NetworkKey<A>, Vtep<A>>,
    entries: &mut Entries,
) -> Result<(), TableError>
where
    A: Into<IpAddr>,
    NetworkKey<A>: Pod,
    Vtep<A>: Pod,
{
    for (key, vtep) in table.rows()? {
        let (mac, by_uplink, answers) = (vtep.mac, vtep.by_uplink != 0, vtep.answers != 0);
        let to = Remote { address: vtep.underlay.into(), mac, by_uplink, answers };
        entries.vteps.extend(network(key.network.into(), key.prefix_len).zip(Some(to)));
    }
    Ok(())
}

fn traffic(maps: &Path) -> Result<PerCpuArray<MapData, Traffic>, OpenError> {
    let path = maps.join("TRAFFIC");
    let map = MapData::from_pin(&path).and_then(Map::from_map_data);
    let table = map.and_then(PerCpuArray::try_from);
    table.map_err(|err| OpenError { path, source: io::Error::other(err) })
}

fn sender(mac: Mac) -> Sender {
    Sender { mac, pad: 0 }
}

fn network(address: IpAddr, prefix: u32) -> Option<IpNetwork> {
    IpNetwork::new(address, u8::try_from(prefix).ok()?).ok()
}
