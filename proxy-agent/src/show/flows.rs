//! Flows that the packet path tracks.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use agent_kit::{
    Pod,
    table::{MapTable, Table},
};
use datapath::{
    address::{Address, Be16, Ipv4, Ipv6, protocol},
    flow::{Flow, FlowKey, Parties, Place, TICK_NS, flow_flags, is_closed, role, seen, timeout},
    flow_cache::{Common, Line},
    header::has_handshake,
    service::ServiceName,
    tables::Opening,
};
use serde::Serialize;

use super::{Name, ShowError, print};
use crate::tick;

#[derive(Clone, Debug, Serialize)]
pub struct ShownFlow {
    pub protocol: &'static str,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// What the backend sees as the client, if that is not the client itself.
    pub source: Option<SocketAddr>,
    /// The backend's node answers the client itself (direct server return).
    #[serde(rename = "direct")]
    pub is_direct: bool,
    pub service: String,
    pub state: &'static str,
    pub age_seconds: u64,
    pub idle_seconds: u64,
    pub expires_seconds: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// All flows.
pub fn read(maps: &Path) -> Result<Vec<ShownFlow>, ShowError> {
    let names: MapTable<u32, ServiceName> = MapTable::open(maps, "NAMES")?;
    let names: HashMap<u32, String> = names
        .rows()?
        .into_iter()
        .filter_map(|(index, name)| Some((index, Name::decode(&name)?.to_string())))
        .collect();
    let mut flows = family::<Ipv4>(maps, '4', &names)?;
    flows.extend(family::<Ipv6>(maps, '6', &names)?);
    flows.sort_by_key(|flow| (flow.client, flow.frontend));
    Ok(flows)
}

fn family<A>(
    maps: &Path,
    suffix: char,
    names: &HashMap<u32, String>,
) -> Result<Vec<ShownFlow>, ShowError>
where
    A: Address + Hash + Into<IpAddr>,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    Line<A>: Pod,
    Common<A>: Pod,
{
    let of_family = |name: &str| format!("{name}{suffix}");
    let now = tick::now();
    // What frames have counted that the driver handled.
    let mut lines: Vec<Line<A>> = Vec::new();
    let copies: MapTable<u32, Line<A>> = MapTable::open(maps, &of_family("FLOWCACHE"))?;
    copies.visit(|_, line| lines.extend(Some(*line).filter(|line| line.packets != 0)))?;
    // Behind the lines: what they name stays longer than it takes to read.
    let commons: MapTable<u32, Common<A>> = MapTable::open(maps, &of_family("FLOWCOMMON"))?;
    let commons: Vec<Common<A>> = commons.rows()?.into_iter().map(|(_, common)| common).collect();
    // Two processors may have made two of one flow.
    let mut copies: HashMap<FlowKey<A>, Vec<Line<A>>> = HashMap::new();
    for line in lines {
        let common = commons.get(usize::from(line.common));
        if let Some(common) = common.filter(|common| common.is_meant(line.since)) {
            copies.entry(line.key(common)).or_default().push(line);
        }
    }
    let mut originals: HashMap<FlowKey<A>, Flow<A>> = HashMap::new();
    // By both keys that a reply may have: where it leaves, and, of a masqueraded flow, where it enters, which
    // drivers' frames know alone.
    let mut replies: HashMap<FlowKey<A>, Flow<A>> = HashMap::new();
    let whole = |key: &FlowKey<A>, mut row: Flow<A>| {
        for line in copies.get(key).into_iter().flatten() {
            line.bring_home(line.since, &mut row);
        }
        row
    };
    for name in ["FLOWS", "PENDING"] {
        let rows: MapTable<FlowKey<A>, Flow<A>> = MapTable::open(maps, &of_family(name))?;
        rows.visit(|key, row| match row.role {
            role::ORIGINAL => {
                originals.insert(*key, whole(key, *row));
            }
            role::REPLY_TARGET => {
                replies.insert(*key, whole(key, *row));
            }
            role::REPLY => {
                replies.insert(*key, *row);
                if row.flags & flow_flags::LONE != 0 {
                    let (key, row) = beginning(key, row);
                    originals.entry(key).or_insert(row);
                }
            }
            _ => {}
        })?;
    }
    let show = |(key, row): (&FlowKey<A>, &Flow<A>)| {
        let parties = Parties::of(key, row);
        let entered = replies.get(&parties.reply_target()).copied().unwrap_or_default();
        let left = replies.get(&parties.reply()).copied().unwrap_or_default();
        // What entered by the packet path has left by it.
        let reply = if entered.packets > left.packets { entered } else { left };
        let last = row.last.max(entered.last).max(left.last);
        let idle = u64::from(now.saturating_sub(last)) * TICK_NS / 1_000_000_000;
        // The backend's node answers: nothing of it is seen here.
        let is_direct = row.flags & flow_flags::DIRECT != 0;
        let answered = if is_direct { row.seen } else { left.seen };
        let limit = u64::from(timeout(key.proto, row.seen, answered));
        ShownFlow {
            protocol: protocol::name(key.proto),
            client: socket(parties.client),
            frontend: socket(parties.frontend),
            backend: socket(parties.backend),
            source: (row.flags & flow_flags::MASQUERADE != 0 && !is_direct)
                .then_some(parties.source)
                .filter(|source| source.port.get() != 0)
                .or_else(|| (parties.alias != Be16::ZERO).then(|| parties.alias()))
                .map(socket),
            service: names.get(&row.service).cloned().unwrap_or_default(),
            is_direct,
            state: state(key.proto, row.seen, answered),
            age_seconds: u64::from(now.saturating_sub(row.since)) * TICK_NS / 1_000_000_000,
            idle_seconds: idle,
            expires_seconds: limit.saturating_sub(idle),
            packets: row.packets + reply.packets,
            bytes: row.bytes + reply.bytes,
        }
    };
    Ok(originals.iter().map(show).collect())
}

/// The row that the answer to a connection's first segment will bring.
fn beginning<A: Address>(key: &FlowKey<A>, row: &Flow<A>) -> (FlowKey<A>, Flow<A>) {
    let parties = Parties::of(key, row);
    let opening = Opening {
        role: role::ORIGINAL,
        service: row.service,
        flags: row.flags & !flow_flags::LONE,
        now: row.since,
        replace: false,
    };
    let original = Flow { last: row.last, seen: seen::PACKET, ..parties.row(opening) };
    (parties.original(), original)
}

fn socket<A: Into<IpAddr>>(place: Place<A>) -> SocketAddr {
    SocketAddr::new(place.addr.into(), place.port.get())
}

fn state(proto: u8, original: u8, reply: u8) -> &'static str {
    if !has_handshake(proto) {
        return if reply == 0 { "unanswered" } else { "answered" };
    }
    match (original | reply) & (seen::FIN | seen::RST) {
        bits if bits & seen::RST != 0 => "reset",
        _ if is_closed(original, reply) => "closed",
        0 if reply == 0 => "opening",
        0 => "established",
        _ => "closing",
    }
}

/// For people.
pub fn print(flows: &[ShownFlow]) -> String {
    let rows = flows.iter().map(|flow| {
        vec![
            flow.protocol.into(),
            flow.client.to_string(),
            flow.frontend.to_string(),
            flow.backend.to_string(),
            match flow.source {
                Some(source) => source.to_string(),
                None if flow.is_direct => "direct".into(),
                None => String::new(),
            },
            flow.service.clone(),
            flow.state.into(),
            print::whole_age(flow.age_seconds),
            print::whole_age(flow.idle_seconds),
            flow.packets.to_string(),
            print::bytes(flow.bytes),
        ]
    });
    print::table(
        &[
            "PROTO", "CLIENT", "FRONTEND", "BACKEND", "SOURCE", "SERVICE", "STATE", "AGE", "IDLE",
            "PACKETS", "BYTES",
        ],
        rows,
    )
}
