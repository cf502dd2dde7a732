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
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;

/// Of `enum bpf_map_type`.
const ARRAY: u32 = 2;
/// The programs' own frames are really sent (`BPF_F_TEST_XDP_LIVE_FRAMES`).
const LIVE_FRAMES: u32 = 2;
/// Frames that the kernel makes before it sends any, as drivers do; it takes no more than 256.
const BATCH: u32 = 64;
/// By the driver, and not at all if it cannot (`XDP_FLAGS_DRV_MODE`).
const BY_DRIVER: u32 = 1 << 2;

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

/// A number that programs add to.
#[derive(Debug)]
pub(crate) struct Counter(OwnedFd);

impl Counter {
    pub(crate) fn new() -> io::Result<Self> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            kind: u32,
            key_size: u32,
            value_size: u32,
            entries: u32,
        }
        let attributes = Attributes { kind: ARRAY, key_size: 4, value_size: 8, entries: 1 };
        // SAFETY: it holds no pointer.
        unsafe { descriptor(MAP_CREATE, &attributes) }.map(Self)
    }

    /// As instructions name it.
    pub(crate) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub(crate) fn read(&self) -> io::Result<u64> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            fd: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, mut value) = (0_u32, 0_u64);
        let attributes = Attributes {
            fd: self.0.as_raw_fd().unsigned_abs(),
            pad: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        // SAFETY: key and value have the sizes that the table was made with, and outlive the call.
        unsafe { call(MAP_LOOKUP_ELEM, &attributes) }?;
        Ok(value)
    }
}

/// Where a program runs, by the kernel's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    Xdp,
    TcxEgress,
}

impl Hook {
    /// Of `enum bpf_prog_type`.
    fn program_type(self) -> u32 {
        match self {
            Self::Xdp => 6,
            Self::TcxEgress => 3,
        }
    }

    /// Of `enum bpf_attach_type`.
    fn attach_type(self) -> u32 {
        match self {
            Self::Xdp => 37,
            Self::TcxEgress => 47,
        }
    }
}

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd, Hook);

impl Program {
    pub(crate) fn load(hook: Hook, instructions: &[u64]) -> io::Result<Self> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
        }
        let mut log = vec![0_u8; 1 << 16];
        let attributes = Attributes {
            kind: hook.program_type(),
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log: log.as_mut_ptr() as u64,
        };
        // SAFETY: all that it points to outlives the call, and has the sizes that it tells.
        let loaded = unsafe { descriptor(PROG_LOAD, &attributes) };
        loaded.map(|fd| Self(fd, hook)).map_err(|err| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
            let log = String::from_utf8_lossy(&log[..end]);
            io::Error::new(err.kind(), format!("cannot load a program: {err}\n{log}"))
        })
    }

    /// Puts it on a device, behind others where there may be others, until the link is closed.
    pub(crate) fn attach(&self, index: u32) -> io::Result<OwnedFd> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            program: u32,
            device: u32,
            kind: u32,
            flags: u32,
        }
        let attributes = Attributes {
            program: self.0.as_raw_fd().unsigned_abs(),
            device: index,
            kind: self.1.attach_type(),
            flags: if self.1 == Hook::Xdp { BY_DRIVER } else { 0 },
        };
        // SAFETY: it holds no pointer.
        unsafe { descriptor(LINK_CREATE, &attributes) }
    }

    /// Has the kernel run it on so many frames of its own making, and do with each what the program
    /// says.
    pub(crate) fn shoot(&self, frame: &[u8], count: u32) -> io::Result<()> {
        /// Of `union bpf_attr`.
        #[repr(C)]
        struct Attributes {
            program: u32,
            outcome: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
            flags: u32,
            cpu: u32,
            batch: u32,
        }
        let attributes = Attributes {
            program: self.0.as_raw_fd().unsigned_abs(),
            outcome: 0,
            size_in: frame.len() as u32,
            size_out: 0,
            data_in: frame.as_ptr() as u64,
            data_out: 0,
            repeat: count,
            duration: 0,
            context_size_in: 0,
            context_size_out: 0,
            context_in: 0,
            context_out: 0,
            flags: LIVE_FRAMES,
            cpu: 0,
            batch: BATCH,
        };
        // SAFETY: the frame outlives the call, and has the size that it tells.
        unsafe { call(PROG_TEST_RUN, &attributes) }.map(drop)
    }
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
