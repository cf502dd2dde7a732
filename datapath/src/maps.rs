//! Names and default capacities of the maps, as `bpftool map show` and the pins name them.
//!
//! | map | type | key → value |
//! |---|---|---|
//! | `FRONTENDS4/6` | hash | `FrontendKey` → `Frontend` |
//! | `ADDRESSES4/6` | hash | address → `AddressUse` |
//! | `SERVICES` | array, mmap | index → `Service` |
//! | `BACKENDS4/6` | array, mmap | index → `Backend` |
//! | `STATS` | array, mmap | service index → `ServiceCounters` |
//! | `NAMES` | hash | service index → `ServiceName` |
//! | `FLOWS4/6` | hash | `FlowKey` → `Flow`, answered flows |
//! | `PENDING4/6` | LRU hash | `FlowKey` → `Flow`, flows not yet answered |
//! | `FRAGMENTS4/6` | LRU hash | `FragmentKey` → `Ports` |
//! | `SOCKETS4/6` | array, mmap | `socket::place` → `Connected` |
//! | `PEERS4/6` | LRU hash | `PeerKey` → `Peer` |
//! | `AFFINITY4/6` | LRU hash | `AffinityKey` → `Affinity` |
//! | `LOADS` | hash | `load_key` → connections of a backend, where the fewest count |
//! | `RANGES4/6` | LPM trie | `RangeKey` → 1, sources that are admitted |
//! | `RATES` | LRU hash | source outside → when its new flows have come, at its rate |
//! | `SERVICENETS4/6` | LPM trie | `NetworkKey` that cluster IPs are given out of → 1 |
//! | `SERVICECOVER` | array of two | family → `Cover` of those |
//! | `BYPASSCGROUPS` | hash | id of a cgroup, of a pod that is left out of the socket path → 1 |
//! | `DEVICES` | hash | interface index → `Device` |
//! | `SETTINGS` | array of one | → `Settings` |
//! | `DROPS` | per-CPU array | `counter::drop_index` → packets |
//! | `WALKS` | array of two | family → `Walk` over the flow table |
//! | `SCRATCH4/6` | per-CPU array of one | → `Scratch`, a row in the making |
//! | `ADDRESSMARKS` | array of one, mmap | → one byte per hash of an address in `ADDRESSES4/6` |
//! | `PORTMARKS` | array of one, mmap | → one byte per port of a frontend that is no cluster IP's |
//! | `MARKS` | array of one | → one byte per hash of the way between two addresses |
//! | `UPLINKS` | array | `nexthop::place` → `Uplink` |
//! | `NEXTHOPS4/6` | per-CPU array | hash of an address → `NextHop` |
//! | `FLOWCACHE4/6` | array | [`place`](crate::flow_cache::place) of a `FlowKey` → `Line` |
//! | `FLOWCOMMON4/6` | array | [`common_place`](crate::flow_cache::common_place) → `Common` |
//! | `FLOWCHANGES` | array of one | → when the agent changed rows of flows last |
//! | `SEENSENDERS` | per-CPU array | last byte of a hardware address → `SeenSender` |
//! | `CARRIED` | per-CPU array | `wire::Leg` → packets |
//! | `HOMES4/6` | LRU hash | address of a pod → `Home` |
//! | `FORWARDED` | per-CPU array | `forward::Way` → packets |
//! | `CAPTURE` | array of one | → `Capture` |
//! | `SEEN` | perf event array | processor → ring of `Seen`, each before a frame; while somebody captures |
//! | `LOST` | per-CPU array of one | → frames that a ring had no room for |
//! | `PEERMARKS` | array of one | → one byte for the ports of backends that sockets were given |
//!
//! beside `VTEPS4/6`, `SENDERS` and `TUNNELS` of the overlay object, where there is an overlay; and of
//! the overlay object, which has `FLOWS4/6`, `PENDING4/6`, `FRAGMENTS4/6`, `DEVICES`, `DROPS`, `WALKS`,
//! `SCRATCH4/6`, `HOMES4/6` and `MARKS` of its own:
//!
//! | map | type | key → value |
//! |---|---|---|
//! | `VTEPS4/6` | LPM trie | `NetworkKey` of a pod network → `Vtep` |
//! | `SENDERS` | hash | `Sender` → 1 |
//! | `TUNNELS` | array of one | → `Tunnel` |
//! | `TRAFFIC` | per-CPU array of one | → `Traffic` |
//! | `PROXYMARKS` | array of one | the proxy's `MARKS`, where there is a proxy |
//! | `POLICIES` | array of one | → `Policy` |

pub const VTEPS_CAPACITY: usize = 16_384;
/// Two families.
pub const SENDERS_CAPACITY: usize = 2 * VTEPS_CAPACITY;
pub const HOMES_CAPACITY: usize = 4_096;

pub const FRONTENDS_CAPACITY: usize = 65_536;
pub const ADDRESSES_CAPACITY: usize = 65_536;
pub const SERVICES_CAPACITY: usize = 65_536;
pub const BACKENDS_CAPACITY: usize = 131_072;
pub const FLOWS_CAPACITY: usize = 262_144;
pub const PENDING_CAPACITY: usize = 32_768;
pub const FRAGMENTS_CAPACITY: usize = 4_096;
/// A power of two.
pub const SOCKETS_CAPACITY: usize = 65_536;
pub const PEERS_CAPACITY: usize = 32_768;
pub const RANGES_CAPACITY: usize = 65_536;
/// Slots of sets, of two families.
pub const LOADS_CAPACITY: usize = 2 * BACKENDS_CAPACITY;
pub const SERVICENETS_CAPACITY: usize = 1_024;
/// Cgroups of pods on one node.
pub const BYPASSCGROUPS_CAPACITY: usize = 4_096;
pub const AFFINITY_CAPACITY: usize = 32_768;
/// Sources outside that begin flows, of two families.
pub const RATES_CAPACITY: usize = 32_768;
pub const DEVICES_CAPACITY: usize = 4_096;
/// Bytes of the one row of `MARKS` and of `ADDRESSMARKS`; a power of two.
pub const MARKS_LEN: usize = 65_536;
/// Bytes of the one row of `PORTMARKS`: one for each port.
pub const PORTMARKS_LEN: usize = 65_536;
/// Bytes of the one row of `PEERMARKS`; a power of two.
pub const PEERMARKS_LEN: usize = 4_096;

/// Raised when a key or value changes its layout: it is part of the pins' path, so that an old
/// table is never read with new eyes.
pub const LAYOUT: u32 = 7;
