//! What kube-proxy is configured by, taken as Millrace's configuration: the file of `--config` and
//! kube-proxy's flags. All fields stand in [`fields`], whether they mean anything here or not.

pub mod document;
pub mod fields;
pub mod flags;
pub mod mapping;
pub mod mode;
pub mod tracking;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::config::{HEALTHZ_ADDRESS, METRICS_ADDRESS, NodePortAddresses, RunArgs, ServerAddress};
use document::Given;
use flags::{Errand, HEALTHZ_BIND_ADDRESS, METRICS_BIND_ADDRESS};
use mapping::Told;

/// A field that cannot be, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Empty if no one field is to blame.
    pub field: String,
    pub message: String,
}

impl Fault {
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Why kube-proxy's configuration cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    #[error("--config: cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("--config: {path}: {}", lines(faults))]
    File { path: PathBuf, faults: Vec<Fault> },
    #[error("{}", lines(.0))]
    Flags(Vec<Fault>),
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// What came of it.
#[derive(Debug, Default)]
pub struct KubeProxyConfig {
    /// The file of `--config`, as it was read.
    file: Option<(PathBuf, String)>,
    given: Vec<Given>,
    /// What was said in vain, and what was chosen because nothing was said.
    pub told: Told,
    /// What is to be done in place of running.
    pub errand: Option<Errand>,
}

/// Reads the file of `--config`, if there is one, and has `args` say what it says, else what
/// kube-proxy's flags do.
///
/// As with kube-proxy, a file goes before the flags that both have, but for
/// `--hostname-override` and those of the log; what it leaves out has its default.
pub fn resolve(args: &mut RunArgs) -> Result<KubeProxyConfig, KubeProxyError> {
    let flags = std::mem::take(&mut args.kube_proxy);
    let errand = flags.errand;
    let Some(path) = args.config.clone() else {
        let mut told = mapping::apply(args, &flags.given).map_err(KubeProxyError::Flags)?;
        told.warnings.extend(flags.idle);
        for (flag, address) in [
            (METRICS_BIND_ADDRESS, &mut args.metrics_bind_address),
            (HEALTHZ_BIND_ADDRESS, &mut args.healthz_bind_address),
        ] {
            if flags.disabled.contains(&flag) {
                *address = ServerAddress(None);
            }
        }
        return Ok(KubeProxyConfig { file: None, given: flags.given, told, errand });
    };
    let text = fs::read_to_string(&path)
        .map_err(|source| KubeProxyError::Read { path: path.clone(), source })?;
    let refused = |faults| KubeProxyError::File { path: path.clone(), faults };
    let document = document::read(&text).map_err(refused)?;
    args.kubeconfig = None;
    args.cluster_cidr = Vec::new();
    args.nodeport_addresses = NodePortAddresses::default();
    args.metrics_bind_address = METRICS_ADDRESS.into();
    args.healthz_bind_address = HEALTHZ_ADDRESS.into();
    let mut given = document.given;
    let (logging, idle): (Vec<_>, Vec<_>) =
        flags.given.into_iter().partition(|given| given.field.path.starts_with("logging."));
    given.extend(logging);

    let in_file = |what: String| format!("{}: {what}", path.display());
    let unknown = document.unknown.into_iter();
    let mut warnings: Vec<String> =
        unknown.map(|field| in_file(format!("{field} is not known, and left out"))).collect();
    let mapped = mapping::apply(args, &given).map_err(refused)?;
    warnings.extend(mapped.warnings.into_iter().map(in_file));
    let notes = mapped.notes.into_iter().map(in_file).collect();
    let idle = idle.into_iter().map(|given| given.name);
    let idle = idle.chain(flags.shared.into_iter().map(Into::into));
    warnings.extend(idle.map(|flag| format!("{flag} does not count beside --config")));
    warnings.extend(flags.idle);
    let told = Told { warnings, notes };
    Ok(KubeProxyConfig { file: Some((path, text)), given, told, errand })
}

impl KubeProxyConfig {
    /// The file, if it says something else than when it was read. Where it cannot be read, it
    /// says nothing else.
    pub fn changed(&self) -> Option<&Path> {
        let (path, text) = self.file.as_ref()?;
        fs::read_to_string(path).is_ok_and(|now| now != *text).then_some(path)
    }

    /// What was given for a field, unless that is nothing; the last word counts.
    fn given(&self, path: &str) -> Option<&Value> {
        let given = self.given.iter().rfind(|given| given.field.path == path)?;
        (!given.value.is_null()).then_some(&given.value)
    }

    /// An address that is taken ends the agent (`bindAddressHardFail`).
    pub fn must_bind(&self) -> bool {
        self.given("bindAddressHardFail") == Some(&Value::Bool(true))
    }

    /// What the kernel shall weigh this process by when memory is short, if that was asked for.
    pub fn oom_score_adj(&self) -> Option<i64> {
        self.given("oomScoreAdj")?.as_i64()
    }

    /// The configuration in force in kube-proxy's words, as its `/configz` has it.
    pub fn in_force(&self, args: &RunArgs, node: &str) -> Value {
        self.whole(args, node, json!(args.nodeport_addresses))
    }

    /// The same as a file that `--config` reads, here and in kube-proxy: where NodePorts answer is
    /// left to the mode if it is what the mode says.
    pub fn to_file(&self, args: &RunArgs) -> Result<String, yaml_serde::Error> {
        let mode = mapping::mode(&self.given);
        let is_default = args.nodeport_addresses == mode.node_ports();
        let addresses = if is_default { json!([]) } else { json!(args.nodeport_addresses) };
        let node = args.hostname_override.as_deref().unwrap_or_default();
        yaml_serde::to_string(&self.whole(args, node, addresses))
    }

    fn whole(&self, args: &RunArgs, node: &str, nodeport_addresses: Value) -> Value {
        let mut whole = document::complete(&self.given);
        let cidrs: Vec<String> = args.cluster_cidr.iter().map(ToString::to_string).collect();
        for (path, value) in [
            ("hostnameOverride", json!(node)),
            (
                "clientConnection.kubeconfig",
                json!(args.kubeconfig.as_deref().unwrap_or(Path::new(""))),
            ),
            ("clusterCIDR", json!(cidrs.join(","))),
            ("nodePortAddresses", nodeport_addresses),
            ("healthzBindAddress", json!(args.healthz_bind_address)),
            ("metricsBindAddress", json!(args.metrics_bind_address)),
        ] {
            document::set(&mut whole, path, value);
        }
        Value::Object(whole)
    }
}

#[cfg(test)]
mod tests;
