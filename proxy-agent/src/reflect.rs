//! Kubernetes objects to the model. An object is taken as a whole or not at all: one
//! impossible value refuses it, and whoever keeps the last good version goes on with that.
//! What kube-proxy merely skips (addresses of a family the Service lacks, say) is skipped here
//! too, with a note.

mod address;
mod annotation;
mod endpoints;
mod node;
mod pod;
mod service;
mod service_cidr;

use std::sync::Arc;

use datapath::address::protocol;

use crate::{
    manifest::{
        self, Entry, Fault,
        document::{Document, HeadMetadata, Labels, Metadata},
    },
    model::{Name, Object, ObjectKey, ObjectKind, Strings},
    problem::{Problem, ProblemKind},
};

/// What one object came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Good(Object),
    /// A sound object that is none of our business: headless, ExternalName, another proxy's.
    Ignored,
    /// Impossible; its problems say why.
    Refused,
}

/// What one text says.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Reading {
    pub objects: Vec<(ObjectKey, Outcome)>,
    /// Without `source`, which the caller knows.
    pub problems: Vec<Problem>,
    /// Something that could be any object was refused.
    pub unidentified: bool,
}

/// Reads the text of one document. `Err` if nothing in it can be trusted.
pub fn read(text: &str, strings: &mut Strings) -> Result<Reading, Problem> {
    let entries = manifest::parse(text).map_err(|fault| {
        let Fault { field, message } = fault;
        let message = format!("{message}; what it said before stays in force");
        Problem { kind: ProblemKind::Syntax, source: None, object: None, field, message }
    })?;
    Ok(reading(entries, strings))
}

/// Reads what was found in place of one document.
pub fn reading(entries: Vec<Entry>, strings: &mut Strings) -> Reading {
    let mut reading = Reading::default();
    for entry in entries {
        match entry {
            Entry::Document(document) => reading.take(*document, strings),
            Entry::Fault(head, fault) => {
                let kind = object_kind(head.api_version.as_deref(), head.kind.as_deref());
                let metadata = head.metadata.unwrap_or_default();
                reading.take_fault(&kind, &metadata, fault, strings);
            }
        }
    }
    reading
}

/// What a kind means here.
enum Kind {
    Ours(ObjectKind),
    /// One of ours in a version that is not understood.
    Version(String),
    Other,
    Missing,
}

fn object_kind(api_version: Option<&str>, kind: Option<&str>) -> Kind {
    match (api_version.unwrap_or_default(), kind.unwrap_or_default()) {
        ("v1", "Service") => Kind::Ours(ObjectKind::Service),
        ("v1", "Endpoints") => Kind::Ours(ObjectKind::Endpoints),
        ("v1", "Node") => Kind::Ours(ObjectKind::Node),
        ("v1", "Pod") => Kind::Ours(ObjectKind::Pod),
        ("networking.k8s.io/v1", "ServiceCIDR") => Kind::Ours(ObjectKind::ServiceCIDR),
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::Ours(ObjectKind::EndpointSlice),
        (version, "EndpointSlice") if version.starts_with("discovery.k8s.io/") => Kind::Version(
            format!("{version} EndpointSlices are not read; write discovery.k8s.io/v1"),
        ),
        (
            "",
            kind @ ("Service" | "Endpoints" | "Node" | "EndpointSlice" | "ServiceCIDR" | "Pod"),
        ) => Kind::Version(format!("a {kind} without apiVersion; write one")),
        (_, "") => Kind::Missing,
        _ => Kind::Other,
    }
}

fn key(kind: ObjectKind, namespace: Option<&str>, name: &str, strings: &mut Strings) -> ObjectKey {
    let namespace = match (kind, namespace) {
        (kind, _) if !kind.is_namespaced() => "",
        (_, None | Some("")) => "default",
        (_, Some(namespace)) => namespace,
    };
    ObjectKey { kind, name: Name { namespace: strings.share(namespace), name: name.into() } }
}

