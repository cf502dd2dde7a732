//! The overlay's tunnel: keys and values of its tables, and the engine's view of them and of a
//! frame.

use crate::{
    address::{Address, Be16, Family, Ipv4, Ipv6, Mac, V4, V6},
    counter::{Hook, Reason},
    header::Network,
    home::Homes,
    packet::Packet,
    vxlan::Outer,
};

/// Key of the LPM tries `VTEPS4/6`, as the kernel wants it: 8 and 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct NetworkKey<A> {
    /// Length in bits, in this machine's byte order.
    pub prefix_len: u32,
    pub network: A,
}

/// Value of `VTEPS4/6`: where the tunnel to a pod network ends. 12 and 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vtep<A> {
    /// The node's address on the underlay, of the same family as its pods' (as flannel has it).
    pub underlay: A,
    /// Of the node's tunnel device.
    pub mac: Mac,
    /// 1 if packets to the node leave by [`Tunnel::uplink`], as they are; 0 if the tunnel device
    /// has to find their way.
    pub by_uplink: u8,
    /// 1 if the node answers clients outside by itself: what they sent to a Service's address may come
    /// through the tunnel as it is.
    pub answers: u8,
}

/// Key of the hash table `SENDERS`: the tunnel device of a node that frames may come from.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Sender {
    pub mac: Mac,
    pub pad: u16,
}

/// The one row of the array `TUNNELS`: what the agent tells the programs. 92 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tunnel {
    /// In this machine's byte order, like all that follows but addresses.
    pub vni: u32,
    /// Interface index of the tunnel device.
    pub device: u32,
    /// Largest packet that fits into the tunnel.
    pub mtu: u32,
    /// Of the tunnel device; other nodes know it as this node's.
    pub mac4: Mac,
    /// The same for IPv6: another where flanneld had a device for each family.
    pub mac6: Mac,
    /// One of [`fast_path`].
    pub fast_path: u8,
    pub pad: [u8; 3],
    /// Outer source addresses, as published.
    pub underlay4: Ipv4,
    pub underlay6: Ipv6,
    /// The node's own pod networks; a length of zero if it has none of the family.
    pub pods4: NetworkKey<Ipv4>,
    pub pods6: NetworkKey<Ipv6>,
    /// [`crate::settings::Settings::ipv6_checksum_flags`].
    pub ipv6_checksum_flags: u32,
    /// Interface index of the device toward the other nodes; zero where the tunnel device alone
    /// is to encapsulate and decapsulate.
    pub uplink: u32,
    /// UDP port of the tunnels.
    pub port: Be16,
    /// Those that packets into a tunnel come from.
    pub first_source_port: u16,
    pub last_source_port: u16,
    pub end: u16,
}

/// The one row of the per-CPU array `TRAFFIC`: packets that passed the tunnel device by, of which
/// its own counters do not tell. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// A GSO packet is one packet, and bytes are those from the network header on: both as the
    /// device counts.
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
}

/// Whether packets pass bridge and IP stack by.
pub mod fast_path {
    pub const OFF: u8 = 0;
    /// Into the tunnel, by its device; out of it they pass both, where other programs see them.
    pub const ONE_WAY: u8 = 1;
    /// Both ways, unless the Service proxy may have something to translate.
    pub const STRAIGHT: u8 = 2;
}

/// A family's part of a [`Tunnel`].
pub trait Inner: Family {
    fn underlay(tunnel: &Tunnel) -> Self::Address;
    fn mac(tunnel: &Tunnel) -> Mac;
    fn pods(tunnel: &Tunnel) -> NetworkKey<Self::Address>;
}

impl Inner for V4 {
    #[inline(always)]
    fn underlay(tunnel: &Tunnel) -> Ipv4 {
        tunnel.underlay4
    }

    #[inline(always)]
    fn mac(tunnel: &Tunnel) -> Mac {
        tunnel.mac4
    }

    #[inline(always)]
    fn pods(tunnel: &Tunnel) -> NetworkKey<Ipv4> {
        tunnel.pods4
    }
}

