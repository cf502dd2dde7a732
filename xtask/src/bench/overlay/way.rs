//! How packets get from one node to the other.

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    /// From node to node, no pod in it: the limit.
    Nodes,
    /// From pod to pod by flannel-agent's programs, past bridge and IP stack.
    FastPath,
    /// The same programs behind bridge and IP stack.
    SlowPath,
    /// A classic VXLAN device with an entry for each peer, and the rules that flanneld makes.
    Classic,
    /// The real flanneld.
    Flanneld,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nodes => "node to node",
            Self::FastPath => "eBPF, fast path on",
            Self::SlowPath => "eBPF, fast path off",
            Self::Classic => "kernel VXLAN with flanneld's rules",
            Self::Flanneld => "flanneld 0.28.4",
        }
    }

    /// Whether programs of ours carry the packets.
    pub(super) fn has_programs(self) -> bool {
        matches!(self, Self::FastPath | Self::SlowPath)
    }

    /// Whether rules of netfilter see them.
    pub(super) fn has_rules(self) -> bool {
        matches!(self, Self::Classic | Self::Flanneld)
    }
}
