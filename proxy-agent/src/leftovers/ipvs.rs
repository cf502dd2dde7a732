//! Which virtual servers of IPVS are kube-proxy's: pure. It binds the addresses of Services to a
//! device of its own; those of NodePorts are the node's, and are told by their real servers, which
//! the Service has too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A virtual server: `-t` or `-u`, and its address and port as `ipvsadm-save -n` writes them.
pub(super) type VirtualServer = (String, String);

/// Those whose address is one of `own`, and those all of whose real servers are some of theirs.
pub(super) fn virtual_servers(save: &str, own: &BTreeSet<IpAddr>) -> Vec<VirtualServer> {
    let mut all: BTreeMap<VirtualServer, BTreeSet<&str>> = BTreeMap::new();
    for line in save.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["-A", protocol, address, ..] => {
                all.entry((protocol.into(), address.into())).or_default();
            }
            ["-a", protocol, address, "-r", real, ..] => {
                all.entry((protocol.into(), address.into())).or_default().insert(real);
            }
            _ => {}
        }
    }
    let is_own = |(_, address): &VirtualServer| ip(address).is_some_and(|ip| own.contains(&ip));
    let reals: BTreeSet<&str> = all
        .iter()
        .filter(|(server, _)| is_own(server))
        .flat_map(|(_, reals)| reals.iter().copied())
        .collect();
    let is_alike = |of: &BTreeSet<&str>| !of.is_empty() && of.is_subset(&reals);
    let chosen = all.iter().filter(|(server, of)| is_own(server) || is_alike(of));
    chosen.map(|(server, _)| server.clone()).collect()
}

/// Of `10.0.0.1:80` or `[fd00::1]:80`.
fn ip(address: &str) -> Option<IpAddr> {
    let (ip, _) = address.rsplit_once(':')?;
    ip.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Addresses of a device, as `ip -o address show` prints them.
pub(super) fn addresses(text: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        words.find(|word| matches!(*word, "inet" | "inet6"))?;
        words.next()?.split('/').next()?.parse().ok()
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_virtual_server_is_left_alone() {
        let device = "7: kube-ipvs0    inet 10.96.0.10/32 scope global kube-ipvs0\\ valid_lft\n\
                      7: kube-ipvs0    inet6 fd00::a/128 scope global \\ valid_lft forever\n";
        let own = addresses(device);
        assert_eq!(own.len(), 2);
        let save = "-A -t 10.96.0.10:80 -s rr\n\
                    -a -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 1\n\
                    -A -t [fd00::a]:80 -s rr\n\
                    -A -t 192.0.2.1:30080 -s rr\n\
                    -a -t 192.0.2.1:30080 -r 10.244.1.2:8080 -m -w 1\n\
                    -A -t 192.0.2.7:443 -s wlc\n\
                    -a -t 192.0.2.7:443 -r 198.51.100.1:443 -g -w 1\n\
                    -A -u 192.0.2.7:53 -s wlc\n";
        let chosen = virtual_servers(save, &own);
        let chosen: Vec<&str> = chosen.iter().map(|(_, address)| address.as_str()).collect();
        assert_eq!(chosen, ["10.96.0.10:80", "192.0.2.1:30080", "[fd00::a]:80"]);
        assert!(virtual_servers(save, &BTreeSet::new()).is_empty());
    }
}
