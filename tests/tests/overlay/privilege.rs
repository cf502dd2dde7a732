//! What flannel-agent needs to run: no more than its DaemonSet has.

use std::path::PathBuf;

use lab::{LabSpec, container::Container, dist};
use serde_json::json;

use crate::bed::{Bed, DUAL, ok};

/// Where the kernel tells which ports it gives to no socket.
const RESERVED: &str = "cat /proc/sys/net/ipv4/ip_local_reserved_ports";

#[test]
fn runs_as_its_daemon_set_has_it() {
    let manifests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize");
    let manifest = manifests.join("flannel-agent/base/daemonset.yaml");
    let container = ok(Container::of(&manifest, "flannel-agent"));
    assert_eq!(container.capabilities(), ["cap_net_admin", "cap_bpf", "cap_perfmon"]);
    let mut bed = Bed::furnished(DUAL, &["--ip-masq"]);
    for (nth, (_, node)) in LabSpec::default().nodes().enumerate() {
        let binary = dist().join("flannel-agent");
        bed.agents[nth].set_binary(ok(container.confine(&bed.lab, &node.name, &binary)));
    }
    bed.launch();
    bed.assert_joined();
    for nth in 0..bed.agents.len() {
        let status = bed.show(nth, "status");
        assert_eq!(status["problems"], json!([]), "{status}");
        let fast_path = status["fast_path"].as_str().unwrap_or_default();
        assert!(fast_path.starts_with("on"), "{status}");
    }
    // Its ports are reserved, although it may not write /proc/sys.
    assert_eq!(bed.shell("node1", RESERVED).trim(), "60000-65535");
    ok(bed.agents[0].restart());
    bed.assert_joined();
    ok(bed.agents[0].kill());
    let cleaned = ok(bed.agents[0].ask(&["cleanup"]));
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert_eq!(bed.shell("node1", RESERVED).trim(), "");
}
