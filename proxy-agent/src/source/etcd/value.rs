//! What the value of a key says. The key tells which object it is, so whatever is wrong with the
//! value concerns that object and no other.

use crate::{
    model::{Name, ObjectKey, ObjectKind, Strings},
    problem::{Problem, ProblemKind},
    reflect::{self, Outcome, Reading},
};

/// Reads a value, under a key that has this path behind the prefix.
pub(super) fn read(path: &str, value: &[u8], strings: &mut Strings) -> Reading {
    let Some(key) = key(path, strings) else { return astray() };
    let reading = match str::from_utf8(value) {
        Ok(text) => reflect::read(text, strings).unwrap_or_else(refused),
        Err(_) => refused(problem(&key, ProblemKind::Syntax, "is not UTF-8".into())),
    };
    agree(key, reading)
}

/// The object that a path tells.
fn key(path: &str, strings: &mut Strings) -> Option<ObjectKey> {
    let mut parts = path.split('/');
    let kind = match parts.next()? {
        "services" => ObjectKind::Service,
        "endpointslices" => ObjectKind::EndpointSlice,
        "nodes" => ObjectKind::Node,
        "servicecidrs" => ObjectKind::ServiceCIDR,
        "pods" => ObjectKind::Pod,
        _ => return None,
    };
    let namespace = if kind.is_namespaced() { parts.next()? } else { "" };
    let name = parts.next().filter(|name| !name.is_empty())?;
    if parts.next().is_some() {
        return None;
    }
    Some(ObjectKey { kind, name: Name { namespace: strings.share(namespace), name: name.into() } })
}

/// A reading in which nothing but the key's object stands: another's would be overlooked by those
/// who ask for it by its key.
fn agree(key: ObjectKey, reading: Reading) -> Reading {
    let Reading { objects, mut problems, .. } = reading;
    problems.retain(|problem| problem.object.as_ref().is_none_or(|object| *object == key));
    let (mut objects, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|(object, _)| *object == key);
    for (other, _) in others {
        let message =
            format!("the value is {other}, the key is that of {key}; correct one of them");
        problems.push(problem(&key, ProblemKind::Value, message));
    }
    if objects.is_empty() {
        if problems.is_empty() {
            let message = format!("holds no object; write a {:?}, or delete the key", key.kind);
            problems.push(problem(&key, ProblemKind::Value, message));
        }
        objects.push((key, Outcome::Refused));
    }
    Reading { objects, problems, unidentified: false }
}

fn refused(problem: Problem) -> Reading {
    Reading { problems: vec![problem], ..Reading::default() }
}

/// Under a key that tells no object, whatever its value.
fn astray() -> Reading {
    refused(Problem {
        kind: ProblemKind::Ignored,
        source: None,
        object: None,
        field: String::new(),
        message: "the key tells no object; write services/NAMESPACE/NAME, \
                  endpointslices/NAMESPACE/NAME or nodes/NAME behind the prefix"
            .into(),
    })
}

fn problem(key: &ObjectKey, kind: ProblemKind, message: String) -> Problem {
    Problem { kind, source: None, object: Some(key.clone()), field: String::new(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of the objects, then the problems.
    fn told(path: &str, value: &[u8]) -> Vec<String> {
        let reading = read(path, value, &mut Strings::default());
        assert!(!reading.unidentified);
        let outcome = |outcome: &Outcome| match outcome {
            Outcome::Good(_) => "good",
            Outcome::Ignored => "ignored",
            Outcome::Refused => "refused",
        };
        let objects = reading.objects.iter().map(|(key, its)| format!("{key} {}", outcome(its)));
        objects.chain(reading.problems.iter().map(ToString::to_string)).collect()
    }

    const WEB: &str = r#"{"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.0.0.1"}}"#;

    #[test]
    fn an_object_stands_under_its_key() {
        assert_eq!(told("services/shop/web", WEB.as_bytes()), ["Service shop/web good"]);
        let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{WEB}]}}"#);
        assert_eq!(told("services/shop/web", list.as_bytes()), ["Service shop/web good"]);
        let node = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}}"#;
        assert_eq!(told("nodes/node1", node.as_bytes()), ["Node node1 good"]);
    }

    #[test]
    fn a_key_and_a_value_that_differ_are_both_named() {
        for path in ["services/default/web", "services/shop/wep", "endpointslices/shop/web"] {
            let told = told(path, WEB.as_bytes());
            assert!(told[0].ends_with(" refused"), "{told:?}");
            let named = told[0].strip_suffix(" refused").unwrap();
            assert!(told[1].contains(named) && told[1].contains("Service shop/web"), "{told:?}");
            assert_eq!(told.len(), 2);
        }
    }

    #[test]
    fn what_cannot_be_read_concerns_the_keys_object_alone() {
        let broken: [&[u8]; 6] = [
            b"",
            b"{\"kind\": ",
            b"\xff",
            b"{}",
            br#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}}"#,
            br#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web",
                "namespace": "shop"}, "spec": {"clusterIP": 3}}"#,
        ];
        for value in broken {
            let told = told("services/shop/web", value);
            assert_eq!(told[0], "Service shop/web refused", "{told:?}");
            assert_eq!(told.len(), 2, "{told:?}");
        }
    }

    #[test]
    fn a_key_that_tells_no_object_is_named() {
        for path in ["service/shop/web", "services/web", "services/shop/web/x", "nodes/", "x"] {
            let told = told(path, WEB.as_bytes());
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("services/NAMESPACE/NAME"), "{told:?}");
        }
    }
}
