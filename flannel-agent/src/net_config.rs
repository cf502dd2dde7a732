//! flannel's configuration of a whole network: the key `config` in etcd, `net-conf.json` with
//! Kubernetes, `config.json` in a directory. Read as Go's decoder does: names of fields in any
//! case, unknown ones ignored, the last of two wins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::{
    json::field,
    pool::{Pool, PoolError},
    subnet::{Family, masked},
};

/// What flanneld takes when no backend is named (its documents say vxlan).
const BACKEND_WITHOUT_NAME: &str = "udp";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetConfig {
    pub v4: Option<Range>,
    pub v6: Option<Range>,
    pub backend: Backend,
}

/// What one family's fields say, not checked yet: with Kubernetes only the network counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub network: IpNetwork,
    pub subnet_len: Option<u32>,
    pub min: Option<IpAddr>,
    pub max: Option<IpAddr>,
}

/// Pools of the families that are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pools {
    pub v4: Option<Pool>,
    pub v6: Option<Pool>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    Vxlan(Vxlan),
    HostGw,
}

impl Backend {
    /// As it is published: peers compare it with upper and lower case told apart.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vxlan {
    pub vni: u32,
    /// 0: the kernel's own, 8472.
    pub port: u16,
    /// Of the device below; 0: as that device has it.
    pub mtu: u32,
    pub gbp: bool,
    pub learning: bool,
    pub direct_routing: bool,
}

impl Default for Vxlan {
    fn default() -> Self {
        Self { vni: 1, port: 0, mtu: 0, gbp: false, learning: false, direct_routing: false }
    }
}

/// Why a configuration cannot be used; names the field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetConfigError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("not a JSON object")]
    NoObject,
    #[error("{field}: {found} is not {expected}")]
    Type { field: String, found: String, expected: &'static str },
    #[error("{0} is missing; name the pods' network, such as \"10.244.0.0/16\"")]
    NoNetwork(&'static str),
    #[error("EnableIPv4 and EnableIPv6 are both false; enable one")]
    NoFamily,
    #[error("Backend.Type: {0:?} is not carried; use vxlan or host-gw")]
    Backend(String),
    #[error("Backend.Type is missing; use vxlan or host-gw")]
    NoBackendType,
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl NetConfig {
    pub fn parse(text: &str) -> Result<Self, NetConfigError> {
        let root: Value =
            serde_json::from_str(text).map_err(|err| NetConfigError::Json(err.to_string()))?;
        let root = Fields::of(&root, "")?;
        let has_v4 = root.flag("EnableIPv4")?.unwrap_or(true);
        let has_v6 = root.flag("EnableIPv6")?.unwrap_or(false);
        // Its type is checked, as flanneld does; there are no rules it could choose between.
        root.flag("EnableNFTables")?;
        let v4 = Range::read(&root, Family::V4)?;
        let v6 = Range::read(&root, Family::V6)?;
        let range = |enabled: bool, range: Option<Range>, field| match (enabled, range) {
            (true, None) => Err(NetConfigError::NoNetwork(field)),
            (true, range) => Ok(range),
            (false, _) => Ok(None),
        };
        if !has_v4 && !has_v6 {
            return Err(NetConfigError::NoFamily);
        }
        Ok(Self {
            v4: range(has_v4, v4, "Network")?,
            v6: range(has_v6, v6, "IPv6Network")?,
            backend: Backend::read(&root)?,
        })
    }

    /// The same for stores that subnets are taken from: their bounds are checked too.
    pub fn parse_with_pools(text: &str) -> Result<Self, NetConfigError> {
        let config = Self::parse(text)?;
        config.pools()?;
        Ok(config)
    }

    /// The pools that subnets come out of, where no cluster assigns them.
    pub fn pools(&self) -> Result<Pools, NetConfigError> {
        let pool = |range: Option<Range>| {
            range.map(|r| Pool::new(r.network, r.subnet_len, r.min, r.max)).transpose()
        };
        Ok(Pools { v4: pool(self.v4)?, v6: pool(self.v6)? })
    }

    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.v4.into_iter().chain(self.v6).map(|range| range.network)
    }

    /// Families that are on.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(|&family| self.network(family).is_some())
    }

    pub fn network(&self, family: Family) -> Option<IpNetwork> {
        let range = match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        };
        range.map(|range| range.network)
    }
}

