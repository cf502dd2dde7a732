//! Build script of both agents. Says where the eBPF object lies that an agent's `object.rs`
//! embeds: in the directory `MILLRACE_BPF_OBJECTS`, or where `cargo xtask build` left it, in
//! `target/bpf`. With neither, the agent is built without programs and says so when it is to load
//! them, so that its pure parts build and test anywhere.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MILLRACE_BPF_OBJECTS");
    println!("cargo::rustc-check-cfg=cfg(has_object)");
    let variable = |name| PathBuf::from(env::var_os(name).unwrap_or_default());
    let name = match env::var("CARGO_PKG_NAME").as_deref() {
        Ok("flannel-agent") => "overlay.o",
        _ => "proxy.o",
    };
    let built = variable("CARGO_MANIFEST_DIR").join("../target/bpf");
    let objects = env::var_os("MILLRACE_BPF_OBJECTS").map_or(built, PathBuf::from);
    let object = objects.join(name);
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=has_object");
        println!("cargo::rustc-env=BPF_OBJECT={}", object.display());
    }
}
