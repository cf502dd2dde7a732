//! proxy-agent carries the traffic of Kubernetes Services in place of kube-proxy.

pub mod apply;
pub mod attach;
pub mod config;
pub mod desired;
pub mod devices;
pub mod netlink;
