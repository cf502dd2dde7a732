//! `proxy-agent check`: what this node lacks, and what that costs.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use agent_kit::{
    attach::has_tcx,
    barrier::Barrier,
    bpf::{self, MapLayout, map_type},
    embedded::LoadError,
    finding::{self, Finding, Verdict, lacking, ok},
    ipsec, kernel, mount, netfilter,
    ports::ReservedPorts,
    table::{MapTable, Table},
};

use aya::Ebpf;
use datapath::settings::{Settings, socket_lb};

use crate::{
    attach::DEVICE_HOOKS,
    config::{CheckArgs, PodLink, Xdp},
    devices::{Wish, roles},
    netlink, object,
    probe::{self, Forecast, Probe},
    xdp,
};

/// Looks at everything.
pub fn check(args: &CheckArgs) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(capabilities());
    findings.push(finding::bpffs(&args.show.pins.bpffs));
    findings.push(cgroup(args.cgroup_root.as_deref()));
    findings.extend(socket_path(&args.show.pins.bpffs));
    findings.push(btf());
    findings.extend(maps());
    let programs = object::EMBEDDED.verify();
    findings.push(device_hooks(programs.as_ref().ok()));
    findings.push(verified(programs));
    findings.extend(finding::forwarding());
    findings.push(ports(args));
    findings.push(rules());
    findings.push(fast_path());
    findings.extend(xdp(args));
    findings
}

/// What `--xdp auto` would come to on each uplink.
fn xdp(args: &CheckArgs) -> Vec<Finding> {
    const SUBJECT: &str = "XDP";
    let unknown = |err: String| {
        vec![lacking(SUBJECT, Verdict::Unknown, err, "run this in the node's network namespace")]
    };
    let network = match netlink::look() {
        Ok(network) => network,
        Err(err) => return unknown(err.to_string()),
    };
    let probe = match Probe::ask() {
        Ok(probe) => probe,
        Err(err) => return unknown(format!("the kernel cannot be asked about drivers: {err}")),
    };
    let wish = Wish {
        uplinks: args.uplink.clone(),
        pod_link: PodLink::None,
        node_addresses: Vec::new(),
        at_bridges: false,
        guarded: BTreeSet::new(),
    };
    let roles = roles(&network, &wish);
    let rules = passed_by();
    let maps = object::pins(&args.show.pins.bpffs).maps();
    let mut findings = Vec::new();
    for link in xdp::uplinks(&roles, &network) {
        let own = xdp::mode_of(&maps, link.index).and(link.xdp_program);
        let wanted = xdp::wanted(link.is_veth, Xdp::Auto, rules.as_deref());
        let facts = probe.facts(&network, link, own);
        let Forecast { mode, is_known, reason, remedy } = probe::foresee(&facts, wanted);
        let verdict = match (is_known, &remedy) {
            (false, _) => Verdict::Unknown,
            (true, Some(_)) => Verdict::Warning,
            (true, None) => Verdict::Ok,
        };
        let mode = mode.map_or("none", xdp::name);
        let found = format!("--xdp auto: {mode} on {}: {reason}", link.name);
        findings.push(Finding { subject: SUBJECT, verdict, found, advice: remedy });
    }
    let unfit = |found| lacking(SUBJECT, Verdict::Warning, found, "name another with --uplink");
    let missing = roles.missing.iter().map(|name| format!("there is no device {name}"));
    let other = roles.not_ethernet.iter().map(|name| format!("{name} carries no Ethernet frames"));
    findings.extend(missing.chain(other).map(unfit));
    if findings.is_empty() {
        let found = "no uplink is known here";
        findings.push(lacking(SUBJECT, Verdict::Unknown, found, "name it with --uplink"));
    }
    findings
}

/// What `--fast-path auto` would come to.
fn fast_path() -> Finding {
    const SUBJECT: &str = "fast path";
    match passed_by() {
        None => ok(SUBJECT, "nothing on this node filters, translates or encrypts"),
        Some(obstacle) => {
            let advice = "connections from outside take the way over IP stack and bridge, which costs time; \
                          --fast-path on if the rules are none of theirs";
            lacking(SUBJECT, Verdict::Warning, obstacle, advice)
        }
    }
}

