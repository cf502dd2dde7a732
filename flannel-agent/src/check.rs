//! `flannel-agent check`: what this node lacks, and what that costs.

use std::{path::Path, process::Command};

use agent_kit::{
    finding::{Finding, Verdict, bpffs, capabilities, forwarding, lacking, ok},
    netfilter::{self, Obstacles},
};

use crate::{
    config::InterfaceSettings,
    device,
    interface::{Choice, Listing, select},
    kernel::Kernel,
    object,
    subnet::Family,
};

const CAPABILITIES: [(&str, u32, Verdict, &str); 3] = [
    ("CAP_NET_ADMIN", 12, Verdict::Missing, "no device and no route can be made"),
    ("CAP_BPF", 39, Verdict::Missing, "no program can be loaded; --datapath kernel needs none"),
    (
        "CAP_PERFMON",
        38,
        Verdict::Missing,
        "the kernel refuses programs that use pointers as ours do",
    ),
];

/// Looks at everything. Needs a tokio runtime.
pub async fn check(settings: &InterfaceSettings, path: &Path) -> Vec<Finding> {
    let mut findings = capabilities(&CAPABILITIES);
    findings.push(bpffs(path));
    findings.push(programs());
    findings.push(fast_path());
    findings.push(vxlan());
    findings.extend(forwarding());
    findings.push(forward_chain());
    let listing = match Kernel::open() {
        Ok(kernel) => kernel.listing().await.map_err(|err| err.to_string()),
        Err(err) => Err(err.to_string()),
    };
    match listing {
        Ok(listing) => {
            findings.extend(Family::BOTH.map(|family| uplink(&listing, settings, family)));
            findings.push(devices(&listing));
        }
        Err(err) => {
            let advice = "the network of this node cannot be looked at";
            findings.push(lacking("uplink", Verdict::Unknown, err, advice));
        }
    }
    findings
}

fn programs() -> Finding {
    match object::EMBEDDED.verify() {
        Ok(_) => ok("programs", "the kernel accepts them"),
        Err(err) => {
            let advice = "only --datapath kernel can be used; see capabilities above";
            lacking("programs", Verdict::Missing, err.to_string(), advice)
        }
    }
}

fn fast_path() -> Finding {
    let subject = "fast path";
    match netfilter::obstacles() {
        Ok(Obstacles { forwarded: None, local: None }) => {
            ok(subject, "nothing on this node filters or translates")
        }
        Ok(Obstacles { forwarded: None, local: Some(obstacle) }) => {
            let advice = "packets of pods take the way over the tunnel device, which costs time; \
                          --fast-path on if the rules are none of the tunnel's";
            lacking(subject, Verdict::Warning, obstacle, advice)
        }
        Ok(Obstacles { forwarded: Some(obstacle), .. }) => {
            let advice = "packets of pods take the way over bridge and IP stack, which costs time; \
                          --fast-path on if the rules are none of theirs";
            lacking(subject, Verdict::Warning, obstacle, advice)
        }
        Err(err) => {
            let advice = "it stays off; --fast-path on does not ask";
            lacking(subject, Verdict::Unknown, err.to_string(), advice)
        }
    }
}

fn vxlan() -> Finding {
    if Path::new("/sys/module/vxlan").exists() {
        return ok("VXLAN", "there");
    }
    let advice = "it is loaded with the first device, if it can be: modprobe vxlan";
    lacking("VXLAN", Verdict::Unknown, "not loaded", advice)
}

fn uplink(listing: &Listing, settings: &InterfaceSettings, family: Family) -> Finding {
    let choice = Choice {
        names: settings.names.clone(),
        patterns: settings.patterns.clone(),
        can_reach: None,
        public_ip: settings.public_ip.filter(|_| family == Family::V4),
        public_ipv6: settings.public_ipv6.filter(|_| family == Family::V6),
        needs_v4: family == Family::V4,
        needs_v6: family == Family::V6,
    };
    let subject = match family {
        Family::V4 => "IPv4 uplink",
        Family::V6 => "IPv6 uplink",
    };
    match select(listing, &choice) {
        Ok(uplink) => {
            let address = uplink.public(family).map_or(String::new(), |ip| ip.to_string());
            ok(subject, format!("{}, {address}, MTU {}", uplink.name, uplink.mtu))
        }
        Err(err) => {
            let advice = "only matters if the network's configuration has this family";
            lacking(subject, Verdict::Warning, err.to_string(), advice)
        }
    }
}

fn devices(listing: &Listing) -> Finding {
    let named = listing.interfaces.iter().filter(|found| device::is_name(&found.name));
    let found: Vec<String> = named.map(|found| found.name.clone()).collect();
    if found.is_empty() {
        return ok("tunnel devices", "none yet");
    }
    ok("tunnel devices", format!("{}; those that fit are kept", found.join(", ")))
}

/// flanneld adds rules that let pods through; we add none, and say so where they are needed.
fn forward_chain() -> Finding {
    let subject = "FORWARD chain";
    let Ok(output) = Command::new("nft").args(["list", "chains"]).output() else {
        return lacking(subject, Verdict::Unknown, "nft is not here", "install it to see");
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let drops =
        text.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"));
    if !drops {
        return ok(subject, "drops nothing by default");
    }
    lacking(
        subject,
        Verdict::Warning,
        "drops by default",
        "packets between pods of different nodes are dropped unless rules accept the pod \
         network: iptables -P FORWARD ACCEPT, or rules for it",
    )
}
