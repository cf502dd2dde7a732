//! Steps of the engine over the tables as global functions; see `steps`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    egress,
    flow::{FlowKey, role},
    ingress::{self, Look},
    masquerade,
    tables::KeepError,
    track,
};

use crate::{
    global,
    skb::Skb,
    tables::{FamilyMaps, Maps},
};

/// What the functions `settle` return.
pub const SETTLED: u32 = 0;
pub const FULL: u32 = 1;
pub const MISSING: u32 = 2;

/// Copies a key that was handed over: to the verifier it may be null, and Linux 6.1 looks up no
/// key but one on the stack of this very function.
#[inline(always)]
fn copy<A: Copy>(key: *const FlowKey<A>) -> Option<FlowKey<A>> {
    // SAFETY: a row's key, or null.
    unsafe { key.as_ref() }.copied()
}

#[inline(always)]
fn settle<F: FamilyMaps, const ROLE: u8>(key: *const FlowKey<F::Address>) -> u32 {
    let Some(key) = copy(key) else { return MISSING };
    match track::settle::<F, _, ROLE>(&mut Maps { packet: None }, &key) {
        Ok(()) => SETTLED,
        Err(KeepError::Full) => FULL,
        Err(KeepError::Missing) => MISSING,
    }
}

#[inline(always)]
fn succeed<F: FamilyMaps, const ROLE: u8>(key: *const FlowKey<F::Address>) -> u32 {
    let Some(key) = copy(key) else { return 0 };
    track::forget_finished::<F, _, ROLE>(&mut Maps { packet: None }, &key, 0).into()
}

#[inline(always)]
fn open<F: FamilyMaps>(service: u32, flags: u16) -> u32 {
    track::open::<F, _>(&mut Maps { packet: None }, service, flags).into()
}

#[inline(always)]
fn claim<F: FamilyMaps>(skb: *mut __sk_buff, service: u32, force: u32) -> u32 {
    let context = TcContext::new(skb);
    masquerade::claim::<F, _>(&mut Maps { packet: Some(&context) }, service, force != 0).into()
}

#[inline(always)]
fn look_in<F: FamilyMaps>(skb: *mut __sk_buff, again: u32) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    let look = if again == 0 { Look::First } else { Look::Again };
    ingress::look::<F, _, _>(&mut Skb::new(&context), &mut maps, look).pack()
}

#[inline(always)]
fn look_out<F: FamilyMaps>(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    egress::look::<F, _, _>(&mut Skb::new(&context), &mut maps) as u32
}

global! {
    open4(service: u32, flags: u16) = open::<V4>(service, flags);
    open6(service: u32, flags: u16) = open::<V6>(service, flags);
    settle4(key: *const FlowKey<Ipv4>) = settle::<V4, { role::ORIGINAL }>(key);
    settle6(key: *const FlowKey<Ipv6>) = settle::<V6, { role::ORIGINAL }>(key);
    settle_reply4(key: *const FlowKey<Ipv4>) = settle::<V4, { role::REPLY }>(key);
    settle_reply6(key: *const FlowKey<Ipv6>) = settle::<V6, { role::REPLY }>(key);
    succeed4(key: *const FlowKey<Ipv4>) = succeed::<V4, { role::ORIGINAL }>(key);
    succeed6(key: *const FlowKey<Ipv6>) = succeed::<V6, { role::ORIGINAL }>(key);
    succeed_reply4(key: *const FlowKey<Ipv4>) = succeed::<V4, { role::REPLY }>(key);
    succeed_reply6(key: *const FlowKey<Ipv6>) = succeed::<V6, { role::REPLY }>(key);
    claim4(skb: *mut __sk_buff, service: u32, force: u32) = claim::<V4>(skb, service, force);
    claim6(skb: *mut __sk_buff, service: u32, force: u32) = claim::<V6>(skb, service, force);
    look_in4(skb: *mut __sk_buff, again: u32) = look_in::<V4>(skb, again);
    look_in6(skb: *mut __sk_buff, again: u32) = look_in::<V6>(skb, again);
    look_out4(skb: *mut __sk_buff) = look_out::<V4>(skb);
    look_out6(skb: *mut __sk_buff) = look_out::<V6>(skb);
}
