//! The text of a KubeProxyConfiguration, YAML or JSON, to the values of its fields. As kube-proxy:
//! what cannot be is refused, and what is not known is left out with a word.

use serde_json::{Map, Value};

use super::{
    Fault,
    fields::{self, FIELDS, Field, Kind},
};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A value that was set, by a file or by a flag.
#[derive(Clone, PartialEq, Debug)]
pub struct Given {
    /// As whoever set it calls it: `conntrack.min` or `--conntrack-min`.
    pub name: String,
    pub field: &'static Field,
    pub value: Value,
}

/// What a text says.
#[derive(PartialEq, Debug, Default)]
pub struct Document {
    pub given: Vec<Given>,
    /// Paths that no field has.
    pub unknown: Vec<String>,
}

/// All that is wrong, if anything is.
pub fn read(text: &str) -> Result<Document, Vec<Fault>> {
    let value: Value = yaml_serde::from_str(text)
        .map_err(|err| vec![Fault::new("", format!("no YAML that can be read: {err}"))])?;
    let Value::Object(map) = value else {
        return Err(vec![Fault::new("", format!("no mapping; write a {KIND}"))]);
    };
    let mut document = Document::default();
    let mut faults = Vec::new();
    for (key, wanted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if map.get(key).and_then(Value::as_str) != Some(wanted) {
            faults.push(Fault::new(key, format!("is not {wanted}, the only one understood")));
        }
    }
    for (key, value) in &map {
        if key != "apiVersion" && key != "kind" {
            document.take(key, value, &mut faults);
        }
    }
    if faults.is_empty() { Ok(document) } else { Err(faults) }
}

impl Document {
    fn take(&mut self, path: &str, value: &Value, faults: &mut Vec<Fault>) {
        if let Some(field) = fields::find(path) {
            faults.extend(field.fault(value).map(|message| Fault::new(path, message)));
            // As good as not written.
            if !value.is_null() {
                self.given.push(Given { name: path.into(), field, value: value.clone() });
            }
        } else if is_section(path) {
            match value {
                Value::Object(map) => {
                    for (key, value) in map {
                        self.take(&format!("{path}.{key}"), value, faults);
                    }
                }
                Value::Null => {}
                other => faults.push(Fault::new(path, format!("{other} is no mapping"))),
            }
        } else {
            self.unknown.push(path.into());
        }
    }
}

/// Whether fields lie below.
fn is_section(path: &str) -> bool {
    FIELDS
        .iter()
        .any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// A flag's text, as the value that a file would hold.
pub fn flag_value(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Bool | Kind::Number(..) | Kind::Fraction => {
            serde_json::from_str(text).unwrap_or_else(|_| text.into())
        }
        Kind::Texts => text.split(',').filter(|item| !item.is_empty()).map(Value::from).collect(),
        Kind::Text | Kind::Word(_) | Kind::Duration | Kind::Anything => text.into(),
    }
}

/// The whole configuration, with defaults where nothing was given.
pub fn complete(given: &[Given]) -> Map<String, Value> {
    let mut whole = Map::new();
    whole.insert("apiVersion".into(), API_VERSION.into());
    whole.insert("kind".into(), KIND.into());
    for field in FIELDS {
        let found = given.iter().rfind(|given| given.field == field);
        let found = found.map(|given| &given.value).filter(|value| !field.is_default(value));
        set(&mut whole, field.path, found.cloned().unwrap_or_else(|| field.default_value()));
    }
    whole
}

/// Sets the value at a path, making the sections on the way.
pub fn set(whole: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(whole.insert(path.into(), value)),
        Some((section, rest)) => {
            let section = whole.entry(section).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(section) = section {
                set(section, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(rest: &str) -> String {
        format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}")
    }

    fn faults(text: &str) -> Vec<String> {
        let mut faults: Vec<String> =
            read(text).unwrap_err().iter().map(ToString::to_string).collect();
        faults.sort();
        faults
    }

    #[test]
    fn values_and_unknown_fields_are_told_by_their_paths() {
        let mut document =
            read(&head("conntrack: {min: 5, most: 6}\nclusterCidr: x\nmode: ''\nipvs:\n")).unwrap();
        let given: Vec<String> =
            document.given.iter().map(|given| format!("{}={}", given.name, given.value)).collect();
        assert_eq!(given, ["conntrack.min=5", "mode=\"\""]);
        document.unknown.sort();
        assert_eq!(document.unknown, ["clusterCidr", "conntrack.most"]);
    }

    #[test]
    fn what_cannot_be_is_refused_all_at_once_by_its_path() {
        assert_eq!(
            faults(&head(
                "conntrack: {min: -1}\niptables: {masqueradeBit: 32}\nmode: kernelspace\nipvs: 1\n\
                 nodePortAddresses: 10.0.0.0/8\n"
            )),
            [
                "conntrack.min: -1 cannot be; write a number from 0 to 2147483647",
                "iptables.masqueradeBit: 32 cannot be; write a number from 0 to 31",
                "ipvs: 1 is no mapping",
                "mode: \"kernelspace\" cannot be; write iptables, ipvs, nftables",
                "nodePortAddresses: \"10.0.0.0/8\" cannot be; write a list of texts",
            ]
        );
        assert_eq!(
            faults("kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1"),
            ["apiVersion: is not kubeproxy.config.k8s.io/v1alpha1, the only one understood"]
        );
        assert!(faults("a: [").remove(0).starts_with("no YAML that can be read: "));
        assert_eq!(faults("- a"), ["no mapping; write a KubeProxyConfiguration"]);
    }

    #[test]
    fn the_whole_has_every_field() {
        let given = read(&head("conntrack: {min: 5}\nbindAddress: ''")).unwrap().given;
        let whole = Value::Object(complete(&given));
        assert_eq!(whole["conntrack"]["min"], 5);
        assert_eq!(whole["conntrack"]["maxPerCore"], 32_768);
        assert_eq!(whole["bindAddress"], "0.0.0.0");
        assert_eq!(whole["kind"], KIND);
    }
}
