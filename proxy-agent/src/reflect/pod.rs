//! Pods: only those that are left out of the socket path are of interest.

use std::sync::Arc;

use super::{Report, annotation::without_sockets, share};
use crate::{
    manifest::document::Document,
    model::{Object, Pod},
    problem::ProblemKind,
};

pub(super) fn pod(document: Document, report: &mut Report) -> Option<Object> {
    let metadata = document.metadata.as_ref();
    if !without_sockets(metadata, report) {
        return None;
    }
    let spec = document.spec.unwrap_or_default();
    let status = document.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    if spec.host_network == Some(true) {
        let message = "socket-lb: off means nothing for a pod of the host's network: no other path \
                       serves the node's own processes";
        report.note(ProblemKind::Ignored, "spec.hostNetwork", message);
        return None;
    }
    // The API server's copy of a static pod has an UID that the kubelet does not know.
    let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
    let mirrored = annotations.and_then(|annotations| annotations.config_mirror.clone());
    let uid = mirrored.or_else(|| metadata.and_then(|metadata| metadata.uid.clone()));
    let Some(uid) = uid.filter(|uid| !uid.is_empty()) else {
        report.refuse("metadata.uid", "a pod is found by its UID, and this one has none");
        return None;
    };
    let statuses = [
        status.init_container_statuses,
        status.container_statuses,
        status.ephemeral_container_statuses,
    ];
    let ids = statuses.into_iter().flatten().flatten().filter_map(|status| status.container_id);
    // `containerd://ID`
    let ids = ids.filter_map(|id| {
        let (_, id) = id.split_once("://")?;
        (!id.is_empty()).then(|| Box::from(id))
    });
    Some(Object::Pod(Arc::new(Pod {
        name: report.key.name.clone(),
        node: share(spec.node_name.as_deref(), report),
        uid: uid.into(),
        containers: ids.collect(),
    })))
}