impl Reading {
    fn take(&mut self, document: Document, strings: &mut Strings) {
        let kind = object_kind(document.api_version.as_deref(), document.kind.as_deref());
        let kind = match kind {
            Kind::Ours(kind) => kind,
            Kind::Other => return,
            Kind::Version(message) => return self.complain("apiVersion", message),
            Kind::Missing => {
                return self
                    .complain("kind", "an object without kind; write apiVersion and kind".into());
            }
        };
        let metadata = document.metadata.as_ref();
        let name = metadata.and_then(|metadata| metadata.name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return self.complain("metadata.name", format!("a {kind:?} without name; write one"));
        }
        let namespace = metadata.and_then(|metadata| metadata.namespace.as_deref());
        let key = key(kind, namespace, name, strings);
        let mut report =
            Report { key: &key, problems: &mut self.problems, refused: false, strings };
        let object = match kind {
            ObjectKind::Service => service::service(document, &mut report),
            ObjectKind::EndpointSlice => endpoints::slice(document, &mut report),
            ObjectKind::Endpoints => endpoints::endpoints(document, &mut report),
            ObjectKind::Node => node::node(document, &mut report),
            ObjectKind::ServiceCIDR => service_cidr::service_cidr(document, &mut report),
            ObjectKind::Pod => pod::pod(document, &mut report),
        };
        let outcome = match object {
            _ if report.refused => Outcome::Refused,
            Some(object) => Outcome::Good(object),
            None => Outcome::Ignored,
        };
        self.objects.push((key, outcome));
    }

    fn take_fault(
        &mut self,
        kind: &Kind,
        metadata: &HeadMetadata,
        fault: Fault,
        strings: &mut Strings,
    ) {
        let namespace = metadata.namespace.as_deref();
        let object = match (kind, &metadata.name) {
            (Kind::Other, _) => return,
            (Kind::Ours(kind), Some(name)) => Some(key(*kind, namespace, name, strings)),
            _ => None,
        };
        self.unidentified |= object.is_none();
        self.problems.push(Problem {
            kind: ProblemKind::Type,
            source: None,
            object: object.clone(),
            field: fault.field,
            message: fault.message,
        });
        self.objects.extend(object.map(|key| (key, Outcome::Refused)));
    }

    /// About something that cannot be told from any other object of its document.
    fn complain(&mut self, field: &str, message: String) {
        self.unidentified = true;
        let field = field.into();
        let kind = ProblemKind::Value;
        self.problems.push(Problem { kind, source: None, object: None, field, message });
    }
}

/// Collects what is wrong with one object.
struct Report<'a> {
    key: &'a ObjectKey,
    problems: &'a mut Vec<Problem>,
    refused: bool,
    strings: &'a mut Strings,
}

impl Report<'_> {
    /// The object cannot be taken.
    fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.refused = true;
        self.note(ProblemKind::Value, field, message);
    }

    fn note(&mut self, kind: ProblemKind, field: impl Into<String>, message: impl Into<String>) {
        let object = Some(self.key.clone());
        let (field, message) = (field.into(), message.into());
        self.problems.push(Problem { kind, source: None, object, field, message });
    }

    /// A port number; 0 if it is none.
    fn port(&mut self, field: &str, number: i64) -> u16 {
        match u16::try_from(number) {
            Ok(port) if port != 0 => port,
            _ => {
                self.refuse(field, format!("{number} is no port; write 1 to 65535"));
                0
            }
        }
    }

    /// `None` for a protocol that is unknown.
    fn protocol(&mut self, field: &str, text: Option<&str>) -> Option<u8> {
        match text.unwrap_or("TCP") {
            "TCP" | "" => Some(protocol::TCP),
            "UDP" => Some(protocol::UDP),
            "SCTP" => Some(protocol::SCTP),
            other => {
                self.refuse(field, format!("unknown protocol {other:?}; write TCP, UDP or SCTP"));
                None
            }
        }
    }
}

/// kube-proxy watches with the selector `!service.kubernetes.io/service-proxy-name,
/// !service.kubernetes.io/headless`, for Services and for EndpointSlices
/// (cmd/kube-proxy/app/server.go).
fn is_for_another(metadata: Option<&Metadata>) -> bool {
    labels(metadata)
        .is_some_and(|labels| labels.service_proxy_name.is_some() || labels.headless.is_some())
}

fn labels(metadata: Option<&Metadata>) -> Option<&Labels> {
    metadata.and_then(|metadata| metadata.labels.as_ref())
}

fn share(text: Option<&str>, report: &mut Report) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| report.strings.share(text))
}

#[cfg(test)]
mod tests;
