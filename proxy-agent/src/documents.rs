//! Which version of which object is in force, given what was seen of the documents that hold
//! objects: files, keys of etcd, objects of an API server. No input or output, and time is an
//! argument.
//!
//! A document that cannot be read loses no object, and one that is empty or gone loses them only
//! when that counts: files are emptied and written again, and removed and made anew, by programs
//! that mean only to change them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    doubt::Doubt,
    model::{Change, Object, ObjectKey},
    problem::{Problem, ProblemKind},
    reflect::{Outcome, Reading},
};

/// What was seen of a document.
#[derive(Debug)]
pub enum Seen {
    Text(Reading),
    /// Nothing in it can be trusted.
    Broken(Problem),
    /// Nothing is in it; it counts from the given time on.
    Empty(Instant),
    /// Not there; it counts from the given time on.
    Gone(Instant),
}

/// A version in a document; `None` for an object that is none of our business.
type Version = Option<Object>;

#[derive(Debug, Default)]
struct Known {
    versions: Vec<(ObjectKey, Version)>,
    problems: Vec<Problem>,
    /// It may hold objects that nobody knows of: it was never read to the end.
    is_obscure: bool,
    /// Objects in it of which there is no good version.
    refused: Vec<ObjectKey>,
}

#[derive(Debug)]
struct Standing {
    /// Documents that have a version of the object, by name. The first counts.
    documents: Vec<Arc<str>>,
    told: Version,
}

impl Default for Standing {
    fn default() -> Self {
        Self { documents: Vec::with_capacity(1), told: None }
    }
}

/// All documents, and the objects that are in force because of them.
#[derive(Debug, Default)]
pub struct Documents {
    known: BTreeMap<Arc<str>, Known>,
    objects: HashMap<ObjectKey, Standing>,
    /// Those that are empty or gone, and when that counts.
    waiting: BTreeMap<Arc<str>, (Instant, bool)>,
    changed: BTreeSet<ObjectKey>,
    /// Documents with problems or doubts, and objects in several documents.
    troubled: BTreeSet<Arc<str>>,
    shared: BTreeSet<ObjectKey>,
    problems_changed: bool,
}

impl Documents {
    pub fn see(&mut self, document: &Arc<str>, seen: Seen) {
        match seen {
            Seen::Text(reading) => {
                self.waiting.remove(document);
                self.replace(document, reading);
            }
            Seen::Broken(problem) => {
                self.waiting.remove(document);
                self.meet(document);
                self.set_problems(document, vec![problem]);
            }
            Seen::Empty(at) => {
                self.meet(document);
                self.wait(document, at, false);
            }
            Seen::Gone(at) => self.wait(document, at, true),
        }
    }

    /// Takes note of a document without having read it.
    fn meet(&mut self, document: &Arc<str>) {
        if !self.known.contains_key(document) {
            self.known.insert(Arc::clone(document), Known { is_obscure: true, ..Known::default() });
            self.troubled.insert(Arc::clone(document));
            self.problems_changed = true;
        }
    }

    fn wait(&mut self, document: &Arc<str>, at: Instant, gone: bool) {
        if !self.known.contains_key(document) {
            return;
        }
        match self.waiting.get(document) {
            Some((_, same)) if *same == gone => {}
            _ => {
                self.waiting.insert(Arc::clone(document), (at, gone));
            }
        }
    }

    /// Believes what has been so for long enough.
    pub fn settle(&mut self, now: Instant) {
        let due: Vec<_> = self.waiting.extract_if(.., |_, (at, _)| *at <= now).collect();
        for (document, (_, gone)) in due {
            self.replace(&document, Reading::default());
            if gone {
                self.known.remove(&document);
            }
        }
    }

