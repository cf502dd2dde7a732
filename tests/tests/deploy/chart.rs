//! The chart says what kustomize's directories say.

use std::path::Path;

use serde_json::Value;

use crate::manifest::{deploy, helm, kustomize};

fn both(directories: &[&str]) -> Vec<Value> {
    let place = |directory| deploy().join("kustomize").join(Path::new(directory));
    sorted(directories.iter().flat_map(|directory| kustomize(&place(directory))).collect())
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    let name =
        |object: &Value| (object["kind"].to_string(), object["metadata"]["name"].to_string());
    objects.sort_by_key(name);
    objects
}

#[track_caller]
fn assert_same(values: &[&str], directories: &[&str]) {
    let (chart, directories) = (sorted(helm(values)), both(directories));
    for (of_chart, of_directory) in chart.iter().zip(&directories) {
        assert_eq!(of_chart, of_directory);
    }
    assert_eq!(chart.len(), directories.len());
}

#[test]
fn by_default_it_says_what_the_bases_say() {
    assert_same(&[], &["proxy-agent/base", "flannel-agent/base"]);
}

#[test]
fn values_say_what_overlays_say() {
    assert_same(
        &["proxyAgent.kubeadm=true", "flannelAgent.enabled=false"],
        &["proxy-agent/overlays/kubeadm"],
    );
    let nodes = &["proxy-agent/overlays/labelled-nodes", "flannel-agent/overlays/labelled-nodes"];
    assert_same(&["nodeSelector.millrace=true"], nodes);
    assert_same(
        &["proxyAgent.enabled=false", "flannelAgent.createConfig=true"],
        &["flannel-agent/overlays/new"],
    );
}
