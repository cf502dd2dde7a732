//! Direct server return: what a client outside sends to a Service's address goes to the node of the
//! backend as it is, and that node answers the client itself.
//!
//! ```text
//! client ── c → v ──► node A ── c → v in the tunnel ──► node B ── c → b ──► pod
//!    ▲                                                    │
//!    └────────────────────────── v → c ───────────────────┘
//! ```
//!
//! Nothing is added to the packet: the tunnel's outer headers tell B that A sent it, and B, which has
//! the same Services, chooses among its own endpoints. Where `v` is a NodePort of A, no table of B's
//! has it, but it is the address that the outer source tells, and the Service has the same port here.
//!
//! At A a flow has rows as if it were masqueraded, so that the kernel routes `c → b` and sees to its
//! length and hops, and the last hook, where it goes into the tunnel, writes the frontend again. No
//! reply passes there: what a flow's client shows stands for both sides ([`crate::track`]). At B a flow
//! is one of a backend of this node.

use crate::{
    algorithm::Algorithm,
    frontend::{Frontend, FrontendKey, kind},
    header::Network,
    tables::Tables,
};

/// True if the flow in [`crate::tables::FlowTables::parties`], to a backend elsewhere, is one whose
/// packets may go to the backend's node as they are. Where all nodes choose alike, a flow whose row was
/// lost finds its backend again, which a reply would have had to keep otherwise.
#[inline(always)]
pub fn applies<F: Network, T: Tables<F>>(tables: &mut T, service: u32, frontend_kind: u8) -> bool {
    if tables.settings().dsr == 0
        || Algorithm::of(tables.policy(service).flags) != Algorithm::Maglev
    {
        return false;
    }
    // Other addresses of this node are none that the other one would know.
    let frontend = tables.parties().frontend.addr;
    if frontend_kind == kind::NODE_PORT && frontend != tables.underlay() {
        return false;
    }
    let backend = tables.parties().backend.addr;
    tables.answers(backend)
}

/// The node that sent a packet has no such NodePort, as far as this one knows: the kernel would send the
/// packet back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSuchPort;

/// The frontend that a packet out of the tunnel is for, which no table has: a port of the node that
/// sent it.
///
/// # Errors
/// [`NoSuchPort`]
#[inline(always)]
pub fn frontend<F: Network, T: Tables<F>>(
    tables: &mut T,
    key: &FrontendKey<F::Address>,
) -> Result<Option<Frontend>, NoSuchPort> {
    if !tables.is_senders(key.addr) {
        return Ok(None);
    }
    let own = FrontendKey::new(tables.underlay(), key.port, key.proto);
    match tables.frontend(&own) {
        Some(row) if row.kind == kind::NODE_PORT => Ok(Some(row)),
        _ => Err(NoSuchPort),
    }
}
