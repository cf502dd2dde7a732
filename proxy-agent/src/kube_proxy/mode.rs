//! What a mode of kube-proxy means here: nothing of how packets are translated, but where NodePorts
//! answer unless it is said. Pure.

use std::{fmt, net::Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::config::NodePortAddresses;

/// RFC 1122 §3.2.1.3.
const LOOPBACK: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::new(127, 0, 0, 0), 8).unwrap();
const EVERYTHING: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// A mode, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// kube-proxy's default.
    Iptables {
        /// NodePorts answer at loopback addresses of IPv4 too.
        localhost: bool,
    },
    Ipvs,
    Nftables,
}

impl Mode {
    pub fn of(name: Option<&str>, localhost: bool) -> Self {
        match name {
            Some("ipvs") => Self::Ipvs,
            Some("nftables") => Self::Nftables,
            _ => Self::Iptables { localhost },
        }
    }

    fn has_loopback(self) -> bool {
        self == Self::Iptables { localhost: true }
    }

    /// kube-proxy's default (newProxyServer of cmd/kube-proxy/app and the proxiers): the primary
    /// addresses with nftables, else all local ones, of which only iptables serves 127.0.0.0/8.
    pub fn node_ports(self) -> NodePortAddresses {
        if self == Self::Nftables {
            return NodePortAddresses::primary();
        }
        let cidrs = if self.has_loopback() { vec![LOOPBACK.into()] } else { Vec::new() };
        NodePortAddresses { all: true, cidrs, ..NodePortAddresses::default() }
    }

    /// Where CIDRs mean all of IPv4, be it that they say so or that they say nothing of it, iptables
    /// takes the loopback addresses for a part of it.
    pub fn add_loopback(self, addresses: &mut NodePortAddresses) {
        if !self.has_loopback() || addresses.has_keyword() {
            return;
        }
        let mut of_v4 = addresses.cidrs.iter().filter(|cidr| cidr.is_ipv4());
        let is_silent = of_v4.clone().next().is_none();
        if !is_silent && !of_v4.any(|cidr| cidr.prefix() == 0) {
            return;
        }
        let added = is_silent.then_some(EVERYTHING).into_iter().chain([LOOPBACK]);
        addresses.cidrs.extend(added.map(IpNetwork::from));
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables { .. } => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        })
    }
}
