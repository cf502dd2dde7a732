//! What serves Services on a node while something is measured.

use lab::agent::SocketLb;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proxy {
    Agent(SocketLb),
    /// The real one.
    KubeProxy(Mode),
}

/// A mode of kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub(super) const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    /// As `--proxy-mode` has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

impl Proxy {
    pub(super) fn is_agent(self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// For the column of the agent's `--socket-lb`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agent(socket_lb) => socket_lb.name(),
            Self::KubeProxy(Mode::Nftables) => "kube-proxy, nftables",
            Self::KubeProxy(Mode::Iptables) => "kube-proxy, iptables",
        }
    }
}
