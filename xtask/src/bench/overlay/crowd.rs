//! Leases of nodes that are not there, for those who are to know many of them.

use std::{net::Ipv4Addr, ops::Range};

use lab::overlay::PREFIX;

/// Wide enough for thousands of nodes, and around what the lab's pods have; ClusterIPs are beside
/// it.
pub(super) const NETWORK: &str = "10.224.0.0/11";

/// Neither the network's first subnets, which nodes are given, nor those of the lab's pods.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 226, 0, 0);
const SUBNET_LEN: u32 = 24;
/// The nodes' own addresses: another network than the lab's, so behind its router.
const FIRST_NODE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// The network's configuration, as flanneld and flannel-agent read it.
pub(super) fn config() -> String {
    format!(
        r#"{{"Network":"{NETWORK}","SubnetLen":{SUBNET_LEN},"Backend":{{"Type":"vxlan","VNI":1,"Port":8472}}}}"#
    )
}

fn subnet(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + (number << (32 - SUBNET_LEN)))
}

/// Keys and values of leases, as flanneld writes them.
pub(super) fn leases(numbers: Range<u32>) -> Vec<(String, String)> {
    numbers.map(lease).collect()
}

pub(super) fn lease(number: u32) -> (String, String) {
    let node = Ipv4Addr::from(u32::from(FIRST_NODE) + number);
    let [.., high, low] = number.to_be_bytes();
    let value = format!(
        r#"{{"PublicIP":"{node}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#
    );
    (key(number), value)
}

fn key(number: u32) -> String {
    format!("{PREFIX}/subnets/{}-{SUBNET_LEN}", subnet(number))
}

/// From where to where, in etcd's order, there are leases of these nodes and of no others.
pub(super) fn range() -> [String; 2] {
    ["10.226.", "10.24"].map(|subnet| format!("{PREFIX}/subnets/{subnet}"))
}

/// Keys of the rows that the programs find them by (`NetworkKey<Ipv4>`): length and network.
pub(super) fn rows(numbers: Range<u32>) -> Vec<Vec<u8>> {
    let row = |number| [SUBNET_LEN.to_ne_bytes(), subnet(number).octets()].concat();
    numbers.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_nodes_have_subnets_of_their_own() {
        let (key, value) = lease(999);
        assert_eq!(key, "/coreos.com/network/subnets/10.229.231.0-24");
        assert!(range()[0] < key && key < range()[1]);
        assert!(value.contains(r#""PublicIP":"172.16.3.232""#), "{value}");
        assert!(value.contains(r#""VtepMAC":"02:00:00:00:03:e7""#), "{value}");
        assert_eq!(rows(0..1), [[24_u32.to_ne_bytes(), [10, 226, 0, 0]].concat()]);
    }
}
