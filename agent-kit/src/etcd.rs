//! What agents need of etcd: connections that move on to the next endpoint, and a watch on the
//! keys with a prefix that tells everything, then changes, whatever happens to etcd.

mod connect;
mod watch;

pub use connect::{Access, Connections, EtcdError};

/// As Go's `path.Join` cleans what flanneld is given: one slash each, none at the end. What a
/// user gives without a slash at its begin stays so.
pub fn clean(prefix: &str) -> String {
    let parts: Vec<&str> =
        prefix.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let lead = if prefix.starts_with('/') { "/" } else { "" };
    format!("{lead}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned() {
        assert_eq!(clean("/coreos.com/network"), "/coreos.com/network");
        assert_eq!(clean("/coreos.com//network/"), "/coreos.com/network");
        assert_eq!(clean("a/./b/"), "a/b");
    }
}
