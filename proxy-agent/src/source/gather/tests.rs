//! Batches as a receiver sees them, fed by hand.

use tokio::sync::mpsc::error::TryRecvError;

use super::*;
use crate::{
    model::{Change, Strings},
    reflect,
};

fn sight(name: &str) -> Sight {
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    });
    let reading = reflect::read(&value.to_string(), &mut Strings::default()).expect("JSON");
    Sight { document: format!("Service default/{name}").into(), reading }
}

/// Watches that are told by hand, and what comes of it.
fn gathered(watches: usize) -> (Vec<Sender<Event<Sight>>>, Receiver<Batch>) {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..watches).map(|_| mpsc::channel(QUEUE)).unzip();
    let places = receivers.into_iter().map(|receiver| (Listing::new("place".into()), receiver));
    (senders, gather(places.collect()))
}

async fn next(batches: &mut Receiver<Batch>) -> Batch {
    batches.recv().await.expect("a batch")
}

fn names(batch: &Batch) -> Vec<String> {
    let name = |change: &Change| match change {
        Change::Put(key, _) => format!("+{}", key.name.name),
        Change::Delete(key) => format!("-{}", key.name.name),
    };
    batch.changes.iter().map(name).collect()
}

#[tokio::test]
async fn everything_is_told_once_every_watch_has_listed() {
    let (watches, mut batches) = gathered(3);
    for (nth, watch) in watches.iter().enumerate() {
        watch.send(Event::Listed(vec![sight(&nth.to_string())])).await.unwrap();
        let batch = next(&mut batches).await;
        assert_eq!(names(&batch), [format!("+{nth}")]);
        assert_eq!(batch.synced, nth == 2);
    }
    // Even if the last list is empty.
    let (watches, mut batches) = gathered(2);
    watches[0].send(Event::Listed(vec![sight("a")])).await.unwrap();
    assert!(!next(&mut batches).await.synced);
    watches[1].send(Event::Listed(Vec::new())).await.unwrap();
    let batch = next(&mut batches).await;
    assert!(batch.synced && batch.changes.is_empty());
}

#[tokio::test]
async fn what_comes_at_once_is_one_batch_and_the_first_does_not_wait() {
    let (watches, mut batches) = gathered(1);
    watches[0].send(Event::Listed(Vec::new())).await.unwrap();
    next(&mut batches).await;
    watches[0].send(Event::Put(sight("first"))).await.unwrap();
    // The receiver is busy from here on: one batch waits for it, the rest joins another.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    for nth in 0..100 {
        watches[0].send(Event::Put(sight(&nth.to_string()))).await.unwrap();
        tokio::task::yield_now().await;
    }
    watches[0].send(Event::Gone("Service default/7".into())).await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(names(&next(&mut batches).await), ["+first"]);
    let burst = next(&mut batches).await;
    assert_eq!(burst.changes.len(), 99, "{:?}", names(&burst));
    tokio::task::yield_now().await;
    assert!(matches!(batches.try_recv(), Err(TryRecvError::Empty)));
}

#[tokio::test]
async fn what_changes_nothing_is_not_told() {
    let (watches, mut batches) = gathered(1);
    watches[0].send(Event::Listed(vec![sight("a")])).await.unwrap();
    next(&mut batches).await;
    watches[0].send(Event::Put(sight("a"))).await.unwrap();
    watches[0].send(Event::Listed(vec![sight("a")])).await.unwrap();
    watches[0].send(Event::Gone("Service default/b".into())).await.unwrap();
    watches[0].send(Event::Trouble("refused".into())).await.unwrap();
    let batch = loop {
        let batch = next(&mut batches).await;
        assert!(batch.changes.is_empty());
        if !batch.problems.is_empty() {
            break batch;
        }
    };
    assert!(batch.silent_since.is_some() && batch.problems.len() == 1);
    watches[0].send(Event::Recovered).await.unwrap();
    let batch = next(&mut batches).await;
    assert!(batch.silent_since.is_none() && batch.problems.is_empty());
}

#[tokio::test]
async fn watches_end_when_nobody_receives() {
    let (watches, batches) = gathered(2);
    drop(batches);
    for watch in watches {
        watch.closed().await;
    }
}