impl Range {
    fn read(root: &Fields<'_>, family: Family) -> Result<Option<Self>, NetConfigError> {
        let names = match family {
            Family::V4 => ["Network", "SubnetLen", "SubnetMin", "SubnetMax"],
            Family::V6 => ["IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"],
        };
        let subnet_len = root.number(names[1])?;
        let bound = |name| {
            root.text(name)?
                .map(|text| {
                    parse_address(text, family).ok_or_else(|| {
                        wrong(
                            root,
                            name,
                            text,
                            match family {
                                Family::V4 => "an IPv4 address",
                                Family::V6 => "an IPv6 address",
                            },
                        )
                    })
                })
                .transpose()
        };
        // Both are read even where there is no network, so that a wrong type is always told.
        let (min, max) = (bound(names[2])?, bound(names[3])?);
        let Some(text) = root.text(names[0])? else { return Ok(None) };
        let network: Option<IpNetwork> = text.contains('/').then(|| text.parse().ok()).flatten();
        let network = network.filter(|network| Family::of(network.network()) == family);
        let network = network.ok_or_else(|| {
            wrong(
                root,
                names[0],
                text,
                match family {
                    Family::V4 => "an IPv4 CIDR such as 10.244.0.0/16",
                    Family::V6 => "an IPv6 CIDR such as fd00:10:244::/56",
                },
            )
        })?;
        Ok(Some(Self { network: masked(network), subnet_len, min, max }))
    }
}

fn parse_address(text: &str, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Family::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}

impl Backend {
    fn read(root: &Fields<'_>) -> Result<Self, NetConfigError> {
        let Some(value) = root.get("Backend") else {
            return Err(NetConfigError::Backend(BACKEND_WITHOUT_NAME.into()));
        };
        let fields = Fields::of(value, "Backend.")?;
        let name = fields.text("Type")?.ok_or(NetConfigError::NoBackendType)?;
        match name.to_lowercase().as_str() {
            "vxlan" => Vxlan::read(&fields).map(Self::Vxlan),
            "host-gw" => Ok(Self::HostGw),
            _ => Err(NetConfigError::Backend(name.into())),
        }
    }
}

impl Vxlan {
    fn read(fields: &Fields<'_>) -> Result<Self, NetConfigError> {
        let default = Self::default();
        let vni = fields.number("VNI")?.unwrap_or(default.vni);
        if vni >= 1 << 24 {
            return Err(wrong(fields, "VNI", &vni, "a number of 24 bits"));
        }
        let port = fields.number("Port")?.unwrap_or(0);
        Ok(Self {
            vni,
            port: port.try_into().map_err(|_| wrong(fields, "Port", &port, "a port"))?,
            mtu: fields.number("MTU")?.unwrap_or(default.mtu),
            gbp: fields.flag("GBP")?.unwrap_or(default.gbp),
            learning: fields.flag("Learning")?.unwrap_or(default.learning),
            direct_routing: fields.flag("DirectRouting")?.unwrap_or(default.direct_routing),
        })
    }
}

