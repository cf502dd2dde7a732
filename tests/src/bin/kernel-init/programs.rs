//! The objects' programs: loaded as the agents do, with what the verifier has to say about
//! each, and attached, by links where the kernel has them.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Instant,
};

use agent_kit::{
    attach::{Hook, Layer},
    bpf::{self, attach_type},
    clsact, filter,
    link::Links,
    object::{self, Pins, Request},
    program,
};
use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Ebpf,
    programs::{Program, ProgramError, SchedClassifier},
};

use crate::Report;

/// Where the objects are.
pub(crate) const OBJECTS: &str = "/objects";
const CGROUP: &str = "/sys/fs/cgroup";
const PINS: &str = "/sys/fs/bpf/millrace";

/// The verifier may follow a million instructions. Ours stay far below, because the agent
/// waits for it whenever it starts.
const INSTRUCTIONS: u32 = 160_000;

/// Programs on cgroups, with their hooks.
const ON_CGROUPS: [(&str, u32); 9] = [
    ("sock_connect4", attach_type::CGROUP_INET4_CONNECT),
    ("sock_connect6", attach_type::CGROUP_INET6_CONNECT),
    ("sock_sendmsg4", attach_type::CGROUP_UDP4_SENDMSG),
    ("sock_sendmsg6", attach_type::CGROUP_UDP6_SENDMSG),
    ("sock_recvmsg4", attach_type::CGROUP_UDP4_RECVMSG),
    ("sock_recvmsg6", attach_type::CGROUP_UDP6_RECVMSG),
    ("sock_peername4", attach_type::CGROUP_INET4_GETPEERNAME),
    ("sock_peername6", attach_type::CGROUP_INET6_GETPEERNAME),
    ("sock_release", attach_type::CGROUP_INET_SOCK_RELEASE),
];

/// The proxy's programs on devices: the pods' on `lo`, which has traffic, the uplink's on one
/// without.
const OF_PROXY: [Hook<&str>; 4] = [
    hook("pod_ingress", "lo", true, Layer::Outer),
    hook("pod_egress", "lo", false, Layer::Outer),
    hook("uplink_ingress", "dummy0", true, Layer::Outer),
    hook("uplink_egress", "dummy0", false, Layer::Outer),
];

/// The overlay's, beside those.
const OF_OVERLAY: [Hook<&str>; 6] = [
    hook("bypass_ingress", "lo", true, Layer::Inner),
    hook("decap_ingress", "lo", true, Layer::Innermost),
    hook("tunnel_ingress", "dummy0", true, Layer::Inner),
    hook("tunnel_egress", "dummy0", false, Layer::Inner),
    hook("masq_ingress", "dummy0", true, Layer::Innermost),
    hook("masq_egress", "dummy0", false, Layer::Innermost),
];

/// A hook with the name of its device as role.
const fn hook(
    program: &'static str,
    device: &'static str,
    is_ingress: bool,
    layer: Layer,
) -> Hook<&'static str> {
    Hook { program, role: device, is_ingress, layer }
}

/// An object in the kernel.
pub(crate) struct Object {
    ebpf: Ebpf,
    /// Where its maps are pinned.
    pub(crate) maps: PathBuf,
}

/// Loads an object and each of its programs; `None` if one is refused.
pub(crate) fn load(report: &mut Report, name: &str) -> Option<Object> {
    let loaded = report.check(format_args!("maps of {name}"), load_maps(name))?;
    let object::Loaded { mut ebpf, maps, .. } = loaded;
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort();
    let mut all = true;
    for name in names {
        let result = ebpf.program_mut(&name).context("no such program").and_then(load_program);
        all &= report.check(format_args!("{name} loads"), result).is_some();
    }
    all.then_some(Object { ebpf, maps })
}

fn load_maps(name: &str) -> Result<object::Loaded> {
    let path = Path::new(OBJECTS).join(name).with_extension("o");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let pins = Pins::new(Path::new(PINS).join(name));
    let request = Request {
        object: &bytes,
        pins: &pins,
        layout: datapath::maps::LAYOUT,
        capacities: &BTreeMap::new(),
        groups: &[],
        shared: &[],
    };
    Ok(object::load(&request)?)
}

