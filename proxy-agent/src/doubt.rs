//! What may exist although it cannot be read: while it cannot, nothing it may tell of is known
//! to be gone.

use std::sync::Arc;

use crate::model::{Name, ObjectKey, ObjectKind};

/// Something of which no good version has been seen, in a document that is there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Doubt {
    pub document: Arc<str>,
    /// `None` if the document may hold anything.
    pub object: Option<ObjectKey>,
}

impl Doubt {
    /// Whether this Service may exist because of it.
    #[must_use]
    pub fn concerns_service(&self, name: &Name) -> bool {
        let Some(object) = &self.object else { return true };
        object.kind == ObjectKind::Service && object.name == *name
    }

    /// Whether this Service may have other endpoints because of it. Which Service an
    /// EndpointSlice belongs to stands in a label that may be what is wrong with it.
    #[must_use]
    pub fn concerns_endpoints(&self, name: &Name) -> bool {
        let Some(object) = &self.object else { return true };
        match object.kind {
            ObjectKind::EndpointSlice => object.name.namespace == name.namespace,
            ObjectKind::Endpoints => object.name == *name,
            ObjectKind::Service | ObjectKind::Node | ObjectKind::ServiceCIDR | ObjectKind::Pod => {
                false
            }
        }
    }
}
