//! A frame that no socket buffer has been made of, and what else hangs on it, in memory. Its rows are
//! those of [`Memory`].

use std::collections::HashMap;

use super::{buffer::Buffer, memory::Memory};
use crate::{
    address::{Address, Be16, Mac},
    counter::{Hook, Reason},
    flow::{Flow, FlowKey, Place},
    flow_cache::RowOrCopy,
    frontend::{FrontendKey, address_mark, address_use, mark, port_mark},
    hash,
    maps::{MARKS_LEN, PORTMARKS_LEN},
    nexthop::{NextHop, Uplink},
    packet::{Covers, Packet},
    source_rate, syn,
    tables::{FlowTables, Tables},
    tunnel::{Sender, Tunnel},
    underlay::Underlay,
    wire::{Leg, Rows, Wire, Wires},
};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// What the kernel leaves before a frame (`XDP_PACKET_HEADROOM`), without what it keeps there itself.
const ROOM: u32 = 256 - 40;

/// A frame from its link layer's header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// A packet's helpers are those of bytes; offsets here count from the frame's first.
    frame: Buffer,
    /// Bytes that may come before it yet.
    pub room: u32,
}

impl RawFrame {
    /// All of it, fourteen bytes at least.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        assert!(bytes.len() >= ETHERNET, "the kernel runs nothing on less");
        Self { frame: Buffer::new(bytes), room: ROOM }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.frame.bytes
    }
}

const fn at(offset: u32) -> u32 {
    offset + ETHERNET as u32
}

impl Packet for RawFrame {
    fn len(&self) -> u32 {
        self.frame.len() - ETHERNET as u32
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.frame.load(at(offset))
    }

    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]> {
        self.frame.words(at(offset))
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.frame.store(at(offset), bytes)
    }

    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()> {
        self.frame.store_words(at(offset), words)
    }

    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        covers: Covers,
        zero_is_none: bool,
    ) -> Option<()> {
        self.frame.change_transport_checksum(at(offset), difference, covers, zero_is_none)
    }

    fn resize(&mut self, length: u32) -> Option<()> {
        self.frame.resize(at(length))
    }

    /// `bpf_xdp_adjust_head`: a link layer's header at least is left.
    fn shed(&mut self, length: u32) -> Option<()> {
        if length > self.len() {
            return None;
        }
        self.frame.bytes.drain(..length as usize);
        self.room += length;
        Some(())
    }
}

impl Wire for RawFrame {
    fn hardware(&self) -> Option<(Mac, Mac)> {
        self.frame.words(0).map(Mac::of_words)
    }

    fn holds(&self, length: u32) -> bool {
        self.len() >= length
    }

    /// `bpf_xdp_adjust_head`, the other way. Whoever relies on what lies there finds this.
    fn grow(&mut self, length: u32) -> Option<()> {
        self.room = self.room.checked_sub(length)?;
        self.frame.bytes.splice(0..0, std::iter::repeat_n(0xaa, length as usize));
        Some(())
    }

    fn store_link(&mut self, to: Mac, from: Mac, kind: u16) -> Option<()> {
        self.frame.store_words(0, &Mac::words([to, from]))?;
        self.frame.store(12, &kind.to_ne_bytes())
    }
}

