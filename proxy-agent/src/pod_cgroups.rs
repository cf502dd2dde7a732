//! The table of pods that are left out of the socket path, by their cgroups, and how these are
//! found. Kubelets name a pod's cgroup by its UID and make it before the first container; where they
//! do not (`cgroupsPerQOS: false`), those of containers are named by the runtime's ids, which the pod
//! tells once they run.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_kit::{
    audit::{Difference, told},
    table::{MapTable, OpenError, TableError, hold},
};

use crate::model::Pod;

/// A cgroup that is not there yet is looked for this often,
const PAUSE: Duration = Duration::from_millis(100);
/// but no longer than one part in so many of the time.
const SHARE: u32 = 20;

/// The table, and what stands there.
pub struct PodCgroups {
    table: MapTable<u64, u32>,
    root: Option<PathBuf>,
    pods: Vec<Arc<Pod>>,
    programmed: Option<HashMap<u64, u32>>,
    /// Pods without a cgroup, when it was looked for last.
    missing: Vec<Arc<Pod>>,
    next_look: Instant,
}

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum PodCgroupsError {
    #[error("cannot list the cgroups of pods below {0}: {1}")]
    List(PathBuf, io::Error),
    #[error("no cgroup2 file system is mounted; mount one, or name it by --cgroup-root")]
    NoRoot,
    #[error(transparent)]
    Table(#[from] TableError),
}

impl PodCgroups {
    /// The table pinned in `maps`, of the cgroups below `root`.
    ///
    /// # Errors
    /// Where the table cannot be opened.
    pub fn open(maps: &Path, root: Option<PathBuf>) -> Result<Self, OpenError> {
        let table = MapTable::open(maps, "BYPASSCGROUPS")?;
        let (pods, missing, programmed) = (Vec::new(), Vec::new(), None);
        Ok(Self { table, root, pods, programmed, missing, next_look: Instant::now() })
    }

    /// The pods from now on; whether they are others than before.
    pub fn set(&mut self, pods: Vec<Arc<Pod>>) -> bool {
        let is_new = self.pods != pods || self.programmed.is_none();
        self.pods = pods;
        is_new
    }

    /// Finds the cgroups, and has the programs know them.
    ///
    /// # Errors
    /// Where cgroups cannot be listed, or the table not be written; what stood there stays.
    pub fn look(&mut self) -> Result<(), PodCgroupsError> {
        let began = Instant::now();
        let found = self.find();
        self.next_look = Instant::now() + PAUSE.max(began.elapsed() * SHARE);
        let found = found?;
        let known: HashSet<&str> = found.values().map(|pod| &*pod.uid).collect();
        let is_missing = |pod: &&Arc<Pod>| !known.contains(&*pod.uid);
        self.missing = self.pods.iter().filter(is_missing).cloned().collect();
        let rows = found.into_keys().map(|id| (id, 1)).collect();
        if self.programmed.as_ref() != Some(&rows) {
            self.programmed = None;
            hold(&mut self.table, &rows)?;
            self.programmed = Some(rows);
        }
        Ok(())
    }

    /// Puts right what another hand changed, once anything was written.
    ///
    /// # Errors
    /// Where the table cannot be read or written.
    pub fn audit(&mut self) -> Result<Vec<Difference>, TableError> {
        let Some(rows) = &self.programmed else { return Ok(Vec::new()) };
        let cgroup = |id: u64| format!("cgroup {id}");
        Ok(told("BYPASSCGROUPS", hold(&mut self.table, rows)?, cgroup))
    }

    fn find(&self) -> Result<HashMap<u64, Arc<Pod>>, PodCgroupsError> {
        let mut found = HashMap::new();
        if self.pods.is_empty() {
            return Ok(found);
        }
        let root = self.root.as_deref().ok_or(PodCgroupsError::NoRoot)?;
        find(root, &self.pods, &mut found)
            .map_err(|err| PodCgroupsError::List(root.into(), err))?;
        Ok(found)
    }

    pub fn pods(&self) -> &[Arc<Pod>] {
        &self.pods
    }

    /// Those whose cgroup was not there.
    pub fn missing(&self) -> &[Arc<Pod>] {
        &self.missing
    }

    /// When to look again, if some are missing.
    pub fn next_look(&self) -> Option<Instant> {
        (!self.missing.is_empty()).then_some(self.next_look)
    }
}

/// Ids of the cgroups below `directory` that are of these pods. A cgroup's id is the number of its
/// directory's inode (kernfs). One that goes away meanwhile is passed over.
fn find(directory: &Path, pods: &[Arc<Pod>], found: &mut HashMap<u64, Arc<Pod>>) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(err) if is_gone(&err) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = match entry {
            Err(err) if is_gone(&err) => return Ok(()),
            entry => entry?,
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name();
        match name.to_str().and_then(|name| pods.iter().find(|pod| is_of(name, pod))) {
            Some(pod) => drop(found.insert(entry.ino(), Arc::clone(pod))),
            None => find(&entry.path(), pods, found)?,
        }
    }
    Ok(())
}

