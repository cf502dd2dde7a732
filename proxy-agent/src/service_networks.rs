//! The tables of networks that cluster IPs are given out of: what leaves the node for an address in
//! one, which no Service has, is dropped.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
};

use agent_kit::{
    audit::{Difference, told},
    table::{MapTable, OpenError, TableError, hold},
};
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
        self.write(&wanted)?;
        self.programmed = Some(wanted);
        Ok(())
    }

    /// Puts right what another hand changed, once anything was written.
    ///
    /// # Errors
    /// Where a table cannot be read or written.
    pub fn audit(&mut self) -> Result<Vec<Difference>, TableError> {
        match self.programmed.clone() {
            Some(written) => self.write(&written),
            None => Ok(Vec::new()),
        }
    }

    /// Gives what was not as it shall be.
    fn write(&mut self, networks: &BTreeSet<IpNetwork>) -> Result<Vec<Difference>, TableError> {
        let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
        for network in networks {
            match network {
                IpNetwork::V4(net) => v4.insert(NetworkKey::new(net.network(), net.prefix()), 1),
                IpNetwork::V6(net) => v6.insert(NetworkKey::new(net.network(), net.prefix()), 1),
            };
        }
        let mut found = told("SERVICENETS4", hold(&mut self.v4, &v4)?, network);
        found.extend(told("SERVICENETS6", hold(&mut self.v6, &v6)?, network));
        let covers = HashMap::from([(0, cover(&v4)), (1, cover(&v6))]);
        let family = |family| if family == 0 { "IPv4" } else { "IPv6" }.to_owned();
        found.extend(told("SERVICECOVER", hold(&mut self.cover, &covers)?, family));
        Ok(found)
    }
}

fn network<A: Into<IpAddr>>(key: NetworkKey<A>) -> String {
    format!("{}/{}", key.network.into(), key.prefix_len)
}

fn cover<A: Address>(rows: &HashMap<NetworkKey<A>, u32>) -> Cover {
    let networks: Vec<_> = rows.keys().map(|key| (key.network, key.prefix_len)).collect();
    Cover::of(&networks)
}
