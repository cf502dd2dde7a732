//! What `check` finds on a node: what is there, what is missing, and what that costs.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{kernel, mount, print};

/// How a thing stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// Works, with a cost.
    Warning,
    /// Does not work without.
    Missing,
    Unknown,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub subject: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// What it costs and what to do, unless all is well.
    pub advice: Option<String>,
}

pub fn ok(subject: &'static str, found: impl Into<String>) -> Finding {
    Finding { subject, verdict: Verdict::Ok, found: found.into(), advice: None }
}

pub fn lacking(
    subject: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding { subject, verdict, found: found.into(), advice: Some(advice.into()) }
}

/// Whether each capability is there: its name, its bit, how much its lack matters, and what it
/// costs.
pub fn capabilities(wanted: &[(&'static str, u32, Verdict, &str)]) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let Some(bits) = bits else {
        return vec![lacking("capabilities", Verdict::Unknown, "unreadable", "mount /proc")];
    };
    wanted
        .iter()
        .map(|&(name, bit, verdict, cost)| {
            if bits & (1 << bit) == 0 {
                lacking(name, verdict, "absent", cost)
            } else {
                ok(name, "present")
            }
        })
        .collect()
}

/// Whether this network namespace forwards packets.
pub fn forwarding() -> Vec<Finding> {
    [
        ("IPv4 forwarding", "net/ipv4/ip_forward"),
        ("IPv6 forwarding", "net/ipv6/conf/all/forwarding"),
    ]
    .into_iter()
    .map(|(subject, path)| {
        if path.contains("ipv6") && !kernel::has_ipv6() {
            return ok(subject, "the kernel has no IPv6, so there is nothing to forward");
        }
        let value = fs::read_to_string(Path::new("/proc/sys").join(path));
        let advice = format!(
            "packets do not pass between pods and uplinks: sysctl -w {}=1",
            path.replace('/', ".")
        );
        match value.as_deref().map(str::trim) {
            Ok("1") => ok(subject, "on"),
            Ok(_) => lacking(subject, Verdict::Warning, "off", advice),
            Err(err) => lacking(subject, Verdict::Unknown, err.to_string(), advice),
        }
    })
    .collect()
}

/// True if the agent can run.
pub fn is_fit(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Missing)
}

/// For people.
pub fn print(findings: &[Finding]) -> String {
    print::table(
        &["", "SUBJECT", "FOUND", "ADVICE"],
        findings.iter().map(|finding| {
            let mark = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Missing => "MISSING",
                Verdict::Unknown => "unknown",
            };
            let advice = finding.advice.clone().unwrap_or_default();
            vec![mark.into(), finding.subject.into(), finding.found.clone(), advice]
        }),
    )
}
/// Whether pins have a place.
pub fn bpffs(path: &Path) -> Finding {
    // The path need not exist yet; what counts is the file system it will lie in.
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match mount::is_bpffs(existing) {
        Ok(true) => ok("bpf file system", format!("{} lies in one", path.display())),
        Ok(false) => lacking(
            "bpf file system",
            Verdict::Warning,
            format!("{} lies in none", path.display()),
            format!(
                "the agent mounts one, which takes CAP_SYS_ADMIN; or: mount -t bpf bpf {}",
                path.display()
            ),
        ),
        Err(err) => lacking(
            "bpf file system",
            Verdict::Unknown,
            err.to_string(),
            format!("make {} readable", existing.display()),
        ),
    }
}
