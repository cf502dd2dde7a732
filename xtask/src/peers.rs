//! The programs that Millrace stands in for, to be measured beside it, and those that clusters are
//! told of it by: built from pinned Go modules (`xtask/peers`) into `target/peers`, once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{command, go, machine::Machine};

/// A program of another project.
#[derive(Debug)]
struct Peer {
    /// `NAME.test` is the tests of a package, as `go test -c` calls its output itself.
    name: &'static str,
    why: &'static str,
    /// The directory below `xtask/peers` whose `go.mod` and `go.sum` pin it.
    module: &'static str,
    package: &'static str,
    version: &'static str,
    /// Whether a part of it is C: its compiler is the one that links Rust, too.
    has_c: bool,
    /// What its own build tells the linker: a variable and its value.
    variables: &'static [(&'static str, &'static str)],
}

/// By these it says which API it speaks; without them kube-proxy says v0.0.0.
const KUBERNETES: &[(&str, &str)] = &[
    ("k8s.io/component-base/version.gitVersion", "v1.35.4"),
    ("k8s.io/component-base/version.gitMajor", "1"),
    ("k8s.io/component-base/version.gitMinor", "35"),
    ("k8s.io/component-base/version.gitTreeState", "clean"),
];

const CNI: &[(&str, &str)] =
    &[("github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion", "v1.9.1")];

const PEERS: &[Peer] = &[
    Peer {
        name: "kube-proxy",
        why: "is measured beside proxy-agent",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-proxy",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "kube-apiserver",
        why: "tells kube-proxy of Services, and flannel of Nodes",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "flanneld",
        why: "shares a network with flannel-agent",
        module: "flannel",
        package: "github.com/flannel-io/flannel",
        version: "v0.28.4",
        // The backend `udp`, which does not compile without.
        has_c: true,
        variables: &[("github.com/flannel-io/flannel/pkg/version.Version", "v0.28.4")],
    },
    Peer {
        name: "kustomize",
        why: "makes manifests of deploy/kustomize",
        module: "kustomize",
        package: "sigs.k8s.io/kustomize/kustomize/v5",
        version: "v5.8.1",
        has_c: false,
        variables: &[("sigs.k8s.io/kustomize/api/provenance.version", "v5.8.1")],
    },
    Peer {
        name: "helm",
        why: "makes manifests of deploy/helm",
        module: "helm",
        package: "helm.sh/helm/v3/cmd/helm",
        version: "v3.19.5",
        has_c: false,
        variables: &[("helm.sh/helm/v3/internal/version.version", "v3.19.5")],
    },
    Peer {
        name: "kube-controller-manager",
        why: "makes pods of DaemonSets, and gives nodes their subnets",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "kube-scheduler",
        why: "gives pods their nodes",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-scheduler",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "kubelet",
        why: "runs the agents as their DaemonSets have it",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kubelet",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "kubectl",
        why: "deploys the agents as administrators do",
        module: "kubernetes",
        package: "k8s.io/kubernetes/cmd/kubectl",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "cni/bridge",
        why: "is asked by containerd and the plugin `flannel`",
        module: "cni",
        package: "github.com/containernetworking/plugins/plugins/main/bridge",
        version: "v1.9.1",
        has_c: false,
        variables: CNI,
    },
    Peer {
        name: "cni/host-local",
        why: "is asked by containerd and the plugin `flannel`",
        module: "cni",
        package: "github.com/containernetworking/plugins/plugins/ipam/host-local",
        version: "v1.9.1",
        has_c: false,
        variables: CNI,
    },
    Peer {
        name: "cni/loopback",
        why: "is asked by containerd and the plugin `flannel`",
        module: "cni",
        package: "github.com/containernetworking/plugins/plugins/main/loopback",
        version: "v1.9.1",
        has_c: false,
        variables: CNI,
    },
    Peer {
        name: "cni/portmap",
        why: "is asked by containerd and the plugin `flannel`",
        module: "cni",
        package: "github.com/containernetworking/plugins/plugins/meta/portmap",
        version: "v1.9.1",
        has_c: false,
        variables: CNI,
    },
    Peer {
        name: "cni/flannel",
        why: "gives pods addresses of the subnet that flannel-agent took",
        module: "cni-flannel",
        package: "github.com/containernetworking/plugins/plugins/meta/flannel",
        version: "v0.9.1",
        has_c: false,
        variables: &[(
            "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion",
            "v0.9.1",
        )],
    },
    Peer {
        name: "coredns",
        why: "answers pods that ask for Services by name",
        module: "coredns",
        package: "millrace/peers/coredns",
        version: "v1.12.4",
        has_c: false,
        variables: &[("github.com/coredns/coredns/coremain.GitCommit", "v1.12.4")],
    },
    Peer {
        name: "e2e.test",
        why: "is Kubernetes' own end-to-end tests",
        module: "kubernetes",
        package: "k8s.io/kubernetes/test/e2e",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "agnhost",
        why: "is what pods of the end-to-end tests run",
        module: "kubernetes",
        package: "k8s.io/kubernetes/test/images/agnhost",
        version: "v1.35.4",
        has_c: false,
        variables: KUBERNETES,
    },
    Peer {
        name: "regression-issue-74839",
        why: "is a server of the end-to-end tests, which answers with segments out of order",
        module: "kubernetes",
        package: "k8s.io/kubernetes/test/images/regression-issue-74839",
        version: "v1.35.4",
        has_c: false,
        variables: &[],
    },
    Peer {
        name: "ginkgo",
        why: "runs several of the end-to-end tests at once",
        module: "kubernetes",
        package: "github.com/onsi/ginkgo/v2/ginkgo",
        // Whatever Kubernetes itself is tested with.
        version: "v2.27.2",
        has_c: false,
        variables: &[],
    },
];

