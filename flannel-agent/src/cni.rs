//! `flannel-agent install-cni`: the configuration that tells a container runtime to ask the
//! flannel plugin, put where runtimes look for it. The plugins themselves are the cluster's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use crate::file::{self, FileError};

#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("cannot read {path}: {source}; name the configuration by --from")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path}: {reason}; expected a CNI network configuration, as cni-conf.json of kube-flannel-cfg"
    )]
    Content { path: PathBuf, reason: String },
    #[error(transparent)]
    Write(#[from] FileError),
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// The network's name.
    pub network: String,
    pub path: PathBuf,
    /// False if the file said the same already, and was left alone.
    pub written: bool,
}

/// Copies a configuration, whole or not at all: runtimes read the directory whenever it changes.
pub fn install(from: &Path, to: &Path) -> Result<Installed, CniError> {
    let text =
        fs::read_to_string(from).map_err(|source| CniError::Read { path: from.into(), source })?;
    let network =
        network(&text).map_err(|reason| CniError::Content { path: from.into(), reason })?;
    let written = fs::read_to_string(to).ok().as_deref() != Some(text.as_str());
    if written {
        file::replace(to, &text)?;
    }
    Ok(Installed { network, path: to.into(), written })
}

/// The name of the network, if the text is a list of plugins or a single one (CNI specification
/// 0.3.1): a runtime would pass over anything else, and nodes would stay without network.
fn network(text: &str) -> Result<String, String> {
    let config: Value = serde_json::from_str(text).map_err(|err| err.to_string())?;
    let plugins = match &config["plugins"] {
        Value::Array(plugins) => plugins.as_slice(),
        _ => std::slice::from_ref(&config),
    };
    if plugins.is_empty() || plugins.iter().any(|plugin| !plugin["type"].is_string()) {
        return Err("no plugin, or one without a type".into());
    }
    config["name"].as_str().map(String::from).ok_or_else(|| "the network has no name".into())
}

/// For people.
pub fn print(installed: &Installed) -> String {
    let Installed { network, path, written } = installed;
    let path = path.display();
    if *written {
        format!("wrote {path} (network {network})\n")
    } else {
        format!("{path} is as it shall be (network {network})\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in flannel's manifest.
    const CONFIG: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    #[test]
    fn a_configuration_is_copied_once() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("cni-conf.json"), dir.path().join("net.d/10-f.conflist"));
        fs::write(&from, CONFIG).unwrap();
        let first = install(&from, &to).unwrap();
        assert_eq!((first.network.as_str(), first.written), ("cbr0", true));
        assert_eq!(fs::read_to_string(&to).unwrap(), CONFIG);
        assert!(!install(&from, &to).unwrap().written);
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_no_runtime_would_take_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("cni-conf.json"), dir.path().join("10-f.conflist"));
        fs::write(&to, CONFIG).unwrap();
        for wrong in
            ["", "{", "[]", "{}", r#"{"name": "x", "plugins": []}"#, r#"{"type": "flannel"}"#]
        {
            fs::write(&from, wrong).unwrap();
            let error = install(&from, &to).unwrap_err().to_string();
            assert!(error.contains("cni-conf.json"), "{wrong}: {error}");
            assert_eq!(fs::read_to_string(&to).unwrap(), CONFIG, "{wrong}");
        }
        fs::remove_file(&from).unwrap();
        assert!(install(&from, &to).unwrap_err().to_string().contains("--from"));
    }
}
