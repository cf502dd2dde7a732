//! Reading the files of a directory, many at once where there are many.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    num::NonZero,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use super::{EMPTY_GRACE, is_manifest};
use crate::{
    documents::Seen,
    model::Strings,
    problem::{Problem, ProblemKind},
    reflect,
};

/// Tells one content of a file from another without reading it: a hash of where it lies, its
/// size and its times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(u64);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let inode = (metadata.dev(), metadata.ino(), metadata.size());
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let mut hasher = DefaultHasher::new();
        (inode, modified, changed).hash(&mut hasher);
        Self(hasher.finish())
    }

    /// Of what the name leads to, through symbolic links.
    pub(super) fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::of(&metadata))
    }
}

/// What was seen of a file; no stamp if it is to be read again whatever happens.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) file: Arc<str>,
    pub(super) stamp: Option<Stamp>,
    /// `None` if nothing has the name, or something that is no file.
    pub(super) seen: Option<Seen>,
}

/// Names of the manifests in a directory, sorted.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Arc<str>>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_manifest(name)) {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Fewer than this are read faster by one thread than others are started.
const WORTH_A_THREAD: usize = 64;

/// Reads files on as many processors as there are.
pub(super) fn read_all(directory: &Path, files: &[Arc<str>]) -> Vec<Sight> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = processors.min(files.len().div_ceil(WORTH_A_THREAD));
    if threads <= 1 {
        return read_from(directory, files, &AtomicUsize::new(0));
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let read = || read_from(directory, files, &next);
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap_or_default()).collect()
    })
}

/// Takes a piece of the files after another until none is left.
fn read_from(directory: &Path, files: &[Arc<str>], next: &AtomicUsize) -> Vec<Sight> {
    let mut strings = Strings::default();
    let mut text = Vec::new();
    let mut sights = Vec::new();
    loop {
        let start = next.fetch_add(WORTH_A_THREAD, Ordering::Relaxed).min(files.len());
        let piece = &files[start..files.len().min(start + WORTH_A_THREAD)];
        if piece.is_empty() {
            return sights;
        }
        for file in piece {
            sights.push(read(directory, file, &mut text, &mut strings));
        }
    }
}

fn read(directory: &Path, file: &Arc<str>, text: &mut Vec<u8>, strings: &mut Strings) -> Sight {
    let (stamp, seen) = match load(&directory.join(&**file), text) {
        Ok(None) => (None, None),
        Ok(Some(stamp)) => (Some(stamp), Some(look(text, strings))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
        Err(error) => (None, Some(Seen::Broken(unreadable(&error)))),
    };
    Sight { file: Arc::clone(file), stamp, seen }
}

/// `None` if it is no regular file. Opening does not wait for a pipe's other end.
fn load(path: &Path, text: &mut Vec<u8>) -> io::Result<Option<Stamp>> {
    let mut file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    text.clear();
    if !metadata.is_file() {
        return Ok(None);
    }
    text.reserve(metadata.len() as usize + 1);
    file.read_to_end(text)?;
    Ok(Some(Stamp::of(&metadata)))
}

fn look(text: &[u8], strings: &mut Strings) -> Seen {
    if text.is_empty() {
        return Seen::Empty(Instant::now() + EMPTY_GRACE);
    }
    let text = str::from_utf8(text).map_err(|error| {
        let line = text[..error.valid_up_to()].split(|&byte| byte == b'\n').count();
        let message = format!("line {line} is not UTF-8; what it said before stays in force");
        problem(ProblemKind::Syntax, message)
    });
    match text.and_then(|text| reflect::read(text, strings)) {
        Ok(reading) => Seen::Text(reading),
        Err(problem) => Seen::Broken(problem),
    }
}

fn unreadable(error: &io::Error) -> Problem {
    let message = format!("cannot be read: {error}; what it said before stays in force");
    problem(ProblemKind::Unreadable, message)
}

const fn problem(kind: ProblemKind, message: String) -> Problem {
    Problem { kind, source: None, object: None, field: String::new(), message }
}
