//! Makes batches of what watches tell. The first change is never waited with; what comes while the
//! receiver is busy makes one batch.

use std::{sync::Arc, time::Instant};

use agent_kit::watch::Event;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{
    Batch,
    listing::{Listing, Sight},
};
use crate::{doubt::Doubt, problem::Problem};

/// Events of one watch that may wait. A list is one event.
pub(super) const QUEUE: usize = 1024;
/// Batches that may wait: while there is one, what comes joins the next.
const BATCHES: usize = 1;

/// The nth watch, and what it told.
type Told = (usize, Event<Sight>);

/// Gathers what watches tell. Ends when the receiver is dropped, and has the watches end by that.
pub(super) fn gather(watches: Vec<(Listing, Receiver<Event<Sight>>)>) -> Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    let mut listings = Vec::new();
    let mut streams = Vec::new();
    for (nth, (listing, mut events)) in watches.into_iter().enumerate() {
        listings.push(listing);
        let events = stream::poll_fn(move |context| events.poll_recv(context));
        streams.push(events.map(move |event| (nth, event)));
    }
    let gatherer = Gatherer { listings, ..Gatherer::default() };
    tokio::spawn(gatherer.run(stream::select_all(streams), sender));
    receiver
}

#[derive(Default)]
struct Gatherer {
    listings: Vec<Listing>,
    was_synced: bool,
    /// As told last.
    problems: Arc<[Problem]>,
    doubts: Arc<[Doubt]>,
}

impl Gatherer {
    async fn run(mut self, events: impl Stream<Item = Told> + Unpin, sender: Sender<Batch>) {
        let mut events = events.ready_chunks(QUEUE);
        loop {
            let told = tokio::select! {
                told = events.next() => told,
                () = sender.closed() => return,
            };
            let Some(told) = told else { return };
            let since = Instant::now();
            self.take(told, since);
            let permit = loop {
                tokio::select! {
                    biased;
                    permit = sender.reserve() => break permit,
                    Some(told) = events.next() => self.take(told, Instant::now()),
                }
            };
            let Ok(permit) = permit else { return };
            if let Some(batch) = self.batch(since) {
                permit.send(batch);
            }
        }
    }

    fn take(&mut self, told: Vec<Told>, now: Instant) {
        for (nth, event) in told {
            self.listings[nth].take(event, now);
        }
    }

    /// What is news since the last one, if anything is.
    fn batch(&mut self, since: Instant) -> Option<Batch> {
        let synced = self.listings.iter().all(Listing::is_settled);
        let changes: Vec<_> = self.listings.iter_mut().flat_map(Listing::take_changes).collect();
        let has_troubles: Vec<bool> =
            self.listings.iter_mut().map(Listing::take_problems_changed).collect();
        let is_trouble = has_troubles.contains(&true);
        if changes.is_empty() && !is_trouble && synced == self.was_synced {
            return None;
        }
        self.was_synced = synced;
        if is_trouble {
            self.problems = self.listings.iter().flat_map(Listing::problems).collect();
            self.doubts = self.listings.iter().flat_map(Listing::doubts).collect();
        }
        let silent_since = self.listings.iter().filter_map(Listing::silent_since).min();
        let (problems, doubts) = (Arc::clone(&self.problems), Arc::clone(&self.doubts));
        Some(Batch { synced, since, changes, problems, doubts, silent_since })
    }
}

#[cfg(test)]
mod tests;
