//! The processors that the agents are built for, and what a machine of another kind needs to
//! build for them.

use std::{env, process::Command};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    command,
    machine::{Need, Step},
};

/// Both are little-endian, so that one build of the eBPF objects is for both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// Of the machine that we run on.
    pub(crate) fn host() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("Millrace is built for amd64 and arm64, and this machine is {other}"),
        }
    }

    /// As Go, and so the OCI image specification, calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and GNU call it.
    const fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target of static binaries.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.processor())
    }

    /// What compiles C for static binaries: the allocator, and the cryptography of TLS.
    pub(crate) fn c_compiler(self) -> Result<Need> {
        if self == Self::host()? {
            return Ok(Need::program(
                "musl-gcc",
                "compiles the allocator of static agents",
                &["musl-tools"],
            ));
        }
        let compiler = self.cross_compiler();
        Ok(Need {
            name: compiler.clone(),
            why: "compiles and links what is C in static agents for another processor",
            present: Box::new(move || compiles(&compiler)),
            steps: vec![Step::Packages(match self {
                Self::Amd64 => &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
                Self::Arm64 => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            })],
        })
    }

    fn cross_compiler(self) -> String {
        format!("{}-linux-gnu-gcc", self.processor())
    }

    /// Runs binaries for this processor on another.
    pub(crate) fn emulator(self) -> String {
        format!("qemu-{}-static", self.processor())
    }

    /// Tells cargo which C compiler and linker to use, where the processor is not this machine's.
    pub(crate) fn set_tools(self, cargo: &mut Command) -> Result<()> {
        if self == Self::host()? {
            return Ok(());
        }
        let target = self.target().replace('-', "_");
        cargo.env(format!("CC_{target}"), self.cross_compiler());
        cargo.env(format!("AR_{target}"), format!("{}-linux-gnu-ar", self.processor()));
        // The compiler reads glibc's headers and the binary is linked with musl, so no C may be
        // made to call what only glibc or libgcc have: checked copies (`__memcpy_chk`), and on
        // arm64 atomics chosen at run time (`__aarch64_cas8_relax`).
        let flags = match self {
            Self::Amd64 => "-U_FORTIFY_SOURCE",
            Self::Arm64 => "-U_FORTIFY_SOURCE -mno-outline-atomics",
        };
        cargo.env(format!("CFLAGS_{target}"), flags);
        let linker = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase());
        cargo.env(linker, self.cross_compiler());
        Ok(())
    }
}

/// A compiler without a C library's headers, which Debian only recommends, compiles nothing of
/// use.
fn compiles(compiler: &str) -> bool {
    let include = ["-include", "stdint.h", "-E", "-x", "c", "/dev/null"];
    command::find(compiler)
        .is_some_and(|path| command::read(Command::new(path).args(include)).is_ok())
}
