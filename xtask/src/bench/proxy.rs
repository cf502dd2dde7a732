//! What serves Services on a node while traffic is measured.

use lab::agent::SocketLb;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proxy {
    Agent(SocketLb),
    /// The real one, in nftables mode.
    KubeProxy,
}

impl Proxy {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agent(socket_lb) => socket_lb.name(),
            Self::KubeProxy => "kube-proxy",
        }
    }
}
