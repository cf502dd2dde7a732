//! How many files the process may have open. Each link on a device of a pod is one, and a thousand,
//! which is what service managers allow without being asked, are too few on a large node.

use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::debug;

/// Lets the process have as many open as it may allow itself.
pub fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(err) = setrlimit(Resource::Nofile, limit) {
        debug!(%err, "the number of open files stays limited as it is");
    }
}
