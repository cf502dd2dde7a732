//! Older kernels to boot under qemu: Debian's packages, unpacked into `target/kernels`.
//!
//! Each gets a directory named by its series, with `vmlinuz` and `modules` in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{self, clean},
    machine::Machine,
    setup,
};

/// The oldest kernel we support, and one between it and today's.
const SERIES: &[&str] = &["6.1", "6.12"];

/// Returns the directory of all images.
pub(crate) fn provide(machine: &Machine) -> Result<PathBuf> {
    machine.provide(&setup::kernels())?;
    let images = machine.target().join("kernels");
    for series in SERIES {
        let image = images.join(series);
        if !image.join("vmlinuz").exists() {
            fetch(machine, series, &image)
                .with_context(|| format!("no kernel {series} to test on"))?;
        }
    }
    Ok(images)
}

fn fetch(machine: &Machine, series: &str, image: &Path) -> Result<()> {
    machine.refresh_packages();
    let package = package(series)?;
    eprintln!("missing: kernel {series} (the programs must load on it); package {package}");
    if machine.offline {
        bail!("not downloaded because of --offline; run once without it");
    }
    let unpacked = image.with_extension("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    command::run(clean("apt-get").current_dir(&unpacked).args(["download", &package]))?;
    let archive = entry(&unpacked, ".deb")?;
    command::run(clean("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    let _ = fs::remove_dir_all(image);
    fs::create_dir_all(image)?;
    fs::rename(entry(&unpacked.join("lib/modules"), "")?, image.join("modules"))?;
    // The image last: it is what says that the directory is complete.
    fs::rename(entry(&unpacked.join("boot"), "vmlinuz")?, image.join("vmlinuz"))?;
    fs::remove_dir_all(unpacked)?;
    Ok(())
}

/// The newest package of a series for machines without devices, the smallest of its flavours.
fn package(series: &str) -> Result<String> {
    let prefix = format!("linux-image-{series}.");
    let names = command::read(clean("apt-cache").args(["pkgnames", &prefix]))?;
    names
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64-unsigned"))
        .max_by_key(|name| numbers(name))
        .map(String::from)
        .with_context(|| format!("apt offers no {prefix}*-cloud-amd64-unsigned"))
}

/// The numbers of a version, which sort as versions do.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The entry of a directory whose name holds a word.
fn entry(dir: &Path, word: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(word)))
        .with_context(|| format!("{} holds nothing named {word}", dir.display()))
}
