//! The program that others are compared with: it passes every frame and does nothing else.

use std::{ffi::CString, fs, io};

use anyhow::{Context, Result};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;

/// `BPF_PROG_LOAD` and `BPF_OBJ_PIN`; `BPF_PROG_TYPE_XDP`.
const LOAD: libc::c_long = 5;
const PIN: libc::c_long = 6;
const XDP: u32 = 6;

/// `r0 = XDP_PASS; exit`.
const CODE: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// Loads it, by way of a pin that is gone when this returns.
pub(crate) fn load() -> Result<Xdp> {
    /// Of `union bpf_attr`.
    #[repr(C)]
    struct Program {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log: [u32; 4],
    }
    #[repr(C)]
    struct Object {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let program = Program {
        kind: XDP,
        count: CODE.len() as u32,
        code: CODE.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 4],
    };
    // SAFETY: code and licence outlive the call.
    let fd = unsafe { call(LOAD, &program) }.context("cannot load two instructions")?;
    let path = format!("/sys/fs/bpf/millrace-frame-bench-{}", std::process::id());
    let name = CString::new(path.as_str())?;
    let object = Object { path: name.as_ptr() as u64, fd: u32::try_from(fd)?, flags: 0 };
    // SAFETY: the path outlives the call.
    let pinned = unsafe { call(PIN, &object) };
    // SAFETY: the call above has made it, and nobody else knows it.
    unsafe { libc::close(i32::try_from(fd)?) };
    pinned.with_context(|| format!("cannot pin {path}; is a bpf file system mounted there?"))?;
    let program = Xdp::from_pin(&path, XdpAttachType::Interface);
    fs::remove_file(&path)?;
    Ok(program?)
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
