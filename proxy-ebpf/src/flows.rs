//! The tables of flows, which both objects have, and as the engine's. Their keys and values, and
//! what they are for, stand in the crate `datapath`.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as SockTuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as SockTuple6,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::generated as helper,
    macros::btf_map,
    programs::TcContext,
};
use datapath::{
    address::{Ipv4, Ipv6, V4, V6, protocol},
    counter::{Hook, Reason},
    device::Device,
    flow::{Flow, FlowKey, Parties, Scratch, TICK_NS, Walk},
    fragment::{FragmentKey, Ports},
    header::Network,
    maps::{DEVICES_CAPACITY, FLOWS_CAPACITY, FRAGMENTS_CAPACITY, MARKS_LEN, PENDING_CAPACITY},
    masquerade::Take,
    tables::{FlowTables, KeepError, Opening, Store},
    track,
};

use crate::{
    BARE_MASQUERADE, count_packet, drops, forgotten,
    life::{self, claim4, claim6},
    map::LAZY,
    maps,
    marks::{is_set, set},
    nat_ports,
    sweep::{reclaim4, reclaim6},
};

type Flows<A> = HashMap<FlowKey<A>, Flow<A>, FLOWS_CAPACITY, LAZY>;
type Pending<A> = LruHashMap<FlowKey<A>, Flow<A>, PENDING_CAPACITY>;
type Fragments<A> = LruHashMap<FragmentKey<A>, Ports, FRAGMENTS_CAPACITY>;

maps! {
    FLOWS4: Flows<Ipv4>,
    FLOWS6: Flows<Ipv6>,
    PENDING4: Pending<Ipv4>,
    PENDING6: Pending<Ipv6>,
    FRAGMENTS4: Fragments<Ipv4>,
    FRAGMENTS6: Fragments<Ipv6>,
    DEVICES: HashMap<u32, Device, DEVICES_CAPACITY, LAZY>,
    MARKS: Array<[u8; MARKS_LEN], 1>,
    SCRATCH4: PerCpuArray<Scratch<Ipv4>, 1>,
    SCRATCH6: PerCpuArray<Scratch<Ipv6>, 1>,
    /// By family: 0 is IPv4, 1 IPv6.
    WALKS: Array<Walk, 2>,
}

/// The maps of one family.
pub trait FlowMaps: Network {
    const FLOWS: &'static Flows<Self::Address>;
    const PENDING: &'static Pending<Self::Address>;
    const FRAGMENTS: &'static Fragments<Self::Address>;
    const SCRATCH: &'static PerCpuArray<Scratch<Self::Address>, 1>;

    /// A tuple as the socket look-ups take it.
    type SockTuple;
    fn sock_tuple(key: &FlowKey<Self::Address>) -> Self::SockTuple;
}

impl FlowMaps for V4 {
    const FLOWS: &'static Flows<Ipv4> = &FLOWS4;
    const PENDING: &'static Pending<Ipv4> = &PENDING4;
    const FRAGMENTS: &'static Fragments<Ipv4> = &FRAGMENTS4;
    const SCRATCH: &'static PerCpuArray<Scratch<Ipv4>, 1> = &SCRATCH4;

    type SockTuple = SockTuple4;

    #[inline(always)]
    fn sock_tuple(key: &FlowKey<Self::Address>) -> SockTuple4 {
        SockTuple4 {
            saddr: key.src.raw(),
            daddr: key.dst.raw(),
            sport: key.src_port.raw(),
            dport: key.dst_port.raw(),
        }
    }
}

impl FlowMaps for V6 {
    const FLOWS: &'static Flows<Ipv6> = &FLOWS6;
    const PENDING: &'static Pending<Ipv6> = &PENDING6;
    const FRAGMENTS: &'static Fragments<Ipv6> = &FRAGMENTS6;
    const SCRATCH: &'static PerCpuArray<Scratch<Ipv6>, 1> = &SCRATCH6;

    type SockTuple = SockTuple6;

    #[inline(always)]
    fn sock_tuple(key: &FlowKey<Self::Address>) -> SockTuple6 {
        SockTuple6 {
            saddr: key.src.raw(),
            daddr: key.dst.raw(),
            sport: key.src_port.raw(),
            dport: key.dst_port.raw(),
        }
    }
}

/// What an update says with `BPF_NOEXIST` if there is a row.
const EEXIST: i32 = -17;

/// The maps, seen from a program that runs on a device.
pub struct Maps<'a> {
    pub packet: Option<&'a TcContext>,
}

