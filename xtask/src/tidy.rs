//! `cargo xtask tidy`: format, lints, licences, advisories, dependency direction, file headers, tests
//! that documents name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{
    agents,
    command::{self, host},
    compiler::{self, Compiler},
    direction,
    machine::Machine,
    named_tests, setup,
    tally::Tally,
};

type Check = (&'static str, fn(&Machine) -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("lints", lints),
    ("lints of the eBPF programs", bpf_lints),
    ("licences and advisories", licences),
    ("dependency direction", direction::check),
    ("file headers", headers),
    ("tests named in docs/kube-proxy.md", named_tests::check),
];

/// Runs every check, also after one failed.
pub(crate) fn run(machine: &Machine) -> Result<Tally> {
    machine.provide(&setup::tidy())?;
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        match check(machine) {
            Ok(()) => {
                println!("tidy: {name} ... ok");
                tally.passed += 1;
            }
            Err(err) => {
                println!("tidy: {name} ... FAILED\n{err:#}");
                tally.failed += 1;
            }
        }
    }
    Ok(tally)
}

/// The workspaces: the programs have one of their own.
fn workspaces(machine: &Machine) -> [PathBuf; 2] {
    [machine.root.clone(), machine.root.join("proxy-ebpf")]
}

fn format(machine: &Machine) -> Result<()> {
    workspaces(machine).iter().try_for_each(|dir| {
        command::run(machine.cargo().current_dir(dir).args(["fmt", "--all", "--check"]))
    })
}

/// All there is, and what a plain `cargo build` makes, which does without etcd's client.
fn lints(machine: &Machine) -> Result<()> {
    let all: &[&str] = &["--workspace", "--features", agents::ETCD];
    [all, &[]].into_iter().try_for_each(|what| {
        let mut cargo = machine.cargo();
        cargo.args(["clippy", "--quiet", "--all-targets"]).args(what);
        command::run(cargo.args(["--", "-Dwarnings"]))
    })
}

/// Clippy where the compiler with a bpf core has it, else the compiler's own lints.
fn bpf_lints(machine: &Machine) -> Result<()> {
    let compiler = compiler::provide(machine)?;
    let linter = if has_clippy(&compiler) { "clippy" } else { "check" };
    let dir = machine.target().join("bpf-build");
    let mut cargo = compiler.cargo(machine);
    cargo.args([linter, "--quiet", "--release", "--target-dir"]).arg(dir);
    // Not by flags, which would compile every dependency again.
    cargo.env("CARGO_BUILD_WARNINGS", "deny").arg("-Zwarnings");
    command::run(cargo.args(compiler.target_arguments()))
}

fn has_clippy(compiler: &Compiler) -> bool {
    compiler.rustc.with_file_name("clippy-driver").exists()
        && compiler.rustc.with_file_name("cargo-clippy").exists()
}

/// Advisories need a database of their own, beside the registry; where it is out of reach
/// that is said, and the rest is checked.
fn licences(machine: &Machine) -> Result<()> {
    let fetched = !machine.offline && command::read(deny(machine).args(["fetch", "db"])).is_ok();
    let checks: &[&str] = if fetched {
        &["advisories", "bans", "licenses", "sources"]
    } else {
        println!(
            "tidy: advisories are NOT checked: their database \
             (https://github.com/rustsec/advisory-db) cannot be fetched from here"
        );
        &["bans", "licenses", "sources"]
    };
    workspaces(machine).iter().try_for_each(|dir| {
        let mut deny = deny(machine);
        deny.current_dir(dir).args(["--log-level", "error", "--config"]);
        command::run(deny.arg(machine.root.join("deny.toml")).arg("check").args(checks))
    })
}

fn deny(machine: &Machine) -> std::process::Command {
    let mut deny = host("cargo-deny");
    deny.current_dir(&machine.root).env("PATH", command::joined_search_path());
    if machine.offline {
        deny.arg("--offline");
    }
    deny
}

/// Every source file says first what it holds.
fn headers(machine: &Machine) -> Result<()> {
    let mut bare = Vec::new();
    for path in sources(&machine.root)? {
        if !fs::read_to_string(&path)?.starts_with("//!") {
            bare.push(path.strip_prefix(&machine.root).unwrap_or(&path).display().to_string());
        }
    }
    if !bare.is_empty() {
        bail!("no `//!` line that says what the file holds opens: {}", bare.join(", "));
    }
    Ok(())
}

/// All Rust files below a directory, but for what builds leave there.
pub(crate) fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(sources(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
