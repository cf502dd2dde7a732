//! The agent itself: listens to the source and to the devices, keeps tables and links as they
//! should be, and leaves all of it in place when it ends, however it ends.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_kit::{
    attach::{AttachError, Mended, Sweep},
    audit::{Damage, Difference},
    barrier::Barrier,
    code, descriptor,
    embedded::LoadError,
    filter, kernel,
    kubernetes::RequestMetrics,
    link::Links,
    mount, netdev, netfilter,
    notice::{Word, word},
    object::Loaded,
    ports::{self, ReserveError, SYSCTL},
    table::{MapTable, OpenError, Table, TableError},
};
use datapath::settings::{Settings, socket_lb};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinError, JoinHandle},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    apply::{Applier, adopt::adopt, audit::Part, tables::Tables},
    attach::{self, DEVICE_HOOKS},
    check,
    compile::NodeFacts,
    config::{ConfigError, FastPath, OnRemovedEndpoint, PodLink, RunArgs, SocketLb, Xdp},
    conntrack::{Conntrack, SetError},
    desired::Desired,
    devices::{Attachment, Role, Roles, Wish, health_check_addresses, node_port_addresses, roles},
    events::Happening,
    guard, health,
    health_checks::{HealthChecks, Where},
    kube_proxy::KubeProxyConfig,
    loads::{self, LoadsError},
    metrics::Metrics,
    netlink::{Netlink, NetlinkError, Network},
    object::{self, Nodes},
    pod_cgroups::PodCgroups,
    report,
    service_networks::ServiceNetworks,
    serving::Ending,
    settings,
    source::{self, Feed, Origin, Source, node_addresses},
    stale::{self, Copies, Ended, StaleError},
    status::{Board, Problem},
    xdp::{self, Wires, XdpError, XdpStatus},
};

