//! Kubernetes as the source: Services, EndpointSlices and this node's Node, by the selectors with
//! which kube-proxy watches them (cmd/kube-proxy/app/server.go), ServiceCIDRs, and this node's pods.

mod object;

use std::time::Duration;

use agent_kit::{kubernetes::follow, watch::Event};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, GroupVersionKind},
    runtime::watcher,
};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::sleep,
};

use super::{
    Batch,
    gather::{QUEUE, gather},
    listing::{Listing, Sight},
};
use crate::{model::Strings, reflect};
use object::Told;

/// Services of another proxy, and headless ones: their EndpointSlices bear the same labels.
const NOT_OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
/// Without addresses, whatever the labels say.
const NOT_HEADLESS: &str = "spec.clusterIP!=None";

/// What is watched of one kind.
#[derive(Clone, Copy)]
struct Kind {
    group: &'static str,
    name: &'static str,
    plural: &'static str,
}

const SERVICE: Kind = Kind { group: "", name: "Service", plural: "services" };
const SLICE: Kind =
    Kind { group: "discovery.k8s.io", name: "EndpointSlice", plural: "endpointslices" };
const NODE: Kind = Kind { group: "", name: "Node", plural: "nodes" };
const POD: Kind = Kind { group: "", name: "Pod", plural: "pods" };
/// Served since Kubernetes 1.33 (KEP-1880).
const SERVICE_CIDR: Kind =
    Kind { group: "networking.k8s.io", name: "ServiceCIDR", plural: "servicecidrs" };

/// A server that did not say what it serves is asked again after this time,
const UNKNOWN: Duration = Duration::from_secs(5);
/// and one that does not serve a kind after this: it may be another version by then.
const NOT_SERVED: Duration = Duration::from_mins(10);

/// Begins to watch the place. A server that cannot be reached is waited for.
pub(super) fn watch(client: &Client, place: &str, node: &str) -> Receiver<Batch> {
    let ours = watcher::Config::default().labels(NOT_OURS);
    let kinds = [
        (SERVICE, ours.clone().fields(NOT_HEADLESS)),
        (SLICE, ours),
        (NODE, watcher::Config::default().fields(&format!("metadata.name={node}"))),
    ];
    let needed =
        kinds.map(|(kind, config)| (Listing::new(place.into()), kind.watch(client, config)));
    let mut watches = Vec::from(needed);
    watches.push((Listing::new(place.into()), SERVICE_CIDR.watch_if_served(client)));
    // Not every account may: kube-proxy's may not.
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    watches.push((Listing::aside(place.into()), POD.watch(client, of_node)));
    gather(watches)
}

impl Kind {
    fn watch(self, client: &Client, config: watcher::Config) -> Receiver<Event<Sight>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(self.tell(client.clone(), config, sender));
        receiver
    }

    /// The same for a kind that not every server has: nothing waits for it.
    fn watch_if_served(self, client: &Client) -> Receiver<Event<Sight>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let client = client.clone();
        tokio::spawn(async move {
            let _ = sender.send(Event::Listed(Vec::new())).await;
            loop {
                let group = format!("{}/v1", self.group);
                let pause = match client.list_api_group_resources(&group).await {
                    Ok(list) if list.resources.iter().any(|it| it.name == self.plural) => break,
                    Ok(_) => NOT_SERVED,
                    Err(kube::Error::Api(status)) if status.code == 404 => NOT_SERVED,
                    Err(_) => UNKNOWN,
                };
                tokio::select! {
                    () = sleep(pause) => {}
                    () = sender.closed() => return,
                }
            }
            self.tell(client, watcher::Config::default(), sender).await;
        });
        receiver
    }

    async fn tell(self, client: Client, config: watcher::Config, sender: Sender<Event<Sight>>) {
        let kind = GroupVersionKind::gvk(self.group, "v1", self.name);
        let resource = ApiResource::from_gvk_with_plural(&kind, self.plural);
        let api: Api<Told> = Api::all_with(client, &resource);
        let mut strings = Strings::default();
        let read = |told: Told| {
            let document = self.document(&told).into();
            let reading = reflect::reading(told.into_entries(&resource), &mut strings);
            Some(Sight { document, reading })
        };
        follow(api, config, &sender, self.plural, read, |told| self.document(told)).await;
    }

    /// An object is a document of its own, by the name that problems tell.
    fn document(self, told: &Told) -> String {
        let meta = told.meta();
        let name = meta.name.as_deref().unwrap_or_default();
        match &meta.namespace {
            Some(namespace) => format!("{} {namespace}/{name}", self.name),
            None => format!("{} {name}", self.name),
        }
    }
}
