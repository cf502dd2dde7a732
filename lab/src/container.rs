//! An agent as confined as a manifest has its container: the capabilities that are named there
//! and no others, a root file system and a `/proc/sys` that nobody can write, and no way to more.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    error::{At, Error, Result},
    lab::Lab,
};

/// The variables that name other paths for what is read-only in `/proc/sys`.
const RESERVED_PORTS_FILE: &str = "MILLRACE_RESERVED_PORTS_FILE";
const NETFILTER_SYSCTLS: &str = "MILLRACE_NETFILTER_SYSCTLS";

/// A container of a pod template, as a manifest describes it.
#[derive(Clone, Debug)]
pub struct Container(Value);

impl Container {
    /// The container of that name in a file of manifests.
    pub fn of(manifest: &Path, name: &str) -> Result<Self> {
        let text = fs::read_to_string(manifest).at("read", manifest)?;
        for document in yaml_serde::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).map_err(std::io::Error::other);
            let object = object.at("read", manifest)?;
            let containers = object["spec"]["template"]["spec"]["containers"].as_array();
            let found = containers.into_iter().flatten().find(|found| found["name"] == name);
            if let Some(found) = found {
                return Ok(Self(found.clone()));
            }
        }
        Err(Error::BadSpec {
            what: "a manifest",
            name: manifest.display().to_string(),
            reason: "it has no such container",
        })
    }

    /// Capabilities without which the container would be refused, as the kernel names them.
    pub fn capabilities(&self) -> Vec<String> {
        let added = self.0["securityContext"]["capabilities"]["add"].as_array();
        let names = added.into_iter().flatten().filter_map(Value::as_str);
        names.map(|name| format!("cap_{}", name.to_lowercase())).collect()
    }

    /// The arguments that it is started with.
    pub fn arguments(&self) -> Vec<String> {
        let arguments = self.0["args"].as_array().into_iter().flatten();
        arguments.filter_map(Value::as_str).map(String::from).collect()
    }

    /// A script that runs a binary so, in the namespaces of who starts it but for mounts.
    ///
    /// # Errors
    /// If the manifest asks for more than is understood here: then what runs is not what it says.
    pub fn confine(&self, lab: &Lab, node: &str, binary: &Path) -> Result<PathBuf> {
        let context = &self.0["securityContext"];
        let refused = |reason| Error::BadSpec {
            what: "a container",
            name: self.0["name"].to_string(),
            reason,
        };
        if context["privileged"] != false || context["allowPrivilegeEscalation"] != false {
            return Err(refused("it may become privileged"));
        }
        if context["readOnlyRootFilesystem"] != true {
            return Err(refused("it may write its root file system"));
        }
        if context["capabilities"]["drop"] != serde_json::json!(["ALL"]) {
            return Err(refused("it keeps capabilities that it does not name"));
        }
        let directory = lab.directory(node);
        let ports = directory.join("ip_local_reserved_ports");
        fs::write(&ports, "").at("write", &ports)?;
        let netfilter = directory.join("netfilter");
        fs::create_dir_all(&netfilter).at("create", &netfilter)?;
        let mut bounds = "-all".to_owned();
        for capability in self.capabilities() {
            let _ = write!(bounds, ",+{}", capability.trim_start_matches("cap_"));
        }
        // The node's directory stands for what the manifest mounts of the node.
        let text = format!(
            "#!/bin/sh\n\
             exec unshare --mount --propagation private sh -ec '\n\
             mount --rbind {own} {own}\n\
             mount --bind /proc/sys/net/ipv4/ip_local_reserved_ports {ports}\n\
             mount --bind /proc/sys/net/netfilter {netfilter}\n\
             mount --bind /proc/sys /proc/sys\n\
             mount -o remount,bind,ro /proc/sys\n\
             mount -o remount,bind,ro /\n\
             {RESERVED_PORTS_FILE}={ports} {NETFILTER_SYSCTLS}={netfilter} \
             exec setpriv --no-new-privs --bounding-set={bounds} --inh-caps=-all \
             --ambient-caps=-all -- {binary} \"$@\"\n\
             ' sh \"$@\"\n",
            own = directory.display(),
            ports = ports.display(),
            netfilter = netfilter.display(),
            binary = binary.display(),
        );
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let script = directory.join(format!("confined-{name}"));
        fs::write(&script, text).at("write", &script)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).at("change", &script)?;
        Ok(script)
    }
}
