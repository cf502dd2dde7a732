//! Cgroups of a lab, below the machine's cgroup2 mount wherever that is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

use crate::error::{At, Error, Result};

/// The directory of a lab's cgroups.
pub(crate) fn of_lab(lab: &str) -> Result<PathBuf> {
    Ok(mount()?.join(format!("millrace-lab-{lab}")))
}

fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").at("read", "/proc/mounts")?;
    parse_mount(&mounts).ok_or(Error::NoCgroup2)
}

fn parse_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next()? == "cgroup2").then(|| path.into())
    })
}

pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).at("create", path)
}

/// Ends every process in the cgroup and below, waits for that, and removes the directories.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let give_up = Instant::now() + Duration::from_secs(5);
    loop {
        kill(path);
        match remove_empty(path) {
            Err(err) if Instant::now() > give_up => return Err(err).at("remove", path),
            Err(_) => thread::sleep(Duration::from_millis(10)),
            Ok(()) => return Ok(()),
        }
    }
}

/// `cgroup.kill` came with Linux 5.14; before that each process is ended by itself.
fn kill(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    children(path).for_each(|child| kill(&child));
    let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|line| line.parse().ok()) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn remove_empty(path: &Path) -> io::Result<()> {
    children(path).try_for_each(|child| remove_empty(&child))?;
    match fs::remove_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_beside_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(parse_mount(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(parse_mount("proc /proc proc rw 0 0\n"), None);
    }
}
