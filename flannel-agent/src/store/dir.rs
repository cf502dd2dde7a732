//! Leases as files of a directory: `config.json`, and `SUBNET.json` for each lease, with the
//! value that flannel would write to etcd and an expiry. For one machine, tests and static
//! clusters on a shared file system.
//!
//! A file appears whole and only where there was none: it is written aside and linked. Whoever
//! replaces or removes one holds the lock of the directory, so that nobody takes over a lease
//! that was renewed a moment ago.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    mem::MaybeUninit,
    net::IpAddr,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{
        FlockOperation, flock,
        inotify::{self, CreateFlags, Reader, WatchFlags},
    },
};
use serde_json::Value;
use tokio::sync::mpsc::{self, Sender};

use super::{
    Answer, Entry, Event, Held, QUEUE, Request, Store, StoreError, read_config,
    registry::{self, Listed, Registry},
};
use crate::{
    clock::now,
    json::field,
    lease::{Attrs, Expiry, Lease},
    net_config::NetConfig,
    subnet::Subnet,
};

const CONFIG: &str = "config.json";
const SUFFIX: &str = ".json";
/// Beside flannel's fields; a lease without it stands for ever.
const EXPIRATION: &str = "Expiration";
/// Expiry and what inotify does not tell (other machines) are seen this late.
const LOOK: Duration = Duration::from_secs(1);

pub struct Dir {
    path: PathBuf,
    term: Duration,
}

impl Dir {
    /// Leases that are created or renewed last for `term`.
    pub fn new(path: PathBuf, term: Duration) -> Self {
        Self { path, term }
    }

    fn file(&self, subnet: Subnet) -> PathBuf {
        self.path.join(subnet.key().unwrap_or_default() + SUFFIX)
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> StoreError {
        let place = self.path.display().to_string();
        move |err| StoreError::Failed { place: place.clone(), what, reason: err.to_string() }
    }

    /// The lock is released when the file is closed.
    fn lock(&self) -> Result<File, StoreError> {
        let locked = || -> io::Result<File> {
            let lock = File::options().create(true).append(true).open(self.path.join(".lock"))?;
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        };
        locked().map_err(self.failed("lock the directory of leases"))
    }

    /// Writes a whole file under a name aside.
    fn aside(&self, attrs: &Attrs, expires: Expiry) -> Result<PathBuf, StoreError> {
        let aside = self.path.join(format!(".new-{}", std::process::id()));
        let mut value = serde_json::to_value(attrs).unwrap_or_default();
        if let (Expiry::At(at), Value::Object(map)) = (expires, &mut value) {
            let at = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
            map.insert(EXPIRATION.into(), at.map_or(Value::Null, |at| at.to_string().into()));
        }
        fs::write(&aside, value.to_string() + "\n").map_err(self.failed("write a lease"))?;
        Ok(aside)
    }

    fn expiry(&self) -> Expiry {
        Expiry::At(now().as_secs().saturating_add(self.term.as_secs().max(1)))
    }

    fn read_config(&self) -> Result<NetConfig, StoreError> {
        read_config(&self.path.join(CONFIG), NetConfig::parse_with_pools)
    }

    fn read(&self) -> Result<Vec<Listed>, StoreError> {
        let entries = read_all(&self.path).map_err(self.failed("list the leases"))?;
        let listed = entries
            .into_iter()
            .filter(|(entry, _)| !is_expired(entry))
            .filter_map(|(entry, version)| Some(Listed { lease: entry.taken()?, version }));
        Ok(listed.collect())
    }

    fn create_now(&self, subnet: Subnet, attrs: &Attrs) -> Result<Option<Held>, StoreError> {
        let _lock = self.lock()?;
        let path = self.file(subnet);
        if read_one(&path).is_some_and(|(entry, _)| is_expired(&entry)) {
            fs::remove_file(&path).map_err(self.failed("remove an expired lease"))?;
        }
        let expires = self.expiry();
        let aside = self.aside(attrs, expires)?;
        let linked = fs::hard_link(&aside, &path);
        let _ = fs::remove_file(&aside);
        match linked {
            Ok(()) => Ok(Some(Held { subnet, expires })),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(err) => Err(self.failed("create a lease")(err)),
        }
    }

    fn replace_now(&self, seen: &Listed, attrs: &Attrs) -> Result<Option<Held>, StoreError> {
        let _lock = self.lock()?;
        let subnet = seen.lease.subnet;
        let path = self.file(subnet);
        if read_one(&path).is_none_or(|(_, version)| version != seen.version) {
            return Ok(None);
        }
        let expires = match seen.lease.expires {
            Expiry::Never => Expiry::Never,
            _ => self.expiry(),
        };
        let aside = self.aside(attrs, expires)?;
        fs::rename(&aside, &path).map_err(self.failed("renew a lease"))?;
        Ok(Some(Held { subnet, expires }))
    }

    fn remove_now(&self, seen: &Listed) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let path = self.file(seen.lease.subnet);
        if read_one(&path).is_some_and(|(_, version)| version == seen.version) {
            fs::remove_file(&path).map_err(self.failed("remove a lease"))?;
        }
        Ok(())
    }
}

impl Registry for Dir {
    fn name(&self) -> String {
        self.place()
    }

