//! Ends flows of UDP whose endpoint serves no more: their sender, who keeps its socket, gets
//! another endpoint with its next datagram. So do sockets of the node's own processes, which no
//! packet path serves: they are told that their connection was aborted.

use std::{hash::Hash, io, net::IpAddr, path::Path};

use agent_kit::{
    Pod,
    barrier::Barrier,
    socket_diag::SocketDiag,
    table::{MapTable, OpenError, Table, TableError},
};
use datapath::{
    address::{Address, Ipv4, Ipv6, protocol},
    flow::{self, Flow, FlowKey, Parties, flow_flags, role},
    socket::{self, Connected, WAYS},
};

use crate::serving::{Place, Serving};

#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read or write tables of flows: {0}")]
    Table(#[from] TableError),
    #[error("cannot wait for running programs: {0}")]
    Barrier(io::Error),
    #[error(
        "cannot end sockets of the node's own processes (SOCK_DESTROY): {0}; those connected to \
         an endpoint that is gone stay so"
    )]
    Sockets(io::Error),
}

/// How many were ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    pub flows: u64,
    pub sockets: u64,
}

/// Ends what must not stay. The tables must already say which endpoints there are; what programs
/// do that have read them before is waited for.
///
/// # Errors
/// Where some could not be ended; the others were.
pub fn end(maps: &Path, serving: &Serving) -> Result<Ended, StaleError> {
    Barrier::new().and_then(|barrier| barrier.wait()).map_err(StaleError::Barrier)?;
    let flows = flows::<Ipv4>(maps, ["FLOWS4", "PENDING4"], serving)?
        + flows::<Ipv6>(maps, ["FLOWS6", "PENDING6"], serving)?;
    Ok(Ended { flows, sockets: sockets(maps, serving)? })
}

fn flows<A>(maps: &Path, names: [&str; 2], serving: &Serving) -> Result<u64, StaleError>
where
    A: Address + Hash + Into<IpAddr>,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let mut tables: Vec<MapTable<FlowKey<A>, Flow<A>>> = Vec::new();
    for name in names {
        tables.push(MapTable::open(maps, name)?);
    }
    let mut stale = Vec::new();
    for table in &tables {
        table.visit(|key, row| {
            if key.proto != protocol::UDP || row.role != role::ORIGINAL {
                return;
            }
            let parties = Parties::of(key, row);
            if !serving.keeps(place(parties.frontend), place(parties.backend)) {
                stale.push((parties, row.flags & flow_flags::MASQUERADE != 0));
            }
        })?;
    }
    for (parties, is_masqueraded) in &stale {
        // The one first by which the client's packets find their way.
        let rows = [parties.original(), parties.reply()];
        let masqueraded = [parties.original_source(), parties.reply_target()];
        let masqueraded = masqueraded.iter().filter(|_| *is_masqueraded);
        for key in rows.iter().chain(masqueraded) {
            for table in &mut tables {
                match table.remove(key) {
                    Ok(()) | Err(TableError::Missing) => {}
                    Err(err) => return Err(err.into()),
                }
            }
        }
    }
    Ok(stale.len() as u64)
}

fn place<A: Into<IpAddr>>(place: flow::Place<A>) -> Place {
    (place.addr.into(), place.port.get())
}

/// Sockets of this network namespace.
fn sockets(maps: &Path, serving: &Serving) -> Result<u64, StaleError> {
    let (v4, v6) = (MapTable::open(maps, "SOCKETS4")?, MapTable::open(maps, "SOCKETS6")?);
    let mut diag = SocketDiag::open().map_err(StaleError::Sockets)?;
    let mut ended = 0;
    for found in diag.connected().map_err(StaleError::Sockets)? {
        let cookie = found.cookie();
        if !is_stale::<Ipv4>(&v4, cookie, serving)? && !is_stale::<Ipv6>(&v6, cookie, serving)? {
            continue;
        }
        match diag.end(&found) {
            Ok(()) => ended += 1,
            // Its process has let go of it meanwhile.
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => {}
            Err(err) => return Err(StaleError::Sockets(err)),
        }
    }
    Ok(ended)
}

/// Whether a socket of UDP was given an endpoint that it must not keep.
fn is_stale<A>(
    table: &MapTable<u32, Connected<A>>,
    cookie: u64,
    serving: &Serving,
) -> Result<bool, TableError>
where
    A: Address + Into<IpAddr>,
    Connected<A>: Pod,
{
    for way in 0..WAYS {
        let row = table.get(&socket::place(cookie, way))?.filter(|row| row.cookie == cookie);
        if let Some(row) = row {
            let frontend = (row.frontend.into(), row.frontend_port.get());
            return Ok(!serving.keeps(frontend, (row.backend.into(), row.backend_port.get())));
        }
    }
    Ok(false)
}
