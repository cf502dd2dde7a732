//! Mixing of tuples into numbers.

use crate::{address::Address, flow::FlowKey};

/// Spreads every bit of the input over the output (the finaliser of MurmurHash3, public
/// domain).
#[inline(always)]
#[must_use]
pub const fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Of an address.
#[inline(always)]
#[must_use]
pub fn address<A: Address>(address: A) -> u32 {
    mix(address.fold())
}

/// Of the way from one address to another; the way back is another number.
#[inline(always)]
#[must_use]
pub fn way<A: Address>(from: A, to: A) -> u32 {
    mix(from.fold().wrapping_mul(0x9e37_79b9) ^ to.fold())
}

/// Of a whole tuple, in this direction.
#[inline(always)]
#[must_use]
pub fn tuple<A: Address>(key: &FlowKey<A>) -> u32 {
    let ports = ((key.src_port.raw() as u32) << 16) | key.dst_port.raw() as u32;
    mix(mix(key.src.fold()).wrapping_add(key.dst.fold()) ^ mix(ports ^ key.proto as u32))
}
