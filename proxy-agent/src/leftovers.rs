//! What kube-proxy leaves on a node, in any of its modes: found and removed by the tools that made
//! it, where they are here. What is not there needs no removing.

mod iptables;
mod ipvs;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
use serde::Serialize;

use crate::check::find;

/// Both kinds of iptables, by which they know themselves; the plain name is one of the two.
const IPTABLES: [[&str; 3]; 2] = [
    ["iptables-nft", "iptables-legacy", "iptables"],
    ["ip6tables-nft", "ip6tables-legacy", "ip6tables"],
];

/// The device that kube-proxy binds Services' addresses to in IPVS mode.
pub const IPVS_DEVICE: &str = "kube-ipvs0";

/// Sets of IPVS mode (pkg/proxy/ipvs/ipset.go); those of IPv6 begin with KUBE-6-.
const SETS: &[&str] = &[
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// Something of kube-proxy's that was removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Leftover {
    /// The tool, or what it is: `iptables-nft`, `nft`, `ipset`, `ipvs`, `device`.
    pub by: String,
    pub what: String,
}

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    #[error("cannot run {tool}: {source}")]
    Start { tool: String, source: io::Error },
    #[error("{command}: {message}")]
    Failed { command: String, message: String },
    #[error("{what} is there, and {tool} to remove it is not; install it and try again")]
    Missing { what: &'static str, tool: &'static str },
}

/// Removes all that kube-proxy left in this network namespace; what leads to something goes before
/// it. kube-proxy itself must have ended, or it puts everything back.
pub fn remove() -> Result<Vec<Leftover>, LeftoverError> {
    let mut removed = Vec::new();
    for variants in IPTABLES {
        let [nft, legacy, plain] = variants;
        let known =
            [nft, legacy].into_iter().filter(|name| find(&format!("{name}-save")).is_some());
        let mut names: Vec<&str> = known.collect();
        if names.is_empty() {
            names.push(plain);
        }
        for name in names {
            rules(name, &mut removed)?;
        }
    }
    tables(&mut removed)?;
    sets(&mut removed)?;
    virtual_servers(&mut removed)?;
    device(&mut removed)?;
    Ok(removed)
}

fn rules(name: &str, removed: &mut Vec<Leftover>) -> Result<(), LeftoverError> {
    let Some(save) = find(&format!("{name}-save")) else { return Ok(()) };
    let Some(plan) = iptables::plan(&run(&save, &[], None)?) else { return Ok(()) };
    let restore = find(&format!("{name}-restore"));
    let restore = restore
        .ok_or(LeftoverError::Missing { what: "an iptables chain", tool: "iptables-restore" })?;
    // Others that change rules hold a lock meanwhile.
    run(&restore, &["--noflush", "-w", "10"], Some(&plan.restore))?;
    removed.extend(plan.removed.into_iter().map(|what| Leftover { by: name.into(), what }));
    Ok(())
}

fn tables(removed: &mut Vec<Leftover>) -> Result<(), LeftoverError> {
    let Some(nft) = find("nft") else { return Ok(()) };
    let listed = run(&nft, &["list", "tables"], None)?;
    for family in ["ip", "ip6"] {
        let line = format!("table {family} kube-proxy");
        if listed.lines().any(|found| found.trim() == line) {
            run(&nft, &["delete", "table", family, "kube-proxy"], None)?;
            removed.push(Leftover { by: "nft".into(), what: line });
        }
    }
    Ok(())
}

fn is_own_set(name: &str) -> bool {
    let name = name.strip_prefix("KUBE-6-").or_else(|| name.strip_prefix("KUBE-"));
    name.is_some_and(|name| SETS.contains(&name))
}

fn sets(removed: &mut Vec<Leftover>) -> Result<(), LeftoverError> {
    let Some(ipset) = find("ipset") else { return Ok(()) };
    for name in run(&ipset, &["list", "-n"], None)?.lines().filter(|name| is_own_set(name)) {
        run(&ipset, &["destroy", name], None)?;
        removed.push(Leftover { by: "ipset".into(), what: format!("set {name}") });
    }
    Ok(())
}

/// Asks the kernel: /sys may show another network namespace.
fn has_device() -> bool {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
    socket.is_ok_and(|socket| name_to_index(socket, IPVS_DEVICE).is_ok())
}

fn ip() -> Result<PathBuf, LeftoverError> {
    find("ip").ok_or(LeftoverError::Missing { what: "the device kube-ipvs0", tool: "ip" })
}

/// Without the device nothing tells which are kube-proxy's, so it goes last.
fn virtual_servers(removed: &mut Vec<Leftover>) -> Result<(), LeftoverError> {
    let is_any = std::fs::read_to_string("/proc/net/ip_vs").is_ok_and(|text| {
        text.lines().any(|line| line.starts_with("TCP") || line.starts_with("UDP"))
    });
    if !has_device() || !is_any {
        return Ok(());
    }
    let missing = LeftoverError::Missing { what: "a virtual server of IPVS", tool: "ipvsadm" };
    let ipvsadm = find("ipvsadm").ok_or(missing)?;
    let addresses =
        ipvs::addresses(&run(&ip()?, &["-o", "address", "show", "dev", IPVS_DEVICE], None)?);
    let save = run(&ipvsadm, &["--save", "--numeric"], None)?;
    for (protocol, address) in ipvs::virtual_servers(&save, &addresses) {
        run(&ipvsadm, &["-D", &protocol, &address], None)?;
        removed.push(Leftover { by: "ipvs".into(), what: format!("virtual server {address}") });
    }
    Ok(())
}

fn device(removed: &mut Vec<Leftover>) -> Result<(), LeftoverError> {
    if has_device() {
        run(&ip()?, &["link", "delete", "dev", IPVS_DEVICE], None)?;
        removed.push(Leftover { by: "device".into(), what: IPVS_DEVICE.into() });
    }
    Ok(())
}

/// Runs a tool to its end; what it prints, if it succeeds.
fn run(tool: &Path, arguments: &[&str], input: Option<&str>) -> Result<String, LeftoverError> {
    let failed = |source| LeftoverError::Start { tool: tool.display().to_string(), source };
    let Output { status, stdout, stderr } = communicate(tool, arguments, input).map_err(failed)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let command = format!("{} {}", tool.display(), arguments.join(" "));
    let message = String::from_utf8_lossy(&stderr).trim().to_owned();
    Err(LeftoverError::Failed { command, message })
}

/// The tools read all of their input before they print anything to speak of.
fn communicate(tool: &Path, arguments: &[&str], input: Option<&str>) -> io::Result<Output> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut command = Command::new(tool);
    command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input)
        && let Err(err) = stdin.write_all(input.as_bytes())
        && err.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(err);
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::is_own_set;

    #[test]
    fn sets_are_known_by_their_whole_names() {
        assert!(is_own_set("KUBE-CLUSTER-IP") && is_own_set("KUBE-6-NODE-PORT-TCP"));
        assert!(!is_own_set("KUBE-DST-ABCDEF") && !is_own_set("CLUSTER-IP"));
    }
}
