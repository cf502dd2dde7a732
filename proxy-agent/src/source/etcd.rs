//! etcd as the source, for clusters without Kubernetes: one object a key,
//! `PREFIX/{services,endpointslices,pods,nodes,servicecidrs}/NAMESPACE/NAME` (the last two without
//! namespace).

mod value;

use agent_kit::etcd::{Access, Connections};
use etcd_client::KeyValue;
use tokio::sync::mpsc::{self, Receiver};

use super::{
    Batch,
    gather::{QUEUE, gather},
    listing::{Listing, Sight},
};
use crate::model::Strings;

/// Begins to watch the place. An etcd that cannot be reached is waited for.
pub(super) fn watch(access: Access, place: &str, prefix: &str) -> Receiver<Batch> {
    let connections = Connections::new(access);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let below = format!("{prefix}/");
    tokio::spawn(async move {
        let mut strings = Strings::default();
        let read = |kv: &KeyValue| {
            let document = name(kv);
            let path = document.strip_prefix(&below).unwrap_or(&document);
            let reading = value::read(path, kv.value(), &mut strings);
            Sight { document: document.into(), reading }
        };
        connections.follow(&below, &sender, read, name).await;
    });
    gather(vec![(Listing::new(place.into()), receiver)])
}

/// A key's value is a document by the name of the key.
fn name(kv: &KeyValue) -> String {
    String::from_utf8_lossy(kv.key()).into_owned()
}
