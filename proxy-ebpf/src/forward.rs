//! Packets of known connections on past bridge and IP stack; see [`datapath::forward`].

use aya_ebpf::{
    bindings::__sk_buff, btf_maps::PerCpuArray, helpers::generated as helper, macros::btf_map,
    programs::TcContext,
};
use datapath::{
    address::{Mac, V4, V6},
    device::way,
    flow::{FlowKey, hook, role},
    forward::{self, FORWARDED_LEN, Way},
    home::{Home, Homes, learn},
    ingress::read_key,
    packet::Packet,
};

use crate::{
    flows::{DEVICES, FlowMaps, now},
    global,
    homes::{self, HomeMaps},
    linear::hardware,
    maps,
    route::{self, Routed},
    skb::{NEXT, Skb},
    tables::settings,
};

/// Addresses of the frame that the packet under way is to become: destination and source.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Link {
    to: Mac,
    from: Mac,
}

maps! {
    LINKS: PerCpuArray<Link, 1>,
    FORWARDED: PerCpuArray<u64, FORWARDED_LEN>,
}

/// What a family needs.
pub trait Forwarded: HomeMaps + FlowMaps + Routed {}

impl Forwarded for V4 {}

impl Forwarded for V6 {}

struct Learned;

impl<F: Forwarded> Homes<F> for Learned {
    #[inline(always)]
    fn home(&mut self, pod: F::Address) -> Option<&mut Home> {
        homes::home::<F>(pod)
    }

    #[inline(always)]
    fn settle(&mut self, pod: F::Address, home: Home) {
        homes::settle::<F>(pod, home);
    }
}

/// True if packets may pass the stack by at all.
#[inline(always)]
pub fn is_on() -> bool {
    settings().fast_path != 0
}

/// Asks the kernel where a packet goes; zero if its stack has more to say of it. What is found is kept in
/// `LINKS`.
#[inline(always)]
fn leads<F: Forwarded>(skb: *mut __sk_buff) -> u32 {
    let context = &TcContext::new(skb);
    let packet = &Skb::new(context);
    // SAFETY: the kernel's context.
    let (here, segment, tagged) = unsafe { ((*skb).ifindex, (*skb).gso_size, (*skb).vlan_present) };
    // What has a VLAN is for another device than the one it is seen on.
    if tagged != 0 {
        return 0;
    }
    let Some(header) = F::header(packet, 0) else { return 0 };
    let Some(length) = forward::length::<F, _>(packet, &header, segment) else { return 0 };
    let mut way = route::nowhere();
    // The kernel compares it with the route's MTU.
    way.__bindgen_anon_1.tot_len = length.min(u16::MAX.into()) as u16;
    if route::ask::<F>(&mut way, skb.cast(), here, header.src, header.dst) != route::KNOWN {
        return 0;
    }
    let Some(link) = LINKS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the row is this processor's own, and no other packet comes in between.
    unsafe { *link = Link { to: Mac(way.dmac), from: Mac(way.smac) } };
    way.ifindex
}

/// What may leave by a device, one of [`way`].
#[inline(always)]
fn way_of(device: u32) -> u32 {
    // SAFETY: one field is read.
    unsafe { DEVICES.get(device).map_or(way::NONE, |row| row.way) }
}

/// The device behind which is the pod that a packet is for; zero if that is not known.
#[inline(always)]
fn home_of<F: Forwarded>(skb: *mut __sk_buff) -> u32 {
    let context = &TcContext::new(skb);
    let (Some(header), Some(link)) = (F::header(&Skb::new(context), 0), LINKS.get_ptr(0)) else {
        return 0;
    };
    let Some(home) = homes::home::<F>(header.dst) else { return 0 };
    // SAFETY: the row is this processor's own. What the kernel knows of the pod goes before.
    let is_it = home.is_known(now()) && home.mac == unsafe { (*link).to };
    if is_it && way_of(home.device) == way::POD { home.device } else { 0 }
}

/// True if a pod's packet answers one of a connection to a Service that is known, and goes out by a device that
/// it may be sent to at once. Then it is known where the pod is.
#[inline(always)]
fn answers<F: Forwarded>(skb: *mut __sk_buff, device: u32) -> bool {
    let context = &TcContext::new(skb);
    let mut key = FlowKey::default();
    if !read_key::<F, _>(&Skb::new(context), &mut key, hook::EGRESS) {
        return false;
    }
    // SAFETY: one field is read.
    let is_reply = unsafe { F::FLOWS.get(&key) }.is_some_and(|row| row.role == role::REPLY);
    // SAFETY: the kernel's context.
    let here = unsafe { (*skb).ifindex };
    if !is_reply || way_of(device) != way::OUT || way_of(here) != way::POD {
        return false;
    }
    if let Some((_, mac)) = hardware(context) {
        learn::<F, _>(&mut Learned, key.src().addr, here, mac, now());
    }
    true
}

/// Sends a packet to a device, as [`leads`] has found: into the pod behind it, or out.
#[inline(always)]
fn send<F: Forwarded>(skb: *mut __sk_buff, device: u32, way: u32) -> i32 {
    let context = &TcContext::new(skb);
    let mut packet = Skb::new(context);
    let Some(link) = LINKS.get_ptr(0) else { return NEXT };
    // SAFETY: the row is this processor's own.
    let Link { to, from } = unsafe { *link };
    let words = packet.words(0).and_then(F::forwarded);
    let Some(words) = words else { return NEXT };
    if packet.store_begin(to, from, words).is_none() {
        return NEXT;
    }
    if let Some(count) = FORWARDED.get_ptr_mut(way) {
        // SAFETY: the row is this processor's own.
        unsafe { *count += 1 };
    }
    // SAFETY: the helpers take numbers.
    unsafe {
        if way == Way::Pod as u32 {
            helper::bpf_redirect_peer(device, 0) as i32
        } else {
            helper::bpf_redirect(device, 0) as i32
        }
    }
}

global! {
    leads4(skb: *mut __sk_buff) = leads::<V4>(skb);
    leads6(skb: *mut __sk_buff) = leads::<V6>(skb);
    home_of4(skb: *mut __sk_buff) = home_of::<V4>(skb);
    home_of6(skb: *mut __sk_buff) = home_of::<V6>(skb);
    answers4(skb: *mut __sk_buff, device: u32) = answers::<V4>(skb, device).into();
    answers6(skb: *mut __sk_buff, device: u32) = answers::<V6>(skb, device).into();
    send4(skb: *mut __sk_buff, device: u32, way: u32) = send::<V4>(skb, device, way) as u32;
    send6(skb: *mut __sk_buff, device: u32, way: u32) = send::<V6>(skb, device, way) as u32;
}
