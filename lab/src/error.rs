//! What can go wrong with a lab: each error names the step and the thing at fault.

use std::{io, path::PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {step} {path}: {source}")]
    File { step: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot start `{program}`: {source}")]
    Start { program: String, source: io::Error },
    #[error("`{command}` failed in {place}: {message}")]
    Command { place: String, command: String, message: String },
    #[error("cannot enter network namespace {namespace}: {source}")]
    Enter { namespace: String, source: nix::Error },
    #[error("no cgroup2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    #[error("cannot mount bpffs at {path}: {source}; a lab needs root")]
    MountBpf { path: PathBuf, source: nix::Error },
    #[error("the lab has no place named {name}; it has {known}")]
    UnknownPlace { name: String, known: String },
    #[error("the lab cannot have {what} {name}: {reason}")]
    BadSpec { what: &'static str, name: String, reason: &'static str },
    #[error("no lab named {id} is up")]
    NoSuchLab { id: String },
    #[error("lab {id} is already up; take it down first: cargo xtask lab down")]
    AlreadyUp { id: String },
    #[error("{path} is missing; build it: cargo xtask build")]
    NotBuilt { path: PathBuf },
    #[error("{what} was not ready within {seconds} s; its log ends:\n{log}")]
    NotReady { what: String, seconds: u64, log: String },
    #[error("{what} is not what lab-peer prints: {source}")]
    Answer { what: String, source: serde_json::Error },
    #[error("cannot {step} {path} as YAML: {message}")]
    Yaml { step: &'static str, path: PathBuf, message: String },
    #[error("{path} cannot be set, and {who} needs it; load it: modprobe br_netfilter")]
    NoBridgeNetfilter { path: &'static str, who: &'static str },
    #[error("{path} is missing; build it: cargo xtask build --peers")]
    NoPeer { path: PathBuf },
}

/// Gives an `io::Error` the step and path it belongs to.
pub(crate) trait At<T> {
    fn at(self, step: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { step, path: path.into(), source })
    }
}
