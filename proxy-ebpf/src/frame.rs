//! A socket buffer as the engine's frame, which goes into a tunnel or came out of one.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key},
    helpers::generated as helper,
};
use datapath::{
    address::Address,
    header::Network,
    tunnel::{Frame, Inner, Mac, Tunnel, Vtep},
};

use crate::{
    linear::{self, word},
    skb::{ETHERNET, PACKET_HOST, Skb},
};

/// Size of the structure, as the kernel's helpers are to know it (with the local address, which
/// came with Linux 6.0).
const KEY: u32 = size_of::<bpf_tunnel_key>() as u32;

/// `skb->mark` of a frame between the program that sent it to the tunnel device and that device's
/// own. Nobody else sees it.
const SENT: u32 = 0x4d52_0001;

/// The begin of a frame: link layer, and three words of the packet. 26 bytes.
#[repr(C, packed(2))]
struct Begin {
    to: Mac,
    from: Mac,
    kind: u16,
    words: [u32; 3],
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

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: the kernel's context, whose mark programs may write.
        unsafe { (&raw mut (*self.context.skb.skb).mark).write_volatile(mark) };
    }
}

impl Frame for Skb<'_> {
    #[inline(always)]
    fn hardware(&self) -> Option<(Mac, Mac)> {
        let network = linear::at(self.context, 0, 0)?;
        // SAFETY: `at` has checked that all before the network header is there.
        let [a, b, c] = unsafe {
            let start = network.sub(ETHERNET as usize);
            [word(start), word(start.add(4)), word(start.add(8))].map(u32::to_ne_bytes)
        };
        let to = Mac([a[0], a[1], a[2], a[3], b[0], b[1]]);
        Some((to, Mac([b[2], b[3], c[0], c[1], c[2], c[3]])))
    }

    #[inline(always)]
    fn store_hardware(&mut self, to: Mac, from: Mac, words: [u32; 3]) -> Option<()> {
        // SAFETY: the kernel's context.
        let kind = unsafe { (*self.context.skb.skb).protocol } as u16;
        let begin = Begin { to, from, kind, words };
        let skb = self.context.as_ptr().cast();
        let (from, length) = ((&raw const begin).cast(), size_of::<Begin>() as u32);
        // SAFETY: the helper checks the bounds of the packet; the structure has these bytes.
        let result = unsafe { helper::bpf_skb_store_bytes(skb, 0, from, length, 0) };
        (result == 0).then_some(())
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
        let is_sent = unsafe { (*self.context.skb.skb).mark } == SENT;
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
}
