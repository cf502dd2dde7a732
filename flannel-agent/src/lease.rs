//! What a node publishes with its subnet: the value of flannel's keys, to the byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    json::field,
    mac::{self, Mac},
    subnet::{Family, Subnet},
};

/// A subnet with what its node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    pub subnet: Subnet,
    pub attrs: Attrs,
    /// A reservation has none, and gets none.
    pub expires: Expiry,
}

/// When the store forgets a lease.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Expiry {
    /// Put there for good by an operator, or kept by the cluster.
    Never,
    /// Seconds since 1970.
    At(u64),
    /// It expires; who only lists does not ask when.
    #[default]
    Untold,
}

/// What a node says of itself. Written in flannel's order of fields; an absent IPv6 address is
/// `null`, an absent backend is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Attrs {
    /// Never `null`: flanneld drops a lease that says so.
    #[serde(rename = "PublicIP", serialize_with = "or_zero")]
    pub public_ip: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Value>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Value>,
}

#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn or_zero<S: serde::Serializer>(ip: &Option<Ipv4Addr>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&ip.unwrap_or(Ipv4Addr::UNSPECIFIED))
}

/// Why a value tells nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttrsError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("{field}: {found} is not {expected}")]
    Field { field: &'static str, found: String, expected: &'static str },
}

/// The other end of a tunnel: what `BackendData` says for vxlan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Vtep {
    pub vni: u32,
    pub mac: Mac,
    /// Whether the node answers clients outside by itself: what they sent to a Service's address
    /// may come through the tunnel as it is.
    pub answers: bool,
}

/// The one field that flannel does not have; flanneld ignores it.
const ANSWERS: &str = "DSR";

impl Vtep {
    /// `{"VNI":1,"VtepMAC":"..."}`: the MAC last, as flanneld splits it off. Before them, only
    /// where it is so, `"DSR":true`.
    pub fn to_value(self) -> Value {
        let mut map = Map::new();
        if self.answers {
            map.insert(ANSWERS.into(), true.into());
        }
        map.insert("VNI".into(), self.vni.into());
        map.insert("VtepMAC".into(), self.mac.to_string().into());
        Value::Object(map)
    }

    /// Unknown fields are ignored, and old versions say no VNI.
    pub fn read(value: &Value) -> Option<Self> {
        let mac = field(value, "VtepMAC")?.as_str().and_then(mac::parse)?;
        let vni = field(value, "VNI").map_or(Some(0), Value::as_u64)?;
        let answers = field(value, ANSWERS) == Some(&Value::Bool(true));
        Some(Self { vni: vni.try_into().ok()?, mac, answers })
    }
}

/// What `BackendData` says of the device alone: who answers clients may change any time.
fn device(data: Option<&Value>) -> Option<Value> {
    let mut data = data.cloned();
    if let Some(Value::Object(map)) = &mut data {
        map.retain(|name, _| !name.eq_ignore_ascii_case(ANSWERS));
    }
    data
}

/// What an address means as `PublicIP`: 0.0.0.0 stands where there is none.
pub fn public_ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
        IpAddr::V6(_) => None,
    }
}

/// What an address means as `PublicIPv6`.
pub fn public_ipv6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip),
    }
}

