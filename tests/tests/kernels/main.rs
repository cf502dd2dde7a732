//! The kernels tier: the object on older kernels, each booted in an emulated machine whose
//! whole system is `kernel-init` and the packet tier's own binary; and the agents on one without IPv6.
//!
//! `MILLRACE_KERNELS` names the directory of kernels, one subdirectory a series, as
//! `cargo xtask test` lays it out, and `MILLRACE_DIST` that of the agents. Needs qemu, but no root and
//! no KVM.

mod archive;
mod image;
mod machine;

use std::time::Duration;

/// Longer than a busy machine takes by far: emulation is some twenty times slower than the
/// processor.
const DEADLINE: Duration = Duration::from_mins(25);

/// The oldest kernel that we support. No tcx; the verifier knows least here.
#[test]
fn linux_6_1() {
    on("6.1");
}

/// Debian's next: tcx.
#[test]
fn linux_6_12() {
    on("6.12");
}

/// Switched off at the boot, as administrators do it who want none.
#[test]
fn agents_serve_ipv4_without_ipv6() {
    let kernel = image::Kernel::find("6.12");
    let initramfs = kernel.initramfs_of_agents();
    judge(&kernel, "6.12 without IPv6", "ipv6.disable=1 -- without-ipv6", &initramfs);
}

fn on(series: &str) {
    let kernel = image::Kernel::find(series);
    let initramfs = kernel.initramfs();
    judge(&kernel, series, "", &initramfs);
}

/// Boots the kernel; what stands behind `--` is said to `kernel-init`.
fn judge(kernel: &image::Kernel, name: &str, arguments: &str, initramfs: &[u8]) {
    let console = machine::run(&kernel.vmlinuz(), arguments, initramfs, DEADLINE);
    kernel.keep_log(arguments, &console.log());
    for line in console.lines().filter(|line| line.starts_with("program ")) {
        println!("{name}: {line}");
    }
    if let Err(why) = console.verdict() {
        panic!("Linux {name}: {why}; the console's end:\n{}", console.tail());
    }
}
