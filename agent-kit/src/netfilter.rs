//! Whether netfilter of this network namespace has something to say about packets that are
//! forwarded, or about those that come for this node or from it: rules that filter or translate
//! them, which a packet that passes the IP stack by would never meet. A translator would then see
//! one half of a connection, and the other side reset it.

use std::{fs, io};

use rustix::net::netlink;

use crate::{
    dump::{Dump, attribute, attribute_of, attributes, text},
    notice::Word,
};

/// `NFNL_SUBSYS_NFTABLES` in a message's kind, with `NFT_MSG_NEWCHAIN` and `NFT_MSG_GETCHAIN`
/// (include/uapi/linux/netfilter/nf_tables.h).
const NEW_CHAIN: u16 = 10 << 8 | 3;
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `NFT_MSG_NEWRULE` and `NFT_MSG_GETRULE`.
const NEW_RULE: u16 = 10 << 8 | 6;
const GET_RULE: u16 = 10 << 8 | 7;
/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// `NFNLGRP_NFTABLES`, as a bit of a socket's groups.
const NFTABLES_GROUP: u32 = 1 << 6;

/// `NFTA_CHAIN_*`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const USE: u16 = 6;
/// `NFTA_HOOK_HOOKNUM`.
const HOOK_NUMBER: u16 = 1;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFTA_RULE_*`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_*`.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_IMMEDIATE_DATA`, and within it `NFTA_DATA_VERDICT` and `NFTA_VERDICT_CHAIN`.
const IMMEDIATE_DATA: u16 = 2;
const VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;

/// What every kubelet has in `INPUT` and `OUTPUT`: a jump to a chain of its own, which drops what others
/// send to the loopback network, and before Kubernetes 1.28 what it had marked itself
/// (`pkg/kubelet/kubelet_network_linux.go`). Neither is said of a packet between two nodes.
const KUBELETS: &str = "KUBE-FIREWALL";

/// Hooks of IP that a forwarded packet passes: `NF_INET_PRE_ROUTING`, `FORWARD`, `POST_ROUTING`.
const FORWARDED: [u32; 3] = [0, 2, 4];

/// Those that packets meet which carry others in a tunnel: `NF_INET_LOCAL_IN`, `LOCAL_OUT`.
const LOCAL: [u32; 2] = [1, 3];

/// Legacy tables that there are in this namespace, a name a line.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// The first thing that stands in the way of packets, in words; `None` if there is nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Obstacles {
    /// Of those that are forwarded.
    pub forwarded: Option<String>,
    /// Of this node's own, but for a kubelet's rules about the loopback network.
    pub local: Option<String>,
}

/// What there is at the moment.
pub fn obstacles() -> io::Result<Obstacles> {
    let mut found = Obstacles::default();
    let mut dump = Dump::open(Some(netlink::NETFILTER))?;
    let mut local = Vec::new();
    // All families, whatever version.
    dump.ask(GET_CHAIN, &[0; NFGENMSG], NEW_CHAIN, |message| {
        if found.forwarded.is_none() {
            found.forwarded = chain(message, &FORWARDED);
        }
        local.extend(chain(message, &LOCAL).map(|words| (words, message.to_vec())));
    })?;
    for (words, chain) in local {
        if !is_kubelets_alone(&mut dump, &chain)? {
            found.local = Some(words);
            break;
        }
    }
    let legacy = legacy();
    found.forwarded = found.forwarded.or_else(|| legacy.clone());
    found.local = found.local.or(legacy);
    Ok(found)
}

/// A table of `iptables-legacy`, in words, if there is any.
pub fn legacy() -> Option<String> {
    LEGACY.into_iter().find_map(|path| {
        let names = fs::read_to_string(path).unwrap_or_default();
        let name = names.lines().next()?;
        Some(format!("iptables has the table {name} ({path})"))
    })
}

/// A chain of kube-proxy's, in words: of its nftables mode, or of those that it makes by
/// `iptables-nft`. Those of `iptables-legacy` are not told of here.
pub fn kube_proxy() -> io::Result<Option<String>> {
    let mut found = None;
    let mut dump = Dump::open(Some(netlink::NETFILTER))?;
    dump.ask(GET_CHAIN, &[0; NFGENMSG], NEW_CHAIN, |message| {
        if found.is_none() {
            found = kube_proxys(message);
        }
    })?;
    Ok(found)
}

fn kube_proxys(message: &[u8]) -> Option<String> {
    let family = family(*message.first()?)?;
    let attributes = message.get(NFGENMSG..)?;
    let [table, chain] = [TABLE, NAME].map(|kind| attribute(attributes, kind).map(text));
    let (table, chain) = (table?, chain?);
    let is_own = matches!(family, "ip" | "ip6")
        && (table == "kube-proxy" || chain == "KUBE-SERVICES" || chain == "KUBE-NODEPORTS");
    is_own.then(|| format!("nftables chain {family} {table} {chain}"))
}

/// What a chain does to packets that pass one of these hooks of IP, if anything.
fn chain(message: &[u8], hooks: &[u32]) -> Option<String> {
    let family = family(*message.first()?)?;
    let attributes = message.get(NFGENMSG..)?;
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let hook = attribute(attributes, HOOK)?;
    let at = number(attribute(hook, HOOK_NUMBER)?)?;
    // Those of bridges and devices are passed by too, whichever it is.
    if matches!(family, "ip" | "ip6" | "inet") && !hooks.contains(&at) {
        return None;
    }
    let rules = attribute(attributes, USE).and_then(number).unwrap_or(0);
    let drops = attribute(attributes, POLICY).and_then(number) == Some(DROP);
    let name = |kind| attribute(attributes, kind).map(text).unwrap_or_default();
    let chain = || format!("{family} {} {}", name(TABLE), name(NAME));
    if rules > 0 {
        return Some(format!("nftables chain {} has {rules} rules", chain()));
    }
    drops.then(|| format!("nftables chain {} drops by default", chain()))
}

/// Whether all that a chain has is a kubelet's jump to [`KUBELETS`].
fn is_kubelets_alone(dump: &mut Dump, chain: &[u8]) -> io::Result<bool> {
    let Some((generation, of_chain)) = chain.split_at_checked(NFGENMSG) else { return Ok(false) };
    let number = |kind| attribute(of_chain, kind)?.first_chunk().copied().map(u32::from_be_bytes);
    let (Some(table), Some(name)) = (attribute(of_chain, TABLE), attribute(of_chain, NAME)) else {
        return Ok(false);
    };
    if number(POLICY) == Some(DROP) {
        return Ok(false);
    }
    let mut request = vec![generation[0], 0, 0, 0];
    request.extend(attribute_of(RULE_TABLE, table));
    request.extend(attribute_of(RULE_CHAIN, name));
    let mut jumps = 0;
    dump.ask(GET_RULE, &request, NEW_RULE, |rule| {
        let rule = rule.get(NFGENMSG..).unwrap_or_default();
        jumps += u32::from(jumps_to_kubelets(rule));
    })?;
    Ok(number(USE) == Some(jumps))
}

/// Whether a rule does nothing but count and jump there.
fn jumps_to_kubelets(rule: &[u8]) -> bool {
    let mut target = None;
    for (_, expression) in attributes(attribute(rule, RULE_EXPRESSIONS).unwrap_or_default()) {
        match attribute(expression, EXPRESSION_NAME).map(text).as_deref() {
            Some("counter") => {}
            Some("immediate") => {
                let data = attribute(expression, EXPRESSION_DATA).unwrap_or_default();
                let verdict = attribute(data, IMMEDIATE_DATA);
                let verdict = verdict.and_then(|data| attribute(data, VERDICT));
                target = verdict.and_then(|verdict| attribute(verdict, VERDICT_CHAIN)).map(text);
            }
            _ => return false,
        }
    }
    target.as_deref() == Some(KUBELETS)
}

/// `NFPROTO_*`, as nft calls them; those of ARP are none of ours.
fn family(number: u8) -> Option<&'static str> {
    match number {
        1 => Some("inet"),
        2 => Some("ip"),
        5 => Some("netdev"),
        7 => Some("bridge"),
        10 => Some("ip6"),
        _ => None,
    }
}

/// Word that nftables' rules changed. Needs a tokio runtime.
pub fn notices() -> io::Result<Word> {
    // What it says does not matter.
    Word::of(Some(netlink::NETFILTER), NFTABLES_GROUP, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kube_proxy_are_known_by_their_names() {
        let said = |family: u8, table: &[u8], name: &[u8]| {
            let mut bytes = vec![family, 0, 0, 0];
            bytes.extend(attribute_of(TABLE, table));
            bytes.extend(attribute_of(NAME, name));
            kube_proxys(&bytes)
        };
        let own = said(2, b"kube-proxy\0", b"services\0").unwrap();
        assert_eq!(own, "nftables chain ip kube-proxy services");
        assert!(said(10, b"nat\0", b"KUBE-SERVICES\0").is_some());
        // Of others: a kubelet's, another family's, another name.
        assert_eq!(said(2, b"filter\0", b"KUBE-FIREWALL\0"), None);
        assert_eq!(said(1, b"kube-proxy\0", b"services\0"), None);
        assert_eq!(said(2, b"kube-proxy-of-mine\0", b"c\0"), None);
    }

    fn message(family: u8, hook: Option<u32>, policy: u32, rules: u32) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(attribute_of(TABLE, b"t\0"));
        bytes.extend(attribute_of(NAME, b"c\0"));
        bytes.extend(attribute_of(USE, &rules.to_be_bytes()));
        if let Some(hook) = hook {
            let number = attribute_of(HOOK_NUMBER, &hook.to_be_bytes());
            bytes.extend(attribute_of(HOOK | 0x8000, &number));
            bytes.extend(attribute_of(POLICY, &policy.to_be_bytes()));
        }
        bytes
    }

    #[test]
    fn rules_that_forwarded_packets_meet_are_in_the_way() {
        let said =
            |family, hook, policy, rules| chain(&message(family, hook, policy, rules), &FORWARDED);
        assert_eq!(said(2, Some(4), 1, 3).unwrap(), "nftables chain ip t c has 3 rules");
        assert_eq!(said(1, Some(2), 0, 0).unwrap(), "nftables chain inet t c drops by default");
        // A bridge's and a device's, whichever hook it is.
        assert!(said(7, Some(1), 1, 1).is_some() && said(5, Some(1), 1, 1).is_some());
        let own = |hook, rules| chain(&message(2, Some(hook), 1, rules), &LOCAL);
        assert_eq!(own(1, 3).unwrap(), "nftables chain ip t c has 3 rules");
        assert!(own(3, 1).is_some() && own(1, 0).is_none() && own(2, 3).is_none());
        // Not forwarded, empty, no chain of a hook, or of ARP.
        assert_eq!(said(2, Some(1), 1, 3), None);
        assert_eq!(said(2, Some(2), 1, 0), None);
        assert_eq!(said(2, None, 1, 3), None);
        assert_eq!(said(3, Some(0), 1, 3), None);
    }

    /// A rule with these expressions: `counter`, another without data, or a jump to a chain.
    fn rule(expressions: &[(&str, Option<&str>)]) -> Vec<u8> {
        let mut list = Vec::new();
        for (name, target) in expressions {
            let mut expression = attribute_of(EXPRESSION_NAME, format!("{name}\0").as_bytes());
            if let Some(target) = target {
                let chain = attribute_of(VERDICT_CHAIN, format!("{target}\0").as_bytes());
                let data = attribute_of(IMMEDIATE_DATA, &attribute_of(VERDICT, &chain));
                expression.extend(attribute_of(EXPRESSION_DATA, &data));
            }
            list.extend(attribute_of(1, &expression));
        }
        attribute_of(RULE_EXPRESSIONS, &list)
    }

    #[test]
    fn a_kubelets_jump_is_known_and_nothing_else_like_it() {
        let jump = ("immediate", Some("KUBE-FIREWALL"));
        assert!(jumps_to_kubelets(&rule(&[("counter", None), jump])));
        assert!(jumps_to_kubelets(&rule(&[jump])));
        assert!(!jumps_to_kubelets(&rule(&[("counter", None)])));
        assert!(!jumps_to_kubelets(&rule(&[("payload", None), ("cmp", None), jump])));
        assert!(!jumps_to_kubelets(&rule(&[("counter", None), ("immediate", Some("OTHER"))])));
        assert!(!jumps_to_kubelets(&rule(&[("counter", None), ("immediate", None)])));
        assert!(!jumps_to_kubelets(&[]));
    }
}
