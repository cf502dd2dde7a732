//! Steps of a flow's life as global functions; see `steps`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6},
    flow::{FlowKey, role},
    header::Network,
    masquerade,
    tables::{FlowTables, KeepError},
    track,
};

use crate::{
    flows::{FlowMaps, Maps},
    forgotten, global,
};

/// What the functions that settle return.
const SETTLED: u32 = 0;
const FULL: u32 = 1;
const MISSING: u32 = 2;

/// Copies a key that was handed over: to the verifier it may be null, and Linux 6.1 looks up no
/// key but one on the stack of this very function.
#[inline(always)]
fn copy<A: Copy>(key: *const FlowKey<A>) -> Option<FlowKey<A>> {
    // SAFETY: a row's key, or null.
    unsafe { key.as_ref() }.copied()
}

#[inline(always)]
fn settles<F: FlowMaps, const ROLE: u8>(key: *const FlowKey<F::Address>) -> u32 {
    let Some(key) = copy(key) else { return MISSING };
    match track::settle::<F, _, ROLE>(&mut Maps { packet: None }, &key) {
        Ok(()) => SETTLED,
        Err(KeepError::Full) => FULL,
        Err(KeepError::Missing) => MISSING,
    }
}

#[inline(always)]
fn succeeds<F: FlowMaps, const ROLE: u8>(key: *const FlowKey<F::Address>) -> u32 {
    let Some(key) = copy(key) else { return 0 };
    track::forget_finished::<F, _, ROLE>(&mut Maps { packet: None }, &key, 0).into()
}

#[inline(always)]
fn claim<F: FlowMaps>(skb: *mut __sk_buff, service: u32, take: u32) -> u32 {
    let context = TcContext::new(skb);
    let take = masquerade::Take::numbered(take);
    let maps = &mut Maps { packet: Some(&context) };
    let is_ours = masquerade::claim::<F, _>(maps, service, take);
    if is_ours {
        forgotten::<F>(&FlowTables::<F>::parties(maps).reply_target());
    }
    is_ours.into()
}

global! {
    settle4(key: *const FlowKey<Ipv4>) = settles::<V4, { role::ORIGINAL }>(key);
    settle6(key: *const FlowKey<Ipv6>) = settles::<V6, { role::ORIGINAL }>(key);
    settle_reply4(key: *const FlowKey<Ipv4>) = settles::<V4, { role::REPLY }>(key);
    settle_reply6(key: *const FlowKey<Ipv6>) = settles::<V6, { role::REPLY }>(key);
    settle_source4(key: *const FlowKey<Ipv4>) = settles::<V4, { role::ORIGINAL_SOURCE }>(key);
    settle_source6(key: *const FlowKey<Ipv6>) = settles::<V6, { role::ORIGINAL_SOURCE }>(key);
    settle_target4(key: *const FlowKey<Ipv4>) = settles::<V4, { role::REPLY_TARGET }>(key);
    settle_target6(key: *const FlowKey<Ipv6>) = settles::<V6, { role::REPLY_TARGET }>(key);
    succeed4(key: *const FlowKey<Ipv4>) = succeeds::<V4, { role::ORIGINAL }>(key);
    succeed6(key: *const FlowKey<Ipv6>) = succeeds::<V6, { role::ORIGINAL }>(key);
    succeed_reply4(key: *const FlowKey<Ipv4>) = succeeds::<V4, { role::REPLY }>(key);
    succeed_reply6(key: *const FlowKey<Ipv6>) = succeeds::<V6, { role::REPLY }>(key);
    succeed_source4(key: *const FlowKey<Ipv4>) = succeeds::<V4, { role::ORIGINAL_SOURCE }>(key);
    succeed_source6(key: *const FlowKey<Ipv6>) = succeeds::<V6, { role::ORIGINAL_SOURCE }>(key);
    claim4(skb: *mut __sk_buff, service: u32, take: u32) = claim::<V4>(skb, service, take);
    claim6(skb: *mut __sk_buff, service: u32, take: u32) = claim::<V6>(skb, service, take);
}

/// [`track::settle`].
#[inline(always)]
pub fn settle<F: Network, const ROLE: u8>(key: &FlowKey<F::Address>) -> Result<(), KeepError> {
    let key = core::ptr::from_ref(key);
    let settled = match (F::V6, ROLE) {
        (false, role::REPLY) => settle_reply4(key.cast()),
        (false, role::ORIGINAL_SOURCE) => settle_source4(key.cast()),
        (false, role::REPLY_TARGET) => settle_target4(key.cast()),
        (false, _) => settle4(key.cast()),
        (true, role::REPLY) => settle_reply6(key.cast()),
        (true, role::ORIGINAL_SOURCE) => settle_source6(key.cast()),
        (true, role::REPLY_TARGET) => settle_target6(key.cast()),
        (true, _) => settle6(key.cast()),
    };
    match settled {
        SETTLED => Ok(()),
        FULL => Err(KeepError::Full),
        _ => Err(KeepError::Missing),
    }
}

/// [`track::forget_finished`] for an heir.
#[inline(always)]
pub fn succeed<F: Network, const ROLE: u8>(key: &FlowKey<F::Address>) -> bool {
    let key = core::ptr::from_ref(key);
    let finished = match (F::V6, ROLE) {
        (false, role::REPLY) => succeed_reply4(key.cast()),
        (false, role::ORIGINAL_SOURCE) => succeed_source4(key.cast()),
        (false, _) => succeed4(key.cast()),
        (true, role::REPLY) => succeed_reply6(key.cast()),
        (true, role::ORIGINAL_SOURCE) => succeed_source6(key.cast()),
        (true, _) => succeed6(key.cast()),
    };
    finished != 0
}
