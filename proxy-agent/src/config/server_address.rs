//! Where a server of the agent answers, if anywhere.

use std::{fmt, net::SocketAddr};

use serde::{Serialize, Serializer};

/// Empty, as kube-proxy's flags have it, where there is no such server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServerAddress(pub Option<SocketAddr>);

impl From<SocketAddr> for ServerAddress {
    fn from(address: SocketAddr) -> Self {
        Self(Some(address))
    }
}

impl ServerAddress {
    /// An address with a port, or without where there is one by default; kube-proxy takes both.
    pub fn parse(text: &str, port: u16) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let alone = || Some(SocketAddr::new(text.parse().ok()?, port));
        let address = text.parse().ok().or_else(alone);
        let address = address.filter(|address: &SocketAddr| address.port() != 0);
        address.map(Self::from).ok_or_else(|| {
            format!("{text:?} cannot be; write ADDRESS:PORT, such as 0.0.0.0:{port}")
        })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| address.fmt(f))
    }
}

impl Serialize for ServerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out_and_so_may_all() {
        let told = |text: &str| ServerAddress::parse(text, 7).map(|address| address.to_string());
        for (text, address) in
            [("", ""), ("10.0.0.1", "10.0.0.1:7"), ("10.0.0.1:9", "10.0.0.1:9"), ("::", "[::]:7")]
        {
            assert_eq!(told(text), Ok(address.into()), "{text}");
        }
        for text in ["here", "10.0.0.1:0", "10.0.0.1:70000", ":7"] {
            let fault = told(text).unwrap_err();
            assert!(
                fault.starts_with(&format!("{text:?} cannot be; write ADDRESS:PORT")),
                "{fault}"
            );
        }
    }
}
