//! flannel-agent gives a node its pod subnet and joins it to the other nodes, in place of
//! flanneld.

pub mod acquire;
pub mod annotation;
pub mod lease;
pub mod mac;
pub mod net_config;
pub mod pool;
pub mod store;
pub mod subnet;
pub mod subnet_env;
