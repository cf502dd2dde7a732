//! Refusals on the way out: a packet that leaves the node for a cluster IP comes from one of
//! the node's own processes, whose socket call was left as it was, or from a device that no
//! program sees. Nobody beyond this node would answer it.

use crate::{
    answer,
    counter::{Hook, Reason},
    frontend::{FrontendKey, address_use},
    header::{self, Network, Part, has_ports},
    icmp,
    ingress::key,
    packet::{Packet, Verdict},
    select::scope,
    service::empty_set,
    tables::Tables,
};

/// What a packet to a cluster IP must meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Pass,
    Drop(Reason),
    /// To be answered so.
    Unreachable(Reason),
}

/// Decides over a packet that goes out by an uplink, before [`crate::egress`] does. What passes
/// is not to a cluster IP, or to one that has backends: the way to them has been missed, but
/// somebody further out may know another.
#[inline(never)]
pub fn refuse<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Verdict {
    let reason = match fate::<F, P, T>(packet, tables) {
        Fate::Pass => return Verdict::Pass,
        Fate::Drop(reason) => reason,
        Fate::Unreachable(reason) => {
            match answer::unreachable::<F, P, T>(packet, tables, hook, reason) {
                Ok(verdict) => return verdict,
                Err(reason) => reason,
            }
        }
    };
    tables.count_drop(hook, reason);
    Verdict::Drop
}

#[inline(never)]
fn fate<F: Network, P: Packet, T: Tables<F>>(packet: &P, tables: &mut T) -> Fate {
    let Some(header) = F::header(packet, 0) else { return Fate::Pass };
    let usage = tables.address_use(header.dst);
    if usage.is_none_or(|usage| usage.flags & address_use::CLUSTER_IP == 0) {
        return Fate::Pass;
    }
    let Ok(transport) = header::transport::<F, P>(packet, &header) else { return Fate::Pass };
    // A later fragment does not tell its port; its first fragment has been answered.
    if transport.part == Part::Later {
        return Fate::Pass;
    }
    if !has_ports(transport.proto) {
        return if icmp::is_answerable::<F, P>(packet, &transport) {
            Fate::Unreachable(Reason::UnknownPort)
        } else {
            Fate::Pass
        };
    }
    let key = key(&header, &transport, crate::flow::hook::EGRESS);
    let Some(frontend) = tables.frontend(&FrontendKey::new(key.dst, key.dst_port, key.proto))
    else {
        return Fate::Unreachable(Reason::UnknownPort);
    };
    let policy = tables.policy(frontend.service);
    match tables.set(frontend.service, scope(frontend.kind, policy.flags, true)) {
        Some(set) if set.count != 0 => Fate::Pass,
        Some(set) if set.block == empty_set::DROP => Fate::Drop(Reason::TrafficPolicy),
        _ => Fate::Unreachable(Reason::NoEndpoints),
    }
}
