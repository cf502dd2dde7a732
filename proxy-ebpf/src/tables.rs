//! The maps as the engine's tables of Services, for either family.

use core::ptr::{addr_of, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, lpm_trie::Key},
};
use datapath::{
    address::{V4, V6},
    affinity::{Affinity, AffinityKey, Client},
    backend::{Backend, LOAD, load_key},
    egress,
    flow::Place,
    frontend::{AddressUse, Frontend, FrontendKey},
    ingress::{self, Look},
    maps as size,
    packet::Packet,
    select::{Choice, Origin},
    service::{Service, ServicePolicy, SetRef},
    settings::Settings,
    socket::{Peer, PeerKey},
    source_range::{SERVICE_BITS, Source},
    source_rate,
    tables::{Scope, Tables},
    tunnel::Inner,
};

use crate::{
    apart::*,
    direct::{is_senders4, is_senders6},
    flows::{FlowMaps, Maps, clock},
    map::LAZY,
    maps::*,
    nodes::{NodeMaps, tunnel, vtep},
    search,
};

type Frontends<A> = HashMap<FrontendKey<A>, Frontend, { size::FRONTENDS_CAPACITY }, LAZY>;
type Addresses<A> = HashMap<A, AddressUse, { size::ADDRESSES_CAPACITY }, LAZY>;
type Backends<A> = Array<Backend<A>, { size::BACKENDS_CAPACITY }, MMAP>;
type Peers<A> = LruHashMap<PeerKey<A>, Peer<A>, { size::PEERS_CAPACITY }>;

type Ranges<A> = LpmTrie<Source<A>, u32, { size::RANGES_CAPACITY }>;
type Networks<A> = LpmTrie<A, u32, { size::SERVICENETS_CAPACITY }>;
type Affinities<A> = LruHashMap<AffinityKey<A>, Affinity<A>, { size::AFFINITY_CAPACITY }>;

/// The maps of one family.
pub trait FamilyMaps: FlowMaps + NodeMaps + Inner {
    const FRONTENDS: &'static Frontends<Self::Address>;
    const ADDRESSES: &'static Addresses<Self::Address>;
    const BACKENDS: &'static Backends<Self::Address>;
    const PEERS: &'static Peers<Self::Address>;
    const AFFINITY: &'static Affinities<Self::Address>;
    const RANGES: &'static Ranges<Self::Address>;
    const NETWORKS: &'static Networks<Self::Address>;
    /// Index into `SERVICECOVER`.
    const COVER: u32;
}

impl FamilyMaps for V4 {
    const FRONTENDS: &'static Frontends<Self::Address> = &FRONTENDS4;
    const ADDRESSES: &'static Addresses<Self::Address> = &ADDRESSES4;
    const BACKENDS: &'static Backends<Self::Address> = &BACKENDS4;
    const PEERS: &'static Peers<Self::Address> = &PEERS4;
    const AFFINITY: &'static Affinities<Self::Address> = &AFFINITY4;
    const RANGES: &'static Ranges<Self::Address> = &RANGES4;
    const NETWORKS: &'static Networks<Self::Address> = &SERVICENETS4;
    const COVER: u32 = 0;
}

impl FamilyMaps for V6 {
    const FRONTENDS: &'static Frontends<Self::Address> = &FRONTENDS6;
    const ADDRESSES: &'static Addresses<Self::Address> = &ADDRESSES6;
    const BACKENDS: &'static Backends<Self::Address> = &BACKENDS6;
    const PEERS: &'static Peers<Self::Address> = &PEERS6;
    const AFFINITY: &'static Affinities<Self::Address> = &AFFINITY6;
    const RANGES: &'static Ranges<Self::Address> = &RANGES6;
    const NETWORKS: &'static Networks<Self::Address> = &SERVICENETS6;
    const COVER: u32 = 1;
}

/// What the agent tells the programs; all zero before it has.
#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.get(0).copied().unwrap_or_default()
}