impl Inner for V6 {
    #[inline(always)]
    fn underlay(tunnel: &Tunnel) -> Ipv6 {
        tunnel.underlay6
    }

    #[inline(always)]
    fn mac(tunnel: &Tunnel) -> Mac {
        tunnel.mac6
    }

    #[inline(always)]
    fn pods(tunnel: &Tunnel) -> NetworkKey<Ipv6> {
        tunnel.pods6
    }
}

impl<A> NetworkKey<A> {
    /// Of a network by its first address and its length in bits.
    pub fn new(network: impl Into<A>, prefix: u8) -> Self {
        Self { prefix_len: prefix.into(), network: network.into() }
    }
}

impl<A: Address> NetworkKey<A> {
    /// False for the network of length zero, which stands for none.
    #[inline(always)]
    pub fn contains(&self, address: A) -> bool {
        self.prefix_len != 0 && self.network.shares(address, self.prefix_len)
    }
}

/// Access to the overlay's tables of one family.
pub trait Tunnels<F: Network>: Homes<F> {
    fn tunnel(&mut self) -> Tunnel;
    /// Monotonic clock in units of [`crate::flow::TICK_NS`].
    fn now(&mut self) -> u32;
    /// The end of the tunnel to the narrowest network that holds the address.
    fn vtep(&mut self, destination: F::Address) -> Option<Vtep<F::Address>>;
    fn is_sender(&mut self, sender: Sender) -> bool;
    /// True if the Service proxy may have a row for packets on a [`crate::hash::way`], where they
    /// leave the node or leave it toward a pod.
    fn is_translated(&mut self, way: u32) -> bool;
    /// The row of `TRAFFIC`, to be added to.
    fn traffic(&mut self) -> Option<&mut Traffic>;
    fn count_drop(&mut self, hook: Hook, reason: Reason);
}

/// A packet in an Ethernet frame that goes into a tunnel or came out of one.
pub trait Frame: Packet {
    /// Destination and source.
    fn hardware(&self) -> Option<(Mac, Mac)>;

    /// Writes destination and source, and behind the frame's type the first three words of the
    /// packet: one write, because each is a call of the kernel.
    fn store_hardware(&mut self, to: Mac, from: Mac, words: [u32; 3]) -> Option<()>;

    /// Has the node take the frame for one to itself, although its destination is not the
    /// device's own.
    fn adopt(&mut self) -> Option<()>;

    /// The network identifier that the frame came with; `None` if it came by no tunnel.
    fn vni<F: Network>(&self) -> Option<u32>;

    /// Says where the tunnel device is to send the frame. Takes the mark off it, which the outer
    /// packet would keep: a netfilter of this node would take it for what the mark says (flannel
    /// #1279, kubernetes #88986).
    fn send_to<F: Network + Inner>(
        &mut self,
        tunnel: &Tunnel,
        vtep: &Vtep<F::Address>,
    ) -> Option<()>;

    /// True if [`Frame::mark_sent`] was said of the frame before; the mark is taken off.
    fn take_sent(&mut self) -> bool;

    /// Notes for the tunnel device's own programs that the frame has been dealt with.
    fn mark_sent(&mut self);

    /// Payload of each packet that a GSO packet becomes; zero if it is none.
    fn segment(&self) -> u32;

    /// A number that all packets of one flow have, and few others.
    fn flow_hash(&self) -> u32;

    /// A number that nobody can foretell.
    fn random(&self) -> u32;

    /// Makes room for a tunnel's headers, [`crate::vxlan::OVERHEAD`] bytes, between link layer and
    /// packet, so that segments of a GSO packet each get them. Where that fails, nothing changed.
    fn encapsulate(&mut self) -> Option<()>;

    /// Takes as much away. Where that fails, nothing changed.
    fn decapsulate(&mut self) -> Option<()>;

    /// Writes a tunnel's headers where [`Frame::encapsulate`] has made room, and takes the mark
    /// off; see [`Frame::send_to`].
    fn store_outer(&mut self, outer: &Outer) -> Option<()>;
}
