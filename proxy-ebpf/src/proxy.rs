//! Entry points of the proxy object: the socket path on cgroups, the packet path on devices.
//! Each hands its packet and the tables to the engine in the crate `datapath`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod apart;
mod buffer;
mod capture;
mod connected;
mod direct;
mod drops;
mod flow_cache;
mod flows;
mod forward;
mod gate;
mod homes;
mod known;
mod life;
mod linear;
mod map;
mod maps;
mod marks;
mod nodes;
mod route;
mod search;
mod skb;
mod socket;
mod steps;
mod sweep;
mod tables;
mod wire;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT},
    macros::{cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SockAddrContext, SockContext, TcContext},
};
use datapath::{
    address::{Mac, V4, V6},
    counter::{Hook, Reason},
    egress::egress,
    flow,
    ingress::ingress,
    packet::Verdict,
    refusal::refuse,
    tables::FlowTables,
};
use direct::{came_by4, came_by6, come_home4, come_home6};
use flow_cache::{forgotten, last_used};
use flows::Maps;
use gate::{Peek, is_foreign_destination, is_foreign_way, is_foreign_way_apart, is_never_refused};
use linear::hardware;
use skb::{ETH_P_IP, ETH_P_IPV6, NEXT, Skb, is_for_this_node, protocol};
use socket::{Operation, call4, call6, release};
use tables::{FamilyMaps, count_packet, nat_ports};

/// Masqueraded flows are those of Services.
const BARE_MASQUERADE: bool = false;