/// True if cluster IPs are given out of a network that the address is in.
#[inline(always)]
pub fn is_service_network<F: FamilyMaps>(address: F::Address) -> bool {
    // SAFETY: the map's rows are never freed; a row that is being changed costs a look at most, or
    // lets a packet pass.
    let is_covered =
        SERVICECOVER.get_ptr(F::COVER).is_some_and(|row| unsafe { (*row).may_hold(address) });
    is_covered && F::NETWORKS.get(&Key::new(F::BITS, address)).is_some()
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

/// The same, and what was there before.
#[inline(always)]
fn fetch_add(counter: *mut u64, by: u64) -> u64 {
    let mut value = by;
    // SAFETY: as there.
    unsafe {
        core::arch::asm!(
            "{v} = atomic_fetch_add((u64 *)({p} + 0), {v})",
            p = in(reg) counter,
            v = inout(reg) value,
        );
    }
    value
}

/// True if a source outside would begin one flow more than it may.
#[inline(always)]
pub fn is_over_rate(origin: u64) -> bool {
    let interval = settings().new_flow_interval;
    if interval == 0 {
        return false;
    }
    // SAFETY: as in `Tables::charge`.
    let number = RATES.get_ptr(origin).map_or(0, |row| unsafe { read_volatile(row) });
    source_rate::charge(number, clock(), interval).is_none()
}

impl<F: FamilyMaps> Tables<F> for Maps<'_> {
    #[inline(always)]
    fn settings(&mut self) -> Settings {
        settings()
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
    fn policy(&mut self, service: u32) -> ServicePolicy {
        let word = match SERVICES.get_ptr(service) {
            // SAFETY: the map's rows are never freed, and the flags begin one of their aligned
            // words: one load, volatile because the agent writes them.
            Some(row) => unsafe { read_volatile(addr_of!((*row).flags).cast()) },
            None => 0,
        };
        ServicePolicy::from_word(word)
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
    fn is_service_network(&mut self, address: F::Address) -> bool {
        is_service_network::<F>(address)
    }

    #[inline(always)]
    fn is_admitted(&mut self, service: u32, addr: F::Address) -> bool {
        F::RANGES.get(&Key::new(SERVICE_BITS + F::BITS, Source { service, addr })).is_some()
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
    fn affinity(&mut self, key: &AffinityKey<F::Address>) -> Option<Affinity<F::Address>> {
        // SAFETY: the row is copied at once.
        unsafe { F::AFFINITY.get(key).copied() }
    }

    #[inline(always)]
    fn remember_affinity(&mut self, key: &AffinityKey<F::Address>, row: &Affinity<F::Address>) {
        let _ = F::AFFINITY.insert(key, row, BPF_ANY.into());
    }

    #[inline(always)]
    fn find_backend(&mut self, set: SetRef, place: Place<F::Address>) -> Option<u32> {
        search::find::<F>(set, place)
    }

    #[inline(always)]
    fn choose(&mut self, service: u32, client: Client, set: SetRef, entropy: u32) -> u32 {
        let (client, SetRef { block, count, generation }) = (client as u32, set);
        let shape = u32::from(count) | u32::from(generation) << 16;
        if F::V6 {
            choose6(service, client, block, shape, entropy)
        } else {
            choose4(service, client, block, shape, entropy)
        }
    }

    #[inline(always)]
    fn select_for_sender(&mut self, service: u32, kind: u8, origin: Origin) -> Choice<u32> {
        let (kind, origin) = (kind.into(), origin as u32);
        Choice::unpack(if F::V6 {
            select6(service, kind, origin)
        } else {
            select4(service, kind, origin)
        })
    }

    #[inline(always)]
    fn answers(&mut self, pod: F::Address) -> bool {
        vtep::<F>(pod).is_some_and(|vtep| vtep.answers != 0)
    }

    #[inline(always)]
    fn underlay(&mut self) -> F::Address {
        F::underlay(&tunnel())
    }

    #[inline(always)]
    fn is_senders(&mut self, _destination: F::Address) -> bool {
        let Some(packet) = self.packet else { return false };
        let skb = packet.skb.skb;
        (if F::V6 { is_senders6(skb) } else { is_senders4(skb) }) != 0
    }

    #[inline(always)]
    fn is_direct(&mut self, service: u32, kind: u8) -> bool {
        let kind = kind.into();
        (if F::V6 { is_direct6(service, kind) } else { is_direct4(service, kind) }) != 0
    }

    #[inline(always)]
    fn look_direct<P: Packet>(&mut self, _: &mut P) -> egress::Step {
        let Some(packet) = self.packet else { return egress::Step::Done };
        let skb = packet.skb.skb;
        egress::Step::unpack(if F::V6 { look_direct6(skb) } else { look_direct4(skb) })
    }

    #[inline(always)]
    fn restores_quote<P: Packet>(&mut self, _: &mut P) -> bool {
        let Some(packet) = self.packet else { return false };
        let skb = packet.skb.skb;
        (if F::V6 { restores_quote6(skb) } else { restores_quote4(skb) }) != 0
    }

    #[inline(always)]
    fn charge(&mut self, origin: u64, interval: u32) -> bool {
        let (row, now) = (RATES.get_ptr_mut(origin), clock());
        // SAFETY: memory of a map's rows stays readable and writable while the program runs, even if
        // the row is removed meanwhile.
        let number = row.map_or(0, |row| unsafe { read_volatile(row) });
        let Some(next) = source_rate::charge(number, now, interval) else { return false };
        match row {
            // Other processors may be adding, and none of it is lost.
            Some(row) if number > now => add(row, interval.into()),
            // SAFETY: as above.
            Some(row) => unsafe { write_volatile(row, next) },
            None => drop(RATES.insert(&origin, &next, BPF_ANY.into())),
        }
        true
    }

    #[inline(always)]
    fn is_over_rate(&mut self) -> bool {
        (if F::V6 { over_rate6() } else { over_rate4() }) != 0
    }

    #[inline(always)]
    fn turn(&mut self, service: u32) -> u32 {
        match STATS.get_ptr_mut(service) {
            // SAFETY: the field lies in the row.
            Some(row) => fetch_add(unsafe { &raw mut (*row).turns }, 1) as u32,
            None => 0,
        }
    }

    #[inline(always)]
    fn load(&mut self, slot: u32) -> u32 {
        // SAFETY: the row is copied at once.
        let row = unsafe { LOADS.get(&load_key(slot, F::V6)).copied() };
        row.unwrap_or_default() as u32
    }

    #[inline(always)]
    fn add_load(&mut self, slot: u32) {
        if let Some(row) = LOADS.get_ptr_mut(&load_key(slot, F::V6)) {
            add(row, LOAD.into());
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
    fn open_lone(&mut self, service: u32, length: u32) -> bool {
        (if F::V6 { open_lone6(service, length) } else { open_lone4(service, length) }) != 0
    }

    #[inline(always)]
    fn look_in<P: Packet>(&mut self, _: &mut P, look: Look) -> ingress::Step {
        let Some(packet) = self.packet else { return ingress::Step::Done };
        let (skb, again) = (packet.skb.skb, (look == Look::Again).into());
        ingress::Step::unpack(if F::V6 { look_in6(skb, again) } else { look_in4(skb, again) })
    }

    #[inline(always)]
    fn look_out<P: Packet>(&mut self, _: &mut P, look: Look) -> egress::Step {
        let Some(packet) = self.packet else { return egress::Step::Done };
        let (skb, again) = (packet.skb.skb, (look == Look::Again).into());
        egress::Step::unpack(if F::V6 { look_out6(skb, again) } else { look_out4(skb, again) })
    }
}

/// First and last port to masquerade with.
#[inline(always)]
pub fn nat_ports() -> (u16, u16) {
    let settings = settings();
    (settings.nat_port_first, settings.nat_port_last)
}

/// Counts a packet of a Service.
#[inline(always)]
pub fn count_packet(service: u32, bytes: u32) {
    if let Some(row) = STATS.get_ptr_mut(service) {
        // SAFETY: the fields lie in the row.
        unsafe {
            add(&raw mut (*row).packets, 1);
            add(&raw mut (*row).bytes, bytes.into());
        }
    }
}

/// Counts a connection of the socket path.
#[inline(always)]
pub fn count_socket_connection(service: u32) {
    if let Some(row) = STATS.get_ptr_mut(service) {
        // SAFETY: the field lies in the row.
        add(unsafe { &raw mut (*row).socket_connections }, 1);
    }
}
