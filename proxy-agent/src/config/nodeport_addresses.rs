//! Where NodePorts answer, as `--nodeport-addresses` and kube-proxy's `nodePortAddresses` say it.

use std::{fmt, str::FromStr};

use ipnetwork::IpNetwork;
use serde::{Serialize, Serializer};

/// All that is named together; if nothing is, whoever asks has a default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortAddresses {
    /// The node's own addresses, as a flag, the Node object or its uplinks tell.
    pub primary: bool,
    /// All of its devices, loopback addresses apart.
    pub all: bool,
    /// Loopback addresses, for the node's own processes.
    pub localhost: bool,
    pub cidrs: Vec<IpNetwork>,
}

impl NodePortAddresses {
    pub fn primary() -> Self {
        Self { primary: true, ..Self::default() }
    }

    pub fn has_keyword(&self) -> bool {
        self.primary || self.all || self.localhost
    }

    /// Nothing is named.
    pub fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// As they can be read again.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let keywords =
            [("primary", self.primary), ("all", self.all), ("localhost", self.localhost)];
        let keywords = keywords.into_iter().filter(|(_, is_named)| *is_named);
        keywords.map(|(word, _)| word.to_owned()).chain(self.cidrs.iter().map(ToString::to_string))
    }
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut named = Self::default();
        for word in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
            match word {
                "primary" => named.primary = true,
                "all" => named.all = true,
                "localhost" => named.localhost = true,
                _ => named.cidrs.push(word.parse().map_err(|_| {
                    format!("{word:?} is none of primary, all, localhost or a CIDR")
                })?),
            }
        }
        Ok(named)
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().collect::<Vec<_>>().join(","))
    }
}

impl Serialize for NodePortAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_and_cidrs_are_named_together() {
        let named: NodePortAddresses = "localhost, primary,10.0.0.0/8".parse().unwrap();
        assert!(named.primary && named.localhost && !named.all);
        assert_eq!(named.to_string(), "primary,localhost,10.0.0.0/8");
        assert_eq!(named.to_string().parse(), Ok(named));
        assert_eq!(
            serde_json::to_string(&"all,fd00::/8".parse::<NodePortAddresses>().unwrap()).unwrap(),
            r#"["all","fd00::/8"]"#
        );
    }

    #[test]
    fn what_is_none_is_named() {
        let fault = |text: &str| text.parse::<NodePortAddresses>().unwrap_err();
        for (text, word) in [("10.0.0.0/40", "10.0.0.0/40"), ("all,some", "some"), ("all,", "")] {
            let told = format!("{word:?} is none of primary, all, localhost or a CIDR");
            assert_eq!(fault(text), told, "{text}");
        }
        assert!("".parse::<NodePortAddresses>().unwrap().is_unset());
    }
}