fn load_program(program: &mut Program) -> Result<()> {
    let began = Instant::now();
    program::load(program).map_err(last_words)?;
    let time = began.elapsed();
    let info = program.info()?;
    let instructions = info.verified_instruction_count().unwrap_or(0);
    println!(
        "program {} followed {instructions} instructions in {} ms, holds {}",
        info.name_as_str().unwrap_or("?"),
        time.as_millis(),
        info.size_translated().unwrap_or(0) / 8
    );
    ensure!(
        instructions < INSTRUCTIONS,
        "the verifier followed {instructions} instructions; {INSTRUCTIONS} is all we allow"
    );
    Ok(())
}

/// A refusal with the end of the verifier's log, which says why.
fn last_words(err: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = &err else { return err.into() };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(12)..].join("\n");
    anyhow!("{io_error}; the verifier's last words:\n{end}")
}

/// Attaches all programs of the proxy.
pub(crate) fn attach_proxy(report: &mut Report, object: &mut Object) {
    let links = Links::new(Path::new(PINS).join("proxy/links"));
    for (name, hook) in ON_CGROUPS {
        let result = attach_to_cgroup(&object.ebpf, &links, name, hook);
        report.check(format_args!("{name} attaches"), result);
    }
    attach_to_devices(report, object, &links, &OF_PROXY);
}

/// Attaches all programs of the overlay.
pub(crate) fn attach_overlay(report: &mut Report, object: &mut Object) {
    let links = Links::new(Path::new(PINS).join("overlay/links"));
    attach_to_devices(report, object, &links, &OF_OVERLAY);
}

fn attach_to_devices(
    report: &mut Report,
    object: &mut Object,
    links: &Links,
    hooks: &[Hook<&str>],
) {
    for hook in hooks {
        let result = attach_to_device(&mut object.ebpf, links, hook);
        if let Some(kind) = report.check(format_args!("{} attaches", hook.program), result) {
            println!("program {} is on {} by {kind}", hook.program, hook.role);
        }
    }
}

fn attach_to_cgroup(ebpf: &Ebpf, links: &Links, name: &str, hook: u32) -> Result<()> {
    let fd = ebpf.program(name).context("no such program")?.fd()?;
    let link = links.attach_cgroup(name, fd.as_fd(), Path::new(CGROUP), hook)?;
    ensure!(link.is_attached(), "the link is on nothing");
    Ok(())
}

/// Gives the way it went: tcx since Linux 6.6, clsact before.
fn attach_to_device(ebpf: &mut Ebpf, links: &Links, hook: &Hook<&str>) -> Result<&'static str> {
    let (name, device) = (hook.program, hook.role);
    let program = classifier(ebpf, name)?;
    let ifindex = nix::net::if_::if_nametoindex(device)?;
    match links.attach_device(name, program.fd()?.as_fd(), ifindex, hook.tcx(), hook.place()) {
        Ok(link) => {
            ensure!(link.is_attached(), "the link is on nothing");
            Ok("tcx")
        }
        Err(err) if err.is_unsupported() && !has_tcx()? => {
            clsact::attach(program, device, hook.clsact(), hook.priority())?;
            let listed = filter::filters()?;
            let is_listed = listed.iter().any(|filter| {
                (filter.device.as_str(), filter.is_ingress, filter.program.as_str())
                    == (device, hook.is_ingress, name)
                    && filter.program_id != 0
            });
            ensure!(is_listed, "the filter is not listed: {listed:?}");
            Ok("clsact")
        }
        Err(err) => Err(err.into()),
    }
}

/// True if the running kernel must have tcx, so that its lack is a fault of ours.
fn has_tcx() -> Result<bool> {
    let system = nix::sys::utsname::uname()?;
    let release = system.release().to_string_lossy();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Ok(version >= (6, 6))
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).context("no such program")?.try_into()?)
}

/// Runs the program that is attached nowhere.
pub(crate) fn sweep(object: &Object) -> Result<()> {
    let program = object.ebpf.program("flow_sweep").context("no such program")?;
    bpf::prog_test_run(program.fd()?.as_fd(), &[0; 64])?;
    Ok(())
}
