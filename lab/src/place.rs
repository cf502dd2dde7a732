//! A node, a pod or the client: where commands run and functions are called.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{
    address::Addresses,
    error::{Error, Result},
    namespace::Namespace,
    process::Process,
};

#[derive(Clone, Debug)]
pub struct Place {
    pub name: String,
    pub addresses: Addresses,
    pub(crate) namespace: Namespace,
    pub(crate) cgroup: PathBuf,
    pub(crate) kept: bool,
}

impl Place {
    /// The cgroup its processes are put into.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Path of the network namespace, for setns.
    pub fn netns(&self) -> PathBuf {
        self.namespace.path()
    }

    /// Starts a command here; no input unless the command says otherwise.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::start(&self.namespace, &self.cgroup, command, self.kept)
    }

    /// Runs a command here to its end and returns what it printed.
    pub fn run(&self, mut command: Command) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.output().map_err(|source| Error::Start { program, source })
    }

    /// Runs a shell line here and returns what it printed; fails if it does.
    pub fn shell(&self, line: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]);
        let output = self.run(shell)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            place: self.name.clone(),
            command: line.into(),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// Calls a function on a thread inside the network namespace. The cgroup stays that of
    /// the caller: sockets made here do not meet the socket path.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.enter(inside)
    }
}
