//! Objects as the API server tells them, read leniently: kube refuses a whole list for one object
//! that does not fit its type, so any object fits this one, and what is wrong with it is found
//! when it is read as a manifest.

use std::borrow::Cow;

use kube::{
    Resource,
    api::{ApiResource, ObjectMeta},
    core::DynamicResourceScope,
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::manifest::{self, Entry, document::Document};

/// An object of the kind that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Name, namespace and version, which is all that a watch needs.
    meta: ObjectMeta,
    body: Body,
}

/// What is read of an object, at once: a page of whole objects would be a multiple of what is kept.
#[derive(Clone, Debug)]
enum Body {
    Fit(Box<Document>),
    /// To be told what does not fit.
    Unfit(Value),
}

impl Told {
    /// What is found in the object. In a list it does not say of which kind it is.
    pub(super) fn into_entries(self, resource: &ApiResource) -> Vec<Entry> {
        let (api_version, kind) = (resource.api_version.clone(), resource.kind.clone());
        match self.body {
            Body::Fit(mut document) => {
                (document.api_version, document.kind) = (Some(api_version), Some(kind));
                vec![Entry::Document(document)]
            }
            Body::Unfit(mut value) => {
                if let Some(object) = value.as_object_mut() {
                    object.insert("apiVersion".into(), api_version.into());
                    object.insert("kind".into(), kind.into());
                }
                manifest::unfit(&value)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let told = value.get("metadata");
        let text = |field| told?.get(field).and_then(Value::as_str).map(String::from);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let body = match Document::deserialize(&value) {
            Ok(document) => Body::Fit(Box::new(document)),
            Err(_) => Body::Unfit(value),
        };
        Ok(Self { meta, body })
    }
}

impl Resource for Told {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{GroupVersionKind, ObjectList};

    use super::*;

    #[test]
    fn one_strange_object_does_not_break_a_list() {
        let text = r#"{"kind": "ServiceList", "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"},
            "items": [
                {"metadata": {"name": "a", "namespace": "default", "managedFields": [1]}},
                {"metadata": {"name": "b", "labels": ["none"]}, "spec": {"ports": 80}},
                {"metadata": 3},
                "no object"
            ]}"#;
        let list: ObjectList<Told> = serde_json::from_str(text).unwrap();
        let names: Vec<_> = list.items.iter().map(|told| told.meta.name.as_deref()).collect();
        assert_eq!(names, [Some("a"), Some("b"), None, None]);
        let kind = GroupVersionKind::gvk("", "v1", "Service");
        let resource = ApiResource::from_gvk_with_plural(&kind, "services");
        let told = |entries: &[Entry]| match &entries[0] {
            Entry::Document(document) => format!("{:?}", document.kind),
            Entry::Fault(head, fault) => format!("{:?} {}", head.kind, fault.field),
        };
        let entries = list.items.into_iter().map(|item| told(&item.into_entries(&resource)));
        assert_eq!(
            entries.collect::<Vec<_>>(),
            [r#"Some("Service")"#, r#"Some("Service") metadata.labels"#, "None metadata", "None "]
        );
    }
}
