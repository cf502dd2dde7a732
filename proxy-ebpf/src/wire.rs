//! Entry point of frames on uplinks before the kernel makes socket buffers of them (XDP), and the maps
//! as the engine wants them there.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, PerCpuArray},
    helpers::generated as helper,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use datapath::{
    address::{Be16, Ipv4, Ipv6, Mac, V4, V6},
    capture::UNDECIDED,
    counter::{Hook, Reason},
    flow::{Flow, FlowKey, Place},
    flow_cache::RowOrCopy,
    frontend::{FrontendKey, address_use, mark},
    hash,
    nexthop::{NEXTHOPS_LEN, NextHop, SEENSENDERS_LEN, SeenSender, UPLINKS_LEN, Uplink, place},
    source_rate, syn,
    tunnel::{Sender, Tunnel},
    underlay::Underlay,
    wire::{self, CARRIED_LEN, Fate, Leg, Packed, Rows, Wire, Wires},
};

use crate::{
    buffer::Buffer,
    capture, drops,
    flow_cache::{self, Cached},
    flows::{self, MARKS, now},
    global,
    known::{is_foreign_port, uses},
    linear::{at, modulo},
    maps,
    marks::is_set,
    nodes::{is_sender, tunnel, vtep},
    route::{self, Routed},
    tables::{FamilyMaps, count_packet, is_over_rate},
};

maps! {
    UPLINKS: Array<Uplink, { UPLINKS_LEN as usize }>,
    CARRIED: PerCpuArray<u64, CARRIED_LEN>,
    NEXTHOPS4: PerCpuArray<NextHop<Ipv4>, { NEXTHOPS_LEN as usize }>,
    NEXTHOPS6: PerCpuArray<NextHop<Ipv6>, { NEXTHOPS_LEN as usize }>,
    SEENSENDERS: PerCpuArray<SeenSender, { SEENSENDERS_LEN as usize }>,
}

/// The maps of one family.
trait WireMaps: FamilyMaps + Cached + Routed + Underlay {
    const NEXTHOPS: &'static PerCpuArray<NextHop<Self::Address>, { NEXTHOPS_LEN as usize }>;

    /// [`enter`] and [`ask`], each of which the verifier follows once.
    fn find(frame: *mut xdp_md, place: u32);
}

impl WireMaps for V4 {
    const NEXTHOPS: &'static PerCpuArray<NextHop<Ipv4>, { NEXTHOPS_LEN as usize }> = &NEXTHOPS4;

    #[inline(always)]
    fn find(frame: *mut xdp_md, place: u32) {
        if enter4(place) != 0 {
            ask4(frame, place);
        }
    }
}

impl WireMaps for V6 {
    const NEXTHOPS: &'static PerCpuArray<NextHop<Ipv6>, { NEXTHOPS_LEN as usize }> = &NEXTHOPS6;

    #[inline(always)]
    fn find(frame: *mut xdp_md, place: u32) {
        if enter6(place) != 0 {
            ask6(frame, place);
        }
    }
}

/// Run by drivers, which may give a frame in several buffers.
#[xdp(frags)]
pub fn xdp_ingress(context: XdpContext) -> u32 {
    captured(&context)
}

/// Run by the kernel (generic mode), which for a program that is said to know of several buffers makes
/// another socket buffer, and with that forgets the length of the link layer's header (`mac_len`):
/// programs behind it on the device, ours too, would look for all else in the wrong place (since
/// Linux 6.9, `skb_cow_data_for_xdp`).
#[xdp]
pub fn xdp_generic(context: XdpContext) -> u32 {
    captured(&context)
}

/// [`entered`], before the eyes of whoever captures.
#[inline(always)]
fn captured(context: &XdpContext) -> u32 {
    if capture::is_on() {
        capture::told(context.ctx, UNDECIDED);
    }
    let action = entered(context);
    if capture::is_on() {
        capture::told(context.ctx, action);
    }
    action
}

