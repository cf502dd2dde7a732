//! The watch on all keys with a prefix: a list, then what happens from the next revision on. It is
//! resumed where it broke; a list comes again where etcd has thrown that revision away, or is not
//! the etcd it was.

use etcd_client::{
    EventType, GetOptions, KeyValue, KvClient, WatchClient, WatchOptions, WatchResponse,
    WatchStream,
};
use tokio::sync::mpsc::Sender;
use tracing::{debug, info};

use super::{Connections, EtcdError, connect::reason};
use crate::watch::{Event, Trouble};

/// Keys of one answer to a list: with values of a few kilobytes it stays small.
const PAGE: i64 = 500;

/// How a watch ended.
enum End {
    /// Nobody listens any more.
    Closed,
    /// What happened from this revision on is not known any more.
    Forgotten,
    Broken(String),
}

/// Whom the watch tells, and what.
struct Told<'a, T, R, N> {
    sender: &'a Sender<Event<T>>,
    read: R,
    name: N,
    trouble: Trouble,
}

impl Connections {
    /// All keys with a prefix, and the revision that they are of. What is listed is of one moment,
    /// however many pages it takes.
    pub async fn list(&self, prefix: &str) -> Result<(Vec<KeyValue>, i64), EtcdError> {
        let (mut keys, mut revision, mut from) = (Vec::new(), 0, prefix.as_bytes().to_vec());
        loop {
            let start = &from;
            let get = |mut kv: KvClient| async move {
                let options = GetOptions::new().with_range(end(prefix)).with_limit(PAGE);
                kv.get(start.clone(), Some(options.with_revision(revision))).await
            };
            let mut page = self.kv(get).await?;
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let more = page.more();
            keys.append(&mut page.take_kvs());
            match keys.last() {
                Some(last) if more => from = [last.key(), &[0]].concat(),
                _ => return Ok((keys, revision)),
            }
        }
    }

    /// Tells of all keys with a prefix, at first all at once, until nobody listens. `read` makes of
    /// a key with its value what is told; `name` is what a key that is gone is told by.
    pub async fn follow<T>(
        &self,
        prefix: &str,
        sender: &Sender<Event<T>>,
        read: impl FnMut(&KeyValue) -> T,
        name: impl Fn(&KeyValue) -> String,
    ) {
        let mut told = Told { sender, read, name, trouble: Trouble::default() };
        while !sender.is_closed() {
            let (keys, revision) = match self.list(prefix).await {
                Ok(listed) => listed,
                Err(err) => {
                    told.trouble.wait(sender, &format!("cannot list {prefix}: {err}")).await;
                    continue;
                }
            };
            told.trouble.over(sender).await;
            let listed = keys.iter().map(&mut told.read).collect();
            drop(keys);
            if sender.send(Event::Listed(listed)).await.is_err() {
                return;
            }
            let mut next = revision + 1;
            loop {
                match self.watch_from(prefix, &mut next, &mut told).await {
                    End::Closed => return,
                    End::Forgotten => break,
                    End::Broken(reason) => {
                        let reason = format!("the watch on {prefix} broke: {reason}");
                        told.trouble.wait(sender, &reason).await;
                    }
                }
            }
        }
    }

    async fn watch_from<T, R, N>(
        &self,
        prefix: &str,
        next: &mut i64,
        told: &mut Told<'_, T, R, N>,
    ) -> End
    where
        R: FnMut(&KeyValue) -> T,
        N: Fn(&KeyValue) -> String,
    {
        let mut stream = match self.open(prefix, *next).await {
            Ok(stream) => stream,
            Err(err) => return End::Broken(err.to_string()),
        };
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = told.sender.closed() => return End::Closed,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Broken("etcd ended it".into()),
                Err(err) => return End::Broken(reason(&err)),
            };
            if let Some(end) = judge(&answer, *next) {
                return end;
            }
            told.trouble.over(told.sender).await;
            for event in answer.events() {
                let Some(kv) = event.kv() else { continue };
                let event = match event.event_type() {
                    EventType::Put => Event::Put((told.read)(kv)),
                    EventType::Delete => Event::Gone((told.name)(kv)),
                };
                if told.sender.send(event).await.is_err() {
                    return End::Closed;
                }
            }
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            if !answer.events().is_empty() {
                *next = revision + 1;
            }
        }
    }

    async fn open(&self, prefix: &str, from: i64) -> Result<WatchStream, EtcdError> {
        let watch = |mut client: WatchClient| async move {
            let options = WatchOptions::new().with_prefix().with_start_revision(from);
            client.watch(prefix, Some(options)).await
        };
        debug!(from, "watching");
        self.watch(watch).await
    }
}

/// Whether an answer ends the watch.
fn judge(answer: &WatchResponse, next: i64) -> Option<End> {
    if answer.compact_revision() != 0 {
        let compacted = answer.compact_revision();
        info!(compacted, "etcd has forgotten what happened meanwhile; listing all keys again");
        return Some(End::Forgotten);
    }
    if answer.canceled() {
        return Some(End::Broken(format!("etcd ended it: {}", answer.cancel_reason())));
    }
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    // A revision never falls. If it did, this is another etcd, or an older copy of it, and
    // would tell nothing before it gets as far.
    if answer.created() && revision + 1 < next {
        info!(revision, expected = next - 1, "etcd was put back; listing all keys again");
        return Some(End::Forgotten);
    }
    None
}

/// The first key behind all keys with a prefix.
fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is the greatest there is.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(end("/millrace/"), b"/millrace0");
        assert!(b"/millrace/\xff".to_vec() < end("/millrace/"));
        assert_eq!(end(""), b"");
    }
}
