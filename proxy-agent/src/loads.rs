//! How many connections the backends have that least-conn chooses from. Programs add those that
//! begin; which have ended is found out here, by counting anew. With no agent running, backends
//! get about as many new connections each.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    path::Path,
};

use agent_kit::{
    Pod,
    table::{MapTable, OpenError, TableError, hold},
};
use datapath::{
    address::{Address, Be16, Ipv4, Ipv6},
    backend::{LOAD, load_key},
    flow::{Flow, FlowKey, role, seen},
    maps::SOCKETS_CAPACITY,
    socket::Connected,
};

use crate::{
    apply::tables::array,
    desired::{DesiredBackend, IpFamily},
    serving::Place,
};

/// A set whose backends are to be told apart by their connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Index into `SERVICES`.
    pub service: u32,
    pub family: IpFamily,
    /// Slot of the first backend.
    pub first: u32,
    pub backends: Vec<DesiredBackend>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadsError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("table LOADS: {0}; least-conn chooses by what is known, or by chance")]
    Table(#[from] TableError),
}

/// Connections by index into `SERVICES` and backend.
type Connections = HashMap<(u32, Place), u32>;

/// Counts, and has the table say so; without sets it is emptied.
///
/// # Errors
/// Where tables cannot be read, or there is no room.
pub fn count(maps: &Path, sets: &[Counted]) -> Result<(), LoadsError> {
    let mut table: MapTable<u32, u64> = MapTable::open(maps, "LOADS")?;
    let mut connections = Connections::new();
    if !sets.is_empty() {
        let services: HashSet<u32> = sets.iter().map(|set| set.service).collect();
        let mut add = |service: u32, place: Place| {
            if services.contains(&service) {
                *connections.entry((service, place)).or_default() += 1;
            }
        };
        flows::<Ipv4>(maps, "FLOWS4", &mut add)?;
        flows::<Ipv6>(maps, "FLOWS6", &mut add)?;
        sockets::<Ipv4>(maps, "SOCKETS4", &mut add)?;
        sockets::<Ipv6>(maps, "SOCKETS6", &mut add)?;
    }
    let rows: HashMap<u32, u64> = sets.iter().flat_map(|set| loads(set, &connections)).collect();
    hold(&mut table, &rows)?;
    Ok(())
}

/// The rows for a set: what a backend has, it has in all its slots together, so that one of more
/// weight counts as busy only with as many more.
fn loads(set: &Counted, connections: &Connections) -> Vec<(u32, u64)> {
    let mut slots: HashMap<Place, u64> = HashMap::new();
    for backend in &set.backends {
        *slots.entry(backend.place()).or_default() += 1;
    }
    let load = |(slot, backend): (u32, &DesiredBackend)| {
        let has = connections.get(&(set.service, backend.place())).copied().unwrap_or_default();
        let load = u64::from(has) * u64::from(LOAD) / slots[&backend.place()];
        (load_key(slot, set.family == IpFamily::V6), load)
    };
    (set.first..).zip(&set.backends).map(load).collect()
}

/// Those that their client has not closed.
fn flows<A>(maps: &Path, name: &str, add: &mut impl FnMut(u32, Place)) -> Result<(), LoadsError>
where
    A: Address + Hash + Into<IpAddr>,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let table: MapTable<FlowKey<A>, Flow<A>> = MapTable::open(maps, name)?;
    table.visit(|_, row| {
        if row.role == role::ORIGINAL && row.seen & (seen::FIN | seen::RST) == 0 {
            add(row.service, (row.to.into(), row.to_port.get()));
        }
    })?;
    Ok(())
}

/// Those that their process has not let go of.
fn sockets<A>(maps: &Path, name: &str, add: &mut impl FnMut(u32, Place)) -> Result<(), LoadsError>
where
    A: Address + Into<IpAddr>,
    Connected<A>: Pod,
{
    let table = array::<Connected<A>>(maps, name)?;
    let rows = (0..SOCKETS_CAPACITY as u32).filter_map(|place| table.read(place));
    for row in rows.filter(|row| row.cookie != 0 && row.frontend_port != Be16::ZERO) {
        add(row.service, (row.backend.into(), row.backend_port.get()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_in_two_slots_is_half_as_busy_with_as_many() {
        let backend =
            |host: u8| DesiredBackend { address: [10, 1, 0, host].into(), port: 80, local: false };
        let backends = vec![backend(1), backend(2), backend(1), backend(3)];
        let set = Counted { service: 7, family: IpFamily::V6, first: 100, backends };
        let connections = [(7, 1, 10), (7, 2, 10), (8, 3, 10)]
            .map(|(service, host, count)| ((service, backend(host).place()), count));
        let load = u64::from(LOAD);
        assert_eq!(
            loads(&set, &connections.into()),
            [(100, 5 * load), (101, 10 * load), (102, 5 * load), (103, 0)]
                .map(|(slot, load)| (load_key(slot, true), load))
        );
    }
}
