//! What the tables hold when the agent starts: rows keep their indices and sets their blocks,
//! so that what did not change meanwhile is not written again.

use std::{collections::BTreeMap, sync::Arc};

use agent_kit::table::TableError;
use datapath::{
    backend::{Backend, backend_flags},
    service::{SetRef, service_flags},
};

use super::{
    ledger::{Ledger, Placed, Row},
    op::FrontendAt,
    tables::{Tables, decode_name},
};
use crate::desired::{
    Desired, DesiredBackend, DesiredFrontend, DesiredService, DesiredSet, IpFamily, ServicePortKey,
};

/// Reads the tables.
pub fn adopt(tables: &Tables) -> Result<Ledger, TableError> {
    let capacity = [tables.backends4.capacity(), tables.backends6.capacity()];
    let mut ledger = Ledger::new(tables.services.capacity(), capacity);
    for (family, capacity) in [IpFamily::V4, IpFamily::V6].into_iter().zip(capacity) {
        let blocks = &mut ledger.blocks[family as usize];
        for slot in 0..capacity {
            blocks.note_generation(slot, tables.generation(family, slot));
        }
    }

    let mut frontends = tables.frontends(IpFamily::V4)?;
    frontends.extend(tables.frontends(IpFamily::V6)?);
    for family in [IpFamily::V4, IpFamily::V6] {
        for (address, flags) in tables.addresses(family)? {
            ledger.address_put(address, flags);
        }
    }

    let mut names: BTreeMap<u32, _> = tables.names.rows()?.into_iter().collect();
    let protocols: BTreeMap<u32, u8> =
        frontends.iter().map(|(at, to)| (to.service, at.proto)).collect();
    let mut rows: BTreeMap<u32, Row> = BTreeMap::new();
    for (&index, &proto) in &protocols {
        let service = tables.services.read(index).unwrap_or_default();
        let name = names.remove(&index);
        let (namespace, service_name, port) =
            name.as_ref().and_then(decode_name).unwrap_or_default();
        let family =
            if service.flags & service_flags::IPV6 == 0 { IpFamily::V4 } else { IpFamily::V6 };
        let key = ServicePortKey { namespace, name: service_name, port, proto, family };
        let mut row = Row::new(Arc::new(key));
        row.is_named = name.is_some();
        row.policy = service.policy();
        row.cluster = placed(tables, &mut ledger, family, service.cluster);
        row.local = placed(tables, &mut ledger, family, service.local);
        rows.insert(index, row);
    }
    // What nothing leads to was being removed, or not yet finished, when the last agent ended.
    ledger.stale_names.extend(names.into_keys());
    ledger.indices.reserve(rows.keys().copied());
    ledger.keys = rows.iter().map(|(&index, row)| (Arc::clone(&row.key), index)).collect();
    ledger.rows = rows.into_iter().collect();
    for (at, to) in frontends {
        ledger.frontend_put(at, to);
    }
    for family in [IpFamily::V4, IpFamily::V6] {
        for at in tables.ranges(family)? {
            ledger.range_put(at);
        }
    }
    Ok(ledger)
}

impl Ledger {
    /// Rows as they were found, before the first write.
    pub fn adopted(&self) -> Desired {
        let named = self.rows.iter().filter(|(_, row)| row.is_named && !row.key.name.is_empty());
        named
            .filter_map(|(&index, row)| {
                Some((ServicePortKey::clone(&row.key), self.found(index, row)?))
            })
            .collect()
    }

    fn found(&self, index: u32, row: &Row) -> Option<DesiredService> {
        let frontend = |at: &FrontendAt| {
            let kind = self.frontends.get(at)?.kind;
            Some(DesiredFrontend { address: at.address, port: at.port, kind })
        };
        let mut frontends: Vec<_> = row.frontends.iter().filter_map(frontend).collect();
        frontends.sort_unstable();
        Some(DesiredService {
            frontends,
            cluster: row.cluster.found()?,
            local: row.local.found()?,
            flags: row.policy.flags & !(service_flags::USED | service_flags::IPV6),
            affinity: row.policy.affinity,
            ranges: self.ranges.get(&index).into_iter().flatten().copied().collect(),
        })
    }
}

impl Placed {
    fn found(&self) -> Option<DesiredSet> {
        match self.set? {
            SetRef::REJECT => Some(DesiredSet::Reject),
            SetRef::DROP => Some(DesiredSet::Drop),
            _ => Some(DesiredSet::Backends(self.backends.clone()?)),
        }
    }
}

/// The set that a word names, if it stands whole in a block of its own; otherwise it is
/// written anew.
fn placed(tables: &Tables, ledger: &mut Ledger, family: IpFamily, set: SetRef) -> Placed {
    if set == SetRef::REJECT || set == SetRef::DROP {
        return Placed { set: Some(set), backends: Some(Vec::new()) };
    }
    let slots = set.block..set.block.saturating_add(u32::from(set.count));
    let backends: Option<Vec<DesiredBackend>> = match family {
        IpFamily::V4 => {
            slots.map(|slot| backend(tables.backends4.read(slot)?, set.generation)).collect()
        }
        IpFamily::V6 => {
            slots.map(|slot| backend(tables.backends6.read(slot)?, set.generation)).collect()
        }
    };
    match backends {
        Some(backends)
            if !backends.is_empty()
                && ledger.blocks[family as usize].reserve(set.block, set.count.into()) =>
        {
            Placed { set: Some(set), backends: Some(backends) }
        }
        _ => Placed::default(),
    }
}

/// What a slot holds for a set of this generation.
pub(super) fn backend<A: Into<std::net::IpAddr>>(
    row: Backend<A>,
    generation: u16,
) -> Option<DesiredBackend> {
    (row.generation == generation).then(|| DesiredBackend {
        address: row.addr.into(),
        port: row.port.get(),
        local: row.flags & backend_flags::LOCAL != 0,
    })
}
