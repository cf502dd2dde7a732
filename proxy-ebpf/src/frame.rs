//! A socket buffer as the engine's frame, which goes into a tunnel or came out of one.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET,
        BPF_F_TUNINFO_IPV6, bpf_tunnel_key,
    },
    helpers::generated as helper,
    programs::TcContext,
};
use datapath::{
    address::{Address, Mac},
    header::Network,
    packet::Packet,
    tunnel::{Frame, Inner, Tunnel, Vtep},
    vxlan::{OUTER, OVERHEAD, Outer},
};

use crate::{
    linear::hardware,
    skb::{ADJUST_ROOM_MAC, ETHERNET, PACKET_HOST, Skb},
};

/// Size of the structure, as the kernel's helpers are to know it (with the local address, which
/// came with Linux 6.0).
const KEY: u32 = size_of::<bpf_tunnel_key>() as u32;

/// Headers of VXLAN over IPv4 are put before a packet. Pods' segments leave room for them as they
/// are, and what is known of checksums stays true of the packet in the tunnel.
const ENCAPSULATE: u32 = BPF_F_ADJ_ROOM_FIXED_GSO
    | BPF_F_ADJ_ROOM_NO_CSUM_RESET
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
/// Where in the flags stands the length of an inner link layer header
/// (`BPF_ADJ_ROOM_ENCAP_L2_SHIFT`).
const L2_SHIFT: u64 = 56;

/// `skb->mark` of a frame between the program that sent it to the tunnel device and that device's
/// own. Nobody else sees it.
const SENT: u32 = 0x4d52_0001;

/// True for a frame of a VLAN, which is for another device than the one it is seen on.
#[inline(always)]
pub fn is_tagged(context: &TcContext) -> bool {
    // SAFETY: the kernel's context.
    unsafe { (*context.skb.skb).vlan_present != 0 }
}

impl Skb<'_> {
    /// The tunnel that the frame came by, of one family.
    #[inline(always)]
    fn tunnel_id(&self, flags: u32) -> Option<u32> {
        let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
        let skb = self.context.as_ptr().cast();
        // SAFETY: the helper writes all of the structure, also where it fails.
        unsafe {
            let failed = helper::bpf_skb_get_tunnel_key(skb, key.as_mut_ptr(), KEY, flags.into());
            (failed == 0).then(|| (*key.as_ptr()).tunnel_id)
        }
    }
}

impl Frame for Skb<'_> {
    #[inline(always)]
    fn hardware(&self) -> Option<(Mac, Mac)> {
        hardware(self.context)
    }

    #[inline(always)]
    fn store_hardware(&mut self, to: Mac, from: Mac, words: [u32; 3]) -> Option<()> {
        self.store_begin(to, from, words)
    }

    #[inline(always)]
    fn adopt(&mut self) -> Option<()> {
        let skb = self.context.as_ptr().cast();
        // SAFETY: the helper takes numbers.
        let result = unsafe { helper::bpf_skb_change_type(skb, PACKET_HOST) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn vni<F: Network>(&self) -> Option<u32> {
        let (first, second) = if F::V6 { (BPF_F_TUNINFO_IPV6, 0) } else { (0, BPF_F_TUNINFO_IPV6) };
        self.tunnel_id(first).or_else(|| self.tunnel_id(second))
    }

    #[inline(always)]
    fn send_to<F: Network + Inner>(
        &mut self,
        tunnel: &Tunnel,
        vtep: &Vtep<F::Address>,
    ) -> Option<()> {
        self.set_mark(0);
        // SAFETY: plain numbers.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = tunnel.vni;
        let (remote, local) = (vtep.underlay.words(), F::underlay(tunnel).words());
        let flags = if F::V6 {
            key.__bindgen_anon_1.remote_ipv6 = remote;
            key.__bindgen_anon_3.local_ipv6 = local;
            BPF_F_TUNINFO_IPV6
        } else {
            // The helper wants IPv4 in this machine's byte order.
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote[0]);
            key.__bindgen_anon_3.local_ipv4 = u32::from_be(local[0]);
            0
        };
        let skb = self.context.as_ptr().cast();
        // SAFETY: the helper reads the structure.
        let result =
            unsafe { helper::bpf_skb_set_tunnel_key(skb, &raw mut key, KEY, flags.into()) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn take_sent(&mut self) -> bool {
        // SAFETY: the kernel's context.
        let is_sent = self.mark() == SENT;
        if is_sent {
            self.set_mark(0);
        }
        is_sent
    }

    #[inline(always)]
    fn mark_sent(&mut self) {
        self.set_mark(SENT);
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (*self.context.skb.skb).gso_size }
    }

    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        // SAFETY: the helper takes the kernel's context.
        (unsafe { helper::bpf_get_hash_recalc(self.context.as_ptr().cast()) }) as u32
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing.
        (unsafe { helper::bpf_get_prandom_u32() }) as u32
    }

    #[inline(always)]
    fn encapsulate(&mut self) -> Option<()> {
        let flags = ENCAPSULATE as u64 | (ETHERNET as u64) << L2_SHIFT;
        let skb = self.context.as_ptr().cast();
        // SAFETY: the helper takes numbers.
        let result =
            unsafe { helper::bpf_skb_adjust_room(skb, OVERHEAD as i32, ADJUST_ROOM_MAC, flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn decapsulate(&mut self) -> Option<()> {
        let flags = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET).into();
        let (skb, less) = (self.context.as_ptr().cast(), -(OVERHEAD as i32));
        // SAFETY: the helper checks the length against the packet.
        let result = unsafe { helper::bpf_skb_adjust_room(skb, less, ADJUST_ROOM_MAC, flags) };
        if result != 0 {
            return None;
        }
        // A checksum that the device has verified is the outer one, as far as one can know.
        // SAFETY: the helper takes numbers.
        let _ = unsafe { helper::bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC.into()) };
        Some(())
    }

    #[inline(always)]
    fn store_outer(&mut self, outer: &Outer) -> Option<()> {
        self.set_mark(0);
        let skb = self.context.as_ptr().cast();
        let from = core::ptr::from_ref(outer).cast();
        // SAFETY: the helper checks the bounds of the packet; the structure has these bytes.
        let result = unsafe { helper::bpf_skb_store_bytes(skb, ETHERNET, from, OUTER, 0) };
        (result == 0).then_some(())
    }
}
