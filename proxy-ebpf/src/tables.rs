//! The maps as the engine's tables, for either family.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_ANY, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as SockTuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as SockTuple6,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::generated as helper,
    programs::TcContext,
};
use datapath::{
    address::{Address, V4, V6, protocol},
    backend::Backend,
    counter::{Hook, Reason, drop_index},
    device::Device,
    egress,
    flow::{Flow, FlowKey, Parties, Scratch, TICK_NS, role},
    fragment::{FragmentKey, Ports},
    frontend::{AddressUse, Frontend, FrontendKey},
    header::Network,
    ingress::{self, Look},
    maps as size,
    packet::Packet,
    service::{Service, SetRef},
    settings::Settings,
    socket::{Peer, PeerKey},
    tables::{KeepError, Opening, Scope, Store, Tables},
    track,
};

use crate::{
    apart::*,
    map::LAZY,
    maps::*,
    marks::{is_set, set},
    search,
    sweep::{reclaim4, reclaim6},
};

type Frontends<A> = HashMap<FrontendKey<A>, Frontend, { size::FRONTENDS_CAPACITY }, LAZY>;
type Addresses<A> = HashMap<A, AddressUse, { size::ADDRESSES_CAPACITY }, LAZY>;
type Backends<A> = Array<Backend<A>, { size::BACKENDS_CAPACITY }, MMAP>;
type Flows<A> = HashMap<FlowKey<A>, Flow<A>, { size::FLOWS_CAPACITY }, LAZY>;
type Pending<A> = LruHashMap<FlowKey<A>, Flow<A>, { size::PENDING_CAPACITY }>;
type Peers<A> = LruHashMap<PeerKey<A>, Peer<A>, { size::PEERS_CAPACITY }>;
type Fragments<A> = LruHashMap<FragmentKey<A>, Ports, { size::FRAGMENTS_CAPACITY }>;

/// The maps of one family.
pub trait FamilyMaps: Network {
    const FRONTENDS: &'static Frontends<Self::Address>;
    const ADDRESSES: &'static Addresses<Self::Address>;
    const BACKENDS: &'static Backends<Self::Address>;
    const FLOWS: &'static Flows<Self::Address>;
    const PENDING: &'static Pending<Self::Address>;
    const FRAGMENTS: &'static Fragments<Self::Address>;
    const PEERS: &'static Peers<Self::Address>;
    const SCRATCH: &'static PerCpuArray<Scratch<Self::Address>, 1>;

    /// A tuple as the socket look-ups take it.
    type SockTuple;
    fn sock_tuple(key: &FlowKey<Self::Address>) -> Self::SockTuple;
}

impl FamilyMaps for V4 {
    const FRONTENDS: &'static Frontends<Self::Address> = &FRONTENDS4;
    const ADDRESSES: &'static Addresses<Self::Address> = &ADDRESSES4;
    const BACKENDS: &'static Backends<Self::Address> = &BACKENDS4;
    const FLOWS: &'static Flows<Self::Address> = &FLOWS4;
    const PENDING: &'static Pending<Self::Address> = &PENDING4;
    const FRAGMENTS: &'static Fragments<Self::Address> = &FRAGMENTS4;
    const PEERS: &'static Peers<Self::Address> = &PEERS4;
    const SCRATCH: &'static PerCpuArray<Scratch<Self::Address>, 1> = &SCRATCH4;

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

impl FamilyMaps for V6 {
    const FRONTENDS: &'static Frontends<Self::Address> = &FRONTENDS6;
    const ADDRESSES: &'static Addresses<Self::Address> = &ADDRESSES6;
    const BACKENDS: &'static Backends<Self::Address> = &BACKENDS6;
    const FLOWS: &'static Flows<Self::Address> = &FLOWS6;
    const PENDING: &'static Pending<Self::Address> = &PENDING6;
    const FRAGMENTS: &'static Fragments<Self::Address> = &FRAGMENTS6;
    const PEERS: &'static Peers<Self::Address> = &PEERS6;
    const SCRATCH: &'static PerCpuArray<Scratch<Self::Address>, 1> = &SCRATCH6;

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

/// What the agent tells the programs; all zero before it has.
#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.get(0).copied().unwrap_or_default()
}

/// Adds to a counter that other processors add to as well.
#[inline(always)]
fn add(counter: *mut u64, by: u64) {
    // SAFETY: the pointer is into a map value, and eBPF's atomic add needs no more than that.
    // The target has no `fetch_add` in Rust.
    unsafe {
        core::arch::asm!("lock *(u64 *)({p} + 0) += {v}", p = in(reg) counter, v = in(reg) by);
    }
}

impl<F: FamilyMaps> Tables<F> for Maps<'_> {
    #[inline(always)]
    fn settings(&mut self) -> Settings {
        settings()
    }

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
    fn address_use(&mut self, address: F::Address) -> Option<AddressUse> {
        // SAFETY: the row is copied at once; rows of this map are not changed in place.
        unsafe { F::ADDRESSES.get(address).copied() }
    }