/// What of netfilter or IPsec forwarded packets meet, and frames that are dealt with at XDP, or on the fast
/// path, do not.
fn passed_by() -> Option<String> {
    match netfilter::obstacles() {
        Ok(obstacles) => obstacles.forwarded.or_else(encryption),
        Err(err) => Some(format!("netfilter cannot be asked: {err}")),
    }
}

/// That the kernel encrypts what goes between some addresses, in words.
pub fn encryption() -> Option<String> {
    match ipsec::has_policies() {
        Ok(false) => None,
        Ok(true) => Some("there are IPsec policies".into()),
        Err(err) => Some(format!("the kernel cannot be asked for IPsec policies: {err}")),
    }
}

/// How the agent of this node was told to use sockets, if there is one.
fn socket_path(bpffs: &Path) -> Option<Finding> {
    let settings: MapTable<u32, Settings> =
        MapTable::open(&object::pins(bpffs).maps(), "SETTINGS").ok()?;
    let (_, settings) = settings.rows().ok()?.into_iter().next()?;
    Some(match settings.socket_lb {
        socket_lb::ON => ok("socket path", "for pods and the node's own processes"),
        socket_lb::ON_BUT => {
            ok("socket path", "for the node's own processes and pods, but for those left out of it")
        }
        socket_lb::HOST => ok("socket path", "for the node's own processes"),
        _ => lacking("socket path", Verdict::Warning, "off", WITHOUT_SOCKETS),
    })
}

/// What it means that sockets are left alone.
pub const WITHOUT_SOCKETS: &str = "the node's own processes reach no ClusterIP, nor NodePorts of \
                                   this node; run with --socket-lb host";

fn kernel() -> Finding {
    match kernel::version() {
        Ok(version @ (major, minor)) if version >= (6, 1) => {
            ok("kernel", format!("{major}.{minor}"))
        }
        Ok((major, minor)) => lacking(
            "kernel",
            Verdict::Warning,
            format!("{major}.{minor}"),
            "6.1 is the oldest that is tested",
        ),
        Err(err) => lacking("kernel", Verdict::Unknown, err.to_string(), "/proc must be mounted"),
    }
}

/// What each capability is for.
const CAPABILITIES: [(&str, u32, Verdict, &str); 4] = [
    ("CAP_NET_ADMIN", 12, Verdict::Missing, "no program can be attached to devices or cgroups"),
    ("CAP_BPF", 39, Verdict::Missing, "no map can be made and no program loaded"),
    (
        "CAP_PERFMON",
        38,
        Verdict::Missing,
        "the kernel refuses programs that use pointers as ours do",
    ),
    (
        "CAP_SYS_ADMIN",
        21,
        Verdict::Warning,
        "only needed to mount a bpf file system; mount one at --bpffs beforehand",
    ),
];

fn capabilities() -> Vec<Finding> {
    finding::capabilities(&CAPABILITIES)
}