    fn list(&self) -> Answer<'_, Vec<Listed>> {
        Box::pin(async { self.read() })
    }

    fn create<'a>(&'a self, subnet: Subnet, attrs: &'a Attrs) -> Answer<'a, Option<Held>> {
        Box::pin(async move { self.create_now(subnet, attrs) })
    }

    fn replace<'a>(&'a self, seen: &'a Listed, attrs: &'a Attrs) -> Answer<'a, Option<Held>> {
        Box::pin(async { self.replace_now(seen, attrs) })
    }

    fn remove<'a>(&'a self, seen: &'a Listed) -> Answer<'a, ()> {
        Box::pin(async { self.remove_now(seen) })
    }
}

impl Store for Dir {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn config(&self) -> Answer<'_, NetConfig> {
        Box::pin(async { self.read_config() })
    }

    fn published<'a>(&'a self, public: &'a [IpAddr]) -> Answer<'a, Option<Attrs>> {
        Box::pin(registry::published(self, public))
    }

    fn acquire<'a>(&'a self, request: &'a Request) -> Answer<'a, Held> {
        Box::pin(registry::acquire(self, request))
    }

    fn renew<'a>(&'a self, held: &'a Held, attrs: &'a Attrs) -> Answer<'a, Held> {
        Box::pin(registry::renew(self, held, attrs))
    }

    fn watch(self: Arc<Self>) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        // Reading and waiting block, so they have a thread of their own. Without it nothing is
        // told, and the agent says that it waits for the first list.
        let _ = thread::Builder::new().name("leases".into()).spawn(move || self.follow(&sender));
        receiver
    }
}

impl Dir {
    fn follow(&self, sender: &Sender<Event>) {
        let mut told: Option<Event> = None;
        let mut watch: Option<OwnedFd> = None;
        while !sender.is_closed() {
            // Watched before it is read: what changes meanwhile is told.
            if watch.is_none() {
                watch = self.open_watch().ok();
            }
            let event = match read_all(&self.path) {
                Ok(entries) => {
                    let entries = entries.into_iter().map(|(entry, _)| entry);
                    Event::Listed(entries.filter(|entry| !is_expired(entry)).collect())
                }
                Err(err) => {
                    watch = None;
                    Event::Trouble(format!("{}: cannot be read: {err}", self.path.display()))
                }
            };
            if told.as_ref() != Some(&event) {
                let was_trouble = matches!(told, Some(Event::Trouble(_)));
                if was_trouble && matches!(event, Event::Listed(_)) {
                    let _ = sender.blocking_send(Event::Recovered);
                }
                let _ = sender.blocking_send(event.clone());
                told = Some(event);
            }
            match &watch {
                Some(watch) => wait(watch),
                None => thread::sleep(LOOK),
            }
        }
    }

    fn open_watch(&self) -> io::Result<OwnedFd> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, &self.path, flags)?;
        Ok(inotify)
    }
}

/// Returns when something may have changed, and after [`LOOK`] at the latest.
fn wait(watch: &OwnedFd) {
    let timeout = Timespec {
        tv_sec: LOOK.as_secs().try_into().unwrap_or(1),
        tv_nsec: LOOK.subsec_nanos().into(),
    };
    // Whatever ends the wait, a look follows; what happened is told by that look.
    let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&timeout));
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = Reader::new(watch, &mut buffer);
    while reader.next().is_ok() {}
}

fn is_expired(entry: &Entry) -> bool {
    matches!(&entry.lease, Ok(Lease { expires: Expiry::At(at), .. }) if *at <= now().as_secs())
}

/// All leases, expired ones too: they are free, and who takes one removes its file.
fn read_all(path: &Path) -> io::Result<Vec<(Entry, i64)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_lease = name != CONFIG && name.ends_with(SUFFIX) && !name.starts_with('.');
        if is_lease && let Some(read) = read_one(&entry.path()) {
            found.insert(name.to_owned(), read);
        }
    }
    Ok(found.into_values().collect())
}

/// A lease and its version; `None` if there is no such file.
fn read_one(path: &Path) -> Option<(Entry, i64)> {
    let key = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.to_owned();
    let version = |meta: &fs::Metadata| {
        // Every writer makes a new file, so that its number tells them apart, with its time
        // where numbers are used again.
        meta.ino().cast_signed().rotate_left(32) ^ meta.mtime_nsec() ^ (meta.mtime() << 20)
    };
    let meta = path.metadata().ok()?;
    let lease = match fs::read_to_string(path) {
        Ok(text) => parse(&key, &text),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
        Err(err) => Err(err.to_string()),
    };
    Some((Entry { key, lease }, version(&meta)))
}

fn parse(key: &str, text: &str) -> Result<Lease, String> {
    let subnet = Subnet::parse_key(key)
        .filter(|subnet| subnet.key().as_deref() == Some(key))
        .ok_or("the name of the file is no subnet such as 10.244.1.0-24.json")?;
    let value: Value = serde_json::from_str(text).map_err(|err| format!("not JSON: {err}"))?;
    let attrs = Attrs::from_value(&value).map_err(|err| err.to_string())?;
    let expires = match field(&value, EXPIRATION) {
        None => Expiry::Never,
        Some(at) => {
            let at: Option<Timestamp> = at.as_str().and_then(|at| at.parse().ok());
            let at = at.ok_or(format!("{EXPIRATION}: is no time such as 2026-01-31T12:00:00Z"))?;
            Expiry::At(at.as_second().try_into().unwrap_or(0))
        }
    };
    Ok(Lease { subnet, attrs, expires })
}

#[cfg(test)]
mod tests;
