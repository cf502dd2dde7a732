//! Network namespaces by name, as `ip netns` keeps them.
//!
//! They are entered by setns on short-lived threads and between fork and exec, never by
//! `ip netns exec`, which mounts a new /sys over bpffs and cgroups.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::{
    error::{At, Error, Result},
    record::end_if_interrupted,
};

const DIRECTORY: &str = "/run/netns";

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new(lab: &str, place: &str) -> Self {
        Self { name: format!("mr-{lab}-{place}") }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    pub(crate) fn create(&self) -> Result<()> {
        end_if_interrupted();
        self.netns("add")
    }

    pub(crate) fn delete(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        let deleted = self.netns("delete");
        // Another process may have been faster.
        if self.path().exists() { deleted } else { Ok(()) }
    }

    fn netns(&self, verb: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        let output = ip
            .args(["netns", verb, &self.name])
            .output()
            .map_err(|source| Error::Start { program: "ip".into(), source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Command {
            place: "the host".into(),
            command: format!("ip netns {verb} {}", self.name),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    pub(crate) fn open(&self) -> Result<File> {
        File::open(self.path()).at("open", self.path())
    }

    /// Runs a function on a thread of its own inside the namespace.
    pub(crate) fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        let enter = || {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .map_err(|source| Error::Enter { namespace: self.name.clone(), source })?;
            Ok(inside())
        };
        thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs lines of `ip` commands, all in one process.
    pub(crate) fn ip(&self, lines: &[String]) -> Result<()> {
        let output = self.enter(|| feed_ip(&lines.join("\n")))?;
        let output = output.map_err(|source| Error::Start { program: "ip".into(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
        let command = failed_line(&message, lines).unwrap_or("-batch -");
        Err(Error::Command { place: self.name.clone(), command: format!("ip {command}"), message })
    }

    /// Writes `/proc/sys/net` entries, which show the namespace of the thread that writes.
    pub(crate) fn sysctl(&self, entries: &[(String, String)]) -> Result<()> {
        self.enter(|| {
            entries.iter().try_for_each(|(name, value)| {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value).at("write", path)
            })
        })?
    }
}

/// Namespaces of one lab that exist.
pub(crate) fn of_lab(lab: &str) -> Vec<Namespace> {
    let prefix = format!("mr-{lab}-");
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .map(|name| Namespace { name })
        .collect()
}

fn feed_ip(lines: &str) -> std::io::Result<std::process::Output> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = ip.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    ip.wait_with_output()
}

/// The line that `ip` blames: it ends its report with `Command failed -:LINE`.
fn failed_line<'a>(report: &str, lines: &'a [String]) -> Option<&'a str> {
    let (_, number) = report.rsplit_once("failed -:")?;
    let number: usize = number.trim().parse().ok()?;
    lines.get(number.checked_sub(1)?).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_batch_names_its_line() {
        let lines = ["link set lo up".to_string(), "link set nix up".to_string()];
        let report = "Cannot find device \"nix\"\nCommand failed -:2\n";
        assert_eq!(failed_line(report, &lines), Some("link set nix up"));
    }
}
