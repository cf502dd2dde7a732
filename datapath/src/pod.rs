//! Leave for aya to copy keys and values to and from the kernel.

use crate::{
    address::{Be16, Ipv4, Ipv6},
    affinity::{Affinity, AffinityKey},
    backend::Backend,
    capture::Capture,
    device::Device,
    flow::{Flow, FlowKey, Scratch, Walk},
    fragment::{FragmentKey, Ports},
    frontend::{AddressUse, Frontend, FrontendKey},
    nexthop::{NextHop, Uplink},
    policy::Policy,
    service::{Service, ServiceCounters, ServiceName},
    service_network::Cover,
    settings::Settings,
    socket::{Connected, Peer, PeerKey},
    source_range::{RangeKey, Source},
    tunnel::{Home, NetworkKey, Sender, Traffic, Tunnel, Vtep},
};

macro_rules! pod {
    ($($type:ty: $bytes:literal),* $(,)?) => {$(
        // SAFETY: `repr(C)` or `repr(transparent)`, plain numbers only, and no padding: the
        // size below is that of the fields together, which the compiler checks.
        unsafe impl aya::Pod for $type {}
        const _: () = assert!(size_of::<$type>() == $bytes);
    )*};
}

pod! {
    Be16: 2,
    Ipv4: 4,
    Ipv6: 16,
    FrontendKey<Ipv4>: 8,
    FrontendKey<Ipv6>: 20,
    Frontend: 8,
    AddressUse: 4,
    Service: 24,
    ServiceName: 144,
    ServiceCounters: 40,
    Backend<Ipv4>: 12,
    Backend<Ipv6>: 24,
    FlowKey<Ipv4>: 16,
    FlowKey<Ipv6>: 40,
    Flow<Ipv4>: 48,
    Flow<Ipv6>: 72,
    Scratch<Ipv4>: 104,
    Scratch<Ipv6>: 200,
    Walk: 16,
    FragmentKey<Ipv4>: 16,
    FragmentKey<Ipv6>: 40,
    Ports: 4,
    Connected<Ipv4>: 24,
    Connected<Ipv6>: 48,
    PeerKey<Ipv4>: 16,
    PeerKey<Ipv6>: 28,
    Peer<Ipv4>: 12,
    Peer<Ipv6>: 24,
    AffinityKey<Ipv4>: 8,
    AffinityKey<Ipv6>: 20,
    Affinity<Ipv4>: 16,
    Affinity<Ipv6>: 28,
    Source<Ipv4>: 8,
    Source<Ipv6>: 20,
    RangeKey<Ipv4>: 12,
    RangeKey<Ipv6>: 24,
    Device: 32,
    Settings: 32,
    Cover: 32,
    Policy: 60,
    NetworkKey<Ipv4>: 8,
    NetworkKey<Ipv6>: 20,
    Vtep<Ipv4>: 12,
    Vtep<Ipv6>: 24,
    Sender: 8,
    Tunnel: 88,
    Traffic: 32,
    Home: 16,
    Uplink: 16,
    NextHop<Ipv4>: 64,
    NextHop<Ipv6>: 112,
    Capture: 16,
}
