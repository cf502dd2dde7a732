//! Mount points: the bpf file system that pins live in, and the cgroup hierarchy.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// `BPF_FS_MAGIC`.
const BPF_FS: u32 = 0xcafe_4a11;

/// What mounts of ours say they are mounted from.
const OWN: &CStr = c"millrace";

/// Why there is no place for pins.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(
        "cannot make {path}: {source}; the file system there must be writable, or mount a bpf \
         file system at the path beforehand"
    )]
    Create { path: PathBuf, source: io::Error },
    #[error(
        "cannot mount a bpf file system at {path}: {source}; without CAP_SYS_ADMIN mount it \
         beforehand: mount -t bpf bpf {path}"
    )]
    Mount { path: PathBuf, source: io::Error },
}

/// Makes sure that `path` is a directory in a bpf file system: as it is, by making it where
/// one is mounted above, or by mounting one there.
pub fn provide_bpffs(path: &Path) -> Result<(), MountError> {
    let create = |source| MountError::Create { path: path.into(), source };
    fs::create_dir_all(path).map_err(create)?;
    if is_bpffs(path).map_err(create)? {
        return Ok(());
    }
    let failed = |source| MountError::Mount { path: path.into(), source };
    let target =
        CString::new(path.as_os_str().as_bytes()).map_err(|err| failed(io::Error::other(err)))?;
    // SAFETY: all strings are live and end in zero; no data is passed.
    let result = unsafe {
        libc::mount(
            OWN.as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if result == 0 { Ok(()) } else { Err(failed(io::Error::last_os_error())) }
}

/// Unmounts the file system at `path` if we mounted it there and nothing is left in it; true
/// if so.
pub fn unmount_own(path: &Path) -> bool {
    let is_own = table("bpf").any(|mount| mount.point == path && mount.source == OWN.to_bytes());
    // The kernel itself puts `maps.debug` and `progs.debug` into each; pins have no dots.
    let is_kernels = |entry: &io::Result<fs::DirEntry>| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().as_bytes().contains(&b'.'))
    };
    let is_empty =
        fs::read_dir(path).is_ok_and(|mut entries| entries.all(|entry| is_kernels(&entry)));
    let Ok(target) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is live and ends in zero.
    is_own && is_empty && unsafe { libc::umount2(target.as_ptr(), 0) } == 0
}

/// True if `path` lies in a bpf file system.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all-zero bytes are a valid `statfs`.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in zero and `stat` is a live structure to be filled.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Signed in glibc, unsigned in musl; `cmp` tells the compiler which.
    Ok(stat.f_type.cmp(&BPF_FS.into()).is_eq())
}

/// Where the cgroup2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside
/// version 1.
#[must_use]
pub fn cgroup2() -> Option<PathBuf> {
    table("cgroup2").map(|mount| mount.point).next()
}

struct Mount {
    source: Vec<u8>,
    point: PathBuf,
}

/// Mounts of a file system type in this process's mount namespace.
fn table(fs_type: &str) -> impl Iterator<Item = Mount> {
    let table = fs::read("/proc/self/mounts").unwrap_or_default();
    let mounts: Vec<Mount> = table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let (source, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            let mount = || Mount { source: source.to_vec(), point: unescape(point) };
            (kind == fs_type.as_bytes()).then(mount)
        })
        .collect();
    mounts.into_iter()
}

/// The kernel writes blanks in paths as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_paths() {
        assert_eq!(unescape(b"/a\\040b/040"), Path::new("/a b/040"));
        assert_eq!(unescape(b"/tail\\"), Path::new("/tail\\"));
    }
}
