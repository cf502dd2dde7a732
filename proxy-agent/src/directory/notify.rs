//! inotify on one directory, boiled down to what happened last to each manifest in it.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, Event, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::is_manifest;

/// What happened last to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    /// Its content is complete: closed after writing, linked, or renamed to this name.
    Written,
    /// Somebody is writing it.
    Touched,
    Gone,
    /// Renamed to another manifest.
    Renamed,
}

/// All that happened since the last look.
#[derive(Default, Debug)]
pub(super) struct News {
    pub(super) files: BTreeMap<Arc<str>, Last>,
    /// Events were lost, or files changed that were not named: everything has to be looked at.
    pub(super) everything: bool,
    /// The directory itself went.
    pub(super) away: bool,
}

#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    inotify: OwnedFd,
    inode: (u64, u64),
}

impl Watch {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inode = inode(path)?;
        inotify::add_watch(&inotify, path, flags)?;
        Ok(Self { path: path.into(), inotify, inode })
    }

    /// Whether the path still leads to the directory that is watched. Nothing tells when a
    /// symbolic link on the way is turned, or something is mounted over it.
    pub(super) fn is_current(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.inode)
    }

    /// Waits until something happened, or for this long.
    pub(super) fn wait(&self, timeout: Duration) {
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // Whatever ends the wait, a look follows.
        let _ = poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout));
    }

    /// What has happened until now, without waiting.
    pub(super) fn read(&self) -> News {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut news = News::default();
        let mut moves = HashMap::new();
        loop {
            match reader.next() {
                Ok(event) => self.take(&event, &mut news, &mut moves),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return news,
                Err(_) => {
                    news.away = true;
                    return news;
                }
            }
        }
    }

    fn take(&self, event: &Event, news: &mut News, moves: &mut HashMap<u32, Arc<str>>) {
        let flags = event.events();
        let lost =
            ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT;
        news.away |= flags.intersects(lost);
        news.everything |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
        let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else { return };
        if !is_manifest(name) {
            // A ConfigMap mount changes all its files at once by turning the link `..data`.
            news.everything |= name.starts_with("..");
            return;
        }
        let name: Arc<str> = name.into();
        if flags.contains(ReadFlags::MOVED_FROM) {
            moves.insert(event.cookie(), Arc::clone(&name));
        } else if flags.contains(ReadFlags::MOVED_TO)
            && let Some(from) = moves.remove(&event.cookie())
            && let Some(last @ Last::Gone) = news.files.get_mut(&from)
        {
            *last = Last::Renamed;
        }
        let last = self.last(flags, &name);
        news.files.insert(name, last);
    }

    fn last(&self, flags: ReadFlags, name: &str) -> Last {
        if flags.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
            Last::Written
        } else if flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            Last::Gone
        } else if flags.contains(ReadFlags::CREATE) && is_link(&self.path.join(name)) {
            Last::Written
        } else {
            Last::Touched
        }
    }
}

/// Whoever makes a link, symbolic or hard, closes no file.
fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    path.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}
