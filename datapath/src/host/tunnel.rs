//! A frame and the overlay's tables, in memory.

use std::collections::HashMap;

use super::buffer::Buffer;
use crate::{
    address::{Address, Mac},
    counter::{Hook, Reason},
    header::Network,
    home::{Home, Homes},
    packet::{Covers, Packet},
    tunnel::{Frame, Inner, NetworkKey, Sender, Traffic, Tunnel, Tunnels, Vtep},
    vxlan::{OVERHEAD, Outer},
};

/// A packet in its frame, as a device of the overlay has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    pub packet: Buffer,
    pub to: Mac,
    pub from: Mac,
    /// The tunnel that it came by.
    pub vni: Option<u32>,
    /// Where the tunnel device is to send it: network identifier, outer destination and source.
    pub sent: Option<(u32, [u32; 4], [u32; 4])>,
    pub is_marked: bool,
    pub is_adopted: bool,
    pub segment: u32,
    /// What the kernel answers: of the flow, and of chance.
    pub hash: u32,
    pub random: u32,
    /// What the kernel does not do, if anything.
    pub refusal: Option<Refusal>,
}

/// What the kernel may refuse to do to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// To make it longer or shorter.
    Room,
    /// To let it be written to.
    Write,
}

impl Framed {
    #[must_use]
    pub fn new(bytes: Vec<u8>, to: Mac, from: Mac) -> Self {
        Self {
            packet: Buffer::new(bytes),
            to,
            from,
            vni: None,
            sent: None,
            is_marked: false,
            is_adopted: false,
            segment: 0,
            hash: 0,
            random: 0,
            refusal: None,
        }
    }
}

impl Packet for Framed {
    fn len(&self) -> u32 {
        self.packet.len()
    }

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.packet.load(offset)
    }

    fn words<const W: usize>(&self, offset: u32) -> Option<[u32; W]> {
        self.packet.words(offset)
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.packet.store(offset, bytes)
    }

    fn store_words<const W: usize>(&mut self, offset: u32, words: &[u32; W]) -> Option<()> {
        self.packet.store_words(offset, words)
    }

    fn change_transport_checksum(
        &mut self,
        offset: u32,
        difference: u32,
        covers: Covers,
        zero_is_none: bool,
    ) -> Option<()> {
        self.packet.change_transport_checksum(offset, difference, covers, zero_is_none)
    }

    fn resize(&mut self, length: u32) -> Option<()> {
        self.packet.resize(length)
    }

    fn shed(&mut self, length: u32) -> Option<()> {
        self.packet.shed(length)
    }
}

impl Frame for Framed {
    fn hardware(&self) -> Option<(Mac, Mac)> {
        Some((self.to, self.from))
    }

    fn store_hardware(&mut self, to: Mac, from: Mac, words: [u32; 3]) -> Option<()> {
        if self.refusal == Some(Refusal::Write) {
            return None;
        }
        (self.to, self.from) = (to, from);
        self.packet.store_words(0, &words)
    }

    fn adopt(&mut self) -> Option<()> {
        self.is_adopted = true;
        Some(())
    }

    fn vni<F: Network>(&self) -> Option<u32> {
        self.vni
    }

    fn send_to<F: Network + Inner>(
        &mut self,
        tunnel: &Tunnel,
        vtep: &Vtep<F::Address>,
    ) -> Option<()> {
        self.sent = Some((tunnel.vni, vtep.underlay.words(), F::underlay(tunnel).words()));
        Some(())
    }

    fn take_sent(&mut self) -> bool {
        std::mem::take(&mut self.is_marked)
    }

    fn mark_sent(&mut self) {
        self.is_marked = true;
    }

    fn segment(&self) -> u32 {
        self.segment
    }

    fn flow_hash(&self) -> u32 {
        self.hash
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn encapsulate(&mut self) -> Option<()> {
        if self.refusal == Some(Refusal::Room) {
            return None;
        }
        self.packet.bytes.splice(0..0, [0; OVERHEAD as usize]);
        Some(())
    }

    fn decapsulate(&mut self) -> Option<()> {
        if self.refusal == Some(Refusal::Room) {
            return None;
        }
        self.packet.shed(OVERHEAD)
    }

    fn store_outer(&mut self, outer: &Outer) -> Option<()> {
        self.is_marked = false;
        if self.refusal == Some(Refusal::Write) {
            return None;
        }
        self.packet.store(0, &outer.bytes())
    }
}

/// A row of `VTEPS4/6`.
pub type VtepRow<A> = (NetworkKey<A>, Vtep<A>);

/// The tables of one family.
#[derive(Debug)]
pub struct MemoryTunnels<F: Network> {
    pub tunnel: Tunnel,
    pub now: u32,
    pub vteps: Vec<VtepRow<F::Address>>,
    pub senders: Vec<Sender>,
    pub homes: HashMap<F::Address, Home>,
    /// Pairs of addresses between which the proxy translates.
    pub translated: Vec<u32>,
    pub traffic: Traffic,
    pub drops: Vec<(Hook, Reason)>,
}

impl<F: Network> Default for MemoryTunnels<F> {
    fn default() -> Self {
        Self {
            tunnel: Tunnel::default(),
            now: 0,
            vteps: Vec::new(),
            senders: Vec::new(),
            homes: HashMap::new(),
            translated: Vec::new(),
            traffic: Traffic::default(),
            drops: Vec::new(),
        }
    }
}

impl<F: Network> Homes<F> for MemoryTunnels<F> {
    fn home(&mut self, pod: F::Address) -> Option<&mut Home> {
        self.homes.get_mut(&pod)
    }

    fn settle(&mut self, pod: F::Address, home: Home) {
        self.homes.insert(pod, home);
    }
}

impl<F: Network> Tunnels<F> for MemoryTunnels<F> {
    fn tunnel(&mut self) -> Tunnel {
        self.tunnel
    }

    fn now(&mut self) -> u32 {
        self.now
    }

    fn vtep(&mut self, destination: F::Address) -> Option<Vtep<F::Address>> {
        let holding = self.vteps.iter().filter(|(network, _)| network.contains(destination));
        holding.max_by_key(|(network, _)| network.prefix_len).map(|(_, vtep)| *vtep)
    }

    fn is_sender(&mut self, sender: Sender) -> bool {
        self.senders.contains(&sender)
    }

    fn is_translated(&mut self, way: u32) -> bool {
        self.translated.contains(&way)
    }

    fn traffic(&mut self) -> Option<&mut Traffic> {
        Some(&mut self.traffic)
    }

    fn count_drop(&mut self, hook: Hook, reason: Reason) {
        self.drops.push((hook, reason));
    }
}