impl Attrs {
    /// The value of a key. Serialising cannot fail: all names are strings.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn parse(text: &str) -> Result<Self, AttrsError> {
        let value: Value =
            serde_json::from_str(text).map_err(|err| AttrsError::Json(err.to_string()))?;
        Self::from_value(&value)
    }

    pub fn from_value(value: &Value) -> Result<Self, AttrsError> {
        if !value.is_object() {
            return Err(AttrsError::Json("no object".into()));
        }
        let text = |name: &'static str| match field(value, name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(found) => Err(AttrsError::Field {
                field: name,
                found: found.to_string(),
                expected: "a string",
            }),
        };
        let address = |name: &'static str, expected| {
            let read = |text: &str| {
                text.parse::<IpAddr>().map_err(|_| AttrsError::Field {
                    field: name,
                    found: text.into(),
                    expected,
                })
            };
            text(name)?.map(read).transpose()
        };
        Ok(Self {
            public_ip: address("PublicIP", "an IPv4 address")?.and_then(public_ipv4),
            public_ipv6: address("PublicIPv6", "an IPv6 address")?.and_then(public_ipv6),
            backend_type: text("BackendType")?.unwrap_or_default().into(),
            backend_data: field(value, "BackendData").cloned(),
            backend_v6_data: field(value, "BackendV6Data").cloned(),
        })
    }

    /// Whether both are of one node: one whose address changed still has its device's.
    pub fn is_same_node(&self, other: &Self) -> bool {
        (self.public_ip.is_some() && self.public_ip == other.public_ip)
            || (self.backend_data.is_some()
                && device(self.backend_data.as_ref()) == device(other.backend_data.as_ref()))
    }

    /// Whether the node says that it answers clients outside by itself.
    pub fn answers(&self) -> bool {
        let data = Family::BOTH.into_iter().filter_map(|family| self.data(family));
        data.filter_map(Vtep::read).any(|vtep| vtep.answers)
    }

    pub fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_ip.map(IpAddr::V4),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    pub fn data(&self, family: Family) -> Option<&Value> {
        match family {
            Family::V4 => self.backend_data.as_ref(),
            Family::V6 => self.backend_v6_data.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observed() -> Attrs {
        let mac = mac::parse("12:1c:7c:e6:f6:84").unwrap();
        Attrs {
            public_ip: "192.168.77.11".parse().ok(),
            public_ipv6: None,
            backend_type: "vxlan".into(),
            backend_data: Some(Vtep { vni: 1, mac, answers: false }.to_value()),
            backend_v6_data: None,
        }
    }

    /// The same of a node that answers clients by itself.
    fn answering() -> Attrs {
        let mac = mac::parse("12:1c:7c:e6:f6:84").unwrap();
        let data = Vtep { vni: 1, mac, answers: true }.to_value();
        Attrs { backend_data: Some(data), ..observed() }
    }

    #[test]
    fn values_are_flannels_to_the_byte() {
        let bytes = r#"{"PublicIP":"192.168.77.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:1c:7c:e6:f6:84"}}"#;
        assert_eq!(observed().to_json(), bytes);
        assert_eq!(Attrs::parse(bytes), Ok(observed()));
        let bare = Attrs { public_ip: "1.2.3.4".parse().ok(), ..Attrs::default() };
        assert_eq!(bare.to_json(), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);
        let dual = Attrs {
            public_ipv6: "fd00::3".parse().ok(),
            backend_v6_data: observed().backend_data,
            ..observed()
        };
        let bytes = r#"{"PublicIP":"192.168.77.11","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:1c:7c:e6:f6:84"},"BackendV6Data":{"VNI":1,"VtepMAC":"12:1c:7c:e6:f6:84"}}"#;
        assert_eq!(dual.to_json(), bytes);
        assert_eq!(Attrs::parse(bytes), Ok(dual));
    }

    #[test]
    fn who_answers_clients_says_so_before_its_mac() {
        let text = answering().to_json();
        assert!(
            text.contains(r#""BackendData":{"DSR":true,"VNI":1,"VtepMAC":"12:1c:7c:e6:f6:84"}}"#),
            "{text}"
        );
        assert_eq!(Attrs::parse(&text), Ok(answering()));
        assert!(answering().answers() && !observed().answers());
        // How flanneld finds its MAC in an annotation.
        let data = answering().backend_data.unwrap().to_string();
        let split: Vec<&str> = data.trim_matches(['"', '}']).split(":\"").collect();
        assert_eq!(split.last(), Some(&"12:1c:7c:e6:f6:84"));
        assert_eq!(split.len(), 2);
    }

    #[test]
    fn who_says_something_else_answers_nobody() {
        for said in ["1", "\"true\"", "null", "false", "[true]", "{}"] {
            let data = format!(r#"{{"VNI":1,"DSR":{said},"VtepMAC":"12:1c:7c:e6:f6:84"}}"#);
            let vtep = Vtep::read(&data.parse().unwrap()).unwrap();
            assert!(!vtep.answers, "{said}");
        }
    }

    #[test]
    fn one_bad_family_leaves_the_other() {
        let text = r#"{"PublicIP":"1.2.3.4","publicipv6":"fd00::3","BackendType":"vxlan","BackendData":{"VtepMAC":"no"},"BackendV6Data":{"VtepMAC":"12-1C-7C-E6-F6-84","New":1}}"#;
        let attrs = Attrs::parse(text).unwrap();
        assert_eq!(Vtep::read(attrs.data(Family::V4).unwrap()), None);
        assert_eq!(Vtep::read(attrs.data(Family::V6).unwrap()).unwrap().vni, 0);
    }

    #[test]
    fn a_node_is_known_by_its_address_or_its_device() {
        let moved = Attrs { public_ip: "192.168.77.99".parse().ok(), ..observed() };
        let replaced = Attrs { backend_data: None, ..observed() };
        assert!(observed().is_same_node(&moved) && observed().is_same_node(&replaced));
        assert!(!moved.is_same_node(&replaced));
        // Nor is it another when it begins to answer clients, or ends.
        assert!(moved.is_same_node(&answering()) && answering().is_same_node(&moved));
        // What nobody says is nothing in common.
        assert!(!Attrs::default().is_same_node(&Attrs::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("{", "not JSON"),
            ("7", "not JSON"),
            (r#"{"PublicIP":7}"#, "PublicIP: 7"),
            (r#"{"PublicIP":"1.2.3"}"#, "PublicIP: 1.2.3"),
        ] {
            assert!(Attrs::parse(text).unwrap_err().to_string().contains(said), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v4: u32, v6: Option<u128>, vni in 0_u32..1 << 24, mac: [u8; 6], answers: bool) {
            prop_assume!(v4 != 0);
            let data = Vtep { vni, mac: Mac(mac), answers }.to_value();
            let attrs = Attrs {
                public_ip: Some(v4.into()),
                public_ipv6: v6.map(Into::into),
                backend_type: "vxlan".into(),
                backend_data: Some(data.clone()),
                backend_v6_data: v6.map(|_| data),
            };
            prop_assert_eq!(Attrs::parse(&attrs.to_json()), Ok(attrs));
        }
    }
}
