//! A real containerd on a node of the lab that is a machine, with runc beneath.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{At, Error, Result},
    machine::Machine,
    peers,
    process::{self, Process},
};

/// Where kubelets look for it.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

const PATIENCE: Duration = Duration::from_mins(2);

/// containerd of one node. It goes with the machine.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
}

impl Containerd {
    /// Starts it and waits until it answers. `sandbox` is the image that holds a pod's namespaces,
    /// which has to be imported before the first pod.
    pub fn start(machine: &Machine, sandbox: &str) -> Result<Self> {
        let directory = machine.directory();
        let runc = directory.join("runc");
        fs::write(&runc, RUNC).at("write", &runc)?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).at("change", &runc)?;
        let config = directory.join("containerd.toml");
        let store = directory.join("own/containerd");
        let text = configuration(sandbox, &store, &runc, &peers().join("cni"));
        fs::write(&config, text).at("write", &config)?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config);
        let mut containerd = Self { process: machine.start("containerd", &command)? };
        let began = Instant::now();
        while machine.shell("ctr --namespace k8s.io version").is_err() {
            if containerd.process.ended().is_some() || began.elapsed() > PATIENCE {
                return Err(Error::NotReady {
                    what: format!("containerd of {}", machine.name()),
                    seconds: began.elapsed().as_secs(),
                    log: process::log_tail(&machine.log("containerd")),
                });
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(containerd)
    }

    /// Its version, as `(1, 6)`.
    pub fn version(machine: &Machine) -> Result<(u32, u32)> {
        let said = machine.shell("containerd --version")?;
        parse_version(&said).ok_or_else(|| Error::Command {
            place: machine.name().into(),
            command: "containerd --version".into(),
            message: format!("{said:?} tells no version"),
        })
    }

    /// Takes the images of an OCI archive.
    pub fn import(machine: &Machine, archive: &Path) -> Result<()> {
        if !archive.exists() {
            return Err(Error::NotBuilt { path: archive.into() });
        }
        let line = format!("ctr --namespace k8s.io images import {}", archive.display());
        machine.shell(&line).map(drop)
    }
}

/// Below a lab's cgroup there are no controllers (a machine may have bound them to cgroup version 1),
/// so a container's limits cannot be written; nor may everybody who is root make a process less
/// likely to be killed for want of memory. runc fails over either, so both are taken out before it
/// looks; which devices a container may use, a program decides, and it stays.
const RUNC: &str = r#"#!/bin/sh -e
bundle=
previous=
create=
for word in "$@"; do
    [ "$previous" = --bundle ] && bundle=$word
    [ "$word" = create ] && create=yes
    previous=$word
done
if [ -n "$create" ] && [ -n "$bundle" ]; then
    jq --compact-output '
        if .linux.resources then .linux.resources |= {devices} else . end
        | if (.process.oomScoreAdj // 0) < 0 then del(.process.oomScoreAdj) else . end
    ' "$bundle/config.json" >"$bundle/config.json.new"
    mv "$bundle/config.json.new" "$bundle/config.json"
fi
PATH=$PATH:/usr/sbin:/usr/local/sbin
exec runc "$@"
"#;

/// Version 2 is understood by containerd 1.6 to 2.x.
fn configuration(sandbox: &str, store: &Path, runc: &Path, plugins: &Path) -> String {
    let [store, runc, plugins] = [store, runc, plugins].map(Path::display);
    format!(
        r#"version = 2
root = "{store}"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  # The profile would be loaded into the kernel of the machine that the lab is on.
  disable_apparmor = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
"#
    )
}

/// From `containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3`, or `v1.7.24`.
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let word = said.split_whitespace().nth(2)?;
    let mut numbers = word.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An archive of images that `cargo xtask` made.
pub fn archive(name: &str) -> PathBuf {
    crate::dist().with_file_name("image").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_distributions_write_it() {
        let debian =
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n";
        assert_eq!(parse_version(debian), Some((1, 6)));
        let upstream = "containerd github.com/containerd/containerd/v2 v2.0.5 fb4c30d4ede3531652d";
        assert_eq!(parse_version(upstream), Some((2, 0)));
        assert_eq!(parse_version("containerd: not found"), None);
    }
}
