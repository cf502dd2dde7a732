//! flannel-agent with a real etcd: the store on loopback, and whole nodes as network
//! namespaces, with pods that reach each other through the tunnel.
//!
//! Needs root, `etcd`, `etcdctl`, `target/dist/flannel-agent` and `target/dist/lab-peer`
//! (`cargo xtask build`): `cargo xtask test --tier lab`.

mod answers;
mod bed;
mod direct;
mod fault;
mod kubernetes;
mod masquerade;
mod node;
mod privilege;
mod programs;
mod proxy;
mod store;
mod tunnel;
#[path = "../lab/wired.rs"]
mod wired;
mod word;
mod xdp;
