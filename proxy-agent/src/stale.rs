//! Ends flows that may not stay with their endpoint. Of UDP they are forgotten: their sender, who
//! keeps its socket, gets another endpoint with its next datagram. Connections of TCP are marked, and
//! the packet path resets them with their next segment. Sockets of the node's own processes, which no
//! packet path serves, are told at once that their connection was aborted.

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

use crate::{
    serving::{Place, Serving},
    tick,
};

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

/// How many of a family were ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    pub flows: u64,
    pub sockets: u64,
}

/// Ends what must not stay. The tables must already say which endpoints there are; what programs
/// do that have read them before is waited for. First comes what was of IPv4.
///
/// # Errors
/// Where some could not be ended; the others were.
pub fn end(maps: &Path, serving: &Serving) -> Result<[Ended; 2], StaleError> {
    Barrier::new().and_then(|barrier| barrier.wait()).map_err(StaleError::Barrier)?;
    let mut copies = Copies::open(maps)?;
    let flows4 = copies.end_with(flows::<Ipv4>(maps, ["PENDING4", "FLOWS4"], serving))?;
    let flows6 = copies.end_with(flows::<Ipv6>(maps, ["PENDING6", "FLOWS6"], serving))?;
    let [sockets4, sockets6] = sockets(maps, serving)?;
    let v4 = Ended { flows: flows4, sockets: sockets4 };
    Ok([v4, Ended { flows: flows6, sockets: sockets6 }])
}

/// Copies of rows, which frames of drivers find first.
pub struct Copies(MapTable<u32, u32>);

impl Copies {
    /// # Errors
    /// If there is no such table.
    pub fn open(maps: &Path) -> Result<Self, StaleError> {
        Ok(Self(MapTable::open(maps, "FLOWCHANGES")?))
    }

    /// Makes all of them stale that there are.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn end(&mut self) -> Result<(), StaleError> {
        Ok(self.0.insert(&0, &tick::now())?)
    }

    /// The same once rows were changed, or some before that failed.
    fn end_with(&mut self, ended: Result<u64, StaleError>) -> Result<u64, StaleError> {
        if !matches!(ended, Ok(0)) {
            self.end()?;
        }
        ended
    }
}

/// The flows of a family, in `PENDING` before `FLOWS`, where rows go to that are answered meanwhile.
fn flows<A>(
    maps: &Path,
    [pending, answered]: [&str; 2],
    serving: &Serving,
) -> Result<u64, StaleError>
where
    A: Address + Hash + Into<IpAddr>,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let mut pending: MapTable<FlowKey<A>, Flow<A>> = MapTable::open(maps, pending)?;
    let mut answered: MapTable<FlowKey<A>, Flow<A>> = MapTable::open(maps, answered)?;
    let (mut begun, mut stale) = (Vec::new(), Vec::new());
    pending.visit(|key, row| begun.extend(stale_flow(key, row, serving)))?;
    answered.visit(|key, row| stale.extend(stale_flow(key, row, serving)))?;
    for (parties, flags) in &begun {
        for key in rows(parties, *flags) {
            end_row(&mut pending, &key, parties, End::Removed)?;
        }
    }
    // What had begun may have been answered meanwhile.
    for (parties, flags) in stale.iter().chain(&begun) {
        let how = if parties.proto == protocol::TCP { End::Marked } else { End::Removed };
        for key in rows(parties, *flags) {
            end_row(&mut answered, &key, parties, how)?;
        }
    }
    Ok((stale.len() + begun.len()) as u64)
}

/// The parties and flags of a flow by its `ORIGINAL` row, or the one that it has, if it has to end.
fn stale_flow<A>(key: &FlowKey<A>, row: &Flow<A>, serving: &Serving) -> Option<(Parties<A>, u16)>
where
    A: Address + Into<IpAddr>,
{
    let tells = row.role == role::ORIGINAL || row.flags & flow_flags::LONE != 0;
    if !tells || !serving.ends(key.proto) || row.flags & flow_flags::RESET != 0 {
        return None;
    }
    let parties = Parties::of(key, row);
    let is_kept = serving.keeps(key.proto, place(parties.frontend), place(parties.backend));
    (!is_kept).then_some((parties, row.flags))
}

/// The keys of a flow's rows, the one first by which the client's packets find their way.
fn rows<A: Address>(parties: &Parties<A>, flags: u16) -> impl Iterator<Item = FlowKey<A>> {
    let masqueraded = [parties.original_source(), parties.reply_target()];
    let masqueraded = masqueraded.into_iter().filter(move |_| flags & flow_flags::MASQUERADE != 0);
    [parties.original(), parties.reply()].into_iter().chain(masqueraded)
}

/// What becomes of a row whose flow has to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Removed,
    /// The next segment that it sees is answered with RST. The row is written anew, with what a packet has
    /// counted in it meanwhile forgotten.
    Marked,
}

/// Ends the row at a key, if it is of the flow of these parties. Another may be there, of a flow that the
/// client has begun anew: a row by itself knows of no other ([`flow_flags::LONE`]).
fn end_row<A>(
    table: &mut MapTable<FlowKey<A>, Flow<A>>,
    key: &FlowKey<A>,
    parties: &Parties<A>,
    end: End,
) -> Result<(), TableError>
where
    A: Address,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let row = table.get(key)?;
    let own = row.filter(|row| Parties::of(key, row).backend == parties.backend);
    let Some(row) = own else { return Ok(()) };
    let ended = match end {
        End::Removed => table.remove(key),
        End::Marked => table.replace(key, &Flow { flags: row.flags | flow_flags::RESET, ..row }),
    };
    match ended {
        Ok(()) | Err(TableError::Missing) => Ok(()),
        Err(err) => Err(err),
    }
}

fn place<A: Into<IpAddr>>(place: flow::Place<A>) -> Place {
    (place.addr.into(), place.port.get())
}

/// Sockets of this network namespace, by the family of what they were given.
fn sockets(maps: &Path, serving: &Serving) -> Result<[u64; 2], StaleError> {
    let (v4, v6) = (MapTable::open(maps, "SOCKETS4")?, MapTable::open(maps, "SOCKETS6")?);
    let mut diag = SocketDiag::open().map_err(StaleError::Sockets)?;
    let mut ended = [0; 2];
    for proto in [protocol::UDP, protocol::TCP].into_iter().filter(|&proto| serving.ends(proto)) {
        for found in diag.connected(proto).map_err(StaleError::Sockets)? {
            let cookie = found.cookie();
            let family = if is_stale::<Ipv4>(&v4, cookie, proto, serving)? {
                0
            } else if is_stale::<Ipv6>(&v6, cookie, proto, serving)? {
                1
            } else {
                continue;
            };
            match diag.end(&found) {
                Ok(()) => ended[family] += 1,
                // Its process has let go of it meanwhile.
                Err(err) if err.raw_os_error() == Some(libc::ENOENT) => {}
                Err(err) => return Err(StaleError::Sockets(err)),
            }
        }
    }
    Ok(ended)
}

/// Whether a socket was given an endpoint that it must not keep.
fn is_stale<A>(
    table: &MapTable<u32, Connected<A>>,
    cookie: u64,
    proto: u8,
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
            let backend = (row.backend.into(), row.backend_port.get());
            return Ok(!serving.keeps(proto, frontend, backend));
        }
    }
    Ok(false)
}
