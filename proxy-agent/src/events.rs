//! Events about this node and its Services, as kube-proxy has them: `kubectl describe` shows them,
//! and `kubectl get events` finds them by the same reasons.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::mpsc, time::sleep};
use tracing::{debug, warn};

use crate::model::Name;

/// What kube-proxy calls itself in events; who filters by it goes on to find them.
const REPORTER: &str = "kube-proxy";
/// The API server refuses a longer note, in bytes.
const NOTE_MAX: usize = 1024;
/// As often, and after such pauses, kube-proxy's client tries to have one taken.
const TRIES: u32 = 12;
const PAUSE: Duration = Duration::from_secs(10);
/// What waits beyond this is not told: nobody needs the hundredth word of the same.
const QUEUE: usize = 64;

/// What there is to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happening {
    /// The agent runs.
    Started,
    /// `/metrics` cannot answer, and why.
    NoMetrics(String),
    /// `/healthz` cannot answer, and why.
    NoHealth(String),
    /// A Service's `healthCheckNodePort` cannot answer, and why.
    NoServiceHealth(Name, String),
}

/// Tells, from wherever something happens; nothing waits for it.
#[derive(Clone, Debug)]
pub struct Events(Option<mpsc::Sender<Happening>>);

impl Events {
    /// Where nobody listens: no API server is the source.
    #[must_use]
    pub const fn unheard() -> Self {
        Self(None)
    }

    /// To the API server, about this node and what is on it. Needs a tokio runtime.
    #[must_use]
    pub fn publish(client: Client, node: String) -> Self {
        let (sender, happenings) = mpsc::channel(QUEUE);
        tokio::spawn(tell_all(client, node, happenings));
        Self(Some(sender))
    }

    pub fn tell(&self, happening: Happening) {
        if let Some(sender) = &self.0
            && let Err(err) = sender.try_send(happening)
        {
            debug!(%err, "an event is not told");
        }
    }
}

async fn tell_all(client: Client, node: String, mut happenings: mpsc::Receiver<Happening>) {
    let reporter = Reporter { controller: REPORTER.into(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client, reporter);
    while let Some(happening) = happenings.recv().await {
        let (event, about) = happening.event(&node);
        for left in (0..TRIES).rev() {
            match recorder.publish(&event, &about).await {
                Ok(()) => break,
                Err(err) if left == 0 => {
                    let reason = &event.reason;
                    warn!(%err, reason, "an event could not be told; allow the account to create \
                          and patch events of events.k8s.io");
                }
                Err(err) => {
                    debug!(%err, left, "an event is told later");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Happening {
    /// The event, and what it is about.
    fn event(&self, node: &str) -> (Event, ObjectReference) {
        // kube-proxy has no more of either than their names.
        let of_node = || ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.into()),
            uid: Some(node.into()),
            ..ObjectReference::default()
        };
        let of_service = |service: &Name| ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            uid: Some(service.to_string()),
            ..ObjectReference::default()
        };
        let version = concat!("proxy-agent ", env!("CARGO_PKG_VERSION"));
        let (type_, reason, action, note, about) = match self {
            Self::Started => (EventType::Normal, "Starting", "StartKubeProxy", version, of_node()),
            Self::NoMetrics(why) => (
                EventType::Warning,
                "FailedToStartMetricServer",
                "StartKubeProxy",
                &**why,
                of_node(),
            ),
            Self::NoHealth(why) => (
                EventType::Warning,
                "FailedToStartProxierHealthcheck",
                "StartKubeProxy",
                &**why,
                of_node(),
            ),
            Self::NoServiceHealth(service, why) => (
                EventType::Warning,
                "FailedToStartServiceHealthcheck",
                "Listen",
                &**why,
                of_service(service),
            ),
        };
        let note = note[..note.floor_char_boundary(NOTE_MAX)].to_owned();
        let (reason, action) = (reason.into(), action.into());
        (Event { type_, reason, note: Some(note), action, secondary: None }, about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_kube_proxys_reasons_and_objects() {
        let service = Name { namespace: "shop".into(), name: "web".into() };
        let told = |happening: Happening| {
            let (event, about) = happening.event("node1");
            let about = [about.kind, about.namespace, about.name].map(Option::unwrap_or_default);
            (event.reason, event.action, about.join("/"))
        };
        let own = |reason: &str| (reason.into(), "StartKubeProxy".into(), "Node//node1".into());
        assert_eq!(told(Happening::Started), own("Starting"));
        assert_eq!(told(Happening::NoMetrics("x".into())), own("FailedToStartMetricServer"));
        assert_eq!(told(Happening::NoHealth("x".into())), own("FailedToStartProxierHealthcheck"));
        assert_eq!(
            told(Happening::NoServiceHealth(service, "x".into())),
            (
                "FailedToStartServiceHealthcheck".into(),
                "Listen".into(),
                "Service/shop/web".to_owned()
            )
        );
    }

    #[test]
    fn a_long_note_is_cut_between_letters() {
        let (event, _) = Happening::NoMetrics("ä".repeat(1_000)).event("node1");
        assert_eq!(event.note.map(|note| note.len()), Some(NOTE_MAX));
        let (event, _) = Happening::NoMetrics(format!("x{}", "ä".repeat(1_000))).event("node1");
        assert_eq!(event.note.map(|note| note.len()), Some(NOTE_MAX - 1));
    }
}
