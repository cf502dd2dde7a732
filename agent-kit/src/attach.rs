//! Programs on devices: loaded, attached, replaced behind their links or filters, attached again
//! where another hand took them off, and forgotten with the device that they were on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    programs::{Program, ProgramError, SchedClassifier, TcAttachType},
};

use crate::{
    audit::{Damage, Difference},
    bpf::{self, Place, attach_type},
    clsact::{self, Priority},
    filter::{Filter, filters_of},
    link::{LinkError, Links, PinnedLink},
    program,
    reason::{chain, hint},
    table::{MapTable, Table, TableError},
};

/// Which programs come first on a device: those of the outer layer are the first to see what
/// enters and the last to see what leaves, whichever agent began first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    /// The proxy's.
    Outer,
    /// The overlay's.
    Inner,
    /// The overlay's that masquerade: what leaves has its source before it goes into a tunnel. To
    /// be named behind those of the inner layer, where links have no other order.
    Innermost,
}

/// A hook of devices of one role, by the name of its program.
#[derive(Clone, Copy, Debug)]
pub struct Hook<R> {
    pub program: &'static str,
    pub role: R,
    pub is_ingress: bool,
    pub layer: Layer,
}

impl<R> Hook<R> {
    pub fn place(&self) -> Place {
        if self.is_ingress == (self.layer == Layer::Outer) { Place::First } else { Place::Last }
    }

    pub fn tcx(&self) -> u32 {
        if self.is_ingress { attach_type::TCX_INGRESS } else { attach_type::TCX_EGRESS }
    }

    pub fn clsact(&self) -> TcAttachType {
        if self.is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }

    /// The kind of hook, as `status` has it.
    pub fn name(&self, is_clsact: bool) -> &'static str {
        match (is_clsact, self.is_ingress) {
            (false, true) => "tcx ingress",
            (false, false) => "tcx egress",
            (true, true) => "clsact ingress",
            (true, false) => "clsact egress",
        }
    }

    pub fn priority(&self) -> Priority {
        match (self.layer, self.is_ingress) {
            (Layer::Outer, true) | (Layer::Innermost, false) => Priority::First,
            (Layer::Inner, _) => Priority::Second,
            (Layer::Outer, false) | (Layer::Innermost, true) => Priority::Third,
        }
    }

    /// `HOOK_IFINDEX`.
    fn pin_name(&self, ifindex: u32) -> String {
        format!("{}_{ifindex}", self.program)
    }
}

/// The hook and device that a pin's name tells.
pub fn parse_pin<'a, R>(hooks: &'a [Hook<R>], name: &str) -> Option<(&'a Hook<R>, u32)> {
    let (program, ifindex) = name.rsplit_once('_')?;
    let hook = hooks.iter().find(|hook| hook.program == program)?;
    Some((hook, ifindex.parse().ok()?))
}

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
    #[error("cannot read table DEVICES: {0}")]
    Rows(TableError),
    #[error("cannot list the filters of devices: {0}")]
    Filters(io::Error),
    #[error("cannot tell which program {program} is: {source}")]
    Id { program: &'static str, source: io::Error },
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

/// Loads every program of the object but those that are not used, which is when the kernel verifies
/// it: a second for them all, so as many at once as there are processors, those of devices first, which
/// are longest.
pub fn load_programs(ebpf: &mut Ebpf, unused: &[&str]) -> Result<(), AttachError> {
    let mut programs: Vec<(&str, &mut Program)> =
        ebpf.programs_mut().filter(|(name, _)| !unused.contains(name)).collect();
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

/// The descriptor of a loaded program.
pub fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, AttachError> {
    let program = ebpf.program(name).ok_or(AttachError::NoProgram(name))?;
    let fd = program.fd().map_err(|source| AttachError::Load { name: name.into(), source })?;
    Ok(fd.as_fd())
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
pub fn has_tcx<R>(ebpf: &Ebpf, hook: &Hook<R>) -> Result<bool, AttachError> {
    /// Indices are positive and given in ascending order.
    const NOBODY: u32 = i32::MAX as u32;
    let fd = program_fd(ebpf, hook.program)?;
    match bpf::link_create_tcx(fd, NOBODY, hook.tcx(), hook.place()) {
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
        let own = program_fd(ebpf, program)?.try_clone_to_owned();
        own.map(Self).map_err(|source| AttachError::Run { program, source })
    }

    /// Takes as long as the table is large; blocks.
    pub fn run(&self) -> Result<(), AttachError> {
        bpf::prog_test_run(self.0.as_fd(), &[0; 64])
            .map(drop)
            .map_err(|source| AttachError::Run { program: "flow_sweep", source })
    }
}

/// A device that gets the programs of a role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment<R, V> {
    pub name: String,
    pub role: R,
    /// What its row in the table of devices says.
    pub device: V,
}

/// Filters are listed this often without a reason: there is word when they go. Links are looked at
/// each time, since of them there is none.
const LIST_FILTERS: Duration = Duration::from_mins(1);

/// The devices as they are attached.
pub struct Devices<R: 'static, V> {
    hooks: &'static [Hook<R>],
    links: Links,
    table: MapTable<u32, V>,
    attached: BTreeMap<u32, Attachment<R, V>>,
    /// Devices that lost programs, and have not got them back.
    lost: BTreeMap<u32, Lost<R>>,
    /// Devices that may still have programs of another role.
    changed: BTreeSet<u32>,
    /// Devices that have a row, once it is known which.
    rows: Option<BTreeSet<u32>>,
    uses_clsact: bool,
    filters_listed: Option<Instant>,
}

/// A device that had programs and has lost some: it goes, or another hand took them off.
struct Lost<R> {
    name: String,
    role: R,
    programs: BTreeSet<&'static str>,
}

/// A program that another hand had taken off, and that is on again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mended {
    pub device: String,
    pub hook: &'static str,
    pub program: &'static str,
}

