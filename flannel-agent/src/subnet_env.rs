//! `subnet.env`: what the CNI plugin needs to know, and from where the next start learns which
//! subnet was ours.

use std::fmt::Write;

use ipnetwork::IpNetwork;

use crate::{
    net_config::NetConfig,
    subnet::{Family, Subnet, address, masked, number},
};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetEnv {
    pub networks: Subnet,
    pub subnet: Subnet,
    pub mtu: u32,
    pub ip_masq: bool,
}

impl SubnetEnv {
    pub fn new(config: &NetConfig, subnet: Subnet, mtu: u32, ip_masq: bool) -> Self {
        Self { networks: Subnet::from_networks(config.networks()), subnet, mtu, ip_masq }
    }

    /// As flanneld writes it, to the byte.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (family, name) in [(Family::V4, ""), (Family::V6, "IPV6_")] {
            if let (Some(network), Some(subnet)) =
                (self.networks.of(family), self.subnet.of(family))
            {
                let gateway = gateway(subnet);
                let _ = writeln!(text, "FLANNEL_{name}NETWORK={network}");
                let _ = writeln!(text, "FLANNEL_{name}SUBNET={gateway}/{}", subnet.prefix());
            }
        }
        let _ = writeln!(text, "FLANNEL_MTU={}", self.mtu);
        let _ = writeln!(text, "FLANNEL_IPMASQ={}", self.ip_masq);
        text
    }
}

/// The bridge's address: the first but one of a subnet.
fn gateway(subnet: IpNetwork) -> std::net::IpAddr {
    let network = subnet.network();
    address(Family::of(network), number(network) + 1)
}

/// The subnet that a file of an earlier start tells. What cannot be read counts for nothing:
/// the file is a hint.
pub fn previous(text: &str) -> Subnet {
    let networks = text.lines().filter_map(|line| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        let network: IpNetwork = value.contains('/').then(|| value.parse().ok()).flatten()?;
        match (name.trim(), Family::of(network.network())) {
            ("FLANNEL_SUBNET", Family::V4) | ("FLANNEL_IPV6_SUBNET", Family::V6) => {
                Some(masked(network))
            }
            _ => None,
        }
    });
    Subnet::from_networks(networks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\n\
                        FLANNEL_SUBNET=10.244.1.1/24\n\
                        FLANNEL_IPV6_NETWORK=fd00:10:244::/56\n\
                        FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
                        FLANNEL_MTU=1450\n\
                        FLANNEL_IPMASQ=true\n";

    #[test]
    fn the_file_is_flannels_to_the_byte() {
        let networks =
            Subnet { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
        let subnet =
            Subnet { v4: "10.244.1.0/24".parse().ok(), v6: "fd00:10:244:1::/64".parse().ok() };
        let env = SubnetEnv { networks, subnet, mtu: 1450, ip_masq: true };
        assert_eq!(env.to_text(), DUAL);
        assert_eq!(previous(DUAL), subnet);
        let env = SubnetEnv { networks: Subnet { v6: None, ..networks }, ip_masq: false, ..env };
        assert_eq!(
            env.to_text(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=false\n"
        );
    }

    #[test]
    fn what_cannot_be_read_counts_for_nothing() {
        for text in [
            "",
            "FLANNEL_SUBNET",
            "FLANNEL_SUBNET=",
            "FLANNEL_SUBNET=10.244.1.1",
            "FLANNEL_SUBNET=10.244.1.1/40",
            "FLANNEL_SUBNET=fd00::1/64",
            "# FLANNEL_SUBNET=10.244.1.1/24",
        ] {
            assert_eq!(previous(text), Subnet::default(), "{text}");
        }
        let quoted = previous("export FLANNEL_SUBNET=\"10.244.1.1/24\"\r\nOTHER=1\n");
        assert_eq!(quoted.to_string(), "10.244.1.0/24");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v4: u32, len4 in 8_u8..=30, v6: Option<u128>, len6 in 8_u8..=126) {
            let network = |family, number, len| {
                masked(IpNetwork::new(address(family, number), len).unwrap())
            };
            let subnet = Subnet::from_networks(
                [network(Family::V4, u128::from(v4), len4)].into_iter()
                    .chain(v6.map(|v6| network(Family::V6, v6, len6))),
            );
            let env = SubnetEnv { networks: subnet, subnet, mtu: 1450, ip_masq: false };
            prop_assert_eq!(previous(&env.to_text()), subnet);
        }

        #[test]
        fn any_text_is_read(text in "\\PC*") {
            previous(&text);
        }
    }
}