fn cgroup(root: Option<&Path>) -> Finding {
    let root = root.map(PathBuf::from).or_else(mount::cgroup2);
    match root {
        Some(root) if root.join("cgroup.controllers").exists() => {
            ok("cgroup2", root.display().to_string())
        }
        Some(root) => lacking(
            "cgroup2",
            Verdict::Missing,
            format!("{} is no cgroup2 directory", root.display()),
            "the socket path cannot be attached; name one with --cgroup-root, or --socket-lb off",
        ),
        None => lacking(
            "cgroup2",
            Verdict::Missing,
            "not mounted",
            "the socket path cannot be attached, without which the node's own processes reach no \
             ClusterIP, and NodePorts of other nodes only; mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        ok("kernel BTF", "/sys/kernel/btf/vmlinux")
    } else {
        lacking(
            "kernel BTF",
            Verdict::Warning,
            "absent",
            "socket storage needs it; use a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    }
}

fn maps() -> Vec<Finding> {
    let probe = |map_type, flags| {
        let layout = MapLayout { map_type, key_size: 4, value_size: 8, max_entries: 1, flags };
        bpf::map_create(layout, None).map(drop)
    };
    let kinds = [
        ("hash maps", probe(map_type::HASH, bpf::NO_PREALLOC)),
        ("LRU maps", probe(map_type::LRU_HASH, 0)),
        ("mapped arrays", probe(map_type::ARRAY, bpf::MMAPABLE)),
        ("wait for programs", Barrier::new().and_then(|barrier| barrier.wait())),
    ];
    kinds
        .into_iter()
        .map(|(subject, result)| match result {
            Ok(()) => ok(subject, "usable"),
            Err(err) => lacking(
                subject,
                Verdict::Missing,
                err.to_string(),
                "the agent cannot run; CAP_BPF is needed, and a kernel with CONFIG_BPF_SYSCALL",
            ),
        })
        .collect()
}

/// Asks the kernel, by attaching to a device that does not exist; the version may deceive
/// where features were ported back.
fn device_hooks(programs: Option<&Ebpf>) -> Finding {
    let (has_tcx, how) = match programs.and_then(|ebpf| has_tcx(ebpf, &DEVICE_HOOKS[0]).ok()) {
        Some(has_tcx) => (has_tcx, ""),
        None => match kernel::version() {
            Ok(version) => (version >= (6, 6), ", by the kernel's version: it could not be tried"),
            Err(err) => {
                return lacking("device hooks", Verdict::Unknown, err.to_string(), "mount /proc");
            }
        },
    };
    if has_tcx {
        return ok("device hooks", format!("tcx{how}"));
    }
    lacking(
        "device hooks",
        Verdict::Warning,
        format!("clsact{how}"),
        "filters instead of links: order among several programs is by priority; tcx came with \
         6.6",
    )
}

/// Has the kernel verify every program, without attaching any.
fn verified(programs: Result<Ebpf, LoadError>) -> Finding {
    match programs {
        Ok(ebpf) => ok("programs", format!("the kernel accepts all {}", ebpf.programs().count())),
        Err(LoadError::NotEmbedded) => lacking(
            "programs",
            Verdict::Missing,
            "not in this binary",
            LoadError::NotEmbedded.to_string(),
        ),
        Err(err) => lacking(
            "programs",
            Verdict::Missing,
            err.to_string(),
            "the agent cannot run; see capabilities and kernel above",
        ),
    }
}

fn ports(args: &CheckArgs) -> Finding {
    let range = args.nat_ports;
    match ReservedPorts::read(&args.reserved_ports.reserved_ports_file) {
        Ok(ports) if ports.contains(range) => ok("source ports", format!("{range} reserved")),
        Ok(_) => lacking(
            "source ports",
            Verdict::Warning,
            format!("{range} not reserved"),
            "the agent reserves them when it starts (net.ipv4.ip_local_reserved_ports)",
        ),
        Err(err) => lacking("source ports", Verdict::Unknown, err.to_string(), "mount /proc"),
    }
}

fn rules() -> Finding {
    match foreign_proxy() {
        ForeignProxy::Absent => ok("kube-proxy rules", "none"),
        ForeignProxy::Found(what) => lacking(
            "kube-proxy rules",
            Verdict::Warning,
            what,
            "they see only what Millrace leaves, and connections they began end with them; stop \
             kube-proxy and remove them: proxy-agent cleanup --kube-proxy",
        ),
        ForeignProxy::Unknown => lacking(
            "kube-proxy rules",
            Verdict::Unknown,
            "nftables cannot be read, or tables of iptables-legacy are there without iptables-save",
            "run this as root, or install iptables",
        ),
    }
}

/// Whether another service proxy's rules are in this network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ForeignProxy {
    Found(String),
    Absent,
    /// Nothing here can tell.
    #[default]
    Unknown,
}

impl ForeignProxy {
    pub fn is_found(&self) -> bool {
        matches!(self, Self::Found(_))
    }
}

/// Looks for kube-proxy's chains; blocks. The kernel tells those of nftables and `iptables-nft`,
/// for which a container needs no tools; those of `iptables-legacy` only its tools can read.
pub fn foreign_proxy() -> ForeignProxy {
    let mut verdict = match netfilter::kube_proxy() {
        Ok(Some(chain)) => return ForeignProxy::Found(chain),
        Ok(None) => ForeignProxy::Absent,
        Err(_) => ForeignProxy::Unknown,
    };
    if netfilter::legacy().is_none() {
        return verdict;
    }
    verdict = ForeignProxy::Unknown;
    for program in ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-save"] {
        let Some(path) = find(program) else { continue };
        let Ok(output) = Command::new(path).output() else { continue };
        if !output.status.success() {
            continue;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(line) = text.lines().find(|line| line.contains(":KUBE-SERVICES ")) {
            return ForeignProxy::Found(format!("{program}: {}", line.trim()));
        }
        verdict = ForeignProxy::Absent;
    }
    verdict
}

/// Tools of the administrator are often not in the path of a service.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}