    /// When [`Self::settle`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|(at, _)| *at).min()
    }

    /// Documents that are there, as far as is known.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.keys()
    }

    fn replace(&mut self, document: &Arc<str>, reading: Reading) {
        let was_obscure = self.known.get(document).is_none_or(|known| known.is_obscure);
        let is_obscure = was_obscure && reading.unidentified;
        let old = std::mem::take(&mut self.known.entry(Arc::clone(document)).or_default().versions);
        let Read { versions, refused, problems } = versions(&old, reading);
        let keys: BTreeSet<ObjectKey> = versions.iter().map(|(key, _)| key.clone()).collect();
        for (key, _) in old {
            if !keys.contains(&key) {
                self.leave(&key, document);
            }
        }
        for key in keys {
            self.enter(key, document);
        }
        if let Some(entry) = self.known.get_mut(document) {
            entry.versions = versions;
            self.problems_changed |= (entry.is_obscure, &entry.refused) != (is_obscure, &refused);
            (entry.is_obscure, entry.refused) = (is_obscure, refused);
        }
        self.set_problems(document, problems);
    }

    fn set_problems(&mut self, document: &Arc<str>, mut problems: Vec<Problem>) {
        for problem in &mut problems {
            problem.locate(document);
        }
        let is_obscure = self.known.get(document).is_some_and(|known| known.is_obscure);
        if problems.is_empty() && !is_obscure {
            self.troubled.remove(document);
        } else {
            self.troubled.insert(Arc::clone(document));
        }
        if let Some(entry) = self.known.get_mut(document)
            && entry.problems != problems
        {
            entry.problems = problems;
            self.problems_changed = true;
        }
    }

    fn enter(&mut self, key: ObjectKey, document: &Arc<str>) {
        let documents = &mut self.objects.entry(key.clone()).or_default().documents;
        if let Err(index) = documents.binary_search(document) {
            documents.insert(index, Arc::clone(document));
        }
        self.note_shared(key);
    }

    fn leave(&mut self, key: &ObjectKey, document: &Arc<str>) {
        if let Some(standing) = self.objects.get_mut(key) {
            standing.documents.retain(|other| other != document);
        }
        self.note_shared(key.clone());
    }

    fn note_shared(&mut self, key: ObjectKey) {
        let shared = self.objects.get(&key).is_some_and(|standing| standing.documents.len() > 1);
        self.problems_changed |= shared;
        if shared {
            self.shared.insert(key.clone());
        } else {
            self.problems_changed |= self.shared.remove(&key);
        }
        self.changed.insert(key);
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|key| self.change(key)).collect()
    }

    fn change(&mut self, key: ObjectKey) -> Option<Change> {
        let standing = self.objects.get_mut(&key)?;
        let first = standing.documents.first().and_then(|document| self.known.get(document));
        let version =
            first.and_then(|document| version(&document.versions, &key)).cloned().flatten();
        let before = std::mem::replace(&mut standing.told, version.clone());
        if standing.documents.is_empty() {
            self.objects.remove(&key);
        }
        match version {
            Some(object) if before.as_ref() != Some(&object) => Some(Change::Put(key, object)),
            None if before.is_some() => Some(Change::Delete(key)),
            _ => None,
        }
    }

    /// Whether [`Self::problems`] may have changed since this was asked last.
    pub fn take_problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.problems_changed)
    }

    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let documents = self.troubled.iter().filter_map(|document| self.known.get(document));
        let own = documents.flat_map(|document| document.problems.iter().cloned());
        own.chain(self.shared.iter().filter_map(|key| self.duplicate(key))).collect()
    }

    /// What is there and cannot be read, and never was.
    pub fn doubts(&self) -> impl Iterator<Item = Doubt> {
        let documents =
            self.troubled.iter().filter_map(|document| Some((document, self.known.get(document)?)));
        documents.flat_map(|(document, known)| {
            let whole = known.is_obscure.then_some(None);
            let objects = known.refused.iter().cloned().map(Some);
            whole
                .into_iter()
                .chain(objects)
                .map(|object| Doubt { document: Arc::clone(document), object })
        })
    }

    fn duplicate(&self, key: &ObjectKey) -> Option<Problem> {
        let (first, others) = self.objects.get(key)?.documents.split_first()?;
        let message = format!("also stands in {first}, which counts; remove it here or there");
        Some(Problem {
            kind: ProblemKind::Duplicate,
            source: others.first().cloned(),
            object: Some(key.clone()),
            field: String::new(),
            message,
        })
    }
}

/// What a reading came to.
struct Read {
    versions: Vec<(ObjectKey, Version)>,
    /// Objects without any version.
    refused: Vec<ObjectKey>,
    problems: Vec<Problem>,
}

/// The versions in force after a reading: of a refused object the last good one, and if it
/// cannot be told which was refused, of all that are not mentioned.
fn versions(old: &[(ObjectKey, Version)], reading: Reading) -> Read {
    let Reading { objects, mut problems, unidentified } = reading;
    let mut versions: Vec<(ObjectKey, Version)> = Vec::with_capacity(objects.len());
    let mut refused = Vec::new();
    let mut known: HashSet<ObjectKey> = HashSet::with_capacity(objects.len());
    for (key, outcome) in objects {
        if !known.insert(key.clone()) {
            problems.push(twice(&key));
            continue;
        }
        match outcome {
            Outcome::Good(object) => versions.push((key, Some(object))),
            Outcome::Ignored => versions.push((key, None)),
            Outcome::Refused => match version(old, &key) {
                Some(version) => versions.push((key, version.clone())),
                None => refused.push(key),
            },
        }
    }
    if unidentified {
        let unmentioned = old.iter().filter(|(key, _)| !known.contains(key));
        versions.extend(unmentioned.cloned());
    }
    versions.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    versions.shrink_to_fit();
    Read { versions, refused, problems }
}

fn version<'a>(versions: &'a [(ObjectKey, Version)], key: &ObjectKey) -> Option<&'a Version> {
    let index = versions.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
    Some(&versions[index].1)
}

fn twice(key: &ObjectKey) -> Problem {
    Problem {
        kind: ProblemKind::Duplicate,
        source: None,
        object: Some(key.clone()),
        field: String::new(),
        message: "stands twice; the first counts, remove the other".into(),
    }
}

#[cfg(test)]
mod tests;