/// What a round of attaching came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub attached: Vec<String>,
    pub detached: Vec<String>,
    pub mended: Vec<Mended>,
    /// Links whose pins another hand had removed, and which are pinned again.
    pub pinned: Vec<String>,
    /// Rows of `DEVICES` that another hand had changed, and that are right again.
    pub rows: Vec<Difference>,
    pub errors: Vec<AttachError>,
}

impl<R: Copy + Eq, V: Pod + Eq> Devices<R, V> {
    pub fn new(hooks: &'static [Hook<R>], links: Links, table: MapTable<u32, V>) -> Self {
        Self {
            hooks,
            links,
            table,
            attached: BTreeMap::new(),
            lost: BTreeMap::new(),
            changed: BTreeSet::new(),
            rows: None,
            uses_clsact: false,
            filters_listed: None,
        }
    }

    pub fn attached(&self) -> &BTreeMap<u32, Attachment<R, V>> {
        &self.attached
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// True if the kernel has no tcx (it came with 6.6).
    pub fn uses_clsact(&self) -> bool {
        self.uses_clsact
    }

    /// Has the next round look at filters, too.
    pub fn look_at_filters(&mut self) {
        self.filters_listed = None;
    }

    /// Brings devices to their roles, by interface index, also where another hand took a program
    /// off. A device that fails is tried again the next time. Where roles change, all that have the
    /// new ones are there before any that had the old ones goes, and before a row says so: what is
    /// seen is seen twice for a moment, and not never.
    pub fn sync(&mut self, ebpf: &mut Ebpf, devices: &BTreeMap<u32, Attachment<R, V>>) -> Outcome {
        let mut outcome = Outcome::default();
        self.look(ebpf, &mut outcome);
        // What cannot be looked at keeps no device from getting its programs, or losing them.
        let unseen = outcome.errors.len();
        let mut ready = Vec::new();
        for (&ifindex, wanted) in devices {
            if self.attached.get(&ifindex) == Some(wanted) {
                continue;
            }
            match self.attach(ebpf, ifindex, wanted) {
                Ok(()) => ready.push((ifindex, wanted)),
                // It went while it was attached to; the next list does not name it.
                Err(AttachError::Link(err)) if err.is_gone() => {}
                Err(err) => outcome.errors.push(err),
            }
        }
        let is_whole = outcome.errors.len() == unseen;
        for (ifindex, wanted) in ready {
            match self.tell(ifindex, wanted, is_whole) {
                Ok(true) => {
                    self.changed.insert(ifindex);
                    let before = self.attached.insert(ifindex, wanted.clone());
                    if before.is_none() && !self.lost.contains_key(&ifindex) {
                        outcome.attached.push(wanted.name.clone());
                    }
                }
                Ok(false) => {}
                Err(err) => outcome.errors.push(err),
            }
        }
        if outcome.errors.len() == unseen {
            self.shed(devices, &mut outcome);
        }
        self.find_again(devices, &mut outcome);
        self.mend_rows(devices, &mut outcome);
        outcome
    }

    /// The programs must find a row when their first packet comes.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        wanted: &Attachment<R, V>,
    ) -> Result<(), AttachError> {
        let failed = |source| AttachError::Device { ifindex, source };
        if self.table.get(&ifindex).map_err(failed)?.is_none() {
            self.table.insert(&ifindex, &wanted.device).map_err(failed)?;
        }
        self.attach_hooks(ebpf, ifindex, wanted)
    }

