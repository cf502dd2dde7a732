//! What is written down of every lab, so that it can be taken down by anyone.
//!
//! A lab is recorded before its first namespace exists. Its owner is named by process id and
//! start time; a lab whose owner is gone is a leftover. Kept labs have no owner.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde::{Deserialize, Serialize};

use crate::{
    bpffs, cgroup,
    error::{At, Error, Result},
    namespace,
    spec::LabSpec,
};

const DIRECTORY: &str = "/run/millrace-lab";

/// How long a lab stays up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// Until dropped, or until this process ends in whatever way.
    Owner,
    /// Until taken down by `cargo xtask lab down`, once [`Lab::keep`](crate::Lab::keep) said so;
    /// until then as `Owner`, but for what no signal handler can see, as SIGKILL.
    Kept,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    owner: Option<Owner>,
    pub(crate) spec: LabSpec,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// In clock ticks since boot: process ids are used again.
    started: u64,
}

impl Owner {
    fn myself() -> Option<Self> {
        Self::of(std::process::id())
    }

    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, started: parse_started(&stat)? })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Field 22 of `/proc/PID/stat`; the second may hold blanks and brackets.
fn parse_started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

impl Record {
    pub(crate) fn new(id: String, spec: LabSpec, lifetime: Lifetime) -> Self {
        let owner = match lifetime {
            Lifetime::Owner => Owner::myself(),
            Lifetime::Kept => None,
        };
        Self { id, owner, spec }
    }

    pub(crate) fn directory(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.id)
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.owner.is_none()
    }

    /// Whether this process shall not leave it behind.
    pub(crate) fn is_mine(&self) -> bool {
        owned().iter().any(|other| other.id == self.id)
    }

    /// Leaves it behind.
    pub(crate) fn let_go(&self) {
        owned().retain(|other| other.id != self.id);
    }

    fn is_leftover(&self) -> bool {
        self.owner.is_some_and(|owner| !owner.is_alive())
    }

    /// Claims the id: no two labs share one.
    pub(crate) fn claim(&self) -> Result<()> {
        fs::create_dir_all(DIRECTORY).at("create", DIRECTORY)?;
        match fs::create_dir(self.directory()) {
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::AlreadyUp { id: self.id.clone() });
            }
            made => made.at("create", self.directory())?,
        }
        self.save()?;
        owned().push(self.clone());
        clean_up_on_signals();
        Ok(())
    }

    /// By rename, so that no reader meets half a record.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.directory().join("record.json");
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).expect("a record is plain data");
        fs::write(&fresh, text).at("write", &fresh)?;
        fs::rename(&fresh, &path).at("write", &path)
    }

    pub(crate) fn load(id: &str) -> Result<Self> {
        read(&Path::new(DIRECTORY).join(id)).ok_or_else(|| Error::NoSuchLab { id: id.into() })
    }

    /// Takes everything away that a lab may have made, whatever of it there is. Processes go
    /// first, or they would hold the rest; the record goes last, or a failure would be forgotten.
    pub(crate) fn remove(&self) -> Result<()> {
        end_if_interrupted();
        self.clear()?;
        self.let_go();
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        cgroup::remove(&cgroup::of_lab(&self.id)?)?;
        bpffs::remove(&bpffs::of_lab(&self.id))?;
        namespace::of_lab(&self.id).iter().try_for_each(namespace::Namespace::delete)?;
        match fs::remove_dir_all(self.directory()) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
            other => other.at("remove", self.directory())?,
        }
        Ok(())
    }
}

fn read(directory: &Path) -> Option<Record> {
    let text = fs::read(directory.join("record.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Every lab on this machine.
pub(crate) fn all() -> Vec<Record> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path())).collect()
}

/// Removes the labs whose owner died; returns their ids.
pub fn remove_leftovers() -> Result<Vec<String>> {
    remove_each(all().into_iter().filter(Record::is_leftover))
}

/// Removes kept labs and leftovers, but none that a living process owns; returns their ids.
pub fn remove_all() -> Result<Vec<String>> {
    remove_each(all().into_iter().filter(|record| record.is_kept() || record.is_leftover()))
}

fn remove_each(records: impl Iterator<Item = Record>) -> Result<Vec<String>> {
    records.map(|record| record.remove().map(|()| record.id.clone())).collect()
}

/// Labs that this process must not leave behind.
fn owned() -> MutexGuard<'static, Vec<Record>> {
    static OWNED: Mutex<Vec<Record>> = Mutex::new(Vec::new());
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a signal has come, from which on only its handler touches labs.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Halts every other thread that would change a lab while the handler takes all down and
/// ends the process.
pub(crate) fn end_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Takes the labs of this process down when it is interrupted or asked to end.
fn clean_up_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handled = ctrlc::set_handler(|| {
            INTERRUPTED.store(true, Ordering::SeqCst);
            let records = owned().clone();
            for record in records {
                // Once more for what was being made when the signal came.
                if let Err(err) = record.clear().and_then(|()| record.clear()) {
                    eprintln!("lab {} is not gone: {err}", record.id);
                }
            }
            std::process::exit(130);
        });
        if let Err(err) = handled {
            eprintln!("a lab would outlive ctrl-C: {err}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 1";
        assert_eq!(parse_started(stat), Some(987_654));
        assert!(Owner::myself().is_some_and(Owner::is_alive));
    }
}
