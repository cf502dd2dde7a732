//! The images: read by skopeo, and what is in them run.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

use crate::manifest::{deploy, kustomize, list, ok};

fn archive() -> PathBuf {
    lab::dist().with_file_name("image").join("millrace.tar")
}

/// Each image that a manifest names.
fn named() -> Vec<String> {
    let mut names = Vec::new();
    for agent in ["proxy-agent", "flannel-agent"] {
        for object in kustomize(&deploy().join("kustomize").join(agent).join("base")) {
            for field in ["containers", "initContainers"] {
                let containers = list(&object, &format!("/spec/template/spec/{field}"));
                names.extend(
                    containers.iter().filter_map(|found| found["image"].as_str()).map(String::from),
                );
            }
        }
    }
    names.dedup();
    names
}

fn skopeo(arguments: &[&str]) -> Output {
    let output = ok(Command::new("skopeo").args(arguments).output());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn inspect(arch: &str, image: &str, further: &[&str]) -> Value {
    let override_arch = format!("--override-arch={arch}");
    let mut arguments = vec![override_arch.as_str(), "inspect"];
    arguments.extend(further);
    let source = format!("oci-archive:{}:{image}", archive().display());
    arguments.push(&source);
    ok(serde_json::from_slice(&skopeo(&arguments).stdout))
}

#[test]
fn skopeo_finds_each_image_that_a_manifest_names() {
    let names = named();
    assert_eq!(names.len(), 2, "{names:?}");
    for image in &names {
        let index = inspect("amd64", image, &["--raw"]);
        let platforms: Vec<&Value> = list(&index, "/manifests")
            .iter()
            .map(|manifest| &manifest["platform"]["architecture"])
            .collect();
        assert_eq!(platforms, ["amd64", "arm64"], "{image}");
        for arch in ["amd64", "arm64"] {
            let found = inspect(arch, image, &[]);
            assert_eq!((&found["Architecture"], &found["Os"]), (&arch.into(), &"linux".into()));
            assert_eq!(list(&found, "/Layers").len(), 1);
            let config = inspect(arch, image, &["--config"]);
            let agent = image.rsplit('/').next().and_then(|name| name.split(':').next());
            let agent = agent.expect("an image has a name");
            let entry = format!("/usr/local/bin/{agent}");
            assert_eq!(config["config"]["Entrypoint"], serde_json::json!([entry]));
            assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], agent);
        }
    }
}

/// A copy reads every blob and compares its digest; the program that comes of it says its version.
#[test]
fn what_is_unpacked_runs() {
    for image in named() {
        for (arch, emulator) in [("amd64", "qemu-x86_64-static"), ("arm64", "qemu-aarch64-static")]
        {
            let directory = ok(tempfile::tempdir());
            let place = directory.path().display();
            skopeo(&[
                &format!("--override-arch={arch}"),
                "copy",
                "--quiet",
                &format!("oci-archive:{}:{image}", archive().display()),
                &format!("dir:{place}"),
            ]);
            let manifest = ok(std::fs::read(directory.path().join("manifest.json")));
            let manifest: Value = ok(serde_json::from_slice(&manifest));
            let digest = manifest["layers"][0]["digest"].as_str().unwrap_or_default();
            let layer = directory.path().join(digest.trim_start_matches("sha256:"));
            let mut unpack = Command::new("tar");
            unpack.arg("-xzf").arg(&layer).arg("-C").arg(directory.path());
            assert!(ok(unpack.status()).success(), "{image}: tar cannot read {}", layer.display());
            let bin = directory.path().join("usr/local/bin");
            let program = ok(ok(bin.read_dir()).next().expect("a program")).path();
            let is_native =
                std::env::consts::ARCH == if arch == "amd64" { "x86_64" } else { "aarch64" };
            let mut run = if is_native { Command::new(&program) } else { Command::new(emulator) };
            if !is_native {
                run.arg(&program);
            }
            let output = ok(run.arg("--version").output());
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let version = image.rsplit(':').next().unwrap_or_default();
            assert!(output.status.success() && said.ends_with(version), "{image} {arch}: {said}");
        }
    }
}