fn is_gone(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound) || err.raw_os_error() == Some(libc::ENODEV)
}

/// Whether a cgroup of that name is a pod's: `podUID`, for systemd
/// `kubepods-burstable-podUID.slice` with `_` in place of `-`; or a container's of it: `ID`, or
/// `cri-containerd-ID.scope`.
fn is_of(name: &str, pod: &Pod) -> bool {
    let name = name.trim_end_matches(".slice").trim_end_matches(".scope");
    if let Some((before, uid)) = name.rsplit_once("pod")
        && (before.is_empty() || before.ends_with('-'))
        && uid.len() == pod.uid.len()
        && uid.bytes().zip(pod.uid.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
    {
        return true;
    }
    let last = name.rsplit_once('-').map_or(name, |(_, last)| last);
    pod.containers.iter().any(|id| **id == *last)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::model::Name;

    const UID: &str = "0b5b7c26-6c2b-4d9c-9d1c-0d2f6f9d4b11";
    const ID: &str = "4f2d";

    fn pod() -> Pod {
        let name = Name { namespace: "default".into(), name: "a".into() };
        Pod { name, node: Some("node1".into()), uid: UID.into(), containers: [ID.into()].into() }
    }

    #[test]
    fn cgroups_of_all_drivers_are_known_by_name() {
        let under = UID.replace('-', "_");
        for name in [
            format!("pod{UID}"),
            format!("kubepods-pod{under}.slice"),
            format!("kubepods-besteffort-pod{under}.slice"),
            format!("kubelet-kubepods-burstable-pod{under}.slice"),
            ID.into(),
            format!("cri-containerd-{ID}.scope"),
            format!("crio-{ID}.scope"),
            format!("docker-{ID}.scope"),
        ] {
            assert!(is_of(&name, &pod()), "{name}");
        }
    }

    #[test]
    fn others_are_not() {
        for name in [
            "",
            "pod",
            UID,
            "kubepods-besteffort.slice",
            "podX",
            "tripod0b5b7c26-6c2b-4d9c-9d1c-0d2f6f9d4b11",
            "pod0b5b7c26-6c2b-4d9c-9d1c-0d2f6f9d4b12",
            "pod0b5b7c26-6c2b-4d9c-9d1c-0d2f6f9d4b111",
            "cri-containerd-4f2e.scope",
            "4f2",
            "4f2d-shim",
        ] {
            assert!(!is_of(name, &pod()), "{name}");
        }
    }

    #[test]
    fn a_pod_is_found_wherever_it_is() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join(format!("kubepods/burstable/pod{UID}"));
        fs::create_dir_all(deep.join("inner")).unwrap();
        fs::create_dir_all(root.path().join("system.slice")).unwrap();
        fs::write(root.path().join("pod"), "").unwrap();
        let mut found = HashMap::new();
        find(root.path(), &[Arc::new(pod())], &mut found).unwrap();
        let inode = fs::metadata(&deep).unwrap().ino();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&inode]);
        find(&root.path().join("nowhere"), &[Arc::new(pod())], &mut found).unwrap();
    }
}