/// An object whose names are looked up in any case.
struct Fields<'a> {
    object: &'a Value,
    /// What stands before a field's name in messages.
    path: &'static str,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, path: &'static str) -> Result<Self, NetConfigError> {
        match value {
            Value::Object(_) => Ok(Self { object: value, path }),
            _ if path.is_empty() => Err(NetConfigError::NoObject),
            other => Err(NetConfigError::Type {
                field: path.trim_end_matches('.').into(),
                found: other.to_string(),
                expected: "an object",
            }),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        field(self.object, name)
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, NetConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(self, name, value, expected))
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, NetConfigError> {
        // An empty text is what a field says that nobody filled in.
        let text = self.typed(name, "a string", Value::as_str)?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    fn number(&self, name: &str) -> Result<Option<u32>, NetConfigError> {
        self.typed(name, "a whole number", |value| value.as_u64()?.try_into().ok())
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, NetConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }
}

fn wrong(
    fields: &Fields<'_>,
    name: &str,
    found: &(impl ToString + ?Sized),
    expected: &'static str,
) -> NetConfigError {
    let field = format!("{}{name}", fields.path);
    NetConfigError::Type { field, found: found.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pools(text: &str) -> Result<Pools, NetConfigError> {
        NetConfig::parse(text)?.pools()
    }

    #[test]
    fn the_observed_configuration() {
        let text = r#"{"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.244.2.0","EnableIPv4":true,"Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#;
        let config = NetConfig::parse(text).unwrap();
        assert_eq!(config.backend, Backend::Vxlan(Vxlan { port: 8472, ..Vxlan::default() }));
        let pool = config.pools().unwrap().v4.unwrap();
        assert_eq!(pool.free(&[]).len(), 2);
        assert_eq!(config.v6, None);
    }

    #[test]
    fn names_are_read_in_any_case() {
        let text =
            r#"{"network":"10.3.0.0/16","backend":{"type":"VXLAN","Directrouting":true,"vni":7}}"#;
        let config = NetConfig::parse(text).unwrap();
        let expected = Vxlan { vni: 7, direct_routing: true, ..Vxlan::default() };
        assert_eq!(config.backend, Backend::Vxlan(expected));
    }

    #[test]
    fn dual_stack_and_ipv6_alone() {
        let text = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"host-gw"}}"#;
        let pools = pools(text).unwrap();
        assert_eq!(pools.v6.unwrap().min.to_string(), "fc00:0:0:1::");
        let text = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::1/48","Backend":{"Type":"vxlan"}}"#;
        let config = NetConfig::parse(text).unwrap();
        assert_eq!((config.v4, config.v6.unwrap().network.to_string()), (None, "fc00::/48".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let backend = r#""Backend":{"Type":"vxlan"}"#;
        for (text, said) in [
            ("[".into(), "not JSON"),
            ("[]".into(), "not a JSON object"),
            (format!("{{{backend}}}"), "Network is missing"),
            (format!(r#"{{"Network":"10.3.0.0",{backend}}}"#), "Network: 10.3.0.0 is not"),
            (format!(r#"{{"Network":"fd00::/48",{backend}}}"#), "Network: fd00::/48 is not"),
            (
                format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":"24",{backend}}}"#),
                "SubnetLen: \"24\"",
            ),
            (format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":31,{backend}}}"#), "SubnetLen: 31"),
            (
                format!(r#"{{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0",{backend}}}"#),
                "SubnetMin: 10.4",
            ),
            (
                format!(r#"{{"Network":"10.3.0.0/16","SubnetMin":"x",{backend}}}"#),
                "SubnetMin: x is not",
            ),
            (
                format!(r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,{backend}}}"#),
                "IPv6Network is missing",
            ),
            (format!(r#"{{"EnableIPv4":false,{backend}}}"#), "both false"),
            (r#"{"Network":"10.3.0.0/16"}"#.into(), "\"udp\" is not carried"),
            (r#"{"Network":"10.3.0.0/16","Backend":{}}"#.into(), "Backend.Type is missing"),
            (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"ipsec"}}"#.into(), "\"ipsec\""),
            (r#"{"Network":"10.3.0.0/16","Backend":7}"#.into(), "Backend: 7 is not an object"),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#.into(),
                "Backend.VNI",
            ),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#.into(),
                "Backend.Port",
            ),
        ] {
            let error = pools(&text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = pools(&text);
        }
    }
}
