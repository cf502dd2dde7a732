//! Services between nodes and pods that are network namespaces, with real sockets and the real
//! agent. One case is one test; each that concerns traffic runs with `--socket-lb on` and with
//! `--socket-lb host`, which leaves pods to the packet path.
//!
//! Needs root, `etcd`, `etcdctl`, `openssl`, `target/dist/proxy-agent` and `target/dist/lab-peer` (`cargo xtask build`):
//! `cargo xtask test --tier lab`.

/// Makes of each case a module with two tests, one for each setting of `--socket-lb`.
macro_rules! both {
    ($($case:ident),* $(,)?) => { $(
        mod $case {
            use lab::agent::SocketLb;

            #[test]
            fn on() {
                super::$case(SocketLb::On);
            }

            #[test]
            fn host() {
                super::$case(SocketLb::Host);
            }
        }
    )* };
}

mod affinity;
mod algorithm;
mod application;
mod audit;
mod capture;
mod change;
mod cluster;
mod cluster_ip;
mod device;
mod echo;
mod etcd;
mod exposition;
mod fast_path;
mod flood;
mod health_check;
mod inspect;
mod kube_proxy_config;
mod leftovers;
mod manifest;
mod mark;
mod metrics;
mod node_port;
mod packet;
mod pod;
mod privilege;
mod raw;
mod refusal;
mod restart;
mod service;
mod source_range;
mod table;
mod wired;
mod xdp;
