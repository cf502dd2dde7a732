//! Entry points of the overlay object: packets of pods into the tunnel and out of it.
//! Each hands its packet and the tables to the engine in the crate `datapath`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod drops;
mod flows;
mod frame;
mod homes;
mod life;
mod linear;
mod map;
mod marks;
mod masq;
mod nodes;
mod policies;
mod skb;
mod steps;
mod sweep;
mod tunnels;
mod uplink;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::generated as helper,
    macros::classifier,
    programs::TcContext,
};
use datapath::{
    address::{V4, V6},
    counter::{Hook, Reason},
    encapsulation::{Fate, decapsulate, encapsulate, intercept, shortcut},
    flow::FlowKey,
    header::Network,
    tunnel::{Inner, Tunnels},
};
use frame::is_tagged;
use nodes::tunnel;
use policies::nat_ports;
use skb::{ETH_P_IP, ETH_P_IPV6, NEXT, Skb, protocol};
use tunnels::{FamilyMaps, Maps};

/// Masqueraded flows are flows by themselves.
const BARE_MASQUERADE: bool = true;

#[classifier]
pub fn tunnel_egress(context: TcContext) -> i32 {
    match protocol(&context) {
        ETH_P_IP => leave::<V4>(&context),
        ETH_P_IPV6 => leave::<V6>(&context),
        _ => not_ip(Hook::TunnelEgress),
    }
}

#[classifier]
pub fn tunnel_ingress(context: TcContext) -> i32 {
    match protocol(&context) {
        ETH_P_IP => arrive::<V4>(&context),
        ETH_P_IPV6 => arrive::<V6>(&context),
        _ => not_ip(Hook::TunnelIngress),
    }
}

#[classifier]
pub fn bypass_ingress(context: TcContext) -> i32 {
    // What has a VLAN is for the bridge.
    if is_tagged(&context) {
        return NEXT;
    }
    match protocol(&context) {
        ETH_P_IP => enter::<V4>(&context),
        ETH_P_IPV6 => enter::<V6>(&context),
        _ => NEXT,
    }
}

/// What entered by an uplink, if it is out of the tunnel: a function of its own, so that what it
/// needs of the stack is not also beneath the masquerade.
#[inline(never)]
fn intercepted(context: &TcContext) -> i32 {
    let mut skb = Skb::new(context);
    let fate = intercept(&mut skb, &mut Maps);
    act::<V4>(&mut skb, fate, Hook::UplinkIngress)
}

#[inline(always)]
fn leave<F: FamilyMaps + Inner>(context: &TcContext) -> i32 {
    let mut skb = Skb::new(context);
    let fate = encapsulate::<F, _, _>(&mut skb, &mut Maps);
    act::<F>(&mut skb, fate, Hook::TunnelEgress)
}

#[inline(always)]
fn arrive<F: FamilyMaps + Inner>(context: &TcContext) -> i32 {
    let mut skb = Skb::new(context);
    let fate = decapsulate::<F, _, _>(&mut skb, &mut Maps);
    act::<F>(&mut skb, fate, Hook::TunnelIngress)
}

#[inline(always)]
fn enter<F: FamilyMaps + Inner>(context: &TcContext) -> i32 {
    let mut skb = Skb::new(context);
    // SAFETY: the kernel's context.
    let device = unsafe { (*context.skb.skb).ifindex };
    let fate = shortcut::<F, _, _>(&mut skb, &mut Maps, device);
    act::<F>(&mut skb, fate, Hook::PodIngress)
}

/// Address resolution and the like, for which there is no one in a tunnel.
#[inline(always)]
fn not_ip(hook: Hook) -> i32 {
    Tunnels::<V4>::count_drop(&mut Maps, hook, Reason::NotIp);
    TC_ACT_SHOT
}

/// Does to the packet what the engine decided.
#[inline(always)]
fn act<F: FamilyMaps + Network>(skb: &mut Skb, fate: Fate, hook: Hook) -> i32 {
    match fate {
        Fate::Pass => NEXT,
        Fate::Drop => TC_ACT_SHOT,
        Fate::Answer => skb.send_back(BPF_F_INGRESS as u64).unwrap_or_else(|| {
            Tunnels::<F>::count_drop(&mut Maps, hook, Reason::RewriteFailed);
            TC_ACT_SHOT
        }),
        // SAFETY: the helper takes numbers.
        Fate::Tunnel => unsafe { helper::bpf_redirect(tunnel().device, 0) as i32 },
        // SAFETY: the helper takes numbers, and no structure: the kernel looks for the way.
        Fate::Underlay(device) => unsafe {
            helper::bpf_redirect_neigh(device, core::ptr::null_mut(), 0, 0) as i32
        },
        // SAFETY: the helper takes numbers.
        Fate::Pod(device) => unsafe { helper::bpf_redirect_peer(device, 0) as i32 },
    }
}

/// Flags for `bpf_l4_csum_replace` when an IPv6 address changes.
#[inline(always)]
fn ipv6_checksum_flags() -> u32 {
    tunnel().ipv6_checksum_flags
}

/// There are no copies of rows.
#[inline(always)]
fn forgotten<F: Network>(_key: &FlowKey<F::Address>) {}

/// As above.
#[inline(always)]
fn last_used<F: Network>(_key: &FlowKey<F::Address>, last: u32, _now: u32) -> u32 {
    last
}

/// A flow's own row counts its packets, and there is no Service.
#[inline(always)]
fn count_packet(_service: u32, _bytes: u32) {}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // No program contains a reachable panic: the verifier would refuse the endless loop.
    loop {}
}
