//! ServiceCIDRs: out of which networks the API server gives cluster IPs.

use std::sync::Arc;

use super::Report;
use crate::{
    manifest::document::Document,
    model::{Object, ServiceCIDR},
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of all kinds")]
pub(super) fn service_cidr(document: Document, report: &mut Report) -> Option<Object> {
    let texts = document.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    let texts = texts.iter().enumerate();
    let cidrs = texts
        .filter_map(|(index, text)| report.network(&format!("spec.cidrs[{index}]"), text))
        .collect();
    Some(Object::ServiceCIDR(Arc::new(ServiceCIDR { cidrs })))
}