/// What asks the kernel for its routes (`bpf_fib_lookup`) must be free in the kernel's sense.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    call4(&context, Operation::Connect)
}

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(context: SockAddrContext) -> i32 {
    call6(&context, Operation::Connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    call4(&context, Operation::Send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(context: SockAddrContext) -> i32 {
    call6(&context, Operation::Send)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    call4(&context, Operation::Receive)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(context: SockAddrContext) -> i32 {
    call6(&context, Operation::Receive)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_peername4(context: SockAddrContext) -> i32 {
    call4(&context, Operation::PeerName)
}

#[cgroup_sock_addr(getpeername6)]
pub fn sock_peername6(context: SockAddrContext) -> i32 {
    call6(&context, Operation::PeerName)
}

#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    release(&context)
}

#[classifier]
pub fn pod_ingress(context: TcContext) -> i32 {
    enter(&context, Hook::PodIngress)
}

#[classifier]
pub fn pod_egress(context: TcContext) -> i32 {
    leave(&context, Hook::PodEgress)
}

#[classifier]
pub fn uplink_ingress(context: TcContext) -> i32 {
    enter(&context, Hook::UplinkIngress)
}

#[classifier]
pub fn uplink_egress(context: TcContext) -> i32 {
    leave(&context, Hook::UplinkEgress)
}

/// On the device of the overlay's tunnels, in place of `uplink_ingress`.
#[classifier]
pub fn tunnel_arrival(context: TcContext) -> i32 {
    match protocol(&context) {
        ETH_P_IP => arrives::<V4>(&context),
        ETH_P_IPV6 => arrives::<V6>(&context),
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
fn enter(context: &TcContext, hook: Hook) -> i32 {
    if matches!(hook, Hook::UplinkIngress) && !is_for_this_node(context) {
        return NEXT;
    }
    match protocol(context) {
        ETH_P_IP => enters::<V4>(context, hook),
        ETH_P_IPV6 => enters::<V6>(context, hook),
        _ => NEXT,
    }
}

#[inline(always)]
fn enters<F: FamilyMaps + Peek>(context: &TcContext, hook: Hook) -> i32 {
    let skb = context.skb.skb;
    let is_ours = !is_foreign_destination::<F>(context);
    if is_ours {
        if matches!(hook, Hook::UplinkIngress) && forward::is_on() {
            let action = forward::pass::<F>(skb, flow::hook::INGRESS);
            if action != NEXT {
                return action;
            }
        }
        let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
        let verdict = ingress::<F, _, _>(&mut skb, &mut maps, hook);
        let action = act(&mut skb, &mut maps, hook, verdict);
        if action != NEXT {
            return action;
        }
    }
    if !matches!(hook, Hook::PodIngress) || is_foreign_way_apart::<F>(context) {
        return NEXT;
    }
    if is_handed_on(skb) != 0 {
        (if F::V6 { cross6(skb) } else { cross4(skb) }) as i32
    } else if is_ours || !forward::is_on() {
        NEXT
    } else {
        forward::pass::<F>(skb, flow::hook::EGRESS)
    }
}

#[inline(always)]
fn arrives<F: FamilyMaps + Peek>(context: &TcContext) -> i32 {
    let raw = context.skb.skb;
    let name = if F::V6 { came_by6(raw) } else { came_by4(raw) };
    let is_ours = name != 0 || is_for_this_node(context) && !is_foreign_destination::<F>(context);
    if !is_ours {
        return NEXT;
    }
    let hook = if name == 0 { Hook::UplinkIngress } else { Hook::TunnelIngress };
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    let verdict = ingress::<F, _, _>(&mut skb, &mut maps, hook);
    let action = act(&mut skb, &mut maps, hook, verdict);
    if action != NEXT || name == 0 {
        return action;
    }
    (if F::V6 { come_home6(raw, name) } else { come_home4(raw, name) }) as i32
}

#[inline(always)]
fn leave(context: &TcContext, hook: Hook) -> i32 {
    match protocol(context) {
        ETH_P_IP => leaves::<V4>(context, hook),
        ETH_P_IPV6 => leaves::<V6>(context, hook),
        _ => NEXT,
    }
}

#[inline(always)]
fn leaves<F: FamilyMaps + Peek>(context: &TcContext, hook: Hook) -> i32 {
    if matches!(hook, Hook::UplinkEgress) && !is_never_refused::<F>(context) {
        let action = refused::<F>(context);
        if action != NEXT {
            return action;
        }
    }
    if is_foreign_way::<F>(context) {
        return NEXT;
    }
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    let verdict = egress::<F, _, _>(&mut skb, &mut maps, hook);
    act(&mut skb, &mut maps, hook, verdict)
}

/// True if a pod's frame is for another port of a bridge that has the hook which sees what leaves
/// toward pods: it sees this one not.
fn is_for_a_port(skb: *mut __sk_buff) -> bool {
    let context = &TcContext::new(skb);
    let device = FlowTables::<V4>::device(&mut Maps { packet: Some(context) });
    let (Some(device), Some((to, _))) = (device, hardware(context)) else { return false };
    device.bridge != Mac::default() && to != device.bridge && !is_for_this_node(context)
}

/// A pod's packet, which has entered by its device, leaves, as toward another.
#[inline(always)]
fn crosses<F: FamilyMaps>(skb: *mut __sk_buff) -> u32 {
    const HOOK: Hook = Hook::PodIngress;
    let context = &TcContext::new(skb);
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    let verdict = egress::<F, _, _>(&mut skb, &mut maps, HOOK);
    act(&mut skb, &mut maps, HOOK, verdict) as u32
}

global! {
    is_handed_on(skb: *mut __sk_buff) = is_for_a_port(skb).into();
    cross4(skb: *mut __sk_buff) = crosses::<V4>(skb);
    cross6(skb: *mut __sk_buff) = crosses::<V6>(skb);
}

/// Refuses a packet that leaves for a frontend without a way to it, or one that admits no such
/// source. A function of its own, so that what it needs of the stack is not also beneath `egress`.
#[inline(never)]
fn refused<F: FamilyMaps>(context: &TcContext) -> i32 {
    const HOOK: Hook = Hook::UplinkEgress;
    let (mut skb, mut maps) = (Skb::new(context), Maps { packet: Some(context) });
    let verdict = refuse::<F, _, _>(&mut skb, &mut maps, HOOK);
    act(&mut skb, &mut maps, HOOK, verdict)
}

/// Flags for `bpf_l4_csum_replace` when an IPv6 address changes.
#[inline(always)]
fn ipv6_checksum_flags() -> u32 {
    tables::settings().ipv6_checksum_flags
}

/// Does to the packet what the engine decided.
#[inline(always)]
fn act(skb: &mut Skb, maps: &mut Maps, hook: Hook, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => NEXT,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Answer => skb.send_back(toward_sender(hook)).unwrap_or_else(|| {
            FlowTables::<V4>::count_drop(maps, hook, Reason::RewriteFailed);
            TC_ACT_SHOT
        }),
    }
}

/// Flags for `bpf_redirect` to where the packets of a hook come from.
#[inline(always)]
const fn toward_sender(hook: Hook) -> u64 {
    match hook {
        // Out of a tunnel, the sender is somewhere else: the kernel knows the way.
        Hook::PodEgress | Hook::UplinkEgress | Hook::TunnelIngress => BPF_F_INGRESS as u64,
        _ => 0,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // No program contains a reachable panic: the verifier would refuse the endless loop.
    loop {}
}
