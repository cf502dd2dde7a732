//! The tables of networks that cluster IPs are given out of: what leaves the node for an address in
//! one, which no Service has, is dropped.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use agent_kit::{
    Pod,
    table::{MapTable, OpenError, Table, TableError},
};
use datapath::{
    address::{Ipv4, Ipv6},
    service_network::Cover,
    tunnel::NetworkKey,
};
use ipnetwork::IpNetwork;

/// They, and what stands there.
pub struct ServiceNetworks {
    v4: MapTable<NetworkKey<Ipv4>, u32>,
    v6: MapTable<NetworkKey<Ipv6>, u32>,
    cover: MapTable<u32, Cover>,
    programmed: Option<BTreeSet<IpNetwork>>,
}

impl ServiceNetworks {
    /// Those pinned in `maps`.
    pub fn open(maps: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            v4: MapTable::open(maps, "SERVICENETS4")?,
            v6: MapTable::open(maps, "SERVICENETS6")?,
            cover: MapTable::open(maps, "SERVICECOVER")?,
            programmed: None,
        })
    }

    /// Has the programs know these, without host bits.
    ///
    /// # Errors
    /// Where a table cannot be written; some rows may have been.
    pub fn set(&mut self, wanted: BTreeSet<IpNetwork>) -> Result<(), TableError> {
        if self.programmed.as_ref() == Some(&wanted) {
            return Ok(());
        }
        self.programmed = None;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in &wanted {
            let prefix_len = network.prefix().into();
            match network.ip() {
                IpAddr::V4(ip) => v4.push(NetworkKey { prefix_len, network: Ipv4::from(ip) }),
                IpAddr::V6(ip) => v6.push(NetworkKey { prefix_len, network: Ipv6::from(ip) }),
            }
        }
        replace(&mut self.v4, &v4)?;
        replace(&mut self.v6, &v6)?;
        let v4: Vec<_> = v4.iter().map(|key| (key.network, key.prefix_len)).collect();
        let v6: Vec<_> = v6.iter().map(|key| (key.network, key.prefix_len)).collect();
        self.cover.insert(&0, &Cover::of(&v4))?;
        self.cover.insert(&1, &Cover::of(&v6))?;
        self.programmed = Some(wanted);
        Ok(())
    }
}

/// Has a table hold these rows and no others.
fn replace<K: Pod + PartialEq>(
    table: &mut MapTable<K, u32>,
    wanted: &[K],
) -> Result<(), TableError> {
    for (key, _) in table.rows()? {
        if !wanted.contains(&key) {
            table.remove(&key)?;
        }
    }
    wanted.iter().try_for_each(|key| table.insert(key, &1))
}
