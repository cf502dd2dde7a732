//! What one watch has told, and what is in force because of it. No input or output, and time is an
//! argument.
//!
//! Only a whole list takes anything away that it does not name: a list that breaks off is never
//! told.

use std::{collections::HashSet, sync::Arc, time::Instant};

use agent_kit::watch::Event;

use crate::{
    documents::{Documents, Seen},
    doubt::Doubt,
    model::Change,
    problem::{Problem, ProblemKind},
    reflect::Reading,
};

/// A document as a watch tells it.
#[derive(Debug)]
pub struct Sight {
    pub document: Arc<str>,
    pub reading: Reading,
}

/// The documents of one watch.
#[derive(Debug)]
pub struct Listing {
    /// Where they come from, for people.
    place: Arc<str>,
    /// Whether others wait for it.
    is_needed: bool,
    documents: Documents,
    is_listed: bool,
    silence: Option<(Problem, Instant)>,
    silence_changed: bool,
}

impl Listing {
    #[must_use]
    pub fn new(place: Arc<str>) -> Self {
        Self {
            place,
            is_needed: true,
            documents: Documents::default(),
            is_listed: false,
            silence: None,
            silence_changed: false,
        }
    }

    /// One that nothing waits for where it cannot be heard.
    #[must_use]
    pub fn aside(place: Arc<str>) -> Self {
        Self { is_needed: false, ..Self::new(place) }
    }

    pub fn take(&mut self, event: Event<Sight>, now: Instant) {
        match event {
            Event::Listed(sights) => self.list(sights, now),
            Event::Put(sight) => self.see(sight),
            Event::Gone(document) => {
                self.documents.see(&document.into(), Seen::Gone(now));
                self.documents.settle(now);
            }
            Event::Trouble(reason) => self.fall_silent(&reason, now),
            Event::Recovered => self.silence_changed |= self.silence.take().is_some(),
        }
    }

    fn see(&mut self, Sight { document, reading }: Sight) {
        self.documents.see(&document, Seen::Text(reading));
    }

    fn list(&mut self, sights: Vec<Sight>, now: Instant) {
        let listed: HashSet<Arc<str>> =
            sights.iter().map(|sight| Arc::clone(&sight.document)).collect();
        let is_gone = |document: &&Arc<str>| !listed.contains(*document);
        let gone: Vec<Arc<str>> = self.documents.names().filter(is_gone).cloned().collect();
        for sight in sights {
            self.see(sight);
        }
        for document in gone {
            self.documents.see(&document, Seen::Gone(now));
        }
        self.documents.settle(now);
        self.is_listed = true;
    }

    fn fall_silent(&mut self, reason: &str, now: Instant) {
        let message = if self.is_listed {
            format!("{reason}; what was told before stays in force until it can be heard again")
        } else if !self.is_needed {
            format!("{reason}; until it can be heard, all goes on without it")
        } else {
            format!("{reason}; nothing is programmed or removed before everything has been told")
        };
        let problem = Problem {
            kind: ProblemKind::Source,
            source: Some(Arc::clone(&self.place)),
            object: None,
            field: String::new(),
            message,
        };
        let since = self.silence.as_ref().map_or(now, |(_, since)| *since);
        self.silence = Some((problem, since));
        self.silence_changed = true;
    }

    /// Whether nothing has to be waited for any more: everything has been told once.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_listed || (!self.is_needed && self.silence.is_some())
    }

    /// Since when nothing of what is needed can be heard, if that is so.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        self.silence.as_ref().filter(|_| self.is_needed).map(|(_, since)| *since)
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.documents.take_changes()
    }

    /// Whether problems or doubts may be others than when this was asked last.
    pub fn take_problems_changed(&mut self) -> bool {
        let silence_changed = std::mem::take(&mut self.silence_changed);
        self.documents.take_problems_changed() | silence_changed
    }

    /// All problems there are now.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let silence = self.silence.iter().map(|(problem, _)| problem.clone());
        silence.chain(self.documents.problems())
    }

    /// What is there and cannot be read, and never was.
    pub fn doubts(&self) -> impl Iterator<Item = Doubt> {
        self.documents.doubts()
    }
}

#[cfg(test)]
mod tests;