    #[inline(always)]
    fn frontend(&mut self, key: &FrontendKey<F::Address>) -> Option<Frontend> {
        // SAFETY: the row is copied at once; rows of this map are not changed in place.
        unsafe { F::FRONTENDS.get(key).copied() }
    }

    #[inline(always)]
    fn service_flags(&mut self, service: u32) -> Option<u32> {
        let row = SERVICES.get_ptr(service)?;
        // SAFETY: the map's rows are never freed; volatile because the agent writes them.
        Some(unsafe { read_volatile(addr_of!((*row).flags)) })
    }

    #[inline(always)]
    fn set(&mut self, service: u32, scope: Scope) -> Option<SetRef> {
        let row: *const Service = SERVICES.get_ptr(service)?;
        // SAFETY: the map's rows are never freed, and `SetRef` is aligned to its eight bytes:
        // one load, so old or new but never half of each.
        Some(SetRef::from_word(unsafe {
            match scope {
                Scope::Cluster => read_volatile(addr_of!((*row).cluster).cast()),
                Scope::Local => read_volatile(addr_of!((*row).local).cast()),
            }
        }))
    }

    #[inline(always)]
    fn backend(&mut self, index: u32) -> Option<Backend<F::Address>> {
        let row = F::BACKENDS.get_ptr(index)?;
        // SAFETY: the map's rows are never freed; volatile keeps the generation's load last.
        unsafe {
            Some(Backend {
                addr: read_volatile(addr_of!((*row).addr)),
                port: read_volatile(addr_of!((*row).port)),
                flags: read_volatile(addr_of!((*row).flags)),
                generation: read_volatile(addr_of!((*row).generation)),
            })
        }
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
        let _ = F::FLOWS.remove(key);
        let _ = F::PENDING.remove(key);
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
    fn peer(&mut self, key: &PeerKey<F::Address>) -> Option<Peer<F::Address>> {
        // SAFETY: the row is copied at once.
        unsafe { F::PEERS.get(key).copied() }
    }

    #[inline(always)]
    fn remember_peer(&mut self, key: &PeerKey<F::Address>, peer: &Peer<F::Address>) {
        let _ = F::PEERS.insert(key, peer, BPF_ANY.into());
    }

    #[inline(always)]
    fn is_in(&mut self, set: SetRef, peer: &Peer<F::Address>) -> bool {
        search::is_in::<F>(set, peer)
    }

    #[inline(always)]
    fn device(&mut self) -> Option<Device> {
        // SAFETY: the context is that of the running program.
        let index = unsafe { (*self.packet?.skb.skb).ifindex };
        // SAFETY: the row is copied at once.
        unsafe { DEVICES.get(index).copied() }
    }

    #[inline(always)]
    fn socket_holds(&mut self, key: &FlowKey<F::Address>) -> bool {
        let Some(packet) = self.packet else { return false };
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
        if let Some(counter) = DROPS.get_ptr_mut(drop_index(hook, reason)) {
            // SAFETY: the row is this processor's own.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_connection(&mut self, service: u32) {
        if let Some(row) = STATS.get_ptr_mut(service) {
            // SAFETY: the field lies in the row.
            add(unsafe { &raw mut (*row).packet_connections }, 1);
        }
    }

    #[inline(always)]
    fn open(&mut self, service: u32, flags: u16) -> bool {
        (if F::V6 { open6(service, flags) } else { open4(service, flags) }) != 0
    }

    #[inline(always)]
    fn look_in<P: Packet>(&mut self, _: &mut P, look: Look) -> ingress::Step {
        let Some(packet) = self.packet else { return ingress::Step::Done };
        let (skb, again) = (packet.skb.skb, (look == Look::Again).into());
        ingress::Step::unpack(if F::V6 { look_in6(skb, again) } else { look_in4(skb, again) })
    }

    #[inline(always)]
    fn look_out<P: Packet>(&mut self, _: &mut P) -> egress::Step {
        let Some(packet) = self.packet else { return egress::Step::Done };
        let skb = packet.skb.skb;
        egress::Step::unpack(if F::V6 { look_out6(skb) } else { look_out4(skb) })
    }

    #[inline(always)]
    fn settle<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> Result<(), KeepError> {
        let key = core::ptr::from_ref(key);
        let settled = match (F::V6, ROLE) {
            (false, role::REPLY) => settle_reply4(key.cast()),
            (false, _) => settle4(key.cast()),
            (true, role::REPLY) => settle_reply6(key.cast()),
            (true, _) => settle6(key.cast()),
        };
        match settled {
            SETTLED => Ok(()),
            FULL => Err(KeepError::Full),
            _ => Err(KeepError::Missing),
        }
    }

    #[inline(always)]
    fn succeed<const ROLE: u8>(&mut self, key: &FlowKey<F::Address>) -> bool {
        let key = core::ptr::from_ref(key);
        let finished = match (F::V6, ROLE) {
            (false, role::REPLY) => succeed_reply4(key.cast()),
            (false, _) => succeed4(key.cast()),
            (true, role::REPLY) => succeed_reply6(key.cast()),
            (true, _) => succeed6(key.cast()),
        };
        finished != 0
    }

    #[inline(always)]
    fn claim(&mut self, service: u32, force: bool) -> bool {
        let Some(packet) = self.packet else { return false };
        let skb = packet.skb.skb;
        let force = force.into();
        (if F::V6 { claim6(skb, service, force) } else { claim4(skb, service, force) }) != 0
    }

    #[inline(always)]
    fn count_packet(&mut self, service: u32, bytes: u32) {
        if let Some(row) = STATS.get_ptr_mut(service) {
            // SAFETY: the fields lie in the row.
            unsafe {
                add(&raw mut (*row).packets, 1);
                add(&raw mut (*row).bytes, bytes.into());
            }
        }
    }
}

/// Monotonic clock in units of [`TICK_NS`].
#[inline(always)]
pub fn now() -> u32 {
    const SHIFT: u32 = TICK_NS.trailing_zeros();
    // SAFETY: the helper takes nothing. It reads the clock of the last timer tick.
    (unsafe { helper::bpf_ktime_get_coarse_ns() } >> SHIFT) as u32
}

/// Counts a connection of the socket path.
#[inline(always)]
pub fn count_socket_connection(service: u32) {
    if let Some(row) = STATS.get_ptr_mut(service) {
        // SAFETY: the field lies in the row.
        add(unsafe { &raw mut (*row).socket_connections }, 1);
    }
}

/// Removes the flow at `key` if it has expired.
#[inline(always)]
pub fn expire<F: FamilyMaps>(
    key: &FlowKey<F::Address>,
    row: &Flow<F::Address>,
    now: u32,
    is_pressed: bool,
) -> bool
where
    F::Address: Address,
{
    track::expire::<F, _>(&mut Maps { packet: None }, key, row, now, is_pressed)
}
