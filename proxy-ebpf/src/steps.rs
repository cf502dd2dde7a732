//! Steps of the engine over a packet as global functions: the verifier follows each of them once,
//! with nothing known but the types of its arguments, and not at every call with all that is known
//! there.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath::{
    address::{V4, V6},
    answer, crc32c, echo,
    header::{self, Network},
    sctp,
};

use crate::skb::Skb;

#[macro_export]
macro_rules! global {
    ($($name:ident($($argument:ident: $type:ty),*) = $call:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name($($argument: $type),*) -> u32 {
            $call
        }
    )*};
}

#[inline(always)]
fn unreachable<F: Network>(skb: *mut __sk_buff, code: u32) -> u32 {
    let context = TcContext::new(skb);
    answer::write_unreachable::<F, _>(&mut Skb::new(&context), code as u8).is_some().into()
}

#[inline(always)]
fn reset<F: Network>(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    answer::write_reset::<F, _>(&mut Skb::new(&context)).is_some().into()
}

#[inline(always)]
fn echo<F: Network>(skb: *mut __sk_buff) -> u32 {
    let context = TcContext::new(skb);
    echo::write_reply::<F, _>(&mut Skb::new(&context)).is_some().into()
}

#[inline(always)]
fn change_crc32c<F: Network>(skb: *mut __sk_buff, offset: u32, difference: u32) -> u32 {
    let context = TcContext::new(skb);
    sctp::change_checksum::<F, _>(&mut Skb::new(&context), offset, difference).is_some().into()
}

/// What [`change_quoted_crc32c`] returns if the packet could not be written: no sum of words.
pub const FAILED: u32 = u32::MAX;

#[inline(always)]
fn change_quoted_crc32c<F: Network>(
    skb: *mut __sk_buff,
    start: u32,
    offset: u32,
    difference: u32,
) -> u32 {
    let context = TcContext::new(skb);
    let skb = &mut Skb::new(&context);
    sctp::change_quoted::<F, _>(skb, start, offset, difference).unwrap_or(FAILED)
}

/// Follows the extension headers of an IPv6 packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn extensions(skb: *mut __sk_buff, offset: u32, next: u8) -> u64 {
    let context = TcContext::new(skb);
    header::pack(header::extensions(&Skb::new(&context), offset, next))
}

global! {
    unreachable4(skb: *mut __sk_buff, code: u32) = unreachable::<V4>(skb, code);
    unreachable6(skb: *mut __sk_buff, code: u32) = unreachable::<V6>(skb, code);
    reset4(skb: *mut __sk_buff) = reset::<V4>(skb);
    reset6(skb: *mut __sk_buff) = reset::<V6>(skb);
    echo4(skb: *mut __sk_buff) = echo::<V4>(skb);
    echo6(skb: *mut __sk_buff) = echo::<V6>(skb);
    crc32c_change(difference: u32, length: u32) = crc32c::change(difference, length);
    change_crc32c4(skb: *mut __sk_buff, offset: u32, difference: u32) =
        change_crc32c::<V4>(skb, offset, difference);
    change_crc32c6(skb: *mut __sk_buff, offset: u32, difference: u32) =
        change_crc32c::<V6>(skb, offset, difference);
    change_quoted4(skb: *mut __sk_buff, start: u32, offset: u32, difference: u32) =
        change_quoted_crc32c::<V4>(skb, start, offset, difference);
    change_quoted6(skb: *mut __sk_buff, start: u32, offset: u32, difference: u32) =
        change_quoted_crc32c::<V6>(skb, start, offset, difference);
}
