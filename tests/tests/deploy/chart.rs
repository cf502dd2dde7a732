//! The chart says what kustomize's directories say.

use std::path::Path;

use serde_json::Value;

use crate::manifest::{deploy, helm, kustomize, kustomize_with, only};

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

/// kube-proxy's configuration and the address of the API server are in one ConfigMap, and the former
/// names the latter's file.
#[test]
fn kube_proxys_configuration_is_read_where_that_is_wished() {
    for overlay in ["proxy-agent/overlays/kubeadm", "proxy-agent/overlays/kubeadm-labelled-nodes"] {
        let objects = kustomize_with(overlay, "kube-proxy-config");
        let container = &only(&objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
        let arguments = ["--source=kubernetes", "--config=/var/lib/kube-proxy/config.conf"];
        assert_eq!(container["args"], serde_json::json!(arguments), "{overlay}");
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let paths: Vec<&Value> = mounts.map(|mount| &mount["mountPath"]).collect();
        assert!(paths.contains(&&"/var/lib/kube-proxy".into()), "{overlay}: {paths:?}");
    }
    let chart = sorted(helm(&[
        "proxyAgent.kubeadm=true",
        "proxyAgent.kubeProxyConfig=true",
        "flannelAgent.enabled=false",
    ]));
    assert_eq!(chart, sorted(kustomize_with("proxy-agent/overlays/kubeadm", "kube-proxy-config")));
}
