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

/// An object of the kind that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Name, namespace and version, which is all that a watch needs.
    meta: ObjectMeta,
    value: Value,
}

impl Told {
    /// The whole object. In a list it does not say of which kind it is.
    pub(super) fn into_value(mut self, resource: &ApiResource) -> Value {
        if let Some(object) = self.value.as_object_mut() {
            object.insert("apiVersion".into(), resource.api_version.clone().into());
            object.insert("kind".into(), resource.kind.clone().into());
        }
        self.value
    }
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let mut meta = ObjectMeta::default();
        if let Some(told) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            // Often longer than the rest, and nobody asks who wrote which field.
            told.remove("managedFields");
            let text = |field| told.get(field).and_then(Value::as_str).map(String::from);
            meta.name = text("name");
            meta.namespace = text("namespace");
            meta.resource_version = text("resourceVersion");
        }
        Ok(Self { meta, value })
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
        let value = list.items[0].clone().into_value(&resource);
        assert_eq!(value["kind"], "Service");
        assert_eq!(value["metadata"], serde_json::json!({"name": "a", "namespace": "default"}));
    }
}