    /// Writes a row that is another now; false if that must wait, because the device changes its
    /// role and others have not got theirs.
    fn tell(
        &mut self,
        ifindex: u32,
        wanted: &Attachment<R, V>,
        is_whole: bool,
    ) -> Result<bool, AttachError> {
        let failed = |source| AttachError::Device { ifindex, source };
        if self.table.get(&ifindex).map_err(failed)? == Some(wanted.device) {
            return Ok(true);
        }
        let has_role = |before: &Attachment<R, V>| before.role == wanted.role;
        if !is_whole && !self.attached.get(&ifindex).is_some_and(has_role) {
            return Ok(false);
        }
        self.table.insert(&ifindex, &wanted.device).map_err(failed)?;
        Ok(true)
    }

    fn attach_hooks(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        wanted: &Attachment<R, V>,
    ) -> Result<(), AttachError> {
        for hook in self.hooks.iter().filter(|hook| hook.role == wanted.role) {
            if !self.uses_clsact {
                let name = hook.pin_name(ifindex);
                let (fd, place) = (program_fd(ebpf, hook.program)?, hook.place());
                match self.links.attach_device(&name, fd, ifindex, hook.tcx(), place) {
                    Ok(_) => continue,
                    Err(err) if err.is_unsupported() => self.uses_clsact = true,
                    Err(err) => return Err(err.into()),
                }
            }
            let program = classifier(ebpf, hook.program)?;
            clsact::attach(program, &wanted.name, hook.clsact(), hook.priority()).map_err(
                |source| AttachError::Clsact {
                    program: hook.program,
                    device: wanted.name.clone(),
                    source,
                },
            )?;
        }
        Ok(())
    }

    /// Tells which of the devices that had programs have got all of them back, and which are gone.
    fn find_again(&mut self, devices: &BTreeMap<u32, Attachment<R, V>>, outcome: &mut Outcome) {
        let (hooks, attached, uses_clsact) = (self.hooks, &self.attached, self.uses_clsact);
        self.lost.retain(|ifindex, lost| {
            if attached.get(ifindex).is_some_and(|now| now.role == lost.role) {
                let is_back = |hook: &&Hook<R>| {
                    hook.role == lost.role && lost.programs.contains(hook.program)
                };
                outcome.mended.extend(hooks.iter().filter(is_back).map(|hook| Mended {
                    device: lost.name.clone(),
                    hook: hook.name(uses_clsact),
                    program: hook.program,
                }));
                return false;
            }
            let is_wanted = devices.contains_key(ifindex);
            if !is_wanted {
                outcome.detached.push(lost.name.clone());
            }
            is_wanted && !attached.contains_key(ifindex)
        });
    }

    /// Forgets devices that lack one of their programs, so that they are attached to again, and
    /// drops pins that lead to nothing. What cannot be looked at is told, and counts as it did.
    fn look(&mut self, ebpf: &Ebpf, outcome: &mut Outcome) {
        let (pinned, errors) = self.links.restore();
        outcome.pinned = pinned;
        outcome.errors.extend(errors.into_iter().map(AttachError::from));
        let names = match self.links.names() {
            Ok(names) => names,
            Err(err) => return outcome.errors.push(err.into()),
        };
        let mut links: HashMap<&str, Option<PinnedLink>> = HashMap::new();
        for name in names.iter().filter(|name| parse_pin(self.hooks, name).is_some()) {
            match self.links.get(name) {
                Ok(Some(link)) if link.is_attached() => {
                    links.insert(name, Some(link));
                }
                Ok(Some(_)) => {
                    if let Err(err) = self.links.detach(name) {
                        outcome.errors.push(err.into());
                    }
                }
                Ok(None) => {}
                Err(err) => {
                    links.insert(name, None);
                    outcome.errors.push(err.into());
                }
            }
        }
        if self.attached.is_empty() {
            return;
        }
        let mut ids = HashMap::new();
        for Hook { program, .. } in self.hooks {
            let id = program_fd(ebpf, program).and_then(|fd| {
                bpf::program_id(fd).map_err(|source| AttachError::Id { program, source })
            });
            match id {
                Ok(id) => {
                    ids.insert(*program, id);
                }
                Err(err) => outcome.errors.push(err),
            }
        }
        let is_own = |hook: &Hook<R>, id| ids.get(hook.program).is_none_or(|&own| own == id);
        if !self.uses_clsact {
            self.lose(|hook, ifindex, _| match links.get(hook.pin_name(ifindex).as_str()) {
                Some(Some(link)) => {
                    link.info.ifindex == ifindex && is_own(hook, link.info.program_id)
                }
                Some(None) => true,
                None => false,
            });
        } else if self.filters_listed.is_none_or(|at| at.elapsed() >= LIST_FILTERS) {
            let devices = self.attached.iter().map(|(ifindex, on)| (*ifindex, on.name.as_str()));
            let filters = match filters_of(devices) {
                Ok(filters) => filters,
                Err(err) => return outcome.errors.push(AttachError::Filters(err)),
            };
            self.filters_listed = Some(Instant::now());
            let on: HashMap<(&str, bool, u16), &Filter> = filters
                .iter()
                .map(|filter| {
                    ((filter.device.as_str(), filter.is_ingress, filter.priority), filter)
                })
                .collect();
            self.lose(|hook, _, device| {
                let at = (device, hook.is_ingress, hook.priority() as u16);
                on.get(&at).is_some_and(|filter| is_own(hook, filter.program_id))
            });
        }
    }

