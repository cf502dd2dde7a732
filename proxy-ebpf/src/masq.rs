//! Entry points of the masquerade: on uplinks, and on the tunnel device beside the tunnel's own.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use datapath::{
    address::{V4, V6},
    ipmasq::{enter, leave},
    packet::Verdict,
    policy::Policed,
};

use crate::{
    flows::{FlowMaps, Maps},
    skb::{ETH_P_IP, ETH_P_IPV6, NEXT, Skb, is_for_this_node, protocol},
    sweep,
};

#[classifier]
pub fn masq_egress(context: TcContext) -> i32 {
    match protocol(&context) {
        ETH_P_IP => leaves::<V4>(&context),
        ETH_P_IPV6 => leaves::<V6>(&context),
        _ => NEXT,
    }
}

#[classifier]
pub fn masq_ingress(context: TcContext) -> i32 {
    if is_for_this_node(&context) { masqueraded(&context) } else { NEXT }
}

/// Deals with what entered, for this node or a pod of it.
#[inline(always)]
pub fn masqueraded(context: &TcContext) -> i32 {
    match protocol(context) {
        ETH_P_IP => enters::<V4>(context),
        ETH_P_IPV6 => enters::<V6>(context),
        _ => NEXT,
    }
}

/// Not attached anywhere: the agent runs it to remove expired flows.
#[classifier]
pub fn flow_sweep(_context: TcContext) -> i32 {
    sweep::sweep();
    NEXT
}

#[inline(always)]
fn leaves<F: FlowMaps + Policed>(context: &TcContext) -> i32 {
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    act(leave::<F, _, _>(&mut skb, &mut maps))
}

#[inline(always)]
fn enters<F: FlowMaps + Policed>(context: &TcContext) -> i32 {
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    act(enter::<F, _, _>(&mut skb, &mut maps))
}

/// Does to the packet what the engine decided.
#[inline(always)]
fn act(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => NEXT,
        // No packet is answered here.
        Verdict::Drop | Verdict::Answer => TC_ACT_SHOT,
    }
}
