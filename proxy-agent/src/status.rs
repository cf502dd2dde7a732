//! How the agent fares: what `/status` answers and `proxy-agent status` prints.

use std::{
    borrow::Cow,
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use agent_kit::{
    attach::parse_pin,
    bpf::{LINK_TYPE_TCX, LINK_TYPE_XDP},
    drops::Drops,
    filter::{Filter, filters},
    link::{LinkError, Links, PinnedLink},
    problems::Problems,
};
use datapath::counter::Reason;
use serde::{Deserialize, Serialize};

use crate::{
    attach::DEVICE_HOOKS,
    object,
    problem::{self, ProblemKind},
    xdp::{self, XdpStatus},
};

/// Something that a person should see to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, PartialOrd, Ord)]
pub struct Problem {
    /// One of [`Problem::kinds`], which label a metric.
    pub kind: Cow<'static, str>,
    /// The file it stems from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Kubernetes object, table, device or flag at fault.
    pub object: String,
    /// The object's field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    pub message: String,
}

impl Problem {
    pub const TABLE: &'static str = "table";
    pub const DEVICE: &'static str = "device";
    pub const NODE: &'static str = "node";

    pub fn kinds() -> impl Iterator<Item = &'static str> {
        let source = ProblemKind::ALL.into_iter().map(ProblemKind::label);
        source.chain([Self::TABLE, Self::DEVICE, Self::NODE])
    }

    pub fn new(kind: &'static str, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            file: None,
            object: object.into(),
            field: None,
            message: message.into(),
        }
    }
}

impl From<&problem::Problem> for Problem {
    fn from(problem: &problem::Problem) -> Self {
        Self {
            kind: problem.kind.label().into(),
            file: problem.source.as_ref().map(ToString::to_string),
            object: problem.object.as_ref().map_or(String::new(), ToString::to_string),
            field: (!problem.field.is_empty()).then(|| problem.field.clone()),
            message: problem.message.clone(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let object = (!self.object.is_empty()).then_some(&self.object);
        for part in [self.file.as_ref(), object, self.field.as_ref()].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Where a program runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachmentStatus {
    /// Name of the device, or path of the cgroup.
    pub target: String,
    pub hook: String,
    /// `first`, `last`, `only`, or empty where order does not matter.
    pub order: String,
    pub program: String,
    /// 0 where the kernel has no links for devices (before 6.6).
    pub link_id: u32,
    pub program_id: u32,
    /// Empty where there is no link.
    pub pin: String,
    /// What holds the program in place of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterStatus>,
}

/// A `clsact` filter, as `tc filter show` lists it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FilterStatus {
    pub handle: u32,
    pub priority: u16,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableStatus {
    pub table: String,
    pub entries: u32,
    pub capacity: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, Default)]
pub struct SyncStatus {
    /// Seconds since.
    pub age_seconds: f64,
    pub duration_seconds: f64,
    pub changes: u64,
    pub syncs: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    pub source: String,
    /// It has told everything once.
    pub is_synced: bool,
    /// Seconds since it told something.
    pub age_seconds: f64,
    /// Seconds since when nothing can be heard from it, if that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<f64>,
}

/// What sources outside may begin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct NewFlowsStatus {
    /// In a second; zero is any number.
    pub per_source: u32,
    /// Packets that would have begun others.
    pub refused: u64,
}

/// The whole screen.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub running: bool,
    pub version: String,
    pub node: String,
    pub node_addresses: Vec<String>,
    /// That cluster IPs are given out of, as far as ServiceCIDRs tell.
    pub service_networks: Vec<String>,
    pub pid: u32,
    pub uptime_seconds: f64,
    pub source: Option<SourceStatus>,
    pub last_sync: Option<SyncStatus>,
    pub socket_lb: String,
    /// Pods of this node that are left out of the socket path.
    pub pods_without_socket_lb: Vec<String>,
    pub nat_ports: String,
    #[serde(default)]
    pub new_flows: NewFlowsStatus,
    /// Where the programs see what leaves toward pods, and why there.
    pub pod_egress: String,
    /// Whether packets of known connections pass bridge and IP stack by, and why.
    #[serde(default)]
    pub fast_path: String,
    /// Whether this node answers clients of its backends that came by another node.
    #[serde(default)]
    pub answers: bool,
    /// On each uplink.
    pub xdp: Vec<XdpStatus>,
    pub attachments: Vec<AttachmentStatus>,
    pub tables: Vec<TableStatus>,
    pub problems: Vec<Problem>,
}

/// What the agent's parts know, for the status server to read at any time.
#[derive(Debug)]
pub struct Board {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub struct State {
    pub node: String,
    pub node_addresses: Vec<String>,
    pub service_networks: Vec<String>,
    pub source: String,
    pub socket_lb: String,
    pub pods_without_socket_lb: Vec<String>,
    pub nat_ports: String,
    pub new_flows_per_source: u32,
    pub pod_egress: String,
    pub fast_path: String,
    pub answers: bool,
    pub xdp: Vec<XdpStatus>,
    pub is_synced: bool,
    /// When the source last told of a change.
    pub last_event: Option<Instant>,
    /// Since when nothing can be heard from the source.
    pub silent_since: Option<Instant>,
    /// When the tables were last known to be as they should.
    pub last_sync: Option<Instant>,
    pub last_sync_duration: Duration,
    pub last_sync_changes: u64,
    pub syncs: u64,
    /// Since when changes have not been written.
    pub behind_since: Option<Instant>,
    pub tables: Vec<TableStatus>,
    problems: Problems<Problem>,
    /// This node is being taken out of service, says its Node object.
    pub is_leaving: bool,
}

impl State {
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.all()
    }
}

impl Default for Board {
    fn default() -> Self {
        Self { started: Instant::now(), state: Mutex::default() }
    }
}

impl Board {
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain values behind, none of them half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the agent has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Replaces what one part has to complain about.
    pub fn set_problems(&self, origin: &'static str, problems: Vec<Problem>) {
        self.state().problems.set(origin, problems);
    }

