//! The agents, with the eBPF objects embedded, put into `target/dist`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    architecture::Architecture,
    command::{self, host},
    machine::{Machine, Need, Step},
    setup,
};

/// What proxy-agent is built with here, and not by a plain `cargo build`, which does without
/// protoc.
pub(crate) const ETCD: &str = "proxy-agent/etcd";

/// What ships.
pub(crate) const AGENTS: [&str; 2] = ["proxy-agent", "flannel-agent"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Profile {
    /// Quick to build, dynamically linked.
    Debug,
    /// What ships: static and optimised.
    Release,
}

impl From<bool> for Profile {
    fn from(release: bool) -> Self {
        if release { Self::Release } else { Self::Debug }
    }
}

/// Builds the agents around the objects in a directory.
pub(crate) fn build(machine: &Machine, objects: &Path, profile: Profile) -> Result<()> {
    build_binaries(machine, &AGENTS, Some(objects), profile)
}

/// Builds the agents for a processor and returns the directory that they are in.
pub(crate) fn build_static(
    machine: &Machine,
    objects: &Path,
    architecture: Architecture,
) -> Result<PathBuf> {
    compile(machine, &AGENTS, Some(objects), Profile::Release, architecture)
}

/// Sees to what static binaries for a processor are built by.
pub(crate) fn provide(machine: &Machine, architecture: Architecture) -> Result<()> {
    machine.provide(&[standard_library(&architecture.target()), architecture.c_compiler()?])
}

/// Builds what runs inside the places of a lab.
pub(crate) fn build_peer(machine: &Machine) -> Result<()> {
    build_binaries(machine, &["lab-peer"], None, Profile::Release)
}

/// Builds the agents, and what runs inside the places of a lab. One after the other: compiled
/// together they would share what their dependencies are asked for, and be other binaries than
/// those that ship, to be compiled once more for images.
pub(crate) fn build_with_peer(machine: &Machine, objects: &Path) -> Result<()> {
    build(machine, objects, Profile::Release)?;
    build_peer(machine)
}

/// Builds the agents and the load of the benchmarks, in the same way.
pub(crate) fn build_with_load(machine: &Machine, objects: &Path) -> Result<()> {
    build(machine, objects, Profile::Release)?;
    build_binaries(machine, &["lab-bench"], None, Profile::Release)
}

fn build_binaries(
    machine: &Machine,
    names: &[&str],
    objects: Option<&Path>,
    profile: Profile,
) -> Result<()> {
    let dir = compile(machine, names, objects, profile, Architecture::host()?)?;
    names.iter().try_for_each(|name| put(machine, &dir.join(name)))
}

fn compile(
    machine: &Machine,
    names: &[&str],
    objects: Option<&Path>,
    profile: Profile,
    architecture: Architecture,
) -> Result<PathBuf> {
    let mut cargo = machine.cargo();
    cargo.arg("build");
    for name in names {
        cargo.args(["--package", package(name), "--bin", name]);
    }
    cargo.envs(objects.map(|objects| ("MILLRACE_BPF_OBJECTS", objects)));
    let dir = match profile {
        Profile::Debug => machine.target().join("debug"),
        Profile::Release => {
            let target = architecture.target();
            provide(machine, architecture)?;
            architecture.set_tools(&mut cargo)?;
            cargo.args(["--release", "--target", &target]);
            machine.target().join(target).join("release")
        }
    };
    if names.contains(&"proxy-agent") {
        cargo.args(["--features", ETCD]);
    }
    if names.iter().any(|name| name.ends_with("-agent")) {
        machine.provide(&[setup::protoc()])?;
    }
    let processor = architecture.name();
    eprintln!("building {} ({profile:?}, {processor})", names.join(" and "));
    command::run(&mut cargo)?;
    Ok(dir)
}

/// The package that a binary belongs to.
fn package(binary: &str) -> &str {
    if binary.starts_with("lab-") { "lab" } else { binary }
}

/// Copies a binary to `target/dist`.
pub(crate) fn put(machine: &Machine, binary: &Path) -> Result<()> {
    let place = put_into(&machine.dist(), binary)?;
    let shown = place.strip_prefix(&machine.root).unwrap_or(&place);
    eprintln!("{}", shown.display());
    Ok(())
}

/// Copies a binary to a directory, by rename: the old one may be running.
pub(crate) fn put_into(directory: &Path, binary: &Path) -> Result<PathBuf> {
    let name = binary.file_name().context("a binary without a name")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let place = directory.join(name);
    let fresh = place.with_extension("new");
    fs::copy(binary, &fresh)
        .with_context(|| format!("cannot copy {} to {}", binary.display(), fresh.display()))?;
    fs::rename(&fresh, &place)?;
    Ok(place)
}

fn standard_library(target: &str) -> Need {
    let std = std_lib(target);
    Need {
        name: format!("Rust standard library for {target}"),
        why: "makes the agents static",
        present: Box::new(move || std.as_ref().is_some_and(|dir| dir.exists())),
        steps: vec![Step::Command(["rustup", "target", "add", target].map(String::from).to_vec())],
    }
}

/// Where the compiler that builds the agents would keep the library.
fn std_lib(target: &str) -> Option<PathBuf> {
    let sysroot = command::read(host("rustc").args(["--print", "sysroot"])).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib"))
}
