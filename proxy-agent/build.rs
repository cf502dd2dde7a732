//! Says where the eBPF object lies that `object.rs` embeds: `MILLRACE_BPF_OBJECT`, or what
//! `cargo xtask build` left in `target/bpf`. With neither, the agent is built without programs
//! and says so when it is to load them, so that its pure parts build and test anywhere.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MILLRACE_BPF_OBJECT");
    println!("cargo::rustc-check-cfg=cfg(has_object)");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let default = manifest.join("../target/bpf/proxy.o");
    let object = match env::var_os("MILLRACE_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => default,
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=has_object");
        println!("cargo::rustc-env=PROXY_OBJECT={}", object.display());
    }
}
