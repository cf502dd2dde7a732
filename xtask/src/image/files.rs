//! What the file system of an image holds, as the tar archive that a layer is. No time, no owner
//! and no order of another file system is in it.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use tar::{EntryType, Header};

/// Where an image of one program has it, so that `PATH` leads there.
pub(crate) const PROGRAMS: &str = "usr/local/bin";

/// Files, links and directories by their paths below the root, such as `usr/local/bin/lab-peer`.
/// Directories above them are there by themselves.
#[derive(Clone, Default, Debug)]
pub(crate) struct Files(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
enum Entry {
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String },
    Directory { mode: u32 },
}

impl Files {
    /// One program, in [`PROGRAMS`].
    pub(crate) fn of_program(name: &str, bytes: Vec<u8>) -> Self {
        let mut files = Self::default();
        files.program(&format!("{PROGRAMS}/{name}"), bytes);
        files
    }

    /// What all may run and only its owner may write.
    pub(crate) fn program(&mut self, path: &str, bytes: Vec<u8>) {
        self.put(path, Entry::File { mode: 0o755, bytes });
    }

    /// What all may read and only its owner may write.
    pub(crate) fn file(&mut self, path: &str, bytes: Vec<u8>) {
        self.put(path, Entry::File { mode: 0o644, bytes });
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.put(path, Entry::Link { target: target.into() });
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.put(path, Entry::Directory { mode });
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn put(&mut self, path: &str, entry: Entry) {
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.0.insert(path.into(), entry);
    }

    /// The archive. Sorted by path, so whatever is in a directory comes after it.
    pub(crate) fn layer(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            match entry {
                Entry::File { mode, bytes } => file(&mut tar, path, *mode, bytes)?,
                Entry::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target)?;
                }
                Entry::Directory { mode } => directory(&mut tar, path, *mode)?,
            }
        }
        tar.into_inner()
    }
}

pub(super) fn directory(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    mode: u32,
) -> io::Result<()> {
    let mut header = header(EntryType::Directory, mode, 0);
    tar.append_data(&mut header, format!("{path}/"), io::empty())
}

pub(super) fn file(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// Of root, made in 1970.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(files: &Files) -> Vec<(String, EntryType, u32)> {
        let layer = files.layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let path = entry.path().unwrap().display().to_string();
            (path, header.entry_type(), header.mode().unwrap())
        });
        entries.collect()
    }

    #[test]
    fn a_program_may_be_run_by_all_and_written_by_none() {
        let directory = |path: &str| (path.to_owned(), EntryType::Directory, 0o755);
        let expected = [
            directory("usr/"),
            directory("usr/local/"),
            directory("usr/local/bin/"),
            ("usr/local/bin/proxy-agent".into(), EntryType::Regular, 0o755),
        ];
        assert_eq!(listed(&Files::of_program("proxy-agent", b"x".to_vec())), expected);
    }

    #[test]
    fn a_directory_keeps_its_mode_when_something_is_put_into_it() {
        let mut files = Files::default();
        files.directory("tmp", 0o1777);
        files.file("tmp/note", b"x".to_vec());
        files.link("bin", "usr/bin");
        let expected = [
            ("bin".into(), EntryType::Symlink, 0o777),
            ("tmp/".into(), EntryType::Directory, 0o1777),
            ("tmp/note".into(), EntryType::Regular, 0o644),
        ];
        assert_eq!(listed(&files), expected);
    }
}
