//! What clusters are told of Millrace by, `deploy/`: made by the real kustomize and helm, and shown
//! to a real kube-apiserver; and the images that it names, read by a program that is not ours.
//!
//! Needs root, `etcd`, `curl`, `skopeo`, `target/peers/{kustomize,helm,kube-apiserver}` (`cargo xtask
//! build --peers`) and `target/image/millrace.tar` (`cargo xtask image`): `cargo xtask test --tier
//! cluster`.

mod chart;
mod image;
mod manifest;
mod server;
