//! Manifests as the tools make them that administrators use.

use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize as _;
use serde_json::{Value, json};

pub(crate) fn ok<T, E: Debug + std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|err| panic!("{err}"))
}

/// `deploy/` of the repository.
pub(crate) fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The directories that `kustomize build` is called with: all that are no parts of others alone.
pub(crate) fn kustomizations() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for agent in ["proxy-agent", "flannel-agent"] {
        let agent = deploy().join("kustomize").join(agent);
        found.push(agent.join("base"));
        let overlays = ok(agent.join("overlays").read_dir());
        found.extend(overlays.map(|entry| ok(entry).path()));
    }
    found.sort();
    found
}

/// What `kustomize build` makes of a directory.
pub(crate) fn kustomize(directory: &Path) -> Vec<Value> {
    let mut build = Command::new(lab::peers().join("kustomize"));
    objects(build.arg("build").arg(directory))
}

/// The same of a directory of `deploy/kustomize` with a component.
pub(crate) fn kustomize_with(directory: &str, component: &str) -> Vec<Value> {
    // The tool takes relative paths alone.
    let own = ok(tempfile::tempdir_in(deploy().join("../target")));
    let kustomize = "../../deploy/kustomize";
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [format!("{kustomize}/{directory}")],
        "components": [format!("{kustomize}/components/{component}")],
    });
    ok(fs::write(own.path().join("kustomization.yaml"), kustomization.to_string()));
    self::kustomize(own.path())
}

/// What `helm template` makes of the chart with values such as `proxyAgent.enabled=false`.
pub(crate) fn helm(values: &[&str]) -> Vec<Value> {
    let mut template = Command::new(lab::peers().join("helm"));
    // That of the server that is shown what comes of it.
    template.args(["template", "millrace", "--kube-version=1.35.4"]);
    template.arg(deploy().join("helm/millrace"));
    for value in values {
        // Numbers and truths that are labels are words.
        let is_label = value.contains("nodeSelector") || value.contains("tag=");
        template.args([if is_label { "--set-string" } else { "--set" }, value]);
    }
    objects(&mut template)
}

fn objects(command: &mut Command) -> Vec<Value> {
    let output = ok(command.output());
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = ok(String::from_utf8(output.stdout));
    let documents = yaml_serde::Deserializer::from_str(&text).map(Value::deserialize);
    let objects: Vec<Value> = documents.map(ok).filter(|object| !object.is_null()).collect();
    assert!(!objects.is_empty(), "{command:?} made nothing");
    objects
}

/// The only object of a kind.
pub(crate) fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}: {objects:#?}"));
    assert_eq!(found.next(), None, "another {kind}");
    first
}

/// The list at a JSON pointer; empty if there is none.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
