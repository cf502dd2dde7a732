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
/// What asks for names in tests of DNS.
const DNSUTILS: &str = "jessie-dnsutils:1.7";
/// Of whose pods tests want addresses, and no answer.
const NGINX: &str = "nginx:1.14-4";
const PAUSE: &str = "pause:3.10.1";

/// Programs that tests run in pods, of those that Dockerfiles of these images install: what the
/// machine calls them, and the name in the image.
const UTILITIES: [(&str, &str); 5] = [
    // BusyBox's own shell runs its `nc` whatever stands in PATH.
    ("bash", "sh"),
    ("curl", "curl"),
    ("dig", "dig"),
    ("getent", "getent"),
    ("nc.openbsd", "nc"),
];

/// Where shells find them, and what the tests that name no path mean.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// For this processor. `peers` holds `agnhost` and what its image has beside it, `lab_peer` is what
/// holds the namespaces of pods that do nothing.
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
    Ok(vec![
        image(AGNHOST, "/agnhost", &[&utilities, &agnhost]),
        image(DNSUTILS, &pausing, &[&utilities, &pause]),
        image(NGINX, &pausing, &[&pause]),
        image(PAUSE, &pausing, &[&pause]),
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
    files.directory("tmp", 0o1777);
    Ok(files)
}

fn agnhost(peers: &Path) -> Result<Files> {
    let mut files = Files::default();
    files.program("agnhost", read(&peers.join("agnhost"))?);
    // By which its server `porter` says who it is.
    for name in ["localhost.crt", "localhost.key"] {
        files.file(name, read(&peers.join(name))?);
    }
    // Where its server `netexec` puts what it is sent.
    files.directory("uploads", 0o755);
    Ok(files)
}
