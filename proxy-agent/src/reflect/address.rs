//! Addresses and CIDRs as Kubernetes writes and checks them.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::Report;

/// What an address is used as decides what it may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Other nodes and pods must be able to reach it (ValidateNonSpecialIP of
    /// pkg/apis/core/validation).
    Reachable,
    /// Anything but the unspecified address and multicast.
    Any,
}

impl Report<'_> {
    pub(super) fn address(&mut self, field: &str, text: &str, usage: Use) -> Option<IpAddr> {
        let Some(address) = parse(text) else {
            self.refuse(field, format!("{text:?} is no IP address; write one such as 10.0.0.1"));
            return None;
        };
        if let Some(what) = special(address).filter(|what| usage == Use::Reachable || what.1) {
            self.refuse(field, format!("{address} is {}; nothing can be reached there", what.0));
            return None;
        }
        Some(address)
    }

    pub(super) fn network(&mut self, field: &str, text: &str) -> Option<IpNetwork> {
        let text = text.trim();
        let network = text
            .split_once('/')
            .and_then(|(address, prefix)| Some((parse(address)?, prefix.parse().ok()?)))
            .and_then(|(address, prefix)| IpNetwork::new(address, prefix).ok());
        if network.is_none() {
            self.refuse(field, format!("{text:?} is no CIDR; write one such as 10.0.0.0/8"));
        }
        network
    }
}

/// Go before 1.17 took leading zeros for decimal, and addresses written so are still about
/// (CVE-2021-29923). Addresses of IPv4 written as IPv6 are refused: no table holds them.
fn parse(text: &str) -> Option<IpAddr> {
    match text.parse() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => None,
        Ok(address) => Some(address),
        Err(_) => parse_with_zeros(text).map(IpAddr::V4),
    }
}

fn parse_with_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// What is special about it, and whether that rules out every use.
fn special(address: IpAddr) -> Option<(&'static str, bool)> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some(("the unspecified address", true))
    } else if address.is_multicast() {
        Some(("a multicast address", true))
    } else if address.is_loopback() {
        Some(("a loopback address", false))
    } else if link_local {
        Some(("a link-local address", false))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse("010.096.000.001"), "10.96.0.1".parse().ok());
        assert_eq!(parse("10.96.0.256"), None);
        assert_eq!(parse("10.96.0"), None);
        assert_eq!(parse("10.96.0.1.1"), None);
        assert_eq!(parse("10.96..1"), None);
        assert_eq!(parse("+1.2.3.4"), None);
    }

    #[test]
    fn v4_in_v6_is_refused() {
        assert_eq!(parse("::ffff:10.0.0.1"), None);
    }
}
