//! A process to which the kernel is as one before 6.6, which has no links of programs on devices.

use std::{io, os::unix::process::CommandExt, process::Command};

use libc::{sock_filter, sock_fprog};

/// `BPF_LINK_CREATE`.
const LINK_CREATE: u32 = 28;

/// Has the command be refused links of any kind, from its start on.
pub(crate) fn refuse_links(command: &mut Command) {
    // SAFETY: between fork and exec only system calls on memory of this closure.
    unsafe { command.pre_exec(confine) };
}

fn confine() -> io::Result<()> {
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equals = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let load = |at| sock_filter { code: word, jt: 0, jf: 0, k: at };
    // Goes on if equal, else as many instructions further.
    let unless = |k, jf| sock_filter { code: equals, jt: 0, jf, k };
    let give = |k| sock_filter { code: answer, jt: 0, jf: 0, k };
    // Of `struct seccomp_data` the number of the call, and the low half of its first argument.
    let mut filter = [
        load(0),
        unless(libc::SYS_bpf as u32, 3),
        load(if cfg!(target_endian = "big") { 20 } else { 16 }),
        unless(LINK_CREATE, 1),
        give(libc::SECCOMP_RET_ERRNO | libc::EINVAL.cast_unsigned()),
        give(libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program is live, and as long as it says.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    if results == [0, 0] { Ok(()) } else { Err(io::Error::last_os_error()) }
}
