//! flannel-agent and a real flanneld in one network, with a real etcd or a real API server of
//! Kubernetes: nodes of both kinds reach each other, and a node goes from one to the other and back
//! under traffic. And proxy-agent with such an API server, compared with a real kube-proxy, and on a
//! node that one has left.
//!
//! Needs root, the kernel's module `br_netfilter`, `etcd`, `etcdctl`, `curl`, `iptables`, `nft`,
//! `target/dist/{flannel-agent,proxy-agent,lab-peer}` and `target/peers/{flanneld,kube-apiserver,
//! kube-proxy}` (`cargo xtask build --peers`): `cargo xtask test --tier cluster`.

#[allow(dead_code, reason = "the overlay's own cases use the rest")]
#[path = "../overlay/bed.rs"]
mod bed;
mod cluster;
mod differential;
mod kubernetes;
mod leftovers;
mod mixed;
mod proxy_takeover;
mod services;
mod shared;
mod takeover;
#[allow(dead_code, reason = "the overlay's own cases use the rest")]
#[path = "../overlay/word.rs"]
mod word;
