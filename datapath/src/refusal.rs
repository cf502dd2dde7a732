//! Refusals on the way out: a packet that leaves the node for a cluster IP, or for a load
//! balancer's address, comes from one of the node's own processes, whose socket call was left as it
//! was, or from a device that no program sees. For a cluster IP nobody beyond this node would answer
//! it; for a load balancer somebody might, who does not know of source ranges. One for an address
//! that cluster IPs are given out of, and that no Service has, is dropped, as by kube-proxy with
//! nftables.

use crate::{
    address::protocol,
    answer,
    counter::{Hook, Reason},
    echo,
    frontend::{FrontendKey, address_use},
    header::{self, Network, Part},
    icmp,
    ingress::key,
    packet::{Packet, Verdict},
    select::{Origin, scope},
    service::empty_set,
    source_range,
    tables::Tables,
};

/// What a packet to a frontend must meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Pass,
    Drop(Reason),
    /// To be answered so.
    Unreachable(Reason),
    /// A ping, to be answered.
    Echo,
}

/// Decides over a packet that goes out by an uplink, before [`crate::egress`] does. What passes is to
/// neither, or to what has backends and no ranges against its source: the way to them has been
/// missed, but somebody further out may know another.
#[inline(never)]
pub fn refuse<F: Network, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    hook: Hook,
) -> Verdict {
    let reason = match fate::<F, P, T>(packet, tables) {
        Fate::Pass => return Verdict::Pass,
        Fate::Drop(reason) => reason,
        Fate::Echo if packet.write_echo::<F>() => return Verdict::Answer,
        Fate::Echo => Reason::RewriteFailed,
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
    let usage = tables.address_use(header.dst).map_or(0, |usage| usage.flags);
    let is_cluster_ip = usage & address_use::CLUSTER_IP != 0;
    if usage & address_use::ECHO != 0 && echo::is_request::<F, P>(packet, &header) {
        return Fate::Echo;
    }
    if usage & (address_use::CLUSTER_IP | address_use::LOAD_BALANCER) == 0 {
        return if usage == 0 && tables.is_service_network(header.dst) {
            Fate::Drop(Reason::UnallocatedAddress)
        } else {
            Fate::Pass
        };
    }
    let Ok(transport) = header::transport::<F, P>(packet, &header) else { return Fate::Pass };
    // A later fragment does not tell its port; its first fragment has been answered.
    if transport.part == Part::Later {
        return Fate::Pass;
    }
    if !transport.has_ports {
        return if is_cluster_ip && icmp::is_answerable::<F, P>(packet, &transport) {
            Fate::Unreachable(Reason::UnknownPort)
        } else {
            Fate::Pass
        };
    }
    let key = key(&header, &transport, crate::flow::hook::EGRESS);
    let Some(frontend) = tables.frontend(&FrontendKey::new(key.dst, key.dst_port, key.proto))
    else {
        return if is_cluster_ip { Fate::Unreachable(Reason::UnknownPort) } else { Fate::Pass };
    };
    let begins = key.proto == protocol::UDP || header::opens(transport.flags);
    if begins && source_range::refuses::<F, T>(tables, &frontend, key.src) {
        return Fate::Drop(Reason::SourceRange);
    }
    if !is_cluster_ip {
        return Fate::Pass;
    }
    let policy = tables.policy(frontend.service);
    match tables.set(frontend.service, scope(frontend.kind, policy.flags, Origin::Inside)) {
        Some(set) if set.count != 0 => Fate::Pass,
        Some(set) if set.block == empty_set::DROP => Fate::Drop(Reason::TrafficPolicy),
        _ => Fate::Unreachable(Reason::NoEndpoints),
    }
}
