//! proxy-agent carries the traffic of Kubernetes Services in place of kube-proxy.

pub mod apply;
pub mod attach;
pub mod check;
pub mod cleanup;
pub mod config;
pub mod desired;
pub mod devices;
pub mod health;
pub mod metrics;
pub mod netlink;
pub mod object;
pub mod report;
pub mod run;
pub mod settings;
pub mod show;
pub mod source;
pub mod status;
