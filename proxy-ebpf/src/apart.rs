//! Steps of the engine over the tables of Services as global functions; see `steps`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath::{
    address::{V4, V6},
    egress,
    ingress::{self, Look},
    track,
};

use crate::{flows::Maps, global, skb::Skb, tables::FamilyMaps};

#[inline(always)]
fn open<F: FamilyMaps>(service: u32, flags: u16) -> u32 {
    track::open::<F, _>(&mut Maps { packet: None }, service, flags).into()
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
    look_in4(skb: *mut __sk_buff, again: u32) = look_in::<V4>(skb, again);
    look_in6(skb: *mut __sk_buff, again: u32) = look_in::<V6>(skb, again);
    look_out4(skb: *mut __sk_buff) = look_out::<V4>(skb);
    look_out6(skb: *mut __sk_buff) = look_out::<V6>(skb);
}
