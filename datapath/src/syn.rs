//! A connection's first segment at the wire: it leaves one row, that of its answer.
//!
//! The packet path writes two. Here the other one waits for the answer, which has it written when it
//! leaves ([`flow_flags::LONE`], [`crate::track::settle`]): so a flood costs one write a segment, and
//! pushes out half as much. Until then another SYN finds its way as the first one did, by Maglev's
//! table.

use crate::{
    algorithm::Algorithm,
    backend::backend_flags,
    flow::{FlowKey, Parties, flow_flags, role},
    frontend::FrontendKey,
    hash,
    header::{Network, tcp},
    select::{Choice, Origin},
    service::service_flags,
    tables::{Opening, Store, Tables},
};

/// True for the flags of a segment that may be one.
#[inline(always)]
#[must_use]
pub const fn is_first(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) == tcp::SYN
}

/// Begins the flow of a segment of `length` bytes that came from outside, which has no row in `FLOWS`,
/// and leaves its parties in [`crate::tables::FlowTables::parties`]. False if the packet path has to
/// decide: over all that needs more than these two rows, or hangs on more than the tuple; over what is
/// refused; and over a flow that has rows.
#[inline(always)]
pub fn begin<F: Network, T: Tables<F>>(
    tables: &mut T,
    key: &FlowKey<F::Address>,
    length: u32,
) -> bool {
    let Some(frontend) = tables.frontend(&FrontendKey::new(key.dst, key.dst_port, key.proto))
    else {
        return false;
    };
    let service = frontend.service;
    let policy = tables.policy(service);
    if Algorithm::of(policy.flags) != Algorithm::Maglev
        || policy.is_sticky()
        || policy.flags & service_flags::SOURCE_RANGES != 0
        || tables.settings().new_flow_interval != 0
    {
        return false;
    }
    let parties = tables.parties();
    *parties = Parties::default();
    (parties.client, parties.frontend, parties.proto) = (key.src(), key.dst(), key.proto);
    let choice = tables.select_for_sender(service, frontend.kind, Origin::Outside);
    matches!(choice, Choice::Backend(flags) if flags & backend_flags::LOCAL != 0)
        && tables.open_lone(service, length)
}

/// Writes the row for the flow of [`crate::tables::FlowTables::parties`]. False if it is no new one, or is
/// to be masqueraded.
#[inline(always)]
pub fn open<F: Network, T: Tables<F>>(tables: &mut T, service: u32, length: u32) -> bool {
    let Parties { client, frontend, backend, .. } = *tables.parties();
    let original = tables.parties().original();
    if client.addr == backend.addr || tables.flow(Store::Pending, &original).is_some() {
        return false;
    }
    let reply = tables.parties().reply();
    if tables.flow(Store::Answered, &reply).is_some() {
        return false;
    }
    let now = tables.now();
    let flags = flow_flags::LONE;
    if tables.begin(Opening { role: role::REPLY, service, flags, now, replace: false }) {
        tables.mark(hash::way(backend.addr, client.addr));
        tables.count_connection(service);
    } else {
        // Sent again. Or it is another frontend's flow between the same two.
        let Some(row) = tables.flow(Store::Pending, &reply) else { return false };
        if row.flags & flags == 0 || row.to != frontend.addr || row.to_port != frontend.port {
            return false;
        }
        row.last = now;
    }
    tables.count_packet(service, length);
    true
}