impl<F: Underlay> Rows<F> for Memory<F> {
    fn row(&mut self, key: &FlowKey<F::Address>, _now: u32) -> Option<RowOrCopy<'_, F::Address>> {
        self.flows.get_mut(key).map(RowOrCopy::row)
    }

    fn expire(&mut self, _key: &FlowKey<F::Address>) {}

    fn own_row(&mut self, key: &FlowKey<F::Address>) -> Option<&mut Flow<F::Address>> {
        self.flows.get_mut(key)
    }

    fn answers_pings(&mut self, address: F::Address) -> bool {
        Tables::address_use(self, address).is_some_and(|usage| usage.flags & address_use::ECHO != 0)
    }

    fn count(&mut self, leg: Leg) {
        self.carried[leg as usize] += 1;
    }

    fn count_packet(&mut self, leg: Leg, service: u32, bytes: u32) {
        Rows::<F>::count(self, leg);
        FlowTables::count_packet(self, service, bytes);
    }

    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        FlowTables::count_drop(self, hook, reason);
    }

    fn is_over_rate(&mut self, origin: u64) -> bool {
        let interval = self.settings.new_flow_interval;
        let number = self.rates.get_mut(&origin).copied().unwrap_or_default();
        interval != 0 && source_rate::charge(number, self.clock(), interval).is_none()
    }

    fn begin(&mut self, key: &FlowKey<F::Address>, length: u32) -> Option<Place<F::Address>> {
        syn::begin::<F, _>(self, key, length).then(|| self.parties().backend)
    }

    fn is_pending(&mut self, key: &FlowKey<F::Address>) -> bool {
        self.pending.contains(key)
    }

    fn is_frontend(&mut self, key: &FrontendKey<F::Address>) -> bool {
        self.frontends.contains_key(key)
    }
}

/// All but the rows, of one family.
#[derive(Clone, Debug)]
pub struct MemoryWires<F: Underlay> {
    pub now: u32,
    pub uplink: Option<Uplink>,
    /// `ADDRESSMARKS`, `PORTMARKS` and `MARKS`.
    pub uses: Vec<u8>,
    pub ports: Vec<u8>,
    pub marks: Vec<u8>,
    pub tunnel: Tunnel,
    pub senders: Vec<Sender>,
    /// By destination. There is none for the others, as if the array's row were missing.
    pub hops: HashMap<F::Address, NextHop<F::Address>>,
    /// Whose way was asked for, the last one's last: destination and source.
    pub asked: Vec<(F::Address, F::Address)>,
}

impl<F: Underlay> Default for MemoryWires<F> {
    fn default() -> Self {
        Self {
            now: 0,
            uplink: None,
            uses: vec![0; MARKS_LEN],
            ports: vec![0; PORTMARKS_LEN],
            marks: vec![0; MARKS_LEN],
            tunnel: Tunnel::default(),
            senders: Vec::new(),
            hops: HashMap::new(),
            asked: Vec::new(),
        }
    }
}

impl<F: Underlay> MemoryWires<F> {
    /// Marks an address by bits of [`mark`].
    pub fn mark_address(&mut self, address: F::Address, bits: u8) {
        self.uses[address_mark(address)] |= bits;
    }

    pub fn mark_port(&mut self, port: Be16, proto: u8) {
        self.ports[port_mark(port)] |= mark::of_protocol(proto);
    }

    /// Marks the way between two addresses.
    pub fn mark_way(&mut self, from: F::Address, to: F::Address) {
        self.marks[hash::way(from, to) as usize % MARKS_LEN] = 1;
    }
}

impl<F: Underlay> Wires<F> for MemoryWires<F> {
    fn now(&mut self) -> u32 {
        self.now
    }

    fn uplink(&mut self) -> Option<Uplink> {
        self.uplink
    }

    fn uses(&mut self, address: F::Address) -> u8 {
        self.uses[hash::mix(address.fold()) as usize % MARKS_LEN]
    }

    fn is_port(&mut self, port: Be16, proto: u8) -> bool {
        self.ports[port.raw() as usize] & mark::of_protocol(proto) != 0
    }

    fn is_marked(&mut self, way: u32) -> bool {
        self.marks[way as usize % MARKS_LEN] != 0
    }

    fn tunnel(&mut self) -> Tunnel {
        self.tunnel
    }

    fn is_sender(&mut self, sender: Sender, _now: u32) -> bool {
        self.senders.contains(&sender)
    }

    fn next_hop(
        &mut self,
        to: F::Address,
        from: F::Address,
        _now: u32,
    ) -> Option<&NextHop<F::Address>> {
        self.asked.push((to, from));
        self.hops.get(&to)
    }
}
