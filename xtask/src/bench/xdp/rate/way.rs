//! The ways a frame can take through the node that is asked.

use crate::bench::proxy::Mode;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Dropped by the driver of the node: what it costs to make a frame.
    Dropped,
    /// Both agents, `--xdp native`.
    Native,
    /// Both agents, `--xdp off`.
    PacketPath,
    /// The kernel's routing and its tunnel device, with nobody who translates or tracks.
    Forwarded,
    /// The same, behind rules that do what kube-proxy's do, for this one Service.
    Rules,
    /// The same, behind the real kube-proxy.
    KubeProxy(Mode),
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped by the driver (what a frame costs to make)",
            Self::Native => "Millrace, `--xdp native`",
            Self::PacketPath => "Millrace, packet path",
            Self::Forwarded => "kernel, routed to the pod, no NodePort",
            Self::Rules => "kernel, NodePort by three rules of nftables",
            Self::KubeProxy(Mode::Nftables) => "kernel, NodePort by kube-proxy, nftables",
            Self::KubeProxy(Mode::Iptables) => "kernel, NodePort by kube-proxy, iptables",
        }
    }

    /// For what is printed on the way.
    pub(super) fn short(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Native => "native",
            Self::PacketPath => "packet path",
            Self::Forwarded => "routed",
            Self::Rules => "rules",
            Self::KubeProxy(mode) => mode.name(),
        }
    }

    /// Of the agents' overlay, if there is one.
    pub(super) fn overlay(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Dropped => None,
            Self::Native | Self::PacketPath => Some(&[]),
            // flanneld's devices, neighbours and routes.
            Self::Forwarded | Self::Rules | Self::KubeProxy(_) => Some(&["--datapath=kernel"]),
        }
    }

    /// The `--xdp` of the node that is asked, where the agent serves it.
    pub(super) fn xdp(self) -> Option<&'static str> {
        match self {
            Self::Native => Some("native"),
            Self::PacketPath => Some("off"),
            _ => None,
        }
    }
}
