//! The kernel's own count of runs and time of eBPF programs, on while a descriptor is open: no
//! setting is left behind by a benchmark that was ended.

use std::{
    io::{self, Write},
    os::fd::{FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

/// `BPF_ENABLE_STATS` of `enum bpf_cmd`.
const ENABLE_STATS: libc::c_long = 32;

/// `union bpf_attr` for it; 0 is `BPF_STATS_RUN_TIME`.
#[repr(C)]
struct Attributes {
    kind: u32,
}

/// Says `ready` and counts until ended.
pub(crate) fn count() -> io::Result<()> {
    let _counting = enable()?;
    println!("ready");
    io::stdout().flush()?;
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}

fn enable() -> io::Result<OwnedFd> {
    let attributes = Attributes { kind: 0 };
    // SAFETY: the kernel reads as many bytes as it is told there are.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, ENABLE_STATS, &raw const attributes, size_of::<Attributes>())
    };
    match i32::try_from(fd) {
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
