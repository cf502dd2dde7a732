//! The maps of the proxy object alone. Their keys and values, and what they are for, stand in the
//! crate `datapath`.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
    macros::btf_map,
};
use datapath::{
    address::{Ipv4, Ipv6},
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    frontend::{AddressUse, Frontend, FrontendKey},
    maps::{
        ADDRESSES_CAPACITY, AFFINITY_CAPACITY, BACKENDS_CAPACITY, BYPASSCGROUPS_CAPACITY,
        FRONTENDS_CAPACITY, LOADS_CAPACITY, MARKS_LEN, PEERMARKS_LEN, PEERS_CAPACITY,
        PORTMARKS_LEN, RANGES_CAPACITY, RATES_CAPACITY, SERVICENETS_CAPACITY, SERVICES_CAPACITY,
        SOCKETS_CAPACITY,
    },
    service::{Service, ServiceCounters, ServiceName},
    service_network::Cover,
    settings::Settings,
    socket::{Connected, Peer, PeerKey},
    source_range::Source,
};

use crate::{map::LAZY, maps};

/// The agent has the map in its memory.
pub const MMAP: usize = BPF_F_MMAPABLE as usize;

maps! {
    FRONTENDS4: HashMap<FrontendKey<Ipv4>, Frontend, FRONTENDS_CAPACITY, LAZY>,
    FRONTENDS6: HashMap<FrontendKey<Ipv6>, Frontend, FRONTENDS_CAPACITY, LAZY>,
    ADDRESSES4: HashMap<Ipv4, AddressUse, ADDRESSES_CAPACITY, LAZY>,
    ADDRESSES6: HashMap<Ipv6, AddressUse, ADDRESSES_CAPACITY, LAZY>,
    SERVICES: Array<Service, SERVICES_CAPACITY, MMAP>,
    BACKENDS4: Array<Backend<Ipv4>, BACKENDS_CAPACITY, MMAP>,
    BACKENDS6: Array<Backend<Ipv6>, BACKENDS_CAPACITY, MMAP>,
    STATS: Array<ServiceCounters, SERVICES_CAPACITY, MMAP>,
    NAMES: HashMap<u32, ServiceName, SERVICES_CAPACITY, LAZY>,
    SOCKETS4: Array<Connected<Ipv4>, SOCKETS_CAPACITY, MMAP>,
    SOCKETS6: Array<Connected<Ipv6>, SOCKETS_CAPACITY, MMAP>,
    PEERS4: LruHashMap<PeerKey<Ipv4>, Peer<Ipv4>, PEERS_CAPACITY>,
    PEERS6: LruHashMap<PeerKey<Ipv6>, Peer<Ipv6>, PEERS_CAPACITY>,
    AFFINITY4: LruHashMap<AffinityKey<Ipv4>, Affinity<Ipv4>, AFFINITY_CAPACITY>,
    AFFINITY6: LruHashMap<AffinityKey<Ipv6>, Affinity<Ipv6>, AFFINITY_CAPACITY>,
    RANGES4: LpmTrie<Source<Ipv4>, u32, RANGES_CAPACITY>,
    RANGES6: LpmTrie<Source<Ipv6>, u32, RANGES_CAPACITY>,
    RATES: LruHashMap<u64, u64, RATES_CAPACITY>,
    SERVICENETS4: LpmTrie<Ipv4, u32, SERVICENETS_CAPACITY>,
    SERVICENETS6: LpmTrie<Ipv6, u32, SERVICENETS_CAPACITY>,
    SERVICECOVER: Array<Cover, 2>,
    LOADS: HashMap<u32, u64, LOADS_CAPACITY, LAZY>,
    BYPASSCGROUPS: HashMap<u64, u32, BYPASSCGROUPS_CAPACITY, LAZY>,
    SETTINGS: Array<Settings, 1>,
    ADDRESSMARKS: Array<[u8; MARKS_LEN], 1, MMAP>,
    PORTMARKS: Array<[u8; PORTMARKS_LEN], 1, MMAP>,
    PEERMARKS: Array<[u8; PEERMARKS_LEN], 1>,
}
