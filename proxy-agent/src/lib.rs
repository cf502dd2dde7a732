//! proxy-agent carries the traffic of Kubernetes Services in place of kube-proxy.

pub mod apply;
pub mod attach;
pub mod check;
pub mod claims;
pub mod cleanup;
pub mod compile;
pub mod config;
pub mod desired;
pub mod devices;
pub mod directory;
pub mod health;
pub mod manifest;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod object;
pub mod problem;
pub mod reflect;
pub mod report;
pub mod run;
pub mod settings;
pub mod show;
pub mod source;
pub mod state;
pub mod status;
pub mod topology;
