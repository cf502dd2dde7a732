//! The few commands of bpf(2) that are needed here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Commands of `enum bpf_cmd`.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const OBJ_GET: libc::c_long = 7;
const ENABLE_STATS: libc::c_long = 32;

/// No value of a table is longer.
const LONGEST_VALUE: usize = 4_096;

/// A pinned table.
#[derive(Debug)]
pub(crate) struct Table(OwnedFd);

impl Table {
    pub(crate) fn open(pin: &Path) -> io::Result<Self> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        // SAFETY: the path outlives the call.
        unsafe { descriptor(OBJ_GET, &attributes) }.map(Self)
    }

    /// Whether a look-up of the key finds a row: in a trie, of this network or a wider one.
    pub(crate) fn has(&self, key: &[u8]) -> io::Result<bool> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let mut value = [0_u8; LONGEST_VALUE];
        let attributes = Attributes {
            fd: self.0.as_raw_fd().unsigned_abs(),
            pad: 0,
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: key and value outlive the call; the caller gives keys of the table's size, and
        // no value is longer than there is room.
        match unsafe { call(MAP_LOOKUP_ELEM, &attributes) } {
            Ok(_) => Ok(true),
            Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(err) => Err(err),
        }
    }
}

/// Has the kernel count runs and time of programs as long as the descriptor is open.
pub(crate) fn enable_stats() -> io::Result<OwnedFd> {
    /// Of `union bpf_attr`; 0 is `BPF_STATS_RUN_TIME`.
    #[repr(C)]
    struct Attributes {
        kind: u32,
    }
    // SAFETY: it holds no pointer.
    unsafe { descriptor(ENABLE_STATS, &Attributes { kind: 0 }) }
}

/// # Safety
///
/// As of [`call`]; and the command returns a new descriptor.
unsafe fn descriptor<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { call(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// The attributes are the command's, and what they point to is valid for it.
unsafe fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    let attributes: *const T = attributes;
    // SAFETY: the kernel reads as many bytes as it is told there are; the rest is promised.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