/// Files of a peer's own package that it is used with, which are put beside it.
const FILES: &[(&str, &str)] =
    &[("agnhost", "porter/localhost.crt"), ("agnhost", "porter/localhost.key")];

/// Builds those named that are not there yet; returns the directory of the binaries.
pub(crate) fn provide(machine: &Machine, names: &[&str]) -> Result<PathBuf> {
    let directory = machine.target().join("peers");
    for peer in PEERS.iter().filter(|peer| names.contains(&peer.name)) {
        peer.provide(machine, &directory)
            .with_context(|| format!("no {} {}", peer.name, peer.version))?;
    }
    Ok(directory)
}

/// Builds all of them.
pub(crate) fn provide_all(machine: &Machine) -> Result<PathBuf> {
    provide(machine, &PEERS.iter().map(|peer| peer.name).collect::<Vec<_>>())
}

impl Peer {
    fn provide(&self, machine: &Machine, directory: &Path) -> Result<()> {
        let module = machine.root.join("xtask/peers").join(self.module);
        let mut sources = fs::read_to_string(module.join("go.mod"))?;
        // Of a module that has code of its own.
        sources += &fs::read_to_string(module.join("main.go")).unwrap_or_default();
        let recipe = self.recipe(&sources);
        let binary = directory.join(self.name);
        // Written last, so what it says is there.
        let stamp = directory.join(format!("{}.recipe", self.name));
        if binary.exists() && fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) {
            return Ok(());
        }
        eprintln!("missing: {} {} ({})", self.name, self.version, self.why);
        let go = go::find(&format!("{} (target/peers)", self.name))?;
        eprintln!(
            "building {} from Go modules with {}: takes 2 to 10 minutes the first time{}",
            self.name,
            go.display(),
            if machine.offline { "" } else { ", and some 150 MB of sources are downloaded" },
        );
        let fresh = directory.join(format!("{}.new", self.name));
        fs::create_dir_all(fresh.parent().unwrap_or(directory))?;
        let mut build = go::command_of(&go);
        build.current_dir(&module);
        build.args(if self.is_test() { &["test", "-c"][..] } else { &["build"] });
        build.args(["-trimpath", "-ldflags", &self.linker()]);
        build.arg("-o").arg(&fresh).arg(self.package);
        build.env("CGO_ENABLED", if self.has_c { "1" } else { "0" });
        if machine.offline {
            build.env("GOPROXY", "off");
        }
        if let Err(err) = command::run(&mut build) {
            if machine.offline {
                bail!(
                    "{err:#}; nothing is downloaded because of --offline: run `cargo xtask build \
                     --peers` once without it"
                );
            }
            return Err(err);
        }
        self.copy_files(&go, &module, directory)?;
        fs::rename(&fresh, &binary)?;
        fs::write(stamp, recipe)?;
        eprintln!("target/peers/{}", self.name);
        Ok(())
    }

    fn is_test(&self) -> bool {
        Path::new(self.name).extension().is_some_and(|extension| extension == "test")
    }

    fn files(&self) -> impl Iterator<Item = &'static str> {
        FILES.iter().filter(|(peer, _)| *peer == self.name).map(|(_, file)| *file)
    }

    fn copy_files(&self, go: &Path, module: &Path, directory: &Path) -> Result<()> {
        let mut files = self.files().peekable();
        if files.peek().is_none() {
            return Ok(());
        }
        let mut list = go::command_of(go);
        list.current_dir(module).args(["list", "-f", "{{.Dir}}", self.package]);
        let package = PathBuf::from(command::read(&mut list)?.trim());
        for file in files {
            let file = package.join(file);
            let text =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            fs::write(directory.join(file.file_name().unwrap_or_default()), text)?;
        }
        Ok(())
    }

    fn linker(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("-X {name}={value}"));
        ["-s".to_owned(), "-w".to_owned()]
            .into_iter()
            .chain(variables)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// All that decides what comes of the build, but for Go itself: `go.mod` names the version
    /// of every module, `go.sum` only their hashes.
    fn recipe(&self, module: &str) -> String {
        let tests = if self.is_test() { "tests of " } else { "" };
        let files = self.files().fold(String::new(), |text, file| text + "with " + file + "\n");
        format!("{tests}{}\n{}\n{files}{module}", self.package, self.linker())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_pin_the_versions_that_are_told() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        for peer in PEERS {
            let module = fs::read_to_string(root.join(peer.module).join("go.mod")).unwrap();
            let pins = |line: &str| {
                let line = line.trim().trim_start_matches("require ");
                line.split_once(' ').is_some_and(|(name, version)| {
                    (peer.package.starts_with(name) || peer.linker().contains(name))
                        && version.split(' ').next() == Some(peer.version)
                })
            };
            assert!(module.lines().any(pins), "{}", peer.name);
            assert!(module.contains(peer.package), "{}: no tool line keeps it", peer.name);
            let told = peer.linker().contains(&format!("={}", peer.version));
            assert!(told || peer.variables.is_empty(), "{}", peer.name);
        }
    }

    #[test]
    fn another_pin_is_another_recipe() {
        let peer = &PEERS[0];
        assert_eq!(peer.recipe("require a v1"), peer.recipe("require a v1"));
        assert_ne!(peer.recipe("require a v1"), peer.recipe("require a v2"));
        assert_ne!(peer.recipe("require a v1"), PEERS[1].recipe("require a v1"));
    }
}
