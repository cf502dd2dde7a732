//! What the kernel's own connection tracking is told. No flow of Millrace's is there; but what others
//! have translated on the node, such as a CNI plugin's hostPorts, lives as long as it says, and
//! clusters count on what kube-proxy sets (`setupConntrack` in `cmd/kube-proxy/app/server_linux.go`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

/// Where the kernel is told of it, in this network namespace.
#[derive(Args, Clone, Debug, Serialize)]
pub struct NetfilterArgs {
    /// Where connection tracking for rules of others is told its times; another path for the same,
    /// where containers have /proc/sys read-only
    #[arg(
        long,
        env = "MILLRACE_NETFILTER_SYSCTLS",
        value_name = "DIR",
        default_value = "/proc/sys/net/netfilter"
    )]
    pub netfilter_sysctls: PathBuf,
}

/// Values by the names that they have in `net.netfilter`.
pub type Sysctls = BTreeMap<&'static str, u64>;

/// Why rules of others find other times than with kube-proxy.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set {file} to {value}: {source}; connections that rules of others translate, such as those \
     of hostPorts, are kept for other times than with kube-proxy; make it writable, name another path \
     for its directory by --netfilter-sysctls, or leave it as it is by 0 for its field of \
     `conntrack` in kube-proxy's configuration"
)]
pub struct SetError {
    file: PathBuf,
    value: u64,
    source: io::Error,
}

/// What is not set yet. As by kube-proxy, each is set once: who sets it otherwise later has the last
/// word.
#[derive(Debug)]
pub struct Conntrack {
    directory: PathBuf,
    unset: Sysctls,
}

impl Conntrack {
    pub fn new(directory: &Path, wanted: &Sysctls) -> Self {
        Self { directory: directory.into(), unset: wanted.clone() }
    }

    /// Sets what there is by now: a kernel that has tracked no connection yet may not have its files.
    /// Returns the names of those that had another value, or the first that cannot be set.
    pub fn set(&mut self) -> Result<Vec<&'static str>, SetError> {
        let mut changed = Vec::new();
        while let Some((&name, &value)) = self.unset.iter().next() {
            let file = self.directory.join(name);
            match set(&file, value) {
                Ok(true) => changed.push(name),
                Ok(false) => {}
                // All of them come with the module nf_conntrack.
                Err(err) if err.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(SetError { file, value, source }),
            }
            self.unset.remove(name);
        }
        Ok(changed)
    }
}

/// True if it was another value.
fn set(file: &Path, value: u64) -> io::Result<bool> {
    let is_set = fs::read_to_string(file)?.trim().parse() == Ok(value);
    if !is_set {
        fs::write(file, format!("{value}\n"))?;
    }
    Ok(!is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE_WAIT: &str = "nf_conntrack_tcp_timeout_close_wait";
    const ESTABLISHED: &str = "nf_conntrack_tcp_timeout_established";

    #[test]
    fn each_is_set_once_when_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let wanted = [(CLOSE_WAIT, 3_600), (ESTABLISHED, 86_400)].into();
        let mut conntrack = Conntrack::new(directory.path(), &wanted);
        assert_eq!(conntrack.set().unwrap(), [""; 0]);

        fs::write(file(CLOSE_WAIT), "60\n").unwrap();
        fs::write(file(ESTABLISHED), "86400\n").unwrap();
        assert_eq!(conntrack.set().unwrap(), [CLOSE_WAIT]);
        assert_eq!(fs::read_to_string(file(CLOSE_WAIT)).unwrap(), "3600\n");

        fs::write(file(CLOSE_WAIT), "7\n").unwrap();
        assert_eq!(conntrack.set().unwrap(), [""; 0]);
        assert_eq!(fs::read_to_string(file(CLOSE_WAIT)).unwrap(), "7\n");
    }

    #[test]
    fn what_cannot_be_set_is_named_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(CLOSE_WAIT);
        fs::create_dir(&file).unwrap();
        let mut conntrack = Conntrack::new(directory.path(), &[(CLOSE_WAIT, 3_600)].into());
        let message = conntrack.set().unwrap_err().to_string();
        assert!(message.starts_with(&format!("cannot set {} to 3600: ", file.display())));
        assert!(message.contains("--netfilter-sysctls"), "{message}");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, "60\n").unwrap();
        assert_eq!(conntrack.set().unwrap(), [CLOSE_WAIT]);
    }
}
