//! The kernels tier: the object on older kernels, each booted in an emulated machine whose
//! whole system is `kernel-init` and the packet tier's own binary.
//!
//! `MILLRACE_KERNELS` names the directory of kernels, one subdirectory a series, as
//! `cargo xtask test` lays it out. Needs qemu, but no root and no KVM.

mod archive;
mod image;
mod machine;

use std::time::Duration;

/// Longer than a busy machine takes by far: emulation is some twenty times slower than the
/// processor.
const DEADLINE: Duration = Duration::from_mins(15);

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

fn on(series: &str) {
    let kernel = image::Kernel::find(series);
    let initramfs = kernel.initramfs();
    let console = machine::run(&kernel.vmlinuz(), &initramfs, DEADLINE);
    kernel.keep_log(&console.log());
    for line in console.lines().filter(|line| line.starts_with("program ")) {
        println!("{series}: {line}");
    }
    if let Err(why) = console.verdict() {
        panic!("Linux {series}: {why}; the console's end:\n{}", console.tail());
    }
}
