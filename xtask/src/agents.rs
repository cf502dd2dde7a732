//! The agents, with the eBPF objects embedded, put into `target/dist`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    command::{self, host},
    machine::{Machine, Need, Step},
    setup,
};

/// What proxy-agent is built with here, and not by a plain `cargo build`, which does without
/// protoc.
pub(crate) const ETCD: &str = "proxy-agent/etcd";

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
    build_binaries(machine, &["proxy-agent", "flannel-agent"], Some(objects), profile)
}

/// Builds what runs inside the places of a lab.
pub(crate) fn build_peer(machine: &Machine) -> Result<()> {
    build_binaries(machine, &["lab-peer"], None, Profile::Release)
}

/// Builds both at once, which is quicker: they share most of what they depend on.
pub(crate) fn build_with_peer(machine: &Machine, objects: &Path) -> Result<()> {
    build_binaries(
        machine,
        &["proxy-agent", "flannel-agent", "lab-peer"],
        Some(objects),
        Profile::Release,
    )
}

/// Builds the agents and the load of the benchmarks.
pub(crate) fn build_with_load(machine: &Machine, objects: &Path) -> Result<()> {
    build_binaries(
        machine,
        &["proxy-agent", "flannel-agent", "lab-bench"],
        Some(objects),
        Profile::Release,
    )
}

fn build_binaries(
    machine: &Machine,
    names: &[&str],
    objects: Option<&Path>,
    profile: Profile,
) -> Result<()> {
    let mut cargo = machine.cargo();
    cargo.arg("build");
    for name in names {
        cargo.args(["--package", package(name), "--bin", name]);
    }
    cargo.envs(objects.map(|objects| ("MILLRACE_BPF_OBJECTS", objects)));
    let dir = match profile {
        Profile::Debug => machine.target().join("debug"),
        Profile::Release => {
            let target = format!("{}-unknown-linux-musl", env::consts::ARCH);
            machine.provide(&static_needs(&target))?;
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
    eprintln!("building {} ({profile:?})", names.join(" and "));
    command::run(&mut cargo)?;
    names.iter().try_for_each(|name| put(machine, &dir.join(name)))
}

/// The package that a binary belongs to.
fn package(binary: &str) -> &str {
    if binary.starts_with("lab-") { "lab" } else { binary }
}

/// Copies a binary to `target/dist`, by rename: the old one may be running.
pub(crate) fn put(machine: &Machine, binary: &Path) -> Result<()> {
    let name = binary.file_name().context("a binary without a name")?;
    fs::create_dir_all(machine.dist())?;
    let target = machine.dist().join(name);
    let fresh = target.with_extension("new");
    fs::copy(binary, &fresh)
        .with_context(|| format!("cannot copy {} to {}", binary.display(), fresh.display()))?;
    fs::rename(&fresh, &target)?;
    eprintln!("target/dist/{}", name.display());
    Ok(())
}

fn static_needs(target: &str) -> Vec<Need> {
    let std = std_lib(target);
    vec![
        Need {
            name: format!("Rust standard library for {target}"),
            why: "makes the agents static",
            present: Box::new(move || std.as_ref().is_some_and(|dir| dir.exists())),
            steps: vec![Step::Command(
                ["rustup", "target", "add", target].map(String::from).to_vec(),
            )],
        },
        Need::program("musl-gcc", "compiles the allocator of static agents", &["musl-tools"]),
    ]
}

/// Where the compiler that builds the agents would keep the library.
fn std_lib(target: &str) -> Option<PathBuf> {
    let sysroot = command::read(host("rustc").args(["--print", "sysroot"])).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib").join(target).join("lib"))
}