    /// Has devices count as lost where the program of a hook of theirs is not on, as `is_on` tells
    /// of a device's index and name.
    fn lose(&mut self, is_on: impl Fn(&Hook<R>, u32, &str) -> bool) {
        let hooks = self.hooks;
        let lost = &mut self.lost;
        self.attached.retain(|&ifindex, on| {
            let own = hooks.iter().filter(|hook| hook.role == on.role);
            let missing = own.filter(|hook| !is_on(hook, ifindex, &on.name));
            let programs: BTreeSet<_> = missing.map(|hook| hook.program).collect();
            let is_whole = programs.is_empty();
            if !is_whole {
                lost.insert(ifindex, Lost { name: on.name.clone(), role: on.role, programs });
            }
            is_whole
        });
    }

    /// Takes off what devices have from other roles, or from one where they have none now.
    fn shed(&mut self, devices: &BTreeMap<u32, Attachment<R, V>>, outcome: &mut Outcome) {
        // One program may serve two roles.
        let has = |role: R, program: &str| {
            self.hooks.iter().any(|hook| hook.role == role && hook.program == program)
        };
        let keeps = |ifindex: u32, program: &str| {
            devices.get(&ifindex).is_some_and(|wanted| has(wanted.role, program))
        };
        match self.links.names() {
            Ok(names) => {
                for name in names {
                    if let Some((hook, ifindex)) = parse_pin(self.hooks, &name)
                        && !keeps(ifindex, hook.program)
                        && let Err(err) = self.links.detach(&name)
                    {
                        outcome.errors.push(err.into());
                    }
                }
            }
            Err(err) => outcome.errors.push(err.into()),
        }
        if self.uses_clsact {
            for ifindex in std::mem::take(&mut self.changed) {
                let Some(attachment) = self.attached.get(&ifindex) else { continue };
                let others = self.hooks.iter().filter(|hook| !keeps(ifindex, hook.program));
                for hook in others {
                    clsact::detach(&attachment.name, hook.clsact(), hook.program);
                }
            }
        }
        let is_idle = |ifindex: &u32, _: &mut Attachment<R, V>| !devices.contains_key(ifindex);
        for (_, attachment) in self.attached.extract_if(.., is_idle) {
            if self.uses_clsact {
                detach_clsact(self.hooks, &attachment.name);
            }
            outcome.detached.push(attachment.name);
        }
    }

    /// Removes rows of devices that have no programs, and puts right what another hand changed.
    fn mend_rows(&mut self, devices: &BTreeMap<u32, Attachment<R, V>>, outcome: &mut Outcome) {
        let found: BTreeMap<u32, V> = match self.table.rows() {
            Ok(rows) => rows.into_iter().collect(),
            Err(err) => return outcome.errors.push(AttachError::Rows(err)),
        };
        let mut differ = |key: String, damage| {
            outcome.rows.push(Difference { table: "DEVICES", key, damage });
        };
        let mut rows: BTreeSet<u32> = found.keys().copied().collect();
        for (&ifindex, on) in self.attached.iter().filter(|(index, _)| devices.contains_key(index))
        {
            let damage = match found.get(&ifindex) {
                Some(row) if *row == on.device => continue,
                Some(_) => Damage::Changed,
                None => Damage::Missing,
            };
            if let Err(source) = self.table.insert(&ifindex, &on.device) {
                outcome.errors.push(AttachError::Device { ifindex, source });
                continue;
            }
            rows.insert(ifindex);
            differ(on.name.clone(), damage);
        }
        for &ifindex in found.keys().filter(|index| !devices.contains_key(index)) {
            match self.table.remove(&ifindex) {
                Ok(()) | Err(TableError::Missing) => {}
                Err(source) => {
                    outcome.errors.push(AttachError::Device { ifindex, source });
                    continue;
                }
            }
            rows.remove(&ifindex);
            // What there was before this process is the last one's.
            if self.rows.as_ref().is_some_and(|known| !known.contains(&ifindex)) {
                differ(format!("device {ifindex}"), Damage::Foreign);
            }
        }
        self.rows = Some(rows);
    }
}

/// Takes the hooks' filters off a device; true if there were any.
pub fn detach_clsact<R>(hooks: &[Hook<R>], device: &str) -> bool {
    let mut any = false;
    for hook in hooks {
        any |= clsact::detach(device, hook.clsact(), hook.program);
    }
    any
}