/// Expired flows are looked for this often.
const SWEEP: Duration = Duration::from_secs(5);
/// What failed is tried again, and devices are listed without being asked, this often.
const RETRY: Duration = Duration::from_secs(5);
/// Connections are counted this often where least-conn chooses by them.
const COUNT: Duration = Duration::from_secs(1);
/// Another proxy's rules are looked for this often.
const LOOK: Duration = Duration::from_mins(1);
/// Within this time all tables of Services are compared with what was written, one part after
/// the other; at once on SIGHUP.
const AUDIT: Duration = Duration::from_mins(3);
/// Rows that one part of an audit logs; the rest is only counted.
const AUDIT_LINES: usize = 20;

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read the pinned tables: {0}")]
    Adopt(#[from] TableError),
    #[error("cannot make the wait for running programs: {0}; CAP_BPF is needed")]
    Barrier(io::Error),
    #[error("cannot write table SETTINGS: {0}")]
    Settings(TableError),
    #[error("cannot tell this node from its pods: {0}")]
    Node(io::Error),
    #[error("--config: {0} says something else now; the agent ends, to be started anew with it")]
    ConfigChanged(PathBuf),
    #[error(transparent)]
    Bind(#[from] health::BindError),
    #[error(transparent)]
    Source(#[from] source::OpenError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Runs until told to stop, or until the file of `--config` changes.
pub async fn run(args: RunArgs, kube_proxy: KubeProxyConfig) -> Result<(), RunError> {
    let origin = args.validate()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Node)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Node)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Node)?;
    let config = serde_json::to_value(&args).unwrap_or_default();
    info!(version = env!("CARGO_PKG_VERSION"), %config, "starting");
    for warning in &kube_proxy.told.warnings {
        warn!("{warning}");
    }
    for note in &kube_proxy.told.notes {
        info!("{note}");
    }
    if !kernel::has_ipv6() {
        warn!("the kernel has no IPv6; Services are served at their addresses of IPv4 alone");
    }
    if let Some(score) = kube_proxy.oom_score_adj() {
        adjust_oom_score(score);
    }
    descriptor::raise_limit();

    // The source reads its files while the kernel verifies the programs.
    let board = Arc::new(Board::default());
    let ending = match args.tcp_on_removed_endpoint {
        OnRemovedEndpoint::Keep => Ending::Udp,
        OnRemovedEndpoint::Reset => Ending::UdpAndTcp,
    };
    let requests = if let Origin::Kubernetes(access) = &origin {
        access.requests.clone()
    } else {
        RequestMetrics::default()
    };
    let [algorithm, algorithm_outside] = args.algorithms();
    let facts = NodeFacts {
        name: node_name(&args),
        algorithm,
        algorithm_outside,
        answers: args.dsr,
        ending,
        ..NodeFacts::default()
    };
    let source = Source::open(origin, facts).await?;
    let mut agent = Agent::new(args, Arc::clone(&board), source, &requests)?;
    let addresses = health::Addresses {
        metrics: agent.args.metrics_bind_address,
        healthz: agent.args.healthz_bind_address,
        must_bind: kube_proxy.must_bind(),
    };
    let answers = health::Answers {
        board: Arc::clone(&board),
        metrics: Arc::clone(&agent.metrics),
        config,
        kube_proxy: kube_proxy.in_force(&agent.args, &node_name(&agent.args)),
        bpffs: agent.args.pins.bpffs.clone(),
        events: agent.source.events().clone(),
    };
    health::serve(addresses, &answers).await?;
    agent.source.events().tell(Happening::Started);

    let mut netlink = Netlink::open()?;
    // Where rules cannot be listened to, they are looked at now and then.
    let mut rules = netfilter::notices().ok();
    let mut drivers = agent.listen_to_drivers();
    let mut filters = None;
    agent.look_at_netfilter();
    agent.list_devices(&netlink).await;
    let mut sweep = ticks(SWEEP);
    let mut retry = ticks(RETRY);
    let mut count = ticks(COUNT);
    let mut look = ticks(LOOK);
    // It has been done at the start.
    look.reset();
    let mut audit = ticks(AUDIT / Part::ALL.len() as u32);
    let mut parts = Part::ALL.into_iter().cycle();
    let mut sweeping: Option<JoinHandle<Result<(), AttachError>>> = None;
    loop {
        if filters.is_none() && agent.devices.uses_clsact() {
            filters = filter::notices().ok();
        }
        agent.begin_wait();
        agent.end_stale();
        tokio::select! {
            Some(feed) = agent.source.next() => agent.take(feed),
            true = word(&mut filters) => {
                agent.devices.look_at_filters();
                agent.place();
            }
            true = word(&mut rules) => {
                if agent.look_at_netfilter() {
                    agent.place();
                    agent.sync(0);
                }
                // That they are gone is seen later; until then, nothing is lost by it.
                if !agent.foreign_proxy && netfilter::kube_proxy().is_ok_and(|it| it.is_some()) {
                    agent.look_for_rules().await;
                }
            }
            true = word(&mut drivers) => agent.place(),
            Some(()) = netlink.changed() => agent.list_devices(&netlink).await,
            Ok(result) = finished(&mut agent.waiting) => agent.wait_ended(&result),
            () = until(agent.pod_cgroups.next_look()) => agent.leave_pods_out(true),
            Ok((result, duration)) = finished(&mut agent.ending) => {
                agent.stale_ended(result, duration);
            }
            _ = retry.tick() => {
                agent.look_at_netfilter();
                if let Some(path) = kube_proxy.changed() {
                    return Err(RunError::ConfigChanged(path.into()));
                }
                agent.restore_pins();
                agent.follow_overlay();
                agent.list_devices(&netlink).await;
                agent.sync(0);
                agent.guard_service_networks();
                agent.set_conntrack();
                agent.leave_pods_out(true);
                if agent.all_flows == Due::Later {
                    agent.all_flows = Due::Now;
                }
            }
            _ = sweep.tick() => {
                if sweeping.as_ref().is_none_or(JoinHandle::is_finished) {
                    let sweep = Arc::clone(&agent.sweep);
                    sweeping = Some(tokio::task::spawn_blocking(move || sweep.run()));
                }
            }
            _ = count.tick() => agent.count_loads(),
            Ok(result) = finished(&mut agent.counting) => agent.loads_counted(result),
            _ = audit.tick() => agent.audit(parts.next()),
            Some(()) = hangup.recv() => {
                info!("SIGHUP: comparing all tables with what was written, and looking for programs");
                agent.restore_pins();
                agent.devices.look_at_filters();
                agent.list_devices(&netlink).await;
                agent.audit(Part::ALL);
            }
            _ = look.tick() => agent.look_for_rules().await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    agent.leave_bridges();
    info!("stopping; what is programmed stays in force (`proxy-agent cleanup` removes it)");
    Ok(())
}

/// As kube-proxy does, but only if it was asked for: without this process, traffic goes on.
fn adjust_oom_score(score: i64) {
    const FILE: &str = "/proc/self/oom_score_adj";
    if let Err(err) = std::fs::write(FILE, score.to_string()) {
        warn!(
            "oomScoreAdj: cannot write {score} to {FILE}: {err}; to lower it takes \
             CAP_SYS_RESOURCE, or whoever starts the agent sets it"
        );
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Resolves when something done elsewhere is over, never if there is nothing.
async fn finished<T>(job: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match job {
        Some(handle) => {
            let result = handle.await;
            *job = None;
            result
        }
        None => std::future::pending().await,
    }
}

/// Resolves at that time, never if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// As kube-proxy: without blanks, in small letters.
fn node_name(args: &RunArgs) -> String {
    let name = args.hostname_override.clone().filter(|name| !name.trim().is_empty());
    let name = name.unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
    });
    name.trim().to_lowercase()
}

/// What came of ending flows, and how long it took.
type StaleEnded = (Result<[Ended; 2], StaleError>, Duration);

/// When something has to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    No,
    Now,
    /// When what failed is tried again.
    Later,
}

#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
struct Agent {
    args: RunArgs,
    source: Source,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    loaded: Loaded,
    /// Says that the tables are this process's to write.
    claim: std::fs::File,
    applier: Applier,
    links: Links,
    devices: attach::Devices,
    roles: Roles,
    service_networks: ServiceNetworks,
    pod_cgroups: PodCgroups,
    settings: MapTable<u32, Settings>,
    /// The row that stands there.
    told: Settings,
    sweep: Arc<Sweep>,
    waiting: Option<JoinHandle<io::Result<()>>>,
    /// Flows being ended whose endpoint serves no more.
    ending: Option<JoinHandle<StaleEnded>>,
    /// Connections being counted.
    counting: Option<JoinHandle<Result<(), LoadsError>>>,
    /// Whether there may be counts of connections to keep right.
    has_loads: bool,
    /// Whether all flows must be looked at, and not only those to what has changed.
    all_flows: Due,
    health_checks: HealthChecks,
    conntrack: Conntrack,
    foreign_proxy: bool,
    /// Why what leaves toward pods cannot be seen at their bridges.
    obstacle: Option<String>,
    /// Whether packets of known connections pass bridge and IP stack by.
    fast_path: bool,
    /// What in netfilter or of IPsec forwarded packets meet, as it was seen last.
    rules: Option<String>,
    wires: Wires,
    /// The overlay's tables when the programs were loaded.
    nodes: Nodes,
    sockets_attached: bool,
    /// Devices and addresses as they were listed last.
    network: Network,
    /// Devices toward pods on which others have a say, and which.
    guards: BTreeMap<u32, String>,
    /// Addresses that a flag or the Node object tells.
    node_addresses: Vec<IpAddr>,
}

impl Agent {
    fn new(
        args: RunArgs,
        board: Arc<Board>,
        source: Source,
        requests: &RequestMetrics,
    ) -> Result<Self, RunError> {
        // Before: what changes meanwhile is found later.
        let nodes = object::nodes(&args.pins.bpffs);
        let (loaded, claim) = object::load(&args.pins.bpffs, &args.capacities(), args.xdp)?;
        if !loaded.remade.is_empty() {
            let tables = loaded.remade.join(", ");
            info!(tables, "tables are made anew; the old ones serve until these are filled");
        }
        let barrier = Arc::new(Barrier::new().map_err(RunError::Barrier)?);
        let tables = Tables::open(&loaded.maps)?;
        let metrics =
            Metrics::new(&loaded.maps, tables.counters.view(), Arc::clone(&board), requests);
        let mut applier = Applier::adopt(tables, barrier)?;
        applier.answer_pings(args.answer_pings);
        let links = Links::new(object::pins(&args.pins.bpffs).links());
        let devices = attach::Devices::new(
            &DEVICE_HOOKS,
            links.clone(),
            MapTable::open(&loaded.maps, "DEVICES")?,
        );
        let wires = Wires::open(&loaded.maps, links.clone(), args.xdp)?;
        let service_networks = ServiceNetworks::open(&loaded.maps)?;
        let cgroups = args.cgroup_root.clone().or_else(mount::cgroup2);
        let pod_cgroups = PodCgroups::open(&loaded.maps, cgroups)?;
        let mut settings: MapTable<u32, Settings> = MapTable::open(&loaded.maps, "SETTINGS")?;
        // The last agent's programs may be running: what is not known yet stays as they have it.
        let foreign_proxy = check::foreign_proxy().is_found();
        if foreign_proxy {
            info!("kube-proxy's rules are on this node");
        }
        let Settings { node_hash, socket_lb, dsr, .. } = settings.get(&0)?.unwrap_or_default();
        let mut told = Settings {
            foreign_proxy: foreign_proxy.into(),
            node_hash,
            dsr: if args.dsr { dsr } else { 0 },
            ..settings::settings(&args).map_err(RunError::Node)?
        };
        if told.socket_lb == socket_lb::ON && socket_lb == socket_lb::ON_BUT {
            told.socket_lb = socket_lb;
        }
        settings.insert(&0, &told).map_err(RunError::Settings)?;
        let sweep = Arc::new(Sweep::new(&loaded.ebpf)?);
        {
            let mut state = board.state();
            state.socket_lb = format!("{:?}", args.socket_lb).to_lowercase();
            state.nat_ports = args.nat_ports.to_string();
            state.new_flows_per_source = args.new_flows_per_source;
            state.answers = args.dsr;
            state.node = node_name(&args);
            source.name().clone_into(&mut state.source);
        }
        let node_addresses = args.node_ip.clone();
        let health_checks = HealthChecks::start(Arc::clone(&board), source.events().clone());
        let conntrack = Conntrack::new(&args.netfilter.netfilter_sysctls, &args.conntrack);
        let mut agent = Self {
            args,
            source,
            board,
            metrics: Arc::new(metrics),
            loaded,
            claim,
            applier,
            links,
            devices,
            roles: Roles::default(),
            service_networks,
            pod_cgroups,
            settings,
            told,
            sweep,
            waiting: None,
            ending: None,
            counting: None,
            has_loads: true,
            all_flows: Due::Now,
            health_checks,
            conntrack,
            foreign_proxy,
            obstacle: None,
            fast_path: false,
            rules: None,
            wires,
            nodes,
            sockets_attached: false,
            network: Network::default(),
            guards: BTreeMap::new(),
            node_addresses,
        };
        agent.reserve_ports();
        agent.set_conntrack();
        Ok(agent)
    }

    /// Tells the programs what has changed of what they are told.
    fn tell_programs(&mut self) {
        let mut wanted = Settings { foreign_proxy: self.foreign_proxy.into(), ..self.told };
        if self.applier.is_complete() {
            wanted.socket_lb = match (self.args.socket_lb, self.pod_cgroups.pods()) {
                (SocketLb::On, [_, ..]) => socket_lb::ON_BUT,
                (SocketLb::On, []) => socket_lb::ON,
                _ => wanted.socket_lb,
            };
        }
        wanted.dsr = (self.args.dsr && self.sees_tunnels()).into();
        wanted.fast_path = self.fast_path.into();
        if let Some(&address) = self.roles.node_addresses.first() {
            wanted.node_hash = settings::node_hash(address);
        }
        if wanted == self.told {
            return;
        }
        match self.settings.insert(&0, &wanted) {
            Ok(()) => self.told = wanted,
            Err(err) => warn!(%err, "cannot tell the programs"),
        }
    }

    /// True if programs see what comes out of the overlay's tunnels, and read its tables: others may send
    /// what they are to answer.
    fn sees_tunnels(&self) -> bool {
        let is_tunnel = |on: &Attachment| on.role == Role::Tunnel;
        self.nodes.iter().all(Option::is_some) && self.devices.attached().values().any(is_tunnel)
    }

    fn reserve_ports(&self) {
        let file = &self.args.reserved_ports.reserved_ports_file;
        let failed = ports::reserve(file, self.args.nat_ports).err();
        let problem = |err: ReserveError| Problem::new(Problem::NODE, SYSCTL, err.to_string());
        self.board.set_problems("ports", failed.map(problem).into_iter().collect());
    }

    /// Files of connection tracking come with the first rule that needs it, which may be long after us.
    fn set_conntrack(&mut self) {
        let failed = match self.conntrack.set() {
            Ok(changed) => {
                if !changed.is_empty() {
                    info!(sysctls = changed.join(", "), "set as kube-proxy has it");
                }
                None
            }
            Err(err) => Some(err),
        };
        let problem = |err: SetError| Problem::new(Problem::NODE, "net.netfilter", err.to_string());
        self.board.set_problems("conntrack", failed.map(problem).into_iter().collect());
    }

    async fn list_devices(&mut self, netlink: &Netlink) {
        match netlink.list().await {
            Ok(network) => {
                self.guards = self.look_for_guards(&network);
                self.network = network;
                self.board.set_problems("netlink", Vec::new());
                self.place();
                self.sync(0);
            }
            Err(err) => {
                let problem = Problem::new(Problem::DEVICE, "netlink", err.to_string());
                self.board.set_problems("netlink", vec![problem]);
            }
        }
    }

    /// What others have on devices toward pods, as far as it matters.
    fn look_for_guards(&self, network: &Network) -> BTreeMap<u32, String> {
        if self.args.fast_path == FastPath::Off {
            return BTreeMap::new();
        }
        let guards = guard::guards(network, &self.args.pins.bpffs);
        for (index, reason) in guards.iter().filter(|&(index, _)| !self.guards.contains_key(index))
        {
            let name = network.links.iter().find(|link| link.index == *index);
            let device = name.map(|link| link.name.as_str()).unwrap_or_default();
            info!(device, "not on the fast path: {reason}");
        }
        guards
    }

    /// Rules that see what goes from port to port of a bridge see replies there, too, and must not
    /// find another source than the backend's. True if something is another than before.
    fn look_at_netfilter(&mut self) -> bool {
        let obstacle = match netfilter::obstacles() {
            Ok(obstacles) => obstacles.forwarded,
            Err(err) => Some(format!("netfilter cannot be asked: {err}")),
        };
        let place = match &obstacle {
            None => "at bridges: nothing on this node filters or translates".to_owned(),
            Some(obstacle) => format!("at each pod's device: {obstacle}"),
        };
        let met = obstacle.clone().or_else(check::encryption);
        let (fast_path, said) = self.args.fast_path.judge(met.as_deref());
        self.fast_path = fast_path;
        self.rules = met.filter(|_| self.args.xdp != Xdp::Off);
        self.obstacle = obstacle;
        let state = &mut self.board.state();
        if state.fast_path != said {
            info!("fast path {said}");
        }
        let is_news = state.pod_egress != place || state.fast_path != said;
        if state.pod_egress != place {
            info!("what leaves toward pods is seen {place}");
        }
        (state.pod_egress, state.fast_path) = (place, said);
        is_news
    }

    /// Has packets meet bridge and IP stack from now on, unless told otherwise, and what leaves toward pods seen
    /// at each pod's device, since nobody will see to it when rules come. Where replies are rewritten as they
    /// enter a bridge, rules with connection tracking take each for a connection of its own, from the Service to the pod;
    /// once the programs are gone, the pod's next datagram would count as its answer.
    fn leave_bridges(&mut self) {
        const NOBODY: &str = "no agent looks for rules";
        self.fast_path = self.args.fast_path.judge(Some(NOBODY)).0;
        if self.obstacle.is_none() {
            self.obstacle = Some(NOBODY.into());
            self.place();
        }
    }

    /// Follows the devices and the node's addresses: what is attached, what masquerades, where
    /// NodePorts answer.
    fn place(&mut self) {
        let wish = Wish {
            uplinks: self.args.uplink.clone(),
            pod_link: self.args.pod_link.clone(),
            node_addresses: self.node_addresses.clone(),
            at_bridges: self.obstacle.is_none(),
            guarded: self.guards.keys().copied().collect(),
        };
        self.roles = roles(&self.network, &wish);
        self.applier.masquerade(self.roles.masquerade_addresses());
        self.tell_programs();
        let node_addresses = &self.roles.node_addresses;
        self.board.state().node_addresses =
            node_addresses.iter().map(ToString::to_string).collect();
        let wanted = &self.args.nodeport_addresses;
        let addresses = node_port_addresses(&self.network, node_addresses, wanted);
        let own = node_addresses.clone();
        for (key, wanted) in self.source.set_addresses(addresses, own) {
            self.applier.want(key, wanted);
        }
        self.answer_health_checks();
        // New programs with tables that are not filled would take old ones' place too early.
        if self.loaded.replaces.is_none() {
            self.attach();
        }
    }

    /// Has load balancers told which Services have endpoints here, once everything was told.
    fn answer_health_checks(&self) {
        if self.applier.is_complete() {
            let wanted = &self.args.nodeport_addresses;
            let at =
                health_check_addresses(&self.network, wanted).map_or(Where::Everywhere, Where::At);
            self.health_checks.set(self.source.health(), at);
        }
    }

    /// Makes pins of tables again that another hand removed: by them the next agent goes on with
    /// what is there. Programs have their tables without.
    fn restore_pins(&mut self) {
        let restored = object::restore(&self.args.pins.bpffs, &self.loaded, &mut self.claim);
        let problem = match restored {
            Ok(tables) => {
                if !tables.is_empty() {
                    warn!(tables = tables.join(", "), "another hand removed pins; pinned again");
                }
                self.metrics.pinned(tables.len());
                None
            }
            Err(err) => {
                let message = format!(
                    "pins are gone and cannot be made again: {err}. Traffic goes on; the next agent \
                     would begin with empty tables and lose what is established"
                );
                Some(Problem::new(Problem::NODE, "--bpffs", message))
            }
        };
        self.board.set_problems("pins", problem.into_iter().collect());
    }

    fn attach(&mut self) {
        let outcome = self.devices.sync(&mut self.loaded.ebpf, &self.roles.devices);
        if !outcome.pinned.is_empty() {
            warn!(links = outcome.pinned.join(", "), "another hand removed pins; pinned again");
            self.metrics.pinned(outcome.pinned.len());
        }
        for Mended { device, hook, program } in outcome.mended {
            warn!(device, hook, program, "another hand took a program off; it is on again");
            self.metrics.mended(program);
        }
        self.tell_repairs(&outcome.rows);
        for device in outcome.attached {
            info!(device, "attached");
        }
        for device in outcome.detached {
            info!(device, "detached");
        }
        let mut problems = report::devices(&self.roles, &outcome.errors);
        let sockets =
            if self.sockets_attached { self.mend_sockets() } else { self.attach_sockets() };
        problems.extend(sockets.err());
        self.board.set_problems("devices", problems);
        self.attach_wires();
        self.tell_programs();
    }

    /// What a driver can do may depend on the peer's settings, of which nothing else tells.
    fn listen_to_drivers(&self) -> Option<Word> {
        (self.args.xdp != Xdp::Off).then(netdev::notices)?.ok().flatten()
    }

    /// Has frames of uplinks seen before the kernel sees them, where that is wanted and can be.
    fn attach_wires(&mut self) {
        let rules = self.rules.as_deref();
        let outcome = self.wires.sync(&self.loaded.ebpf, &self.roles, &self.network, rules);
        for device in outcome.mended {
            let program = xdp::PROGRAM;
            warn!(device, program, "another hand took a program off; it is on again");
            self.metrics.mended(program);
        }
        let told = std::mem::replace(&mut self.board.state().xdp, outcome.devices.clone());
        for status in outcome.devices.iter().filter(|&status| !told.contains(status)) {
            let XdpStatus { device, mode, reason, .. } = status;
            let driver = status.told();
            info!(device, mode, reason, driver, "XDP");
        }
        let problem = |err: &XdpError| Problem::new(Problem::DEVICE, "--xdp", err.to_string());
        self.board.set_problems("xdp", outcome.errors.iter().map(problem).collect());
    }

    /// Loads the programs with the overlay's tables as they are now, if these are others than before:
    /// an overlay came, went, or made them anew.
    fn follow_overlay(&mut self) {
        // Before the tables are filled, old programs go on with old ones.
        let is_asked = self.args.xdp != Xdp::Off || self.args.dsr;
        if !is_asked || self.loaded.replaces.is_some() {
            return;
        }
        let nodes = object::nodes(&self.args.pins.bpffs);
        if nodes != self.nodes {
            self.load_with(nodes);
        }
        if self.args.dsr {
            let message = format!(
                "no tables of flannel-agent under {}: clients outside are masqueraded toward \
                 backends elsewhere, as without --dsr, until it runs on this node",
                self.args.pins.bpffs.display()
            );
            let problem = || Problem::new(Problem::NODE, "--dsr", message);
            let is_alone = self.nodes == Nodes::default();
            self.board.set_problems("dsr", is_alone.then(problem).into_iter().collect());
        }
    }

    /// Loads the programs with these tables of the overlay.
    fn load_with(&mut self, nodes: Nodes) {
        match self.load_again() {
            Ok(()) => {
                info!("programs loaded with the overlay's tables");
                self.nodes = nodes;
                self.board.set_problems("overlay", Vec::new());
                self.attach();
            }
            Err(err) => {
                let message = format!("programs cannot be loaded with the overlay's tables: {err}");
                let problem = Problem::new(Problem::NODE, "overlay", message);
                self.board.set_problems("overlay", vec![problem]);
            }
        }
    }

    fn load_again(&mut self) -> Result<(), RunError> {
        let loaded = object::reload(&self.args.pins.bpffs, &self.args.capacities(), self.args.xdp)?;
        let table = MapTable::open(&loaded.maps, "DEVICES")?;
        self.sweep = Arc::new(Sweep::new(&loaded.ebpf)?);
        self.loaded = loaded;
        self.devices = attach::Devices::new(&DEVICE_HOOKS, self.links.clone(), table);
        self.sockets_attached = false;
        Ok(())
    }

    fn attach_sockets(&mut self) -> Result<(), Problem> {
        let problem = |object: &str, message: String| Problem::new(Problem::NODE, object, message);
        if self.args.socket_lb == SocketLb::Off {
            warn!("--socket-lb off: {}", check::WITHOUT_SOCKETS);
            attach::detach_sockets(&self.links)
                .map_err(|err| problem("--socket-lb", err.to_string()))?;
        } else {
            let root = self.cgroup_root()?;
            attach::attach_sockets(&self.loaded.ebpf, &self.links, &root)
                .map_err(|err| problem("--cgroup-root", err.to_string()))?;
            info!(cgroup = %root.display(), "attached the socket path");
        }
        self.sockets_attached = true;
        Ok(())
    }

    fn cgroup_root(&self) -> Result<PathBuf, Problem> {
        self.args.cgroup_root.clone().or_else(mount::cgroup2).ok_or_else(|| {
            let message = "no cgroup2 file system is mounted; mount one (mount -t cgroup2 none \
                           /sys/fs/cgroup) or name it";
            Problem::new(Problem::NODE, "--cgroup-root", message)
        })
    }

    /// Puts programs of the socket path back that another hand took off.
    fn mend_sockets(&self) -> Result<(), Problem> {
        if self.args.socket_lb == SocketLb::Off {
            return Ok(());
        }
        let problem =
            |err: AttachError| Problem::new(Problem::NODE, "--cgroup-root", err.to_string());
        let lost = attach::lost_sockets(&self.loaded.ebpf, &self.links).map_err(problem)?;
        if lost.is_empty() {
            return Ok(());
        }
        let root = self.cgroup_root()?;
        attach::attach_sockets(&self.loaded.ebpf, &self.links, &root).map_err(problem)?;
        for program in lost {
            let cgroup = root.display();
            warn!(%cgroup, program, "another hand took a program off; it is on again");
            self.metrics.mended(program);
        }
        Ok(())
    }

    /// Takes note of what the source told, and programs it.
    fn take(&mut self, feed: Feed) {
        let changes = feed.changes.len() as u64;
        self.metrics.queued();
        self.metrics.told(&self.source.take_told());
        {
            let mut state = self.board.state();
            if feed.silent_since.is_none() {
                state.last_event = Some(feed.since);
            }
            state.silent_since = feed.silent_since;
            state.is_leaving = self.source.is_node_leaving();
        }
        for (key, wanted) in feed.changes {
            self.applier.want(key, wanted);
        }
        let is_first = feed.is_synced && !self.applier.is_complete();
        if is_first && self.source.is_doubtful() {
            for (key, wanted) in self.source.adopt(self.left()) {
                self.applier.want(key, wanted);
            }
        }
        self.board.set_problems("source", self.source.problems());
        if self.args.node_ip.is_empty() {
            let told = self.source.node().map(node_addresses).unwrap_or_default();
            if told != self.node_addresses {
                self.node_addresses = told;
                self.place();
            }
        }
        if is_first {
            self.applier.complete();
        }
        if changes > 0 || is_first {
            self.sync(changes);
            self.metrics.change_to_programmed(feed.since.elapsed());
        } else if self.applier.is_complete() && !self.applier.is_behind() {
            // What was told changes no row.
            self.metrics.settled();
        }
        self.guard_service_networks();
        self.leave_pods_out(false);
        self.answer_health_checks();
        self.board.state().is_synced |= feed.is_synced;
        if is_first {
            info!(services = self.applier.services(), "all Services are programmed");
            if self.applier.services() == 0 {
                info!("no Service was found at {}", self.source.name());
            }
            if self.loaded.replaces.is_some() {
                self.take_over();
            }
            code::let_go();
        }
    }

    /// What the last agent left: in the tables in force, which may be about to be replaced.
    fn left(&self) -> Desired {
        let Some(old) = &self.loaded.replaces else { return self.applier.adopted() };
        let left = Tables::open(old).ok().and_then(|tables| adopt(&tables).ok());
        if left.is_none() {
            let old = old.display();
            warn!("{old} is of another make; what cannot be read now is not taken over from it");
        }
        left.map(|ledger| ledger.adopted()).unwrap_or_default()
    }

    /// Puts the new programs behind the links, now that their tables are filled.
    fn take_over(&mut self) {
        self.attach();
        // Of flows whose rows are not in the tables made anew.
        if let Err(err) = Copies::open(&self.loaded.maps).and_then(|mut copies| copies.end()) {
            warn!("frames of drivers go by copies of rows before for some seconds: {err}");
        }
        match self.loaded.take_over() {
            Ok(()) => info!("the tables made anew are in force"),
            Err(err) => {
                let problem = Problem::new(Problem::TABLE, "--bpffs", err.to_string());
                self.board.set_problems("object", vec![problem]);
            }
        }
    }

    fn sync(&mut self, changes: u64) {
        if !self.applier.is_complete() {
            return;
        }
        let began = Instant::now();
        let is_due = self.applier.is_behind();
        if is_due {
            self.applier.sync();
        }
        let duration = began.elapsed();
        let fill = self.applier.fill();
        let refusals = self.applier.refusals();
        if is_due {
            self.metrics.refused(&refusals);
        }
        self.board.set_problems("tables", report::tables(&refusals, &fill));
        let mut state = self.board.state();
        if is_due {
            debug!(changes, ?duration, "tables written");
            state.syncs += 1;
            state.last_sync_duration = duration;
            state.last_sync_changes = changes;
            state.last_sync = Some(Instant::now());
            self.metrics.synced(duration, state.syncs == 1);
        }
        if self.applier.is_behind() {
            state.behind_since.get_or_insert(began);
        } else {
            state.behind_since = None;
            self.metrics.settled();
        }
        state.tables = report::fill(&fill);
        self.metrics.no_local(self.source.no_local());
    }

    /// After their Services: what is new in a network is not to be nobody's for a moment.
    fn guard_service_networks(&mut self) {
        if !self.applier.is_complete() {
            return;
        }
        let networks = self.source.service_networks();
        self.board.state().service_networks = networks.iter().map(ToString::to_string).collect();
        let failed = self.service_networks.set(networks).err();
        let problem =
            |err: TableError| Problem::new(Problem::TABLE, "SERVICENETS", err.to_string());
        self.board.set_problems("service networks", failed.map(problem).into_iter().collect());
    }

    /// Has the socket path know the pods that are left out of it; `again` also if they are as before.
    fn leave_pods_out(&mut self, again: bool) {
        if !self.applier.is_complete() {
            return;
        }
        let are_others = self.pod_cgroups.set(self.source.pods_without_sockets());
        if !are_others && (!again || self.pod_cgroups.pods().is_empty()) {
            return;
        }
        let failed = self.pod_cgroups.look().err();
        self.tell_programs();
        let problem = |object: &str, message: String| Problem::new(Problem::NODE, object, message);
        let mut problems: Vec<Problem> =
            failed.map(|err| problem("BYPASSCGROUPS", err.to_string())).into_iter().collect();
        for pod in self.pod_cgroups.missing() {
            let message = format!(
                "no cgroup of its UID {} or of a container of it is there; until then it is not \
                 left out of the socket path",
                pod.uid
            );
            problems.push(problem(&format!("Pod {}", pod.name), message));
        }
        let pods = self.pod_cgroups.pods();
        if self.args.pod_link == PodLink::None && !pods.is_empty() {
            let message = "pods are left out of the socket path, and no other translates for them; \
                           let the agent find their devices";
            problems.push(problem("--pod-link", message.into()));
        }
        self.board.set_problems("pods", problems);
        self.board.state().pods_without_socket_lb =
            pods.iter().map(|pod| pod.name.to_string()).collect();
    }

    /// Compares tables with what was written, and repairs them. On this thread, which writes
    /// them, so that nothing is compared with what is just being changed.
    fn audit(&mut self, parts: impl IntoIterator<Item = Part>) {
        let began = Instant::now();
        let mut repairs = 0;
        for part in parts {
            let differences = match self.applier.audit(part) {
                Ok(differences) => differences,
                Err(err) => {
                    warn!(?part, %err, "cannot read tables to compare them");
                    continue;
                }
            };
            self.tell_repairs(&differences);
            repairs += differences.len();
            debug!(?part, so_far = ?began.elapsed(), "compared");
        }
        self.audit_told();
        if repairs > 0 {
            self.sync(0);
        }
    }

    /// The same of tables that are not the ledger's, which are so small that all are compared each
    /// time. Those of devices are where devices are looked at.
    fn audit_told(&mut self) {
        let audits =
            [self.audit_settings(), self.service_networks.audit(), self.pod_cgroups.audit()];
        for audited in audits {
            match audited {
                Ok(differences) => self.tell_repairs(&differences),
                Err(err) => warn!(%err, "cannot compare tables with what was written"),
            }
        }
    }

    fn audit_settings(&mut self) -> Result<Vec<Difference>, TableError> {
        if self.settings.get(&0)? == Some(self.told) {
            return Ok(Vec::new());
        }
        self.settings.insert(&0, &self.told)?;
        Ok(vec![Difference { table: "SETTINGS", key: "0".into(), damage: Damage::Changed }])
    }

    fn tell_repairs(&self, differences: &[Difference]) {
        for (nth, Difference { table, key, damage }) in differences.iter().enumerate() {
            self.metrics.repaired(table);
            if nth < AUDIT_LINES {
                warn!(table, key, %damage, "a row was not as written; repairing it");
            }
        }
        if differences.len() > AUDIT_LINES {
            warn!(rows = differences.len(), "rows were not as written in all");
        }
    }

    /// What was taken out of the tables is used again only after a wait, which no change has
    /// to wait for.
    fn begin_wait(&mut self) {
        if self.waiting.is_none()
            && let Some(barrier) = self.applier.begin_wait()
        {
            self.waiting = Some(tokio::task::spawn_blocking(move || barrier.wait()));
        }
    }

    fn wait_ended(&mut self, result: &io::Result<()>) {
        if let Err(err) = result {
            warn!(%err, "cannot wait for running programs");
            self.metrics.not_cleaned();
        }
        self.applier.wait_ended(result);
    }

    /// Has flows ended that may not stay with their endpoint, once the tables lead to others.
    fn end_stale(&mut self) {
        if self.ending.is_some() || !self.applier.is_complete() || self.applier.is_behind() {
            return;
        }
        let is_whole = self.all_flows == Due::Now;
        if is_whole {
            self.all_flows = Due::No;
        }
        let serving = self.source.take_serving(is_whole);
        if serving.is_empty() {
            return;
        }
        let maps = self.loaded.maps.clone();
        self.ending = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            (stale::end(&maps, &serving), began.elapsed())
        }));
    }

    fn stale_ended(&mut self, result: Result<[Ended; 2], StaleError>, duration: Duration) {
        let problem = match result {
            Ok(ended) => {
                self.metrics.stale_ended(ended, duration);
                let [v4, v6] = ended;
                let (flows, sockets) = (v4.flows + v6.flows, v4.sockets + v6.sockets);
                if flows + sockets > 0 {
                    info!(flows, sockets, "ended what clients had with endpoints that are gone");
                }
                None
            }
            Err(err) => {
                self.all_flows = Due::Later;
                Some(Problem::new(Problem::TABLE, "FLOWS", err.to_string()))
            }
        };
        self.board.set_problems("stale", problem.into_iter().collect());
    }

    /// Has connections counted where least-conn chooses by them.
    fn count_loads(&mut self) {
        if self.counting.is_some() || !self.applier.is_complete() {
            return;
        }
        let sets = self.applier.counted();
        if sets.is_empty() && !self.has_loads {
            return;
        }
        self.has_loads = !sets.is_empty();
        let maps = self.loaded.maps.clone();
        self.counting = Some(tokio::task::spawn_blocking(move || loads::count(&maps, &sets)));
    }

    fn loads_counted(&self, result: Result<(), LoadsError>) {
        let problem =
            result.err().map(|err| Problem::new(Problem::TABLE, "LOADS", err.to_string()));
        self.board.set_problems("loads", problem.into_iter().collect());
    }

    async fn look_for_rules(&mut self) {
        let look = tokio::task::spawn_blocking(check::foreign_proxy).await;
        let foreign = look.unwrap_or_default().is_found();
        if foreign != self.foreign_proxy {
            self.foreign_proxy = foreign;
            let what = if foreign { "are on this node" } else { "are gone from this node" };
            info!("kube-proxy's rules {what}");
            self.tell_programs();
        }
    }
}