#[inline(always)]
fn entered(context: &XdpContext) -> u32 {
    let Some(network) = at(context, 0, 0) else { return xdp_action::XDP_PASS };
    // SAFETY: `at` has checked that the link layer's header is there, whose type stands at an even
    // address.
    let kind = unsafe { network.sub(2).cast::<u16>().read() };
    match kind {
        V4::ETHERTYPE => received::<V4>(context),
        V6::ETHERTYPE => received::<V6>(context),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn received<F: WireMaps>(context: &XdpContext) -> u32 {
    let frame = &mut Buffer { context };
    match wire::receive::<F, _, _, _>(frame, &mut Flows, &mut Maps { context }) {
        Fate::Pass => xdp_action::XDP_PASS,
        Fate::Drop => xdp_action::XDP_DROP,
        // SAFETY: the kernel's context.
        Fate::Send(device) if device == unsafe { (*context.ctx).ingress_ifindex } => {
            xdp_action::XDP_TX
        }
        // SAFETY: the helper takes numbers.
        Fate::Send(device) => (unsafe { helper::bpf_redirect(device, 0) }) as u32,
    }
}

/// The tables of answered flows.
struct Flows;

impl<F: WireMaps> Rows<F> for Flows {
    #[inline(always)]
    fn row(&mut self, key: &FlowKey<F::Address>, now: u32) -> Option<RowOrCopy<'_, F::Address>> {
        flow_cache::row::<F>(key, now)
    }

    #[inline(always)]
    fn expire(&mut self, key: &FlowKey<F::Address>) {
        flow_cache::forgotten::<F>(key);
    }

    #[inline(always)]
    fn own_row(&mut self, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>> {
        flow_cache::own_row::<F>(key)
    }

    #[inline(always)]
    fn count(&mut self, leg: Leg) {
        if let Some(row) = CARRIED.get_ptr_mut(leg as u32) {
            // SAFETY: the row is this processor's own.
            unsafe { *row += 1 };
        }
    }

    #[inline(always)]
    fn count_packet(&mut self, leg: Leg, service: u32, bytes: u32) {
        Rows::<F>::count(self, leg);
        count_packet(service, bytes);
    }

    #[inline(always)]
    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        drops::count_drop(hook, reason);
    }

    #[inline(always)]
    fn answers_pings(&mut self, address: F::Address) -> bool {
        // SAFETY: the row is read at once; rows of this map are not changed in place.
        let usage = unsafe { F::ADDRESSES.get(address) };
        usage.is_some_and(|usage| usage.flags & address_use::ECHO != 0)
    }

    #[inline(always)]
    fn is_over_rate(&mut self, origin: u64) -> bool {
        is_over_rate(origin)
    }

    #[inline(always)]
    fn begin(&mut self, key: &FlowKey<F::Address>, length: u32) -> Option<Place<F::Address>> {
        let key = core::ptr::from_ref(key);
        let begun = if F::V6 { begin6(key.cast(), length) } else { begin4(key.cast(), length) };
        if begun == 0 {
            return None;
        }
        // SAFETY: the row is this processor's own, and frames are dealt with one by one.
        F::SCRATCH.get_ptr(0).map(|scratch| unsafe { (*scratch).parties.backend })
    }

    #[inline(always)]
    fn is_pending(&mut self, key: &FlowKey<F::Address>) -> bool {
        F::PENDING.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn is_frontend(&mut self, key: &FrontendKey<F::Address>) -> bool {
        F::FRONTENDS.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn is_refused(&mut self, key: &FlowKey<F::Address>) -> bool {
        let key = core::ptr::from_ref(key);
        (if F::V6 { refused6(key.cast()) } else { refused4(key.cast()) }) != 0
    }

    #[inline(always)]
    fn wake(&mut self, key: &FlowKey<F::Address>, now: u32) {
        let key = core::ptr::from_ref(key);
        if F::V6 {
            wake6(key.cast(), now)
        } else {
            wake4(key.cast(), now)
        };
    }
}

/// All other maps.
struct Maps<'a> {
    context: &'a XdpContext,
}

impl<F: WireMaps> Wires<F> for Maps<'_> {
    #[inline(always)]
    fn now(&mut self) -> u32 {
        now()
    }

    #[inline(always)]
    fn uplink(&mut self) -> Option<Uplink> {
        // SAFETY: the kernel's context.
        uplink(unsafe { (*self.context.ctx).ingress_ifindex })
    }

    #[inline(always)]
    fn uses(&mut self, address: F::Address) -> u8 {
        uses::<F>(address)
    }

    #[inline(always)]
    fn is_port(&mut self, port: Be16, proto: u8) -> bool {
        mark::of_protocol(proto) != 0 && !is_foreign_port(port, proto)
    }

    #[inline(always)]
    fn is_marked(&mut self, way: u32) -> bool {
        is_set(&MARKS, way)
    }

    #[inline(always)]
    fn tunnel(&mut self) -> Tunnel {
        tunnel()
    }

    #[inline(always)]
    fn is_sender(&mut self, sender: Sender, now: u32) -> bool {
        let place = sender.mac.0[5];
        let Some(row) = SEENSENDERS.get_ptr_mut(place.into()) else { return false };
        // SAFETY: the row is this processor's own, and frames are dealt with one by one.
        let row = unsafe { &mut *row };
        if row.mac == sender.mac && row.since == now {
            return true;
        }
        let is_known = is_sender(sender);
        if is_known {
            (row.mac, row.since) = (sender.mac, now);
        }
        is_known
    }

    #[inline(always)]
    fn next_hop(
        &mut self,
        to: F::Address,
        from: F::Address,
        now: u32,
    ) -> Option<&NextHop<F::Address>> {
        let first = modulo::<{ NEXTHOPS_LEN as usize }>(hash::address(to) as usize) as u32;
        let second = first ^ 1;
        // SAFETY: the row is this processor's own, and frames are dealt with one by one.
        let row = |place| F::NEXTHOPS.get_ptr_mut(place).map(|row| unsafe { &mut *row });
        let is_it = |row: &NextHop<_>| row.since == now && row.destination == to;
        let (mut place, mut found) = (first, row(first)?);
        if !is_it(found) {
            let other = row(second)?;
            if is_it(other) {
                return Some(other);
            }
            if found.since == now {
                (place, found) = (second, other);
            }
            (found.destination, found.source) = (to, from);
            F::find(self.context.ctx, place);
        }
        Some(found)
    }

    #[inline(always)]
    fn look<P: Wire, R: Rows<F>>(&mut self, _frame: &mut P, _rows: &mut R) -> Packed {
        let frame = self.context.ctx;
        Packed(if F::V6 { look6(frame) } else { look4(frame) })
    }

    #[inline(always)]
    fn open<P: Wire, R: Rows<F>>(&mut self, _frame: &mut P, _rows: &mut R) -> Packed {
        let frame = self.context.ctx;
        Packed(if F::V6 { opens6(frame) } else { opens4(frame) })
    }

    #[inline(always)]
    fn echo<P: Wire, R: Rows<F>>(&mut self, _frame: &mut P, _rows: &mut R) -> Packed {
        let frame = self.context.ctx;
        Packed(if F::V6 { ping6(frame) } else { ping4(frame) })
    }
}

/// [`wire::look`].
#[inline(always)]
fn look<F: WireMaps>(frame: *mut xdp_md) -> u32 {
    let context = &XdpContext::new(frame);
    wire::look::<F, _, _, _>(&mut Buffer { context }, &mut Flows, &mut Maps { context }).0
}

/// [`wire::open`].
#[inline(always)]
fn opens<F: WireMaps>(frame: *mut xdp_md) -> u32 {
    let context = &XdpContext::new(frame);
    wire::open::<F, _, _>(&mut Buffer { context }, &mut Flows).0
}

/// [`wire::echo`].
#[inline(always)]
fn echo<F: WireMaps>(frame: *mut xdp_md) -> u32 {
    let context = &XdpContext::new(frame);
    wire::echo::<F, _, _, _>(&mut Buffer { context }, &mut Flows, &mut Maps { context }).0
}

/// A device whose frames are seen here.
#[inline(always)]
fn uplink(device: u32) -> Option<Uplink> {
    UPLINKS.get(place(device)).copied().filter(|row| row.device == device)
}

/// Writes into the row at `place` through which tunnel its way goes, if it goes through any. Zero if
/// that is for the kernel to see to.
#[inline(always)]
fn enter<F: WireMaps>(place: u32) -> u32 {
    let Some(row) = F::NEXTHOPS.get_ptr_mut(place) else { return 0 };
    // SAFETY: the row is this processor's own, and frames are dealt with one by one.
    let row = unsafe { &mut *row };
    row.since = now();
    row.device = 0;
    (row.own, row.underlay, row.port) = (row.source, row.destination, Be16::ZERO);
    row.mtu = u32::MAX;
    let Some(vtep) = vtep::<F>(row.destination) else { return 1 };
    let tunnel = tunnel();
    // The overlay has its device do all, or has not said yet by which tunnel.
    if tunnel.uplink == 0 || tunnel.port == Be16::ZERO {
        return 0;
    }
    (row.own, row.underlay, row.port) = (F::underlay(&tunnel), vtep.underlay, tunnel.port);
    (row.inner_to, row.inner_from) = (vtep.mac, F::mac(&tunnel));
    row.vni = tunnel.vni;
    row.first_source_port = tunnel.first_source_port;
    row.last_source_port = tunnel.last_source_port;
    row.constant = F::constant(row);
    row.mtu = tunnel.mtu;
    1
}

/// Asks the kernel for the way that the row at `place` is about.
#[inline(always)]
fn ask<F: WireMaps>(frame: *mut xdp_md, place: u32) -> u32 {
    let Some(row) = F::NEXTHOPS.get_ptr_mut(place) else { return 0 };
    // SAFETY: the row is this processor's own, and frames are dealt with one by one.
    let row = unsafe { &mut *row };
    // SAFETY: the kernel's context.
    let here = unsafe { (*frame).ingress_ifindex };
    let mut way = route::nowhere();
    if route::ask::<F>(&mut way, frame.cast(), here, row.own, row.underlay) != route::KNOWN {
        return 0;
    }
    let device = way.ifindex;
    if device != here && !uplink(device).is_some_and(|row| row.sends != 0) {
        return 0;
    }
    // SAFETY: after success the kernel has put the route's MTU there.
    let mtu: u32 = unsafe { way.__bindgen_anon_1.mtu_result }.into();
    let less = if row.port == Be16::ZERO { 0 } else { F::OVERHEAD };
    row.mtu = row.mtu.min(mtu.saturating_sub(less));
    row.to = Mac(way.dmac);
    row.from = Mac(way.smac);
    row.device = device;
    1
}

/// [`wire::wake`].
#[inline(always)]
fn wakes<F: WireMaps>(key: *const FlowKey<F::Address>, now: u32) -> u32 {
    // SAFETY: a row's key, or null.
    let Some(key) = (unsafe { key.as_ref() }).copied() else { return 0 };
    wire::wake::<F, _>(&mut Flows, &key, now);
    1
}

/// [`syn::begin`].
#[inline(always)]
fn begun<F: WireMaps>(key: *const FlowKey<F::Address>, length: u32) -> u32 {
    // SAFETY: that of a frame, or null.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    syn::begin::<F, _>(&mut flows::Maps { packet: None }, key, length).into()
}

/// [`source_rate::foresees`].
#[inline(always)]
fn refused<F: WireMaps>(key: *const FlowKey<F::Address>) -> u32 {
    // SAFETY: that of a frame, or null.
    let Some(key) = (unsafe { key.as_ref() }).copied() else { return 0 };
    source_rate::foresees::<F, _>(&mut Flows, &key).into()
}

global! {
    begin4(key: *const FlowKey<Ipv4>, length: u32) = begun::<V4>(key, length);
    begin6(key: *const FlowKey<Ipv6>, length: u32) = begun::<V6>(key, length);
    refused4(key: *const FlowKey<Ipv4>) = refused::<V4>(key);
    refused6(key: *const FlowKey<Ipv6>) = refused::<V6>(key);
    enter4(place: u32) = enter::<V4>(place);
    enter6(place: u32) = enter::<V6>(place);
    look4(frame: *mut xdp_md) = look::<V4>(frame);
    look6(frame: *mut xdp_md) = look::<V6>(frame);
    opens4(frame: *mut xdp_md) = opens::<V4>(frame);
    opens6(frame: *mut xdp_md) = opens::<V6>(frame);
    ping4(frame: *mut xdp_md) = echo::<V4>(frame);
    ping6(frame: *mut xdp_md) = echo::<V6>(frame);
    ask4(frame: *mut xdp_md, place: u32) = ask::<V4>(frame, place);
    ask6(frame: *mut xdp_md, place: u32) = ask::<V6>(frame, place);
    wake4(key: *const FlowKey<Ipv4>, now: u32) = wakes::<V4>(key, now);
    wake6(key: *const FlowKey<Ipv6>, now: u32) = wakes::<V6>(key, now);
}
