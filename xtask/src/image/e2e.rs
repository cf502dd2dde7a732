//! Images that Kubernetes' end-to-end tests ask for, by the names that they know them by.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use super::{
    REPOSITORY,
    files::{Files, PROGRAMS},
    installed,
    layout::Image,
    read,
};
use crate::architecture::Architecture;

/// As `test/utils/image/manifest.go` of Kubernetes 1.35 has them.
const AGNHOST: &str = "agnhost:2.59";
const BUSYBOX: &str = "busybox:1.37.0-1";
/// What looks at the connections that a node's netfilter tracks.
const IPTABLES: &str = "distroless-iptables:v0.8.9";
/// What asks for names in tests of DNS.
const DNSUTILS: &str = "jessie-dnsutils:1.7";
/// Of whose pods tests want addresses, and no answer.
const NGINX: &str = "nginx:1.14-4";
const PAUSE: &str = "pause:3.10.1";
/// A server whose segments no connection tracker takes for valid.
const OUT_OF_ORDER: &str = "regression-issue-74839";
const OUT_OF_ORDER_TAG: &str = "1.4";

/// Programs that tests run in pods, of those that Dockerfiles of these images install: what the
/// machine calls them, and the name in the image.
const UTILITIES: [(&str, &str); 8] = [
    // BusyBox's own shell runs its `nc` whatever stands in PATH.
    ("bash", "sh"),
    ("curl", "curl"),
    ("dig", "dig"),
    ("getent", "getent"),
    ("iperf", "iperf"),
    ("nc.openbsd", "nc"),
    ("ss", "ss"),
    // BusyBox's own, of Debian 12, ends by SIGSEGV where it is told how long to wait.
    ("wget", "wget"),
];

/// Where shells find them, and what the tests that name no path mean.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// For this processor. `peers` holds `agnhost`, what its image has beside it, and other servers;
/// `lab_peer` is what holds the namespaces of pods that do nothing.
pub(super) fn images(peers: &Path, lab_peer: &Path) -> Result<Vec<Image>> {
    let architecture = Architecture::host()?.name();
    let image = |name: &str, entrypoint: &str, layers: &[&Files]| Image {
        reference: format!("{REPOSITORY}/{name}"),
        entrypoint: entrypoint.into(),
        path: PATH.into(),
        arguments: &["pause"],
        labels: BTreeMap::new(),
        layers: [(architecture, layers.iter().copied().cloned().collect())].into(),
    };
    let (utilities, agnhost) = (utilities()?, agnhost(peers)?);
    let pause = Files::of_program("pause", read(lab_peer)?);
    let pausing = format!("/{PROGRAMS}/pause");
    let out_of_order = Files::of_program(OUT_OF_ORDER, read(&peers.join(OUT_OF_ORDER))?);
    Ok(vec![
        image(AGNHOST, "/agnhost", &[&utilities, &agnhost]),
        image(BUSYBOX, &pausing, &[&utilities, &pause]),
        image(IPTABLES, &pausing, &[&utilities, &pause]),
        image(DNSUTILS, &pausing, &[&utilities, &pause]),
        image(NGINX, &pausing, &[&pause]),
        image(PAUSE, &pausing, &[&pause]),
        image(
            &format!("{OUT_OF_ORDER}:{OUT_OF_ORDER_TAG}"),
            &format!("/{PROGRAMS}/{OUT_OF_ORDER}"),
            &[&out_of_order],
        ),
    ])
}

/// What most images have.
fn utilities() -> Result<Files> {
    let mut files = Files::default();
    installed::merge(&mut files);
    for (program, name) in UTILITIES {
        installed::add(&mut files, program, name)?;
    }
    installed::add_utilities(&mut files)?;
    files.file("etc/nsswitch.conf", b"hosts: files dns\n".to_vec());
    // As often as BusyBox's tries.
    files.file("etc/wgetrc", b"tries = 1\n".to_vec());
    files.directory("tmp", 0o1777);
    Ok(files)
}

fn agnhost(peers: &Path) -> Result<Files> {
    let mut files = Files::default();
    files.program("agnhost", read(&peers.join("agnhost"))?);
    // A server that pods are told to ask for names in place of the cluster's.
    files.program("coredns", read(&peers.join("coredns"))?);
    // By which its server `porter` says who it is.
    for name in ["localhost.crt", "localhost.key"] {
        files.file(name, read(&peers.join(name))?);
    }
    // Where its server `netexec` puts what it is sent.
    files.directory("uploads", 0o755);
    Ok(files)
}
