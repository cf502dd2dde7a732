//! flannel-agent gives a node its pod subnet and joins it to the other nodes, in place of
//! flanneld.

pub mod acquire;
pub mod annotation;
pub mod check;
pub mod cleanup;
pub mod clock;
pub mod cni;
pub mod config;
pub mod device;
pub mod entries;
pub mod file;
pub mod health;
pub mod interface;
pub mod json;
pub mod kernel;
pub mod lease;
pub mod mac;
pub mod masquerade;
pub mod metrics;
pub mod net_config;
pub mod notify;
pub mod object;
pub mod overlay;
pub mod peers;
pub mod pool;
pub mod run;
pub mod show;
pub mod status;
pub mod store;
pub mod subnet;
pub mod subnet_env;
pub mod tables;
