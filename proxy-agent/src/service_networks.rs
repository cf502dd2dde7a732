//! The tables of networks that cluster IPs are given out of: what leaves the node for an address in
//! one, which no Service has, is dropped.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use agent_kit::table::{MapTable, OpenError, Table, TableError, hold};
use datapath::{
    address::{Address, Ipv4, Ipv6},
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
        let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
        for network in &wanted {
            match network {
                IpNetwork::V4(net) => v4.insert(NetworkKey::new(net.network(), net.prefix()), 1),
                IpNetwork::V6(net) => v6.insert(NetworkKey::new(net.network(), net.prefix()), 1),
            };
        }
        hold(&mut self.v4, &v4)?;
        hold(&mut self.v6, &v6)?;
        self.cover.insert(&0, &cover(&v4))?;
        self.cover.insert(&1, &cover(&v6))?;
        self.programmed = Some(wanted);
        Ok(())
    }
}

fn cover<A: Address>(rows: &HashMap<NetworkKey<A>, u32>) -> Cover {
    let networks: Vec<_> = rows.keys().map(|key| (key.network, key.prefix_len)).collect();
    Cover::of(&networks)
}
