//! Programs on cgroups and devices: attached, replaced behind their links, and forgotten with
//! what they were on.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use agent_kit::{
    bpf::{self, Place, attach_type},
    clsact::{self, Priority},
    link::{LinkError, Links},
    program,
    reason::{chain, hint},
    table::{MapTable, Table, TableError},
};
use aya::{
    Ebpf,
    programs::{Program, ProgramError, ProgramFd, SchedClassifier, TcAttachType},
};
use datapath::device::Device;

use crate::devices::{Attachment, Role, Roles};

/// A hook of a cgroup, by the name of its program.
#[derive(Clone, Copy, Debug)]
pub struct SocketHook {
    pub program: &'static str,
    pub attach_type: u32,
}

/// The socket path. Answers are turned before questions, so that no application sees a backend
/// as its peer; and before that, sockets are followed to their end, so that no row stays behind.
pub const SOCKET_HOOKS: [SocketHook; 9] = [
    SocketHook { program: "sock_release", attach_type: attach_type::CGROUP_INET_SOCK_RELEASE },
    SocketHook { program: "sock_peername4", attach_type: attach_type::CGROUP_INET4_GETPEERNAME },
    SocketHook { program: "sock_peername6", attach_type: attach_type::CGROUP_INET6_GETPEERNAME },
    SocketHook { program: "sock_recvmsg4", attach_type: attach_type::CGROUP_UDP4_RECVMSG },
    SocketHook { program: "sock_recvmsg6", attach_type: attach_type::CGROUP_UDP6_RECVMSG },
    SocketHook { program: "sock_sendmsg4", attach_type: attach_type::CGROUP_UDP4_SENDMSG },
    SocketHook { program: "sock_sendmsg6", attach_type: attach_type::CGROUP_UDP6_SENDMSG },
    SocketHook { program: "sock_connect4", attach_type: attach_type::CGROUP_INET4_CONNECT },
    SocketHook { program: "sock_connect6", attach_type: attach_type::CGROUP_INET6_CONNECT },
];

/// A hook of a device, by the name of its program.
#[derive(Clone, Copy, Debug)]
pub struct DeviceHook {
    pub program: &'static str,
    pub role: Role,
    pub is_ingress: bool,
}

impl DeviceHook {
    /// The proxy is outermost: the first to see what enters, the last to see what leaves.
    pub fn place(&self) -> Place {
        if self.is_ingress { Place::First } else { Place::Last }
    }

    fn tcx(&self) -> u32 {
        if self.is_ingress { attach_type::TCX_INGRESS } else { attach_type::TCX_EGRESS }
    }

    fn clsact(&self) -> TcAttachType {
        if self.is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }
}

/// The packet path. What leaves is turned back before what enters is turned.
pub const DEVICE_HOOKS: [DeviceHook; 4] = [
    DeviceHook { program: "pod_egress", role: Role::Pod, is_ingress: false },
    DeviceHook { program: "pod_ingress", role: Role::Pod, is_ingress: true },
    DeviceHook { program: "uplink_egress", role: Role::Uplink, is_ingress: false },
    DeviceHook { program: "uplink_ingress", role: Role::Uplink, is_ingress: true },
];

/// Why something is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("the object holds no program {0}; the agent and its object are of different builds")]
    NoProgram(&'static str),
    #[error("the kernel refuses program {name}: {}", refusal(source))]
    Load { name: String, source: ProgramError },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot attach {program} to {device} with clsact: {}", chain(source))]
    Clsact { program: &'static str, device: String, source: ProgramError },
    #[error("cannot write device {ifindex} to table DEVICES: {source}")]
    Device { ifindex: u32, source: TableError },
    #[error("cannot run {program}: {source}")]
    Run { program: &'static str, source: io::Error },
}

/// Lines of the verifier's log that tell the reason; it explains itself at its end.
const REASON_LINES: usize = 6;

fn refusal(err: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = err else { return chain(err) };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().collect();
    let reason = lines[lines.len().saturating_sub(REASON_LINES)..].join("\n  ");
    let hint = hint(io_error);
    format!("{io_error}{hint}; the verifier's last words:\n  {reason}")
}

/// Loads every program of the object, which is when the kernel verifies it: a second for them
/// all, so as many at once as there are processors, those of devices first, which are longest.
pub fn load_programs(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    let mut programs: Vec<(&str, &mut Program)> = ebpf.programs_mut().collect();
    programs.sort_by_key(|(name, program)| {
        let is_device = matches!(program, Program::SchedClassifier(_));
        (is_device, name.ends_with("_ingress"))
    });
    let programs = Mutex::new(programs);
    let next = || programs.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((name, program)) = next() {
            program::load(program)
                .map_err(|source| AttachError::Load { name: name.to_owned(), source })?;
        }
        Ok(())
    };
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers.min(4)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for other in others {
            result = result.and(other.join().unwrap_or(Ok(())));
        }
        result
    })
}

fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a ProgramFd, AttachError> {
    let program = ebpf.program(name).ok_or(AttachError::NoProgram(name))?;
    program.fd().map_err(|source| AttachError::Load { name: name.into(), source })
}

fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, AttachError> {
    match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(AttachError::NoProgram(name)),
    }
}

/// Whether devices take links of loaded programs (tcx): a device that does not exist is missed
/// only by a kernel that knows the kind of link.
pub fn has_tcx(ebpf: &Ebpf) -> Result<bool, AttachError> {
    /// Indices are positive and given in ascending order.
    const NOBODY: u32 = i32::MAX as u32;
    let hook = DEVICE_HOOKS[0];
    let fd = program_fd(ebpf, hook.program)?;
    match bpf::link_create_tcx(fd.as_fd(), NOBODY, hook.tcx(), hook.place()) {
        Ok(_) => Ok(true),
        Err(err) => match err.raw_os_error() {
            Some(libc::ENODEV) => Ok(true),
            Some(libc::EINVAL) => Ok(false),
            _ => {
                Err(LinkError::Device { pin: hook.program.into(), ifindex: NOBODY, source: err }
                    .into())
            }
        },
    }
}

/// The program that removes expired flows. It is attached nowhere: it is run.
#[derive(Debug)]
pub struct Sweep(OwnedFd);

impl Sweep {
    pub fn new(ebpf: &Ebpf) -> Result<Self, AttachError> {
        let program = "flow_sweep";
        let own = program_fd(ebpf, program)?.as_fd().try_clone_to_owned();
        own.map(Self).map_err(|source| AttachError::Run { program, source })
    }

    /// Takes as long as the table is large; blocks.
    pub fn run(&self) -> Result<(), AttachError> {
        bpf::prog_test_run(self.0.as_fd(), &[0; 64])
            .map(drop)
            .map_err(|source| AttachError::Run { program: "flow_sweep", source })
    }
}

/// Puts the socket path on a cgroup.
pub fn attach_sockets(ebpf: &Ebpf, links: &Links, cgroup: &Path) -> Result<(), AttachError> {
    for hook in SOCKET_HOOKS {
        let fd = program_fd(ebpf, hook.program)?.as_fd();
        links.attach_cgroup(hook.program, fd, cgroup, hook.attach_type)?;
    }
    Ok(())
}

/// Takes the socket path off, questions first.
pub fn detach_sockets(links: &Links) -> Result<(), AttachError> {
    for hook in SOCKET_HOOKS.iter().rev() {
        links.detach(hook.program)?;
    }
    Ok(())
}

/// The devices as they are attached.
pub struct Devices {
    links: Links,
    table: MapTable<u32, Device>,
    attached: BTreeMap<u32, Attachment>,
    uses_clsact: bool,
}

/// What a round of attaching came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub attached: Vec<String>,
    pub detached: Vec<String>,
    pub errors: Vec<AttachError>,
}

impl Devices {
    pub fn new(links: Links, table: MapTable<u32, Device>) -> Self {
        Self { links, table, attached: BTreeMap::new(), uses_clsact: false }
    }

    pub fn attached(&self) -> &BTreeMap<u32, Attachment> {
        &self.attached
    }

    /// True if the kernel has no tcx (it came with 6.6).
    pub fn uses_clsact(&self) -> bool {
        self.uses_clsact
    }

