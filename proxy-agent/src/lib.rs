//! proxy-agent carries the traffic of Kubernetes Services in place of kube-proxy.

pub mod desired;
