//! What each task needs from the machine, beyond what builds the eBPF objects.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    command::{self, host},
    machine::{Need, Step},
};

/// Fails unless we are root, which namespaces and eBPF need.
pub(crate) fn root(why: &str) -> Result<()> {
    let id = command::read(Command::new("id").arg("-u"))?;
    if id.trim() != "0" {
        bail!("this needs root, since {why}; run it as root");
    }
    Ok(())
}

/// For agents: etcd's interface is made from its definition.
pub(crate) fn protoc() -> Need {
    // Debian keeps the definitions that others include in a package of their own.
    let is_whole = |protoc: &Path| {
        let prefix = protoc.parent().and_then(Path::parent);
        prefix.is_some_and(|dir| dir.join("include/google/protobuf/duration.proto").exists())
    };
    Need {
        name: "protoc".into(),
        why: "makes the client of etcd from its definition",
        present: Box::new(move || command::find("protoc").is_some_and(|path| is_whole(&path))),
        steps: vec![Step::Packages(&["protobuf-compiler", "libprotobuf-dev"])],
    }
}

/// For labs: namespaces, and the tools to look at them.
pub(crate) fn lab() -> Vec<Need> {
    vec![
        Need::program("ip", "makes namespaces, devices and routes", &["iproute2"]),
        Need::program("ping", "tells whether two places reach each other", &["iputils-ping"]),
    ]
}

/// For a store of leases, and beneath an API server.
fn etcd() -> [Need; 2] {
    [
        Need::program("etcd", "keeps leases and objects in the lab", &["etcd-server"]),
        Need::program("etcdctl", "asks etcd as an operator would", &["etcd-client"]),
    ]
}

/// For labs whose nodes are joined by flannel-agent.
pub(crate) fn joined_lab() -> Vec<Need> {
    lab().into_iter().chain(etcd()).collect()
}

/// For the demo, some of whose links send what they have summed up themselves.
pub(crate) fn demo() -> Vec<Need> {
    joined_lab().into_iter().chain([ethtool()]).collect()
}

fn ethtool() -> Need {
    Need::program("ethtool", "sets offloads of links", &["ethtool"])
}

/// For the privileged tiers: what proves that nothing else on the machine does our work.
pub(crate) fn tiers() -> Vec<Need> {
    let mut needs = lab();
    needs.extend([
        Need::program("bpftool", "reads pinned maps as an operator would", &["bpftool"]),
        Need::program("nft", "shows that no rule is left behind", &["nftables"]),
        Need::program("iptables-save", "shows that no rule is left behind", &["iptables"]),
        ethtool(),
        Need::program("tcpdump", "looks at packets between nodes", &["tcpdump"]),
        Need::program("openssl", "makes certificates for etcd in the lab", &["openssl"]),
        Need::program("promtool", "tries the alerts for Prometheus", &["prometheus"]),
        protoc(),
    ]);
    needs.extend(etcd());
    needs
}

/// For nodes that are joined in several ways.
pub(crate) fn overlay_bench() -> Vec<Need> {
    let nft = Need::program("nft", "loads rules as flanneld makes them", &["nftables"]);
    etcd().into_iter().chain([nft]).collect()
}

/// For flanneld in a lab, and for kube-proxy in iptables mode.
pub(crate) fn iptables() -> Need {
    Need::program("iptables", "is what flanneld and kube-proxy write rules with", &["iptables"])
}

/// For kube-proxy and its API server in a lab.
pub(crate) fn peers() -> Vec<Need> {
    let mut needs = vec![
        Need::program("nft", "is what kube-proxy writes its rules with", &["nftables"]),
        Need::program(
            "conntrack",
            "forgets the connections that kube-proxy translated",
            &["conntrack"],
        ),
        curl(),
    ];
    needs.extend(etcd());
    needs
}

/// For kube-apiserver in a lab.
fn curl() -> Need {
    Need::program("curl", "tells kube-apiserver of Services and Nodes", &["curl"])
}

/// For images of the agents, read and run by programs of others.
pub(crate) fn images() -> Vec<Need> {
    vec![
        Need::program("skopeo", "reads images as registries and engines do", &["skopeo"]),
        Need::program("qemu-aarch64-static", "runs agents for arm64", &["qemu-user-static"]),
        Need::program("qemu-x86_64-static", "runs agents for amd64", &["qemu-user-static"]),
    ]
}

/// For nodes that have a kubelet. Debian starts containerd as a service where it is installed with
/// systemd; nodes have one of their own, and leave that alone.
pub(crate) fn kubelet() -> Vec<Need> {
    vec![
        Need::program("containerd", "runs pods on nodes that have a kubelet", &["containerd"]),
        Need::program("runc", "is what containerd runs containers by", &["runc"]),
        Need::program("jq", "takes limits out of what runc is told", &["jq"]),
        Need::program("nsenter", "enters nodes that are machines of their own", &["util-linux"]),
        Need::program("mount", "gives such nodes file systems of their own", &["mount"]),
    ]
}

/// For Kubernetes' end-to-end tests: what their pods run, taken from this machine into an image.
pub(crate) fn e2e() -> Vec<Need> {
    const WHY: &str = "is run by pods of Kubernetes' end-to-end tests";
    vec![
        Need::program("bash", WHY, &["bash"]),
        Need::program("busybox", WHY, &["busybox-static"]),
        Need::program("curl", WHY, &["curl"]),
        Need::program("dig", WHY, &["bind9-dnsutils"]),
        Need::program("getent", WHY, &["libc-bin"]),
        Need::program("iperf", WHY, &["iperf"]),
        Need::program("nc.openbsd", WHY, &["netcat-openbsd"]),
        Need::program("ss", WHY, &["iproute2"]),
        Need::program("wget", WHY, &["wget"]),
        Need::program("ldd", "tells which libraries such programs load", &["libc-bin"]),
    ]
}

/// For older kernels: the machine that boots them.
pub(crate) fn kernels() -> Vec<Need> {
    vec![
        Need::program("qemu-system-x86_64", "boots older kernels", &["qemu-system-x86"]),
        Need::program("xz", "unpacks modules of older kernels", &["xz-utils"]),
        Need::program("strip", "makes binaries small enough to boot with", &["binutils"]),
    ]
}

/// For `tidy`.
pub(crate) fn tidy() -> Vec<Need> {
    let deny = "cargo install --locked --debug cargo-deny --version 0.20.2";
    vec![
        protoc(),
        component("fmt", "rustfmt", "checks the format"),
        component("clippy", "clippy", "checks the lints"),
        Need {
            name: "cargo-deny".into(),
            why: "checks licences and advisories; it is compiled on this machine, a few minutes",
            present: Box::new(|| command::find("cargo-deny").is_some()),
            steps: vec![Step::Command(deny.split(' ').map(String::from).collect())],
        },
    ]
}

/// A subcommand of cargo that rustup keeps as a component.
fn component(subcommand: &'static str, component: &str, why: &'static str) -> Need {
    Need {
        name: component.into(),
        why,
        present: Box::new(move || {
            command::read(host("cargo").args([subcommand, "--version"])).is_ok()
        }),
        steps: vec![Step::Command(
            ["rustup", "component", "add", component].map(String::from).to_vec(),
        )],
    }
}
