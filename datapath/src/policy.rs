//! Which flows are masqueraded, by flannel's rules (`pkg/trafficmngr/iptables`).

use crate::{
    address::{Address, Family, Ipv4, Ipv6, V4, V6},
    tunnel::NetworkKey,
};

/// Bit of `skb->mark` by which proxy-agent says that it is the one to masquerade the packet's flow. Not
/// kube-proxy's, whose rules, where they are on the node as well, would do it first.
pub const MASQUERADE_MARK: u32 = 0x1000;
/// The same of kube-proxy's, by default.
pub const KUBE_PROXY_MARK: u32 = 0x4000;

/// The one row of the array `POLICIES`: what the agent tells the programs. All zero masquerades
/// nothing. 60 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    pub v4: Networks<Ipv4>,
    pub v6: Networks<Ipv6>,
    /// First and last source port to masquerade with, in this machine's byte order.
    pub nat_port_first: u16,
    pub nat_port_last: u16,
}

/// The networks of one family; a length of zero where there is none. 16 and 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Networks<A> {
    /// Of all nodes' pods.
    pub all: NetworkKey<A>,
    /// Of this node's pods.
    pub own: NetworkKey<A>,
}

impl<A: Address> Networks<A> {
    /// True if a flow from `src` to `dst` is masqueraded at the device that it leaves by.
    #[inline(always)]
    pub fn masquerades(&self, src: A, dst: A) -> bool {
        // To a pod of this node: the pod sees who asks.
        if self.own.contains(dst) {
            return false;
        }
        if !self.all.contains(src) {
            // From outside to a pod elsewhere, whose answer would not pass here.
            return self.all.contains(dst);
        }
        // From a pod of this node to a pod elsewhere, or to many.
        !(dst.is_multicast() || self.own.contains(src) && self.all.contains(dst))
    }
}

/// A family's part of a [`Policy`].
pub trait Policed: Family {
    fn networks(policy: &Policy) -> &Networks<Self::Address>;
}

impl Policed for V4 {
    #[inline(always)]
    fn networks(policy: &Policy) -> &Networks<Ipv4> {
        &policy.v4
    }
}

impl Policed for V6 {
    #[inline(always)]
    fn networks(policy: &Policy) -> &Networks<Ipv6> {
        &policy.v6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Ipv4 {
        Ipv4::from(text.parse::<core::net::Ipv4Addr>().unwrap())
    }

    #[test]
    fn flannels_rules() {
        let networks = Networks {
            all: NetworkKey { prefix_len: 16, network: v4("10.244.0.0") },
            own: NetworkKey { prefix_len: 24, network: v4("10.244.1.0") },
        };
        let (pod, device, far, out) = ("10.244.1.7", "10.244.1.0", "10.244.2.7", "192.0.2.1");
        for (src, dst, expected) in [
            (pod, far, false),
            (device, far, false),
            (far, pod, false),
            (out, pod, false),
            (pod, pod, false),
            (pod, out, true),
            (far, out, true),
            (pod, "224.0.0.251", false),
            (out, "224.0.0.251", false),
            (out, far, true),
            // Through this node from one to another.
            (far, "10.244.3.7", true),
            (out, "198.51.100.1", false),
        ] {
            assert_eq!(networks.masquerades(v4(src), v4(dst)), expected, "{src} → {dst}");
        }
        let none = Networks::default();
        assert!(!none.masquerades(v4(pod), v4(out)) && !none.masquerades(v4(out), v4(far)));
    }
}
