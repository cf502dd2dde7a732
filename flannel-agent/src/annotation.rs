//! Names of the annotations by which nodes tell each other of their tunnels.

/// The prefix that flanneld uses unless told otherwise.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

/// The names, all with one prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Annotations {
    prefix: String,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "--kube-annotation-prefix: {0:?} is no prefix of annotations; use a domain in lower case with \
     at most one part behind a slash, such as flannel.alpha.coreos.com or example.com/net"
)]
pub struct PrefixError(String);

impl Annotations {
    /// `org.com` makes `org.com/backend-type`, `org.com/9` makes `org.com/9-backend-type`.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let refused = || PrefixError(prefix.into());
        let mut full = prefix.to_owned();
        match prefix.matches('/').count() {
            0 => full.push('/'),
            1 => {}
            _ => return Err(refused()),
        }
        if !full.ends_with(['/', '-']) {
            full.push('-');
        }
        if is_prefix(&full) { Ok(Self { prefix: full }) } else { Err(refused()) }
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    /// `true` on every node that takes part.
    pub fn kube_subnet_manager(&self) -> String {
        self.name("kube-subnet-manager")
    }

    pub fn backend_type(&self) -> String {
        self.name("backend-type")
    }

    pub fn backend_data(&self) -> String {
        self.name("backend-data")
    }

    pub fn backend_v6_data(&self) -> String {
        self.name("backend-v6-data")
    }

    pub fn public_ip(&self) -> String {
        self.name("public-ip")
    }

    pub fn public_ipv6(&self) -> String {
        self.name("public-ipv6")
    }

    /// An operator's word on what `public-ip` shall say.
    pub fn public_ip_overwrite(&self) -> String {
        self.name("public-ip-overwrite")
    }

    pub fn public_ipv6_overwrite(&self) -> String {
        self.name("public-ipv6-overwrite")
    }

    /// An operator's `--public-ip`.
    pub fn node_public_ip(&self) -> String {
        self.name("node-public-ip")
    }

    pub fn node_public_ipv6(&self) -> String {
        self.name("node-public-ipv6")
    }
}

/// `(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$`
fn is_prefix(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
    };
    let Some((domain, rest)) = text.split_once('/') else { return false };
    let is_domain = domain.contains('.') && domain.split('.').all(is_word);
    let is_rest = rest.is_empty() || rest.strip_suffix('-').is_some_and(is_word);
    is_domain && is_rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (prefix, name) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org.com/", "org.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
            ("org.com/9-", "org.com/9-backend-type"),
        ] {
            assert_eq!(Annotations::new(prefix).unwrap().backend_type(), name, "{prefix}");
        }
        for prefix in ["", "org", "org.com/a/b", "Org.com", "org.com/A", "org..com", "org.com/-/"] {
            assert!(Annotations::new(prefix).is_err(), "{prefix}");
        }
    }

    #[test]
    fn names_are_flannels() {
        let names = Annotations::new(DEFAULT_PREFIX).unwrap();
        let suffixes = [
            names.kube_subnet_manager(),
            names.backend_data(),
            names.backend_v6_data(),
            names.public_ip(),
            names.public_ipv6(),
            names.public_ip_overwrite(),
            names.public_ipv6_overwrite(),
            names.node_public_ip(),
            names.node_public_ipv6(),
        ]
        .map(|name| name.strip_prefix("flannel.alpha.coreos.com/").unwrap().to_owned());
        assert_eq!(
            suffixes,
            [
                "kube-subnet-manager",
                "backend-data",
                "backend-v6-data",
                "public-ip",
                "public-ipv6",
                "public-ip-overwrite",
                "public-ipv6-overwrite",
                "node-public-ip",
                "node-public-ipv6",
            ]
        );
    }
}