    /// Brings devices to their roles. A device that fails is tried again the next time.
    pub fn sync(&mut self, ebpf: &mut Ebpf, roles: &Roles) -> Outcome {
        let mut outcome = Outcome::default();
        self.forget(roles, &mut outcome);
        for (&ifindex, wanted) in &roles.devices {
            if self.attached.get(&ifindex) == Some(wanted) {
                continue;
            }
            match self.attach(ebpf, ifindex, wanted) {
                Ok(()) => {
                    if self.attached.insert(ifindex, wanted.clone()).is_none() {
                        outcome.attached.push(wanted.name.clone());
                    }
                }
                // It went while it was attached to; the next list does not name it.
                Err(AttachError::Link(err)) if err.is_gone() => {}
                Err(err) => outcome.errors.push(err),
            }
        }
        outcome
    }

    /// The programs must find the row when their first packet comes.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        wanted: &Attachment,
    ) -> Result<(), AttachError> {
        self.table
            .insert(&ifindex, &wanted.device)
            .map_err(|source| AttachError::Device { ifindex, source })?;
        for hook in DEVICE_HOOKS.iter().filter(|hook| hook.role == wanted.role) {
            if !self.uses_clsact {
                let name = pin_name(hook, ifindex);
                let (fd, place) = (program_fd(ebpf, hook.program)?.as_fd(), hook.place());
                match self.links.attach_device(&name, fd, ifindex, hook.tcx(), place) {
                    Ok(_) => continue,
                    Err(err) if err.is_unsupported() => self.uses_clsact = true,
                    Err(err) => return Err(err.into()),
                }
            }
            let program = classifier(ebpf, hook.program)?;
            clsact::attach(program, &wanted.name, hook.clsact(), Priority::Outer).map_err(
                |source| AttachError::Clsact {
                    program: hook.program,
                    device: wanted.name.clone(),
                    source,
                },
            )?;
        }
        Ok(())
    }

    /// Drops rows and pins of devices that are gone, or have another role now.
    fn forget(&mut self, roles: &Roles, outcome: &mut Outcome) {
        let keeps = |ifindex: u32, role: Role| {
            roles.devices.get(&ifindex).is_some_and(|wanted| wanted.role == role)
        };
        match self.links.list() {
            Ok(pinned) => {
                for link in pinned {
                    let Some((hook, ifindex)) = parse_pin(&link.name) else { continue };
                    if !link.is_attached() || !keeps(ifindex, hook.role) {
                        if let Err(err) = self.links.detach(&link.name) {
                            outcome.errors.push(err.into());
                        }
                        // A device of the same index that is new must be attached to anew.
                        if let Some(attachment) = self.attached.remove(&ifindex) {
                            outcome.detached.push(attachment.name);
                        }
                    }
                }
            }
            Err(err) => outcome.errors.push(err.into()),
        }
        let gone: Vec<u32> = self
            .attached
            .iter()
            .filter(|(index, attached)| !keeps(**index, attached.role))
            .map(|(&index, _)| index)
            .collect();
        for ifindex in gone {
            if let Some(attachment) = self.attached.remove(&ifindex) {
                if self.uses_clsact {
                    detach_clsact(&attachment.name, Some(attachment.role));
                }
                outcome.detached.push(attachment.name);
            }
        }
        let rows = self.table.rows().unwrap_or_default();
        let known: BTreeSet<u32> = roles.devices.keys().copied().collect();
        for (ifindex, _) in rows.iter().filter(|(ifindex, _)| !known.contains(ifindex)) {
            match self.table.remove(ifindex) {
                Ok(()) | Err(TableError::Missing) => {}
                Err(source) => {
                    outcome.errors.push(AttachError::Device { ifindex: *ifindex, source });
                }
            }
        }
    }
}

/// Takes our filters off a device, those of one role or all; true if there were any.
pub fn detach_clsact(device: &str, role: Option<Role>) -> bool {
    let mut any = false;
    for hook in DEVICE_HOOKS.iter().filter(|hook| role.is_none_or(|role| hook.role == role)) {
        any |= clsact::detach(device, hook.clsact(), hook.program);
    }
    any
}

/// `HOOK_IFINDEX`.
fn pin_name(hook: &DeviceHook, ifindex: u32) -> String {
    format!("{}_{ifindex}", hook.program)
}

/// The hook and device that a pin's name tells.
pub fn parse_pin(name: &str) -> Option<(&'static DeviceHook, u32)> {
    let (program, ifindex) = name.rsplit_once('_')?;
    let hook = DEVICE_HOOKS.iter().find(|hook| hook.program == program)?;
    Some((hook, ifindex.parse().ok()?))
}
