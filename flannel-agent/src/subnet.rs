//! A node's share of the pod network: one network a family, and the key it is leased under.

use std::{fmt, net::IpAddr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// The pod addresses of one node. At least one family is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Subnet {
    pub v4: Option<Ipv4Network>,
    pub v6: Option<Ipv6Network>,
}

impl Subnet {
    /// One of each family at most: the first, as flanneld takes them.
    pub fn from_networks(networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        let mut subnet = Self::default();
        for network in networks {
            match network {
                IpNetwork::V4(v4) => subnet.v4 = subnet.v4.or(Some(v4)),
                IpNetwork::V6(v6) => subnet.v6 = subnet.v6.or(Some(v6)),
            }
        }
        subnet
    }

    pub fn networks(self) -> impl Iterator<Item = IpNetwork> {
        self.v4.map(IpNetwork::V4).into_iter().chain(self.v6.map(IpNetwork::V6))
    }

    /// The network of one family.
    pub fn of(self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.v4.map(IpNetwork::V4),
            Family::V6 => self.v6.map(IpNetwork::V6),
        }
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.networks().any(|one| other.networks().any(|two| overlap(one, two)))
    }

    /// The last part of the key: `10.5.52.0-24`, or `10.5.52.0-24&fd00:10:244:1::-64`.
    /// `None` without IPv4, for which flannel's keys have no form.
    pub fn key(self) -> Option<String> {
        let v4 = self.v4?;
        let v4 = format!("{}-{}", v4.network(), v4.prefix());
        Some(match self.v6 {
            Some(v6) => format!("{v4}&{}-{}", v6.network(), v6.prefix()),
            None => v4,
        })
    }

    /// What a key says. The rules are flanneld's, whose expression is not anchored at the start:
    /// `(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`. Upper-case digits do not parse.
    pub fn parse_key(key: &str) -> Option<Self> {
        let (v4, v6) = match key.rsplit_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (key, None),
        };
        let is_other = |c: char| !c.is_ascii_digit() && c != '.' && c != '-';
        let v4 = v4.rsplit(is_other).next()?;
        let (address, len) = v4.split_once('-')?;
        let v4 = Ipv4Network::new(address.parse().ok()?, length(len, 31)?).ok()?;
        let v6 = match v6 {
            None => None,
            Some(text) => {
                let (address, len) = text.split_once('-')?;
                let is_small = |c: char| matches!(c, 'a'..='f' | '0'..='9' | ':');
                if !address.chars().all(is_small) {
                    return None;
                }
                Some(Ipv6Network::new(address.parse().ok()?, length(len, 127)?).ok()?)
            }
        };
        Some(Self { v4: Some(masked4(v4)), v6: v6.map(masked6) })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.networks().map(|network| network.to_string()).collect();
        f.write_str(&networks.join(","))
    }
}

/// A length of a key. flanneld reads it into five bits, or seven for IPv6.
fn length(text: &str, most: u8) -> Option<u8> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let len = is_number.then(|| text.parse().ok()).flatten()?;
    (len <= most).then_some(len)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// As `-o json` and metrics say it.
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// The same network with no bit set behind its length, as Go's `ParseCIDR` gives it.
pub fn masked(network: IpNetwork) -> IpNetwork {
    match network {
        IpNetwork::V4(v4) => IpNetwork::V4(masked4(v4)),
        IpNetwork::V6(v6) => IpNetwork::V6(masked6(v6)),
    }
}

fn masked4(network: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network)
}

fn masked6(network: Ipv6Network) -> Ipv6Network {
    Ipv6Network::new(network.network(), network.prefix()).unwrap_or(network)
}

/// Whether two networks share an address: then one holds the other's first.
pub fn overlap(one: IpNetwork, two: IpNetwork) -> bool {
    one.contains(two.network()) || two.contains(one.network())
}

/// An address as a number, so that both families are counted alike.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with that number.
pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_flannels() {
        let subnet =
            Subnet { v4: "10.5.52.0/24".parse().ok(), v6: "fd00:10:244:1::/64".parse().ok() };
        assert_eq!(subnet.key().unwrap(), "10.5.52.0-24&fd00:10:244:1::-64");
        assert_eq!(Subnet { v6: None, ..subnet }.key().unwrap(), "10.5.52.0-24");
        assert_eq!(Subnet { v4: None, ..subnet }.key(), None);
        assert_eq!(
            Subnet::parse_key("/coreos.com/network/subnets/10.5.52.0-24"),
            Some(Subnet { v6: None, ..subnet })
        );
    }

    #[test]
    fn keys_that_flanneld_skips_are_skipped() {
        for key in [
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&FD00::-64",
            "10.12.13.0-32",
            "10.12.13.0-24&fd00::-128",
            "10.12.13.0-+24",
            "",
        ] {
            assert_eq!(Subnet::parse_key(key), None, "{key}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v4: u32, len4 in 0_u8..=31, v6: u128, len6 in 0_u8..=127, dual: bool) {
            let v4 = masked4(Ipv4Network::new(v4.into(), len4).unwrap());
            let v6 = masked6(Ipv6Network::new(v6.into(), len6).unwrap());
            let subnet = Subnet { v4: Some(v4), v6: dual.then_some(v6) };
            // An address like ::ffff:1.2.3.4 has no form in flannel's keys.
            prop_assume!(!dual || !v6.network().to_string().contains('.'));
            prop_assert_eq!(Subnet::parse_key(&subnet.key().unwrap()), Some(subnet));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = Subnet::parse_key(&text);
        }
    }
}
