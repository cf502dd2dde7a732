//! The map of the overlay's policy, and as the engine's tables. Its value, and what it is for,
//! stand in the crate `datapath`.

use aya_ebpf::{bindings::__sk_buff, btf_maps::Array, macros::btf_map, programs::TcContext};
use datapath::{
    address::{V4, V6},
    ingress::Look,
    ipmasq::{self, PolicyTables, Step},
    packet::Packet,
    policy::{Policed, Policy},
};

use crate::{
    flows::{FlowMaps, Maps},
    global, maps,
    skb::Skb,
};

maps! {
    POLICIES: Array<Policy, 1>,
}

/// First and last port to masquerade with.
#[inline(always)]
pub fn nat_ports() -> (u16, u16) {
    match POLICIES.get(0) {
        Some(policy) => (policy.nat_port_first, policy.nat_port_last),
        None => (0, 0),
    }
}

/// True if anything is masqueraded at all: then there are ports for it.
#[inline(always)]
pub fn masquerades() -> bool {
    nat_ports().1 != 0
}

/// True if a flow from `src` to `dst` is masqueraded; none is before the agent has said.
#[inline(always)]
pub fn is_masqueraded<F: Policed>(src: F::Address, dst: F::Address) -> bool {
    match POLICIES.get(0) {
        Some(policy) => F::networks(policy).masquerades(src, dst),
        None => false,
    }
}

impl<F: FlowMaps + Policed> PolicyTables<F> for Maps<'_> {
    #[inline(always)]
    fn is_masqueraded(&mut self, src: F::Address, dst: F::Address) -> bool {
        is_masqueraded::<F>(src, dst)
    }

    #[inline(always)]
    fn look_out<P: Packet>(&mut self, _: &mut P, look: Look) -> Step {
        let Some(packet) = self.packet else { return Step::Done };
        let (skb, again) = (packet.skb.skb, (look == Look::Again).into());
        Step::unpack(if F::V6 { masq_out6(skb, again) } else { masq_out4(skb, again) })
    }

    #[inline(always)]
    fn look_in<P: Packet>(&mut self, _: &mut P, look: Look) -> Step {
        let Some(packet) = self.packet else { return Step::Done };
        let (skb, again) = (packet.skb.skb, (look == Look::Again).into());
        Step::unpack(if F::V6 { masq_in6(skb, again) } else { masq_in4(skb, again) })
    }
}

#[inline(always)]
const fn look(again: u32) -> Look {
    if again == 0 { Look::First } else { Look::Again }
}

#[inline(always)]
fn out<F: FlowMaps + Policed>(skb: *mut __sk_buff, again: u32) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    ipmasq::look_out::<F, _, _>(&mut Skb::new(&context), &mut maps, look(again)).pack()
}

#[inline(always)]
fn enter<F: FlowMaps + Policed>(skb: *mut __sk_buff, again: u32) -> u32 {
    let context = TcContext::new(skb);
    let mut maps = Maps { packet: Some(&context) };
    ipmasq::look_in::<F, _, _>(&mut Skb::new(&context), &mut maps, look(again)).pack()
}

global! {
    masq_out4(skb: *mut __sk_buff, again: u32) = out::<V4>(skb, again);
    masq_out6(skb: *mut __sk_buff, again: u32) = out::<V6>(skb, again);
    masq_in4(skb: *mut __sk_buff, again: u32) = enter::<V4>(skb, again);
    masq_in6(skb: *mut __sk_buff, again: u32) = enter::<V6>(skb, again);
}
