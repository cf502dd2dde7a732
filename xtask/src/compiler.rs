//! Choice of a compiler for the eBPF programs among those on the machine.
//!
//! One that ships a prebuilt `core` for bpf is preferred; one with the sources of the
//! standard library builds `core` itself. Both are used as nightly (`RUSTC_BOOTSTRAP`), since
//! the bpf target needs unstable features.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::{
    command::{self, clean},
    machine::{Machine, Need, Step},
};

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The release whose LLVM is that of the compilers we install beside it.
const LINKER_VERSION: &str = "0.13.0";

#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) sysroot: PathBuf,
    pub(crate) core: Core,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Core {
    Prebuilt,
    FromSource,
}

/// Finds a compiler and the linker, and installs them where they are missing.
pub(crate) fn provide(machine: &Machine) -> Result<Compiler> {
    if !has_linker() || find()?.is_none() {
        // Asked only now: what to install depends on what the machine's lists offer.
        machine.provide(&[compiler_need(machine), linker_need(machine)])?;
    }
    find()?.map_or_else(|| bail!("no Rust compiler with a core for {TARGET}"), Ok)
}

fn compiler_need(machine: &Machine) -> Need {
    let steps = if machine.offers("libstd-rust-web-dev-bpf") {
        vec![Step::Packages(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])]
    } else {
        vec![Step::Command(words("rustup component add rust-src"))]
    };
    Need {
        name: "rustc with core for bpf".into(),
        why: "compiles the eBPF programs",
        present: Box::new(|| find().is_ok_and(|found| found.is_some())),
        steps,
    }
}

fn linker_need(machine: &Machine) -> Need {
    let install = format!("cargo install --locked bpf-linker --version {LINKER_VERSION}");
    let steps = if machine.offers("llvm-22-dev") {
        vec![
            Step::Packages(&[
                "rust-web-llvm",
                "llvm-22-dev",
                "libpolly-22-dev",
                "clang-22",
                "zlib1g-dev",
                "libzstd-dev",
            ]),
            Step::Command(words(&format!("{install} --no-default-features --features llvm-22"))),
        ]
    } else {
        vec![Step::Command(words(&install))]
    };
    Need {
        name: "bpf-linker".into(),
        why: "links the eBPF programs; it is compiled on this machine, a minute or two",
        present: Box::new(has_linker),
        steps,
    }
}

fn has_linker() -> bool {
    command::find("bpf-linker").is_some()
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

/// The best compiler at hand. One named by the environment is the only candidate.
pub(crate) fn find() -> Result<Option<Compiler>> {
    let candidates = if let Some(rustc) = env::var_os("BPF_RUSTC") {
        vec![PathBuf::from(rustc)]
    } else if let Ok(toolchain) = env::var("BPF_TOOLCHAIN") {
        vec![rustup_rustc(&toolchain)?]
    } else {
        candidates()
    };
    let compilers: Vec<Compiler> = candidates.iter().filter_map(|rustc| inspect(rustc)).collect();
    let prebuilt = compilers.iter().find(|compiler| compiler.core == Core::Prebuilt);
    Ok(prebuilt.or(compilers.first()).cloned())
}

fn rustup_rustc(toolchain: &str) -> Result<PathBuf> {
    let path = command::read(clean("rustup").args(["which", "rustc", "--toolchain", toolchain]))?;
    Ok(PathBuf::from(path.trim()))
}

/// Every compiler on the machine, nightly ones first.
fn candidates() -> Vec<PathBuf> {
    let list = command::read(clean("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let mut names: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    names.sort_by_key(|name| !name.starts_with("nightly"));
    let mut found: Vec<PathBuf> = names.iter().filter_map(|name| rustup_rustc(name).ok()).collect();
    found.push("/usr/bin/rustc".into());
    found.extend(command::find("rustc"));
    found
}

/// What a compiler can do for us; nothing if it has neither a bpf core nor sources.
fn inspect(rustc: &Path) -> Option<Compiler> {
    let sysroot = command::read(clean(rustc).args(["--print", "sysroot"])).ok()?;
    let sysroot = PathBuf::from(sysroot.trim());
    let cargo = rustc.with_file_name("cargo");
    let core = if has_core(&sysroot.join("lib/rustlib").join(TARGET).join("lib")) {
        Core::Prebuilt
    } else if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        Core::FromSource
    } else {
        return None;
    };
    cargo.exists().then_some(Compiler { rustc: rustc.to_path_buf(), cargo, sysroot, core })
}

fn has_core(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

impl Compiler {
    /// This compiler's cargo, set up for the bpf target and free of the caller's settings.
    pub(crate) fn cargo(&self, machine: &Machine) -> Command {
        let flags = [
            "-Cdebuginfo=2",
            "-Ctarget-cpu=v3",
            "-Clink-arg=--btf",
            // Else bpf-linker makes of each structure zeroed a call of a loop over its bytes,
            // which programs run and verifiers follow.
            "-Clink-arg=--disable-expand-memcpy-in-order",
        ]
        .join("\x1f");
        let mut cargo = clean(&self.cargo);
        cargo
            .current_dir(machine.root.join("proxy-ebpf"))
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("PATH", command::joined_search_path());
        machine.keep_offline(&mut cargo);
        cargo
    }

    /// The arguments by which cargo is told to build `core` where none is prebuilt.
    pub(crate) fn target_arguments(&self) -> Vec<&'static str> {
        let mut arguments = vec!["--target", TARGET];
        if self.core == Core::FromSource {
            arguments.push("-Zbuild-std=core");
        }
        arguments
    }
}
