//! Links pinned by name, so that programs stay attached when the process ends, and the next
//! process puts its own programs behind the same links, between two packets.
//!
//! When a device or a cgroup goes, the kernel takes the program off and leaves the pin behind:
//! such a link shows no target, also when the device's index has been given to another. So does one
//! that somebody detached.
//!
//! A link lives as long as its pin or a descriptor of it. The process keeps descriptors, so that
//! programs stay where they are when somebody removes their pins, and pins them again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    bpf::{self, LINK_TYPE_CGROUP, LINK_TYPE_TCX, LINK_TYPE_XDP, LinkInfo, Place, XdpMode},
    reason::hint,
};

/// Why a program is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot attach to device {ifindex} as {pin}: {source}")]
    Device { pin: String, ifindex: u32, source: io::Error },
    #[error(
        "cannot attach to cgroup {cgroup} as {pin}: {source}{}; it must be a directory of a \
         cgroup2 file system",
        hint(source)
    )]
    Cgroup { pin: String, cgroup: PathBuf, source: io::Error },
    #[error("cannot put the new program behind link {pin}: {source}")]
    Update { pin: String, source: io::Error },
    #[error("cannot use pin {path}: {source}{}", hint(source))]
    Pin { path: PathBuf, source: io::Error },
}

impl LinkError {
    /// True if the device went away meanwhile, which is nobody's fault.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Device { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }

    /// True if the kernel has no such kind of link (tcx came with 6.6).
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Device { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
    }
}

/// A link as it is pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedLink {
    pub name: String,
    pub path: PathBuf,
    pub info: LinkInfo,
}

impl PinnedLink {
    /// False once the device or cgroup is gone, or somebody detached the link.
    pub fn is_attached(&self) -> bool {
        self.info.is_attached()
    }
}

/// The directory of pinned links. Clones are one.
#[derive(Clone, Debug)]
pub struct Links {
    dir: PathBuf,
    /// Those that this process attached, or went on with.
    held: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl Links {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        // Whole entries come and go, whatever panics elsewhere.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins again what somebody else unpinned meanwhile; gives the names, and why others cannot be.
    /// What has no target any more is let go of.
    pub fn restore(&self) -> (Vec<String>, Vec<LinkError>) {
        let mut unpinned = Vec::new();
        self.held().retain(|name, link| {
            if self.path(name).symlink_metadata().is_ok() {
                return true;
            }
            let is_attached = bpf::link_info(link.as_fd()).is_ok_and(|info| info.is_attached());
            if is_attached {
                unpinned.push(name.clone());
            }
            is_attached
        });
        let (mut restored, mut errors) = (Vec::new(), Vec::new());
        for name in unpinned {
            let path = self.path(&name);
            let pinned =
                fs::create_dir_all(&self.dir).and_then(|()| match self.held().get(&name) {
                    Some(link) => bpf::obj_pin(link.as_fd(), &path),
                    None => Ok(()),
                });
            match pinned {
                Ok(()) => restored.push(name),
                Err(source) => errors.push(LinkError::Pin { path, source }),
            }
        }
        (restored, errors)
    }

    /// Where a link of this name is pinned.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// All pinned links, by name. A directory that does not exist holds none.
    pub fn list(&self) -> Result<Vec<PinnedLink>, LinkError> {
        let links = self.names()?.into_iter().filter_map(|name| self.get(&name).transpose());
        links.collect()
    }

    /// The names of all pins, in order, be they links that can be looked at or not.
    pub fn names(&self) -> Result<Vec<String>, LinkError> {
        let failed = |source| LinkError::Pin { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// The link pinned by this name.
    pub fn get(&self, name: &str) -> Result<Option<PinnedLink>, LinkError> {
        let path = self.path(name);
        let info = match bpf::obj_get(&path).and_then(|link| bpf::link_info(link.as_fd())) {
            Ok(info) => info,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LinkError::Pin { path, source }),
        };
        Ok(Some(PinnedLink { name: name.into(), path, info }))
    }

    /// Has `program` run on the device's hook, whatever was behind the link before.
    pub fn attach_device(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        ifindex: u32,
        attach_type: u32,
        place: Place,
    ) -> Result<PinnedLink, LinkError> {
        self.attach(
            name,
            program,
            |info| info.link_type == LINK_TYPE_TCX && info.ifindex == ifindex,
            || {
                let link = bpf::link_create_tcx(program, ifindex, attach_type, place);
                link.map_err(|source| LinkError::Device { pin: name.into(), ifindex, source })
            },
        )
    }

    /// Has `program` see the device's frames first, whatever was behind the link before. One that is
    /// there keeps its mode.
    pub fn attach_xdp(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<PinnedLink, LinkError> {
        self.attach(
            name,
            program,
            |info| info.link_type == LINK_TYPE_XDP && info.ifindex == ifindex,
            || {
                let link = bpf::link_create_xdp(program, ifindex, mode);
                link.map_err(|source| LinkError::Device { pin: name.into(), ifindex, source })
            },
        )
    }

    /// Has `program` run on the cgroup's hook, whatever was behind the link before.
    pub fn attach_cgroup(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        cgroup: &Path,
        attach_type: u32,
    ) -> Result<PinnedLink, LinkError> {
        let failed = |source| LinkError::Cgroup { pin: name.into(), cgroup: cgroup.into(), source };
        let dir = fs::File::open(cgroup).map_err(failed)?;
        // A cgroup's id is the inode number of its directory.
        let id = dir.metadata().map_err(failed)?.ino();
        self.attach(
            name,
            program,
            |info| info.link_type == LINK_TYPE_CGROUP && info.cgroup == id,
            || bpf::link_create_cgroup(program, dir.as_fd(), attach_type).map_err(failed),
        )
    }

    fn attach(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        is_target: impl Fn(&LinkInfo) -> bool,
        create: impl FnOnce() -> Result<OwnedFd, LinkError>,
    ) -> Result<PinnedLink, LinkError> {
        let path = self.path(name);
        let pin_error = |source| LinkError::Pin { path: path.clone(), source };
        let info = |link: BorrowedFd<'_>| bpf::link_info(link).map_err(pin_error);
        match bpf::obj_get(&path) {
            Ok(link) if is_target(&info(link.as_fd())?) => {
                if info(link.as_fd())?.program_id != bpf::program_id(program).map_err(pin_error)? {
                    bpf::link_update(link.as_fd(), program)
                        .map_err(|source| LinkError::Update { pin: name.into(), source })?;
                }
                let info = info(link.as_fd())?;
                self.held().insert(name.into(), link);
                return Ok(PinnedLink { name: name.into(), path, info });
            }
            Ok(_elsewhere) => fs::remove_file(&path).map_err(pin_error)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(pin_error(err)),
        }
        let link = create()?;
        bpf::obj_pin(link.as_fd(), &path).map_err(pin_error)?;
        let info = info(link.as_fd())?;
        self.held().insert(name.into(), link);
        Ok(PinnedLink { name: name.into(), path, info })
    }

    /// Takes a program off, and returns when it meets no packet any more.
    pub fn detach_now(&self, name: &str) -> Result<(), LinkError> {
        // A link whose device or cgroup is gone has nothing to be taken off from.
        if let Ok(link) = bpf::obj_get(&self.path(name)) {
            let _ = bpf::link_detach(link.as_fd());
        }
        self.detach(name)
    }

    /// Takes a program off, some time after this returns: nothing holds the link then.
    pub fn detach(&self, name: &str) -> Result<(), LinkError> {
        self.held().remove(name);
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LinkError::Pin { path, source })
            }
            _ => Ok(()),
        }
    }
}
