//! The watch on all leases: a list, then what happens from the next revision on. It is resumed
//! where it broke; a list comes again where etcd has thrown that revision away, or is not the
//! etcd it was.

use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info};

use super::Etcd;
use crate::store::{Event, StoreError, trouble::Trouble};

/// How a watch ended.
enum End {
    /// Nobody listens any more.
    Closed,
    /// What happened from this revision on is not known any more.
    Forgotten,
    Broken(String),
}

impl Etcd {
    /// Tells until nobody listens.
    pub(super) async fn follow(&self, sender: &Sender<Event>) {
        let mut trouble = Trouble::default();
        while !sender.is_closed() {
            let (entries, revision) = match self.list_at().await {
                Ok(listed) => listed,
                Err(err) => {
                    trouble.wait(sender, &err.to_string()).await;
                    continue;
                }
            };
            trouble.over(sender).await;
            let entries = entries.into_iter().map(|(entry, _)| entry).collect();
            if sender.send(Event::Listed(entries)).await.is_err() {
                return;
            }
            let mut next = revision + 1;
            loop {
                match self.watch_from(&mut next, sender, &mut trouble).await {
                    End::Closed => return,
                    End::Forgotten => break,
                    End::Broken(reason) => trouble.wait(sender, &reason).await,
                }
            }
        }
    }

    async fn watch_from(
        &self,
        next: &mut i64,
        sender: &Sender<Event>,
        trouble: &mut Trouble,
    ) -> End {
        let mut stream = match self.open(*next).await {
            Ok(stream) => stream,
            Err(err) => return End::Broken(err.to_string()),
        };
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = sender.closed() => return End::Closed,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Broken("etcd ended the watch".into()),
                Err(err) => return End::Broken(format!("the watch broke: {err}")),
            };
            if let Some(end) = judge(&answer, *next) {
                return end;
            }
            trouble.over(sender).await;
            for event in answer.events() {
                let Some(kv) = event.kv() else { continue };
                let event = match event.event_type() {
                    EventType::Put => Event::Put(self.entry(kv)),
                    EventType::Delete => Event::Gone(self.short(kv)),
                };
                if sender.send(event).await.is_err() {
                    return End::Closed;
                }
            }
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            if !answer.events().is_empty() {
                *next = revision + 1;
            }
        }
    }

    async fn open(&self, from: i64) -> Result<WatchStream, StoreError> {
        let key = self.subnets_key();
        let watch = |mut client: WatchClient| {
            let options = WatchOptions::new().with_prefix().with_start_revision(from);
            let key = key.clone();
            async move { client.watch(key, Some(options)).await }
        };
        debug!(from, "watching");
        self.connections.watch(watch).await.map_err(self.failed("watch the leases"))
    }
}

/// Whether an answer ends the watch.
fn judge(answer: &WatchResponse, next: i64) -> Option<End> {
    if answer.compact_revision() != 0 {
        let compacted = answer.compact_revision();
        info!(compacted, "etcd has forgotten what happened meanwhile; listing the leases again");
        return Some(End::Forgotten);
    }
    if answer.canceled() {
        return Some(End::Broken(format!("etcd ended the watch: {}", answer.cancel_reason())));
    }
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    // A revision never falls. If it did, this is another etcd, or an older copy of it, and
    // would tell nothing before it gets as far.
    if answer.created() && revision + 1 < next {
        info!(revision, expected = next - 1, "etcd was put back; listing the leases again");
        return Some(End::Forgotten);
    }
    None
}
