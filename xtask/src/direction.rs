//! The direction of dependencies: which crate of ours may use which, and what stays pure.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::{machine::Machine, tidy};

/// Each crate of ours with those of ours it may depend on. Agents never know each other,
/// nothing knows `xtask`, and only tests and xtask know the lab.
const ALLOWED: &[(&str, &[&str])] = &[
    ("datapath", &[]),
    ("proxy-ebpf", &["datapath"]),
    ("agent-kit", &["datapath"]),
    ("proxy-agent", &["datapath", "agent-kit"]),
    ("flannel-agent", &["datapath", "agent-kit"]),
    ("lab", &[]),
    ("tests", &["datapath", "agent-kit", "proxy-agent", "flannel-agent", "lab"]),
    ("xtask", &["datapath", "lab"]),
];

/// Pure code: no clock, no files, no kernel, no runtime.
const PURE: &[&str] = &[
    "datapath/src",
    "flannel-agent/src/acquire.rs",
    "flannel-agent/src/annotation.rs",
    "flannel-agent/src/entries.rs",
    "flannel-agent/src/json.rs",
    "flannel-agent/src/lease.rs",
    "flannel-agent/src/mac.rs",
    "flannel-agent/src/masquerade.rs",
    "flannel-agent/src/net_config.rs",
    "flannel-agent/src/peers.rs",
    "flannel-agent/src/pool",
    "flannel-agent/src/pool.rs",
    "flannel-agent/src/subnet.rs",
    "flannel-agent/src/subnet_env.rs",
    "proxy-agent/src/kube_proxy/document.rs",
    "proxy-agent/src/kube_proxy/fields.rs",
    "proxy-agent/src/kube_proxy/mapping.rs",
    "proxy-agent/src/leftovers/iptables.rs",
    "proxy-agent/src/leftovers/ipvs.rs",
    "proxy-agent/src/model",
    "proxy-agent/src/model.rs",
    "proxy-agent/src/topology",
    "proxy-agent/src/topology.rs",
    "proxy-agent/src/compile",
    "proxy-agent/src/compile.rs",
    "proxy-agent/src/desired.rs",
    "proxy-agent/src/documents.rs",
    "proxy-agent/src/doubt.rs",
    "proxy-agent/src/source/etcd/value.rs",
    "proxy-agent/src/source/listing.rs",
    "proxy-agent/src/adopted.rs",
    "proxy-agent/src/claims.rs",
    "proxy-agent/src/maglev.rs",
    "proxy-agent/src/service_health.rs",
    "proxy-agent/src/told.rs",
];

const IMPURE: &[&str] =
    &["tokio", "aya", "kube", "rtnetlink", "notify", "std::fs", "std::net::Tcp", "std::process"];

pub(crate) fn check(machine: &Machine) -> Result<()> {
    for manifest in ["Cargo.toml", "proxy-ebpf/Cargo.toml"] {
        crates(&machine.root.join(manifest))?;
    }
    for place in PURE.iter().map(|place| machine.root.join(place)) {
        let files = match place.is_dir() {
            true => tidy::sources(&place)?,
            false if place.exists() => vec![place],
            false => vec![],
        };
        files.iter().try_for_each(|file| pure(file))?;
    }
    Ok(())
}

fn crates(manifest: &Path) -> Result<()> {
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec()?;
    for package in &metadata.packages {
        let name = package.name.as_str();
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(of, _)| *of == name)
            .with_context(|| format!("{name} has no row in xtask/src/direction.rs"))?;
        let shipped =
            package.dependencies.iter().filter(|other| other.kind == DependencyKind::Normal);
        for other in shipped {
            if ALLOWED.iter().any(|(ours, _)| *ours == other.name)
                && !allowed.contains(&other.name.as_str())
            {
                bail!("{name} must not depend on {}", other.name);
            }
            // What a feature adds is no part of the programs.
            if name == "datapath" && !other.optional {
                bail!("datapath must depend on nothing, but does on {}", other.name);
            }
        }
    }
    Ok(())
}

/// Looks at `use` lines and paths; tests may use what they like.
fn pure(file: &Path) -> Result<()> {
    // The bridge to aya is behind a feature and holds nothing else.
    let excepted = file.ends_with("datapath/src/pod.rs")
        || file.file_name().is_some_and(|name| name == "tests.rs");
    let text = fs::read_to_string(file)?;
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut lines = code.lines().filter(|line| !excepted && !line.trim_start().starts_with("//"));
    let found = lines.find_map(|line| {
        IMPURE.iter().find(|word| {
            line.contains(&format!("{word}::")) || line.contains(&format!("use {word};"))
        })
    });
    match found {
        Some(word) => bail!("{} is pure code and must not use {word}", file.display()),
        None => Ok(()),
    }
}