impl<F: FlowMaps> FlowTables<F> for Maps<'_> {
    const BARE_MASQUERADE: bool = BARE_MASQUERADE;

    #[inline(always)]
    fn now(&mut self) -> u32 {
        now()
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: the helper takes nothing.
        unsafe { helper::bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn flow(&mut self, store: Store, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>> {
        let row = match store {
            Store::Answered => F::FLOWS.get_ptr_mut(key),
            Store::Pending => F::PENDING.get_ptr_mut(key),
        }?;
        // SAFETY: memory of a map's rows stays readable and writable while the program runs,
        // even if the row is removed meanwhile.
        Some(unsafe { &mut *row })
    }

    #[inline(always)]
    fn find(&mut self, key: &FlowKey<F::Address>) -> Option<(&mut Flow<F::Address>, Store)> {
        let (row, store) = match F::FLOWS.get_ptr_mut(key) {
            Some(row) => (row, Store::Answered),
            None => (F::PENDING.get_ptr_mut(key)?, Store::Pending),
        };
        // SAFETY: as for `flow`.
        Some((unsafe { &mut *row }, store))
    }

    #[inline(always)]
    fn parties(&mut self) -> &mut Parties<F::Address> {
        let Some(scratch) = F::SCRATCH.get_ptr_mut(0) else {
            // SAFETY: leaves the function as any other exit does. It never comes to that: the
            // row of an array is always there, which kernels before 6.14 do not know.
            unsafe { core::arch::asm!("r0 = 0", "exit", options(noreturn)) }
        };
        // SAFETY: the row is this processor's own, and programs on devices are not interrupted
        // by one another.
        unsafe { &mut (*scratch).parties }
    }

    #[inline(always)]
    fn begin(&mut self, opening: Opening) -> bool {
        let flags = if opening.replace { BPF_ANY } else { BPF_NOEXIST };
        let Some(scratch) = F::SCRATCH.get_ptr_mut(0) else { return false };
        // SAFETY: the row is this processor's own, and programs on devices are not interrupted
        // by one another.
        let scratch = unsafe { &mut *scratch };
        scratch.key = scratch.parties.key(opening.role);
        scratch.row = scratch.parties.row(opening);
        F::PENDING.insert(&scratch.key, &scratch.row, flags.into()).is_ok()
    }

    #[inline(always)]
    fn keep(&mut self, role: u8) -> Result<(), KeepError> {
        let scratch = F::SCRATCH.get_ptr_mut(0).ok_or(KeepError::Missing)?;
        // SAFETY: the row is this processor's own, and programs on devices are not interrupted
        // by one another.
        let scratch = unsafe { &mut *scratch };
        scratch.key = scratch.parties.key(role);
        let row = F::PENDING.get_ptr(&scratch.key).ok_or(KeepError::Missing)?;
        // SAFETY: as for `flow`; the kernel copies the row.
        let row = unsafe { &*row };
        match F::FLOWS.insert(&scratch.key, row, BPF_NOEXIST.into()) {
            Ok(()) | Err(EEXIST) => {}
            Err(_) => return Err(KeepError::Full),
        }
        let _ = F::PENDING.remove(&scratch.key);
        Ok(())
    }

    #[inline(always)]
    fn forget(&mut self, key: &FlowKey<F::Address>) {
        let _ = F::PENDING.remove(key);
        if F::FLOWS.remove(key).is_ok() {
            forgotten::<F>(key);
        }
    }

    #[inline(always)]
    fn reclaim(&mut self) -> bool {
        (if F::V6 { reclaim6() } else { reclaim4() }) != 0
    }

    #[inline(always)]
    fn mark(&mut self, hash: u32) {
        set(&MARKS, hash);
    }

    #[inline(always)]
    fn is_marked(&mut self, hash: u32) -> bool {
        is_set(&MARKS, hash)
    }

    #[inline(always)]
    fn fragment(&mut self, key: &FragmentKey<F::Address>) -> Option<Ports> {
        // SAFETY: the row is copied at once.
        unsafe { F::FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn remember_fragment(&mut self, key: &FragmentKey<F::Address>, ports: Ports) {
        let _ = F::FRAGMENTS.insert(key, ports, BPF_ANY.into());
    }

    #[inline(always)]
    fn device(&mut self) -> Option<Device> {
        // SAFETY: the context is that of the running program.
        let index = unsafe { (*self.packet?.skb.skb).ifindex };
        // SAFETY: the row is copied at once.
        unsafe { DEVICES.get(index).copied() }
    }

    #[inline(always)]
    fn nat_ports(&mut self) -> (u16, u16) {
        nat_ports()
    }

    #[inline(always)]
    fn socket_holds(&mut self, key: &FlowKey<F::Address>) -> bool {
        let Some(packet) = self.packet else { return false };
        // The kernel tells nothing of its sockets of SCTP; they too take no port that is reserved.
        if key.proto == protocol::SCTP {
            return false;
        }
        let mut tuple = F::sock_tuple(key);
        let length = size_of::<F::SockTuple>() as u32;
        let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
        let context = packet.as_ptr();
        let netns = BPF_F_CURRENT_NETNS as u64;
        // SAFETY: the tuple is as long as said; a socket found is released.
        unsafe {
            let socket = if key.proto == protocol::UDP {
                helper::bpf_sk_lookup_udp(context, tuple, length, netns, 0)
            } else {
                helper::bpf_sk_lookup_tcp(context, tuple, length, netns, 0)
            };
            if socket.is_null() {
                return false;
            }
            helper::bpf_sk_release(socket.cast());
        }
        true
    }

    #[inline(always)]
    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        drops::count_drop(hook, reason);
    }

    #[inline(always)]
    fn count_packet(&mut self, service: u32, bytes: u32) {
        count_packet(service, bytes);
    }

    #[inline(always)]
    fn settle<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> Result<(), KeepError> {
        life::settle::<F, ROLE>(key)
    }

    #[inline(always)]
    fn succeed<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> bool {
        life::succeed::<F, ROLE>(key)
    }

    #[inline(always)]
    fn claim(&mut self, service: u32, take: Take) -> bool {
        let Some(packet) = self.packet else { return false };
        let skb = packet.skb.skb;
        let take = take as u32;
        (if F::V6 { claim6(skb, service, take) } else { claim4(skb, service, take) }) != 0
    }
}

/// Monotonic clock in units of [`TICK_NS`].
#[inline(always)]
pub fn now() -> u32 {
    const SHIFT: u32 = TICK_NS.trailing_zeros();
    (clock() >> SHIFT) as u32
}

/// The same in nanoseconds, as of the last timer tick.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { helper::bpf_ktime_get_coarse_ns() }
}

/// Removes the flow at `key` if it has expired.
#[inline(always)]
pub fn expire<F: FlowMaps>(
    key: &FlowKey<F::Address>,
    row: &Flow<F::Address>,
    now: u32,
    is_pressed: bool,
) -> bool {
    track::expire::<F, _>(&mut Maps { packet: None }, key, row, now, is_pressed)
}
