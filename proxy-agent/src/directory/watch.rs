//! The thread that listens to the directory. What happens reaches the receiver at once; only
//! what happened in the same moment is told together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{
    GONE_GRACE, RETURN_GRACE,
    notify::{Last, News, Watch},
    read::{Sight, Stamp, list, read_all},
};
use crate::{
    documents::{Documents, Seen},
    doubt::Doubt,
    problem::{Problem, ProblemKind},
    source::Batch,
};

/// Batches that may wait for the receiver; inotify's queue holds what comes meanwhile.
const QUEUE: usize = 16;
/// A file that is being written is read after this long, closed or not.
const WRITING: Duration = Duration::from_secs(1);
/// Whether the directory is the same, or back, is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// All files are compared with what is known of them this often, for the sake of what inotify
/// does not tell: changes behind symbolic links, and on other machines.
const COMPARE: Duration = Duration::from_secs(30);

/// Watches a directory, which need not exist yet. Ends when the receiver is dropped.
pub fn watch(path: PathBuf) -> io::Result<Receiver<Batch>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let watcher = Watcher {
        path,
        sender,
        watch: None,
        documents: Documents::default(),
        stamps: HashMap::new(),
        writing: BTreeMap::new(),
        away: None,
        away_since: None,
        synced: false,
        problems: Arc::new([]),
        doubts: Arc::new([]),
        compare_at: Instant::now(),
    };
    thread::Builder::new().name("directory".into()).spawn(move || watcher.run())?;
    Ok(receiver)
}

struct Watcher {
    path: PathBuf,
    sender: Sender<Batch>,
    /// `None` while there is no directory.
    watch: Option<Watch>,
    documents: Documents,
    stamps: HashMap<Arc<str>, Stamp>,
    /// Files being written, and when they are read nevertheless.
    writing: BTreeMap<Arc<str>, Instant>,
    away: Option<Problem>,
    away_since: Option<Instant>,
    synced: bool,
    /// As told last.
    problems: Arc<[Problem]>,
    doubts: Arc<[Doubt]>,
    compare_at: Instant,
}

impl Watcher {
    fn run(mut self) {
        let mut since = Instant::now();
        while self.step(since).is_some() {
            let timeout = self.timeout();
            match &self.watch {
                Some(watch) => watch.wait(timeout),
                None => thread::sleep(LOOK),
            }
            since = Instant::now();
        }
    }

    /// One look at everything; `None` when nobody listens any more.
    fn step(&mut self, now: Instant) -> Option<()> {
        let was_synced = self.synced;
        let had_problem = self.away.clone();
        match self.watch.as_ref().map(Watch::read) {
            None => self.open(now),
            Some(news) => self.take(news, now),
        }
        self.documents.settle(Instant::now());
        let is_news = self.synced != was_synced || self.away != had_problem;
        if self.sender.is_closed() { None } else { self.tell(now, is_news) }
    }

    fn timeout(&self) -> Duration {
        let deadlines = self.writing.values().copied().chain(self.documents.deadline());
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        // Rounded up, lest the wait ends just before its time.
        deadlines.map(until).min().map_or(LOOK, |wait| wait + Duration::from_millis(1)).min(LOOK)
    }

    fn open(&mut self, now: Instant) {
        // Watched before it is read: what changes meanwhile is told.
        let opened = Watch::open(&self.path).and_then(|watch| {
            self.compare(now, if self.synced { RETURN_GRACE } else { Duration::ZERO })?;
            Ok(watch)
        });
        match opened {
            Ok(watch) => {
                self.watch = Some(watch);
                (self.away, self.away_since) = (None, None);
                self.synced = true;
            }
            Err(error) => self.went(&error.to_string()),
        }
    }

    fn went(&mut self, why: &str) {
        self.watch = None;
        self.away_since.get_or_insert_with(Instant::now);
        self.writing.clear();
        let message = if self.synced {
            format!("{why}; what it said before stays in force until it is back")
        } else {
            format!(
                "{why}; nothing is programmed or removed before it has been read: make it a \
                 readable directory, or name another with --source"
            )
        };
        self.away = Some(Problem {
            kind: ProblemKind::Source,
            source: Some(self.path.to_string_lossy().into()),
            object: None,
            field: String::new(),
            message,
        });
    }

    fn take(&mut self, news: News, now: Instant) {
        let is_current = self.watch.as_ref().is_some_and(Watch::is_current);
        self.take_files(news.files, now);
        if news.away || !is_current {
            self.went("the directory is gone");
            self.open(now);
        } else if (news.everything || now >= self.compare_at)
            && let Err(error) = self.compare(now, GONE_GRACE)
        {
            self.went(&error.to_string());
        }
    }

    fn take_files(&mut self, files: BTreeMap<Arc<str>, Last>, now: Instant) {
        let mut due = Vec::new();
        for (file, last) in files {
            if last == Last::Touched {
                self.writing.entry(file).or_insert(now + WRITING);
                continue;
            }
            self.writing.remove(&file);
            match last {
                Last::Gone => self.gone(&file, now, GONE_GRACE),
                Last::Renamed => self.gone(&file, now, Duration::ZERO),
                Last::Written | Last::Touched => due.push(file),
            }
        }
        due.extend(self.writing.extract_if(.., |_, at| *at <= now).map(|(file, _)| file));
        self.read(&due, now);
    }

    fn read(&mut self, files: &[Arc<str>], now: Instant) {
        for Sight { file, stamp, seen } in read_all(&self.path, files) {
            let Some(seen) = seen else {
                self.gone(&file, now, GONE_GRACE);
                continue;
            };
            match stamp {
                Some(stamp) => self.stamps.insert(Arc::clone(&file), stamp),
                None => self.stamps.remove(&file),
            };
            self.documents.see(&file, seen);
        }
    }

    fn gone(&mut self, file: &Arc<str>, now: Instant, grace: Duration) {
        self.stamps.remove(file);
        self.documents.see(file, Seen::Gone(now + grace));
    }

    /// Reads what is not as it is known to be.
    fn compare(&mut self, now: Instant, grace: Duration) -> io::Result<()> {
        let mut files = list(&self.path)?;
        let there: BTreeSet<Arc<str>> = files.iter().cloned().collect();
        let gone = self.documents.names().filter(|&file| !there.contains(file));
        for file in gone.cloned().collect::<Vec<_>>() {
            self.gone(&file, now, grace);
        }
        files.retain(|file| !self.writing.contains_key(file) && !self.is_known(file));
        self.read(&files, now);
        self.compare_at = Instant::now() + COMPARE;
        Ok(())
    }

    fn is_known(&self, file: &Arc<str>) -> bool {
        let known = self.stamps.get(file);
        known.is_some() && Stamp::at(&self.path.join(&**file)).as_ref() == known
    }

    fn tell(&mut self, since: Instant, is_news: bool) -> Option<()> {
        let changes = self.documents.take_changes();
        let is_trouble = self.documents.take_problems_changed();
        if changes.is_empty() && !is_trouble && !is_news {
            return Some(());
        }
        if is_trouble || is_news {
            self.problems = self.away.iter().cloned().chain(self.documents.problems()).collect();
            self.doubts = self.documents.doubts().collect();
        }
        let (problems, doubts) = (Arc::clone(&self.problems), Arc::clone(&self.doubts));
        let (synced, silent_since) = (self.synced, self.away_since);
        let batch = Batch { synced, since, changes, problems, doubts, silent_since };
        self.sender.blocking_send(batch).ok()
    }
}

#[cfg(test)]
mod tests;
