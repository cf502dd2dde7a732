//! What comes out of a tunnel and is for no pod of this node: packets that another node sent here as
//! they came to it, because this one answers clients itself.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    helpers::generated as helper,
    programs::TcContext,
};
use datapath::{
    address::{Address, V4, V6},
    tunnel::{Inner, Sender},
};

use crate::{
    flows::DEVICES,
    gate::Peek,
    global,
    linear::{at, hardware},
    nodes::{NodeMaps, is_sender, tunnel},
    route::{self, Routed},
    skb::NEXT,
};

/// Size of the structure, as the kernel's helpers are to know it.
const KEY: u32 = size_of::<bpf_tunnel_key>() as u32;

/// The tunnel that a packet came by, of one family.
#[inline(always)]
fn key<F: NodeMaps>(skb: *mut __sk_buff) -> Option<bpf_tunnel_key> {
    let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
    let flags = if F::V6 { BPF_F_TUNINFO_IPV6 } else { 0 };
    // SAFETY: the helper writes all of the structure, also where it fails.
    unsafe {
        let failed = helper::bpf_skb_get_tunnel_key(skb, key.as_mut_ptr(), KEY, flags.into());
        (failed == 0).then(|| key.assume_init())
    }
}

#[inline(always)]
fn destination<F: Peek>(context: &TcContext) -> Option<F::Address> {
    let header = at(context, 0, F::HEADER)?;
    // SAFETY: `at` has checked that the whole fixed header is there.
    Some(unsafe { F::peek(header.add(F::DST as usize)) })
}

#[inline(always)]
fn source<F: Peek>(context: &TcContext) -> Option<F::Address> {
    let header = at(context, 0, F::HEADER)?;
    // SAFETY: `at` has checked that the whole fixed header is there.
    Some(unsafe { F::peek(header.add(F::SRC as usize)) })
}

/// What tells a packet's destination from others: not zero.
#[inline(always)]
fn name<F: Peek>(context: &TcContext) -> Option<u32> {
    destination::<F>(context).map(|address| address.fold() | 1)
}

/// The name of the destination of a packet that a node of the overlay sent here for another address than
/// a pod's; zero for any other packet. (Of strangers the overlay's own program, which comes after, has
/// to tell.)
#[inline(always)]
fn came_by<F: Peek + NodeMaps + Inner>(skb: *mut __sk_buff) -> u32 {
    let context = &TcContext::new(skb);
    let tunnel = tunnel();
    let Some(to) = destination::<F>(context) else { return 0 };
    let pods = F::pods(&tunnel);
    if pods.prefix_len == 0 || pods.contains(to) {
        return 0;
    }
    let Some((to, from)) = hardware(context) else { return 0 };
    if to != F::mac(&tunnel) || !is_sender(Sender { mac: from, pad: 0 }) {
        return 0;
    }
    let Some(key) = key::<F>(skb) else { return 0 };
    if key.tunnel_id != tunnel.vni {
        return 0;
    }
    name::<F>(context).unwrap_or_default()
}

/// 1 if a packet's destination is the address that the tunnel's outer source tells.
#[inline(always)]
fn is_senders<F: Peek + NodeMaps>(skb: *mut __sk_buff) -> u32 {
    let context = &TcContext::new(skb);
    let Some(key) = key::<F>(skb) else { return 0 };
    // SAFETY: the helper has told that this is the family.
    let outer = unsafe {
        if F::V6 {
            key.__bindgen_anon_1.remote_ipv6
        } else {
            // The helper has IPv4 in this machine's byte order.
            [key.__bindgen_anon_1.remote_ipv4.to_be(), 0, 0, 0]
        }
    };
    let Some(to) = destination::<F>(context) else { return 0 };
    (to.words() == outer).into()
}

/// Lets a packet for which a destination was found enter where its sender is, as if it had come from
/// there: by the tunnel's device a filter of reverse paths may refuse it. `before` is the name of its
/// former destination.
#[inline(always)]
fn come_home<F: Peek + Routed>(skb: *mut __sk_buff, before: u32) -> u32 {
    const STAY: u32 = NEXT as u32;
    let context = &TcContext::new(skb);
    if name::<F>(context).is_none_or(|now| now == before) {
        return STAY;
    }
    let (Some(client), Some(here)) = (source::<F>(context), destination::<F>(context)) else {
        return STAY;
    };
    // SAFETY: the kernel's context.
    let device = unsafe { (*skb).ifindex };
    let mut way = route::nowhere();
    let answer = route::ask::<F>(&mut way, skb.cast(), device, here, client);
    if answer != route::KNOWN && answer != route::NO_NEIGHBOUR {
        return STAY;
    }
    // SAFETY: the row is copied at once.
    let Some(uplink) = (unsafe { DEVICES.get(way.ifindex).copied() }) else { return STAY };
    let to = uplink.mac.0;
    // SAFETY: the helper checks the bounds of the packet; the array holds the 6 bytes.
    unsafe {
        if helper::bpf_skb_store_bytes(skb.cast(), 0, to.as_ptr().cast(), 6, 0) != 0 {
            return STAY;
        }
        helper::bpf_redirect(way.ifindex, BPF_F_INGRESS.into()) as u32
    }
}

global! {
    came_by4(skb: *mut __sk_buff) = came_by::<V4>(skb);
    came_by6(skb: *mut __sk_buff) = came_by::<V6>(skb);
    is_senders4(skb: *mut __sk_buff) = is_senders::<V4>(skb);
    is_senders6(skb: *mut __sk_buff) = is_senders::<V6>(skb);
    come_home4(skb: *mut __sk_buff, before: u32) = come_home::<V4>(skb, before);
    come_home6(skb: *mut __sk_buff, before: u32) = come_home::<V6>(skb, before);
}
