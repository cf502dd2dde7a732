//! The rules that flanneld makes by `--ip-masq` and `--iptables-forward-rules`, as `nft` shows
//! those of a running flanneld 0.28.4 with iptables 1.8.9 (nftables), where nothing else has made
//! rules.

/// For a node with these pods in this network.
pub(super) fn ruleset(network: &str, pods: &str) -> String {
    format!(
        "table ip nat {{
\tchain FLANNEL-POSTRTG {{
\t\tmeta mark & 0x00004000 == 0x00004000 counter return
\t\tip saddr {pods} ip daddr {network} counter return
\t\tip saddr {network} ip daddr {pods} counter return
\t\tip saddr != {network} ip daddr {pods} counter return
\t\tip saddr {network} ip daddr != 224.0.0.0/4 counter masquerade fully-random
\t\tip saddr != {network} ip daddr {network} counter masquerade fully-random
\t}}
\tchain POSTROUTING {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tcounter jump FLANNEL-POSTRTG
\t}}
}}
table ip filter {{
\tchain FLANNEL-FWD {{
\t\tip saddr {network} counter accept
\t\tip daddr {network} counter accept
\t}}
\tchain FORWARD {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tcounter jump FLANNEL-FWD
\t}}
}}
"
    )
}