    /// All but attachments and counters, which are read from the pins.
    pub fn status(&self) -> Status {
        let state = self.state();
        Status {
            running: true,
            version: env!("CARGO_PKG_VERSION").into(),
            node: state.node.clone(),
            node_addresses: state.node_addresses.clone(),
            service_networks: state.service_networks.clone(),
            pid: std::process::id(),
            uptime_seconds: self.age().as_secs_f64(),
            source: Some(SourceStatus {
                source: state.source.clone(),
                is_synced: state.is_synced,
                age_seconds: state.last_event.map_or(0.0, |at| at.elapsed().as_secs_f64()),
                silent_seconds: state.silent_since.map(|at| at.elapsed().as_secs_f64()),
            }),
            last_sync: state.last_sync.map(|at| SyncStatus {
                age_seconds: at.elapsed().as_secs_f64(),
                duration_seconds: state.last_sync_duration.as_secs_f64(),
                changes: state.last_sync_changes,
                syncs: state.syncs,
            }),
            socket_lb: state.socket_lb.clone(),
            pods_without_socket_lb: state.pods_without_socket_lb.clone(),
            nat_ports: state.nat_ports.clone(),
            new_flows: NewFlowsStatus { per_source: state.new_flows_per_source, refused: 0 },
            pod_egress: state.pod_egress.clone(),
            fast_path: state.fast_path.clone(),
            answers: state.answers,
            xdp: state.xdp.clone(),
            attachments: Vec::new(),
            tables: state.tables.clone(),
            problems: state.problems(),
        }
    }
}

/// Why it cannot be told where programs run.
#[derive(Debug, thiserror::Error)]
pub enum AttachmentsError {
    #[error(transparent)]
    Links(#[from] LinkError),
    #[error("cannot list the filters of devices: {0}")]
    Filters(io::Error),
}

fn order(is_ingress: bool) -> String {
    if is_ingress { "first" } else { "last" }.into()
}

fn of_filter(filter: Filter) -> AttachmentStatus {
    AttachmentStatus {
        target: filter.device,
        order: order(filter.is_ingress),
        hook: if filter.is_ingress { "clsact ingress" } else { "clsact egress" }.into(),
        program: filter.program,
        link_id: 0,
        program_id: filter.program_id,
        pin: String::new(),
        filter: Some(FilterStatus { handle: filter.handle, priority: filter.priority }),
    }
}

/// There is one on a device.
fn of_xdp(link: &PinnedLink, maps: &Path) -> AttachmentStatus {
    let mode = xdp::mode_of(maps, link.info.ifindex);
    AttachmentStatus {
        target: device_name(link.info.ifindex),
        hook: mode.map_or_else(|| "xdp".into(), |mode| format!("xdp {}", xdp::name(mode))),
        order: "only".into(),
        program: mode.map_or(xdp::PROGRAM, xdp::program).into(),
        link_id: link.info.id,
        program_id: link.info.program_id,
        pin: link.path.display().to_string(),
        filter: None,
    }
}

/// Packets that were refused because their sources begin too many flows, since the tables were made.
pub fn refused_new_flows(bpffs: &Path) -> u64 {
    let counted = Drops::open(&object::pins(bpffs).maps());
    let refused = |(_, reason, count)| if reason == Reason::SourceRate { count } else { 0 };
    counted.map_or(0, |drops| drops.all().map(refused).sum())
}

/// Where programs run, as pins and devices tell, with or without an agent.
pub fn attachments(bpffs: &Path) -> Result<Vec<AttachmentStatus>, AttachmentsError> {
    let pins = object::pins(bpffs);
    let pinned = Links::new(pins.links()).list()?.into_iter().map(|link| {
        if link.info.link_type == LINK_TYPE_XDP {
            return of_xdp(&link, &pins.maps());
        }
        let hook = parse_pin(&DEVICE_HOOKS, &link.name).map(|(hook, _)| hook);
        let target = if link.info.link_type == LINK_TYPE_TCX {
            device_name(link.info.ifindex)
        } else if link.info.cgroup == 0 {
            "gone".into()
        } else {
            format!("cgroup {}", link.info.cgroup)
        };
        AttachmentStatus {
            target,
            order: hook.map(|hook| order(hook.is_ingress)).unwrap_or_default(),
            hook: match hook {
                Some(hook) => hook.name(false).into(),
                None => link.name.trim_start_matches("sock_").into(),
            },
            program: hook.map_or(link.name.as_str(), |hook| hook.program).into(),
            link_id: link.info.id,
            program_id: link.info.program_id,
            pin: link.path.display().to_string(),
            filter: None,
        }
    });
    let mut all: Vec<AttachmentStatus> = pinned.collect();
    all.extend(filters().map_err(AttachmentsError::Filters)?.into_iter().map(of_filter));
    all.sort_by_key(|attachment| (attachment.order.is_empty(), attachment.target.clone()));
    Ok(all)
}

/// Name of a device of this network namespace.
pub fn device_name(ifindex: u32) -> String {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer is as long as the call demands.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if ifindex == 0 || found.is_null() {
        return if ifindex == 0 { "gone".into() } else { format!("device {ifindex}") };
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// Seconds since 1970, for metrics.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}
