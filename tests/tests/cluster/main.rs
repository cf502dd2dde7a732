//! The agents as clusters run them: as the DaemonSets of `deploy/`, from their image, under real
//! kubelets with containerd and the CNI plugins that flannel's configuration names. Nobody else
//! balances Services or joins nodes here. Kubernetes' own end-to-end tests are run there, too.
//!
//! Needs root, `etcd`, `curl`, `containerd`, `runc`, `jq`, what `cargo xtask build --peers` makes
//! (`target/peers`), `target/dist/lab-peer` and `target/image/{millrace,pods,e2e}.tar`: `cargo xtask
//! test --tier cluster`.

mod bed;
mod conformance;
mod daemon_set;
mod dual_stack;
mod e2e;
#[allow(dead_code, reason = "the cases about manifests use the rest")]
#[path = "../deploy/manifest.rs"]
mod manifest;
