//! Packets of known connections on past bridge and IP stack; see [`datapath::forward`].

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    btf_maps::PerCpuArray,
    helpers::generated as helper,
    macros::btf_map,
    programs::TcContext,
};
use datapath::{
    address::{Mac, V4, V6},
    counter::{Hook, Reason},
    device::way,
    flow::{FlowKey, Place},
    forward::{Aim, FORWARDED_LEN, Segment, Way, aim},
    fragment::Ports,
    hash,
    header::Network,
    home::{Home, Homes, learn},
    packet::Packet,
    rewrite::rewrite_ends,
    track,
};

use crate::{
    drops::count_drop,
    flows::{DEVICES, FlowMaps, MARKS, now},
    global,
    homes::{self, HomeMaps},
    linear::hardware,
    maps,
    marks::is_set,
    route::{self, Routed},
    skb::{NEXT, Skb},
    tables::{count_packet, settings},
};

maps! {
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

/// What may leave by a device, one of [`way`].
#[inline(always)]
fn way_of(device: u32) -> u32 {
    // SAFETY: one field is read.
    unsafe { DEVICES.get(device).map_or(way::NONE, |row| row.way) }
}

/// The device behind which a pod is that has these hardware addresses, by what the kernel knows; zero if nobody
/// has told.
#[inline(always)]
fn home_of<F: Forwarded>(pod: F::Address, mac: Mac, now: u32) -> u32 {
    match homes::home::<F>(pod) {
        Some(home) if home.is_known(now) && home.mac == mac && way_of(home.device) == way::POD => {
            home.device
        }
        _ => 0,
    }
}

/// Does with a packet all that is left to do on this node, and sends it where it goes: into the pod, or out. `hook`
/// is where its row stands, if it has one.
#[inline(always)]
fn passes<F: Forwarded>(skb: *mut __sk_buff, hook: u8) -> i32 {
    let context = &TcContext::new(skb);
    let packet = &mut Skb::new(context);
    // SAFETY: the kernel's context.
    let (here, payload, tagged) = unsafe { ((*skb).ifindex, (*skb).gso_size, (*skb).vlan_present) };
    // What has a VLAN is for another device than the one it is seen on.
    if tagged != 0 {
        return NEXT;
    }
    let Some(header) = F::header(packet, 0) else { return NEXT };
    let Some(segment) = Segment::read::<F, _>(packet, &header, payload) else { return NEXT };
    let Ports { src_port, dst_port } = segment.ports;
    let (from, to) = (Place::new(header.src, src_port), Place::new(header.dst, dst_port));
    let key = FlowKey::new(from, to, header.next, hook);
    let Some(row) = F::FLOWS.get_ptr_mut(&key) else { return NEXT };
    // SAFETY: memory of a map's rows stays readable and writable while the program runs.
    let row = unsafe { &mut *row };
    let Some(Aim { way, src, dst }) = aim(&key, row) else { return NEXT };
    let mut question = route::nowhere();
    // The kernel compares it with the route's MTU.
    question.__bindgen_anon_1.tot_len = segment.length.min(u16::MAX.into()) as u16;
    // As it would be routed here: its source is rewritten behind that.
    if route::ask::<F>(&mut question, skb.cast(), here, header.src, dst.addr) != route::KNOWN {
        return NEXT;
    }
    let (mac, now) = (Mac(question.dmac), now());
    let is_back = question.ifindex == here;
    let device = match way {
        Way::Node if is_back => here,
        // What would be masqueraded toward the pod is left to the hook there.
        Way::Pod if !is_back && !is_set(&MARKS, hash::way(header.src, dst.addr)) => {
            home_of::<F>(dst.addr, mac, now)
        }
        Way::Client if way_of(question.ifindex) == way::OUT && way_of(here) == way::POD => {
            if let Some((_, mac)) = hardware(context) {
                learn::<F, _>(&mut Learned, header.src, here, mac, now);
            }
            question.ifindex
        }
        _ => 0,
    };
    if device == 0 {
        return NEXT;
    }
    let (service, length, shown) = (row.service, packet.len(), track::seen_by(segment.flags));
    let is_news = row.last != now || row.seen | shown != row.seen;
    track::touch(row, shown, now, length);
    // The other row that the packet would have passed.
    if is_news && way == Way::Node {
        let leaves = key.onward(row);
        if let Some(row) = F::FLOWS.get_ptr_mut(&leaves) {
            // SAFETY: as above.
            unsafe { ((*row).last, (*row).seen) = (now, (*row).seen | shown) };
        }
    }
    count_packet(service, length);
    if let Some(count) = FORWARDED.get_ptr_mut(way as u32) {
        // SAFETY: the row is this processor's own.
        unsafe { *count += 1 };
    }
    let written = rewrite_ends::<F, _>(packet, &header, segment.ports, src, dst)
        .and_then(|()| packet.words(0))
        .and_then(F::forwarded)
        .and_then(|words| packet.store_begin(mac, Mac(question.smac), words));
    if written.is_none() {
        let hook = if way == Way::Client { Hook::PodIngress } else { Hook::UplinkIngress };
        count_drop(hook, Reason::RewriteFailed);
        return TC_ACT_SHOT;
    }
    // SAFETY: the helpers take numbers.
    unsafe {
        if way == Way::Pod {
            helper::bpf_redirect_peer(device, 0) as i32
        } else {
            helper::bpf_redirect(device, 0) as i32
        }
    }
}

global! {
    passes4(skb: *mut __sk_buff, hook: u8) = passes::<V4>(skb, hook) as u32;
    passes6(skb: *mut __sk_buff, hook: u8) = passes::<V6>(skb, hook) as u32;
}

/// Sends a packet on past the stack, if it may pass it by; [`NEXT`] if not. `hook` is one of
/// [`datapath::flow::hook`].
#[inline(always)]
pub fn pass<F: Network>(skb: *mut __sk_buff, hook: u8) -> i32 {
    (if F::V6 { passes6(skb, hook) } else { passes4(skb, hook) }) as i32
}
