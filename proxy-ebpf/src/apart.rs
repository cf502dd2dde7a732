//! Steps of the engine over the tables of Services as global functions; see `steps`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath::{
    address::{V4, V6},
    affinity::Client,
    algorithm, direct, egress, icmp,
    ingress::{self, Look},
    select::{self, Origin},
    service::SetRef,
    source_rate, syn, track,
};

use crate::{flows::Maps, global, skb::Skb, tables::FamilyMaps};

#[inline(always)]
fn open<F: FamilyMaps>(service: u32, flags: u16) -> u32 {
    track::open::<F, _>(&mut Maps { packet: None }, service, flags).into()
}

#[inline(always)]
fn open_lone<F: FamilyMaps>(service: u32, length: u32) -> u32 {
    syn::open::<F, _>(&mut Maps { packet: None }, service, length).into()
}

#[inline(always)]
fn over_rate<F: FamilyMaps>() -> u32 {
    source_rate::refuses::<F, _>(&mut Maps { packet: None }).into()
}

#[inline(always)]
fn look_in<F: FamilyMaps>(skb: *mut __sk_buff, again: u32) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    let look = if again == 0 { Look::First } else { Look::Again };
    ingress::look::<F, _, _>(&mut Skb::new(&context), &mut maps, look).pack()
}

#[inline(always)]
fn look_out<F: FamilyMaps>(skb: *mut __sk_buff, again: u32) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    let look = if again == 0 { Look::First } else { Look::Again };
    egress::look::<F, _, _>(&mut Skb::new(&context), &mut maps, look) as u32
}

/// `shape` is the set's count and, in its upper half, the set's generation.
#[inline(always)]
fn choose<F: FamilyMaps>(service: u32, client: u32, block: u32, shape: u32, entropy: u32) -> u32 {
    let set = SetRef { block, count: shape as u16, generation: (shape >> 16) as u16 };
    let client = if client == Client::Sender as u32 { Client::Sender } else { Client::Node };
    algorithm::choose::<F, _>(&mut Maps { packet: None }, service, client, set, entropy)
}

#[inline(always)]
fn select<F: FamilyMaps>(service: u32, kind: u32, origin: u32) -> u64 {
    let maps = &mut Maps { packet: None };
    select::select_for_sender::<F, _>(maps, service, kind as u8, Origin::numbered(origin)).pack()
}

#[inline(always)]
fn is_direct<F: FamilyMaps>(service: u32, kind: u32) -> u32 {
    direct::applies::<F, _>(&mut Maps { packet: None }, service, kind as u8).into()
}

#[inline(always)]
fn look_direct<F: FamilyMaps>(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    egress::look_direct::<F, _, _>(&mut Skb::new(&context), &mut maps) as u32
}

#[inline(always)]
fn restores_quote<F: FamilyMaps>(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    icmp::egress_direct::<F, _, _>(&mut Skb::new(&context), &mut maps).into()
}

global! {
    open4(service: u32, flags: u16) = open::<V4>(service, flags);
    open6(service: u32, flags: u16) = open::<V6>(service, flags);
    open_lone4(service: u32, length: u32) = open_lone::<V4>(service, length);
    open_lone6(service: u32, length: u32) = open_lone::<V6>(service, length);
    over_rate4() = over_rate::<V4>();
    over_rate6() = over_rate::<V6>();
    look_in4(skb: *mut __sk_buff, again: u32) = look_in::<V4>(skb, again);
    look_in6(skb: *mut __sk_buff, again: u32) = look_in::<V6>(skb, again);
    look_out4(skb: *mut __sk_buff, again: u32) = look_out::<V4>(skb, again);
    look_out6(skb: *mut __sk_buff, again: u32) = look_out::<V6>(skb, again);
    look_direct4(skb: *mut __sk_buff) = look_direct::<V4>(skb);
    look_direct6(skb: *mut __sk_buff) = look_direct::<V6>(skb);
    restores_quote4(skb: *mut __sk_buff) = restores_quote::<V4>(skb);
    restores_quote6(skb: *mut __sk_buff) = restores_quote::<V6>(skb);
    is_direct4(service: u32, kind: u32) = is_direct::<V4>(service, kind);
    is_direct6(service: u32, kind: u32) = is_direct::<V6>(service, kind);
    choose4(service: u32, client: u32, block: u32, shape: u32, entropy: u32) =
        choose::<V4>(service, client, block, shape, entropy);
    choose6(service: u32, client: u32, block: u32, shape: u32, entropy: u32) =
        choose::<V6>(service, client, block, shape, entropy);
}

/// Chooses a backend for the sender of a packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn select4(service: u32, kind: u32, origin: u32) -> u64 {
    select::<V4>(service, kind, origin)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn select6(service: u32, kind: u32, origin: u32) -> u64 {
    select::<V6>(service, kind, origin)
}
