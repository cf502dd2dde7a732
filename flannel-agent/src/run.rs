//! The agent itself: takes a subnet, keeps devices and entries as the leases say, and leaves
//! all of it in place when it ends, however it ends.

mod join;
mod sync;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_kit::{
    attach::AttachError,
    descriptor, filter, netfilter,
    notice::{Notices, word},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info, warn};

use crate::{
    clock::now,
    config::{ConfigError, RunArgs, Settings, StoreSettings},
    entries::Entries,
    health,
    interface::{InterfaceError, Uplink},
    kernel::{Kernel, KernelError},
    lease::{Attrs, Expiry, Lease},
    mac::Mac,
    metrics::Metrics,
    net_config::NetConfig,
    overlay::{Overlay, OverlayError},
    peers::Tunnel,
    status::{Board, Kind, Problem},
    store::{Event, Held, Store, StoreError, dir::Dir, etcd::Etcd, kubernetes::Kubernetes},
    subnet::Family,
};

/// Everything is compared with what it shall be this often, without being asked.
const LOOK: Duration = Duration::from_secs(5);
/// Expired flows are looked for this often.
const SWEEP: Duration = Duration::from_secs(5);
/// Whether a Service proxy has come, or answers clients otherwise, is asked this often: before its
/// first packet, for which it has its programs verified.
const PROXY: Duration = Duration::from_millis(200);
/// What the store refuses at the start is asked again this often, as flanneld does.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A renewal that failed is tried again after this long at the latest.
const RENEW_AGAIN: Duration = Duration::from_mins(1);

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen to signals: {0}")]
    Signal(io::Error),
    #[error("cannot open a netlink socket: {0}")]
    Netlink(io::Error),
    #[error("cannot make a hardware address: {0}")]
    Random(io::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, RunError> {
        let listen = |kind| signal(kind).map_err(RunError::Signal);
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs until told to stop.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let settings = args.validate()?;
    let mut signals = Signals::new()?;
    let config = serde_json::to_value(&args).unwrap_or_default();
    info!(version = env!("CARGO_PKG_VERSION"), %config, "starting");
    descriptor::raise_limit();
    let board = Arc::new(Board::default());
    let metrics = Arc::new(Metrics::new(Arc::clone(&board)));
    let answers = health::Answers { board: Arc::clone(&board), metrics: Arc::clone(&metrics) };
    health::serve(args.metrics_bind_address, settings.healthz, &answers);
    let mut notices = Notices::open().map_err(RunError::Netlink)?;
    let kernel = Kernel::open().map_err(RunError::Netlink)?;
    let store = open(&settings).await?;
    board.state().status.store = store.place();
    let joined = tokio::select! {
        joined = Agent::join(args, settings, store, kernel, board, metrics) => joined,
        () = signals.any() => {
            info!("stopping before anything was programmed");
            return Ok(());
        }
    };
    let mut agent = joined?;
    let mut events = Arc::clone(&agent.store).watch();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweeping: Option<JoinHandle<Result<(), AttachError>>> = None;
    // Where rules cannot be listened to, they are looked at now and then.
    let mut rules = netfilter::notices().ok().filter(|_| agent.overlay.is_some());
    let mut filters = None;
    let mut proxy = interval(PROXY);
    proxy.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if filters.is_none() && agent.overlay.as_ref().is_some_and(Overlay::uses_clsact) {
            filters = filter::notices().ok();
        }
        let renewal = agent.renewal;
        tokio::select! {
            Some(event) = events.recv() => agent.take(event, &mut events).await,
            true = word(&mut rules) => agent.sync(false).await,
            true = word(&mut filters) => {
                if let Some(overlay) = &mut agent.overlay {
                    overlay.look_at_filters();
                }
                agent.sync(false).await;
            }
            _ = proxy.tick() => {
                if agent.is_proxy_another() {
                    agent.sync(false).await;
                }
            }
            Some(()) = notices.changed() => agent.look().await,
            _ = look.tick() => agent.look().await,
            _ = sweep.tick() => {
                if sweeping.as_ref().is_none_or(JoinHandle::is_finished) {
                    sweeping = agent.sweep();
                }
            }
            () = until(renewal) => agent.renew().await,
            () = signals.any() => break,
        }
    }
    info!("stopping; what is programmed stays in force (`flannel-agent cleanup` removes it)");
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep(at.saturating_duration_since(Instant::now())).await,
        None => std::future::pending().await,
    }
}

async fn open(settings: &Settings) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &settings.store {
        StoreSettings::Dir(path) => Arc::new(Dir::new(path.clone(), settings.term)),
        StoreSettings::Etcd { access, prefix } => {
            Arc::new(Etcd::new(access.clone(), prefix, settings.term))
        }
        StoreSettings::Kubernetes(cluster) => Arc::new(Kubernetes::open(cluster.clone()).await?),
    })
}

#[allow(clippy::struct_excessive_bools, reason = "independent states")]
struct Agent {
    args: RunArgs,
    settings: Settings,
    store: Arc<dyn Store>,
    kernel: Kernel,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    config: NetConfig,
    uplink: Uplink,
    /// What other nodes know our tunnel devices by.
    macs: BTreeMap<Family, Mac>,
    /// The devices, once there was a look.
    tunnels: BTreeMap<Family, Tunnel>,
    /// The programs, where they choose tunnels.
    overlay: Option<Overlay>,
    /// What we publish.
    attrs: Attrs,
    held: Held,
    renewal: Option<Instant>,
    /// Of the other nodes, by key.
    leases: BTreeMap<String, Result<Lease, String>>,
    /// Whether the store has told everything once; nothing is removed before.
    is_listed: bool,
    /// Whether what is told at the moment is news.
    is_changed: bool,
    /// What was wanted last; a difference to what is then found was another hand's doing.
    wanted: Entries,
    /// Whether the kernel took all of it.
    is_written: bool,
    /// As it was written last.
    subnet_env: Option<String>,
    /// Our subnet is gone, and no other was had yet.
    is_lost: bool,
    /// The store has been told that pods can be reached here.
    is_announced: bool,
    /// Whether packets to a peer leave by the uplink, as far as it was asked since routes changed.
    ways: BTreeMap<IpAddr, bool>,
    /// Whether this node answers clients outside by itself, as the proxy said last.
    answers: bool,
}

/// What an event says of our own lease.
enum Own {
    Untold,
    Held,
    /// It is there, and cannot be read.
    Damaged,
    Lost(String),
}

impl Agent {
    /// Looks at all there is; routes, too, may be others now.
    async fn look(&mut self) {
        self.ways.clear();
        self.sync(false).await;
    }

    /// True if the proxy is another than at the last look, or says another thing of this node.
    fn is_proxy_another(&self) -> bool {
        self.overlay.as_ref().is_some_and(Overlay::is_outdated)
            || join::answers(&self.args, &self.config) != self.answers
    }

    /// Has expired flows removed, where there are any.
    fn sweep(&self) -> Option<JoinHandle<Result<(), AttachError>>> {
        let overlay = self.overlay.as_ref().filter(|_| self.args.ip_masq)?;
        let sweep = overlay.sweep();
        Some(spawn_blocking(move || sweep.run()))
    }

    /// Takes note of what the store tells, all that waits at once.
    async fn take(&mut self, first: Event, events: &mut mpsc::Receiver<Event>) {
        let began = Instant::now();
        let own = self.store.own_key(&self.held);
        self.is_changed = false;
        let mut own_lease = Own::Untold;
        let mut next = Some(first);
        while let Some(event) = next {
            match self.note(event, &own) {
                Own::Untold => {}
                told => own_lease = told,
            }
            next = events.try_recv().ok();
        }
        match own_lease {
            Own::Lost(reason) => self.reacquire(&reason).await,
            Own::Damaged => {
                warn!(key = own, "our lease says nothing of us; writing it again");
                self.renew().await;
            }
            Own::Held | Own::Untold => {}
        }
        // Renewals are told too, and Nodes change all day; neither concerns us.
        if self.is_listed && self.is_changed {
            self.sync(true).await;
            self.metrics.change_to_programmed(began.elapsed());
        }
    }

    /// Takes note of one event, and what it says of our own lease.
    fn note(&mut self, event: Event, own: &str) -> Own {
        match event {
            Event::Listed(entries) => {
                self.reached(true, None);
                self.is_listed = true;
                self.is_changed = true;
                let own_lease = entries.iter().find(|entry| entry.key == own);
                let verdict = match own_lease {
                    None => Own::Lost("it is not in the store any more".into()),
                    Some(entry) => self.judge(&entry.lease),
                };
                self.leases = entries.into_iter().map(|entry| (entry.key, entry.lease)).collect();
                self.leases.remove(own);
                verdict
            }
            Event::Put(entry) if entry.key == own => self.judge(&entry.lease),
            Event::Gone(key) if key == own => Own::Lost("somebody removed it".into()),
            Event::Put(entry) => {
                self.is_changed |= self.leases.get(&entry.key) != Some(&entry.lease);
                self.leases.insert(entry.key, entry.lease);
                Own::Untold
            }
            Event::Gone(key) => {
                self.is_changed |= self.leases.remove(&key).is_some();
                Own::Untold
            }
            Event::Trouble(reason) => {
                self.reached(false, Some(reason));
                Own::Untold
            }
            Event::Recovered => {
                self.reached(true, None);
                Own::Untold
            }
        }
    }

    /// Whether the lease under our key is ours.
    fn judge(&self, lease: &Result<Lease, String>) -> Own {
        let Ok(lease) = lease else { return Own::Damaged };
        if self.store.is_assigned() {
            let mut held = self.held.subnet.networks();
            let is_same = held.all(|own| lease.subnet.networks().any(|network| network == own));
            return if is_same { Own::Held } else { Own::Lost("its podCIDR is another".into()) };
        }
        // A reservation that names nobody, or what somebody wrote by mistake.
        let Some(other) = lease.attrs.public_ip else { return Own::Damaged };
        if lease.attrs.is_same_node(&self.attrs) {
            return Own::Held;
        }
        Own::Lost(format!("{other} holds it now"))
    }

    fn reached(&self, is_reached: bool, reason: Option<String>) {
        self.board.state().status.store_reached = is_reached;
        let problem = reason.map(|reason| Problem::new(Kind::Store, "", reason));
        self.board.set_problems("watch", problem.into_iter().collect());
    }

    /// The next term of our lease.
    async fn renew(&mut self) {
        if self.is_lost {
            return self.reacquire("it could not be had before").await;
        }
        match self.store.renew(&self.held, &self.attrs).await {
            Ok(held) => {
                info!(subnet = %held.subnet, "renewed the lease");
                self.hold(held);
                self.board.set_problems("renewal", Vec::new());
            }
            Err(err) if err.is_loss() => self.reacquire(&err.to_string()).await,
            Err(err) => {
                let again = RENEW_AGAIN.min(self.settings.term / 10).max(ASK_AGAIN);
                self.renewal = Some(Instant::now() + again);
                let message = format!("the lease is not renewed, and tried again: {err}");
                let problem = Problem::new(Kind::Lease, self.held.subnet.to_string(), message);
                self.board.set_problems("renewal", vec![problem]);
            }
        }
    }

    /// Notes a lease of ours and when it is to be renewed.
    fn hold(&mut self, held: Held) {
        self.held = held;
        let expires = match held.expires {
            Expiry::At(at) => Some(at),
            Expiry::Never | Expiry::Untold => None,
        };
        self.renewal = expires.map(|at| {
            let left = Duration::from_secs(at).saturating_sub(now());
            let wait = left.checked_sub(self.settings.margin).unwrap_or(left / 2);
            Instant::now() + wait
        });
        self.metrics.leased(expires);
        let mut state = self.board.state();
        state.status.subnet = held.subnet.networks().map(|network| network.to_string()).collect();
        state.status.lease_expires = expires;
    }

    /// Our lease is gone although we live: takes one again, the same if nobody else has it.
    /// Nothing that is programmed is taken away over it, for pods go on using it.
    async fn reacquire(&mut self, reason: &str) {
        let before = self.held.subnet;
        self.is_changed = true;
        error!(subnet = %before, reason, "our lease is lost; taking one again, the same if it is free");
        self.is_lost = true;
        let request = self.request(before);
        match self.store.acquire(&request).await {
            Ok(held) => {
                self.is_lost = false;
                // A Node that was made anew does not know.
                self.is_announced = false;
                if held.subnet == before {
                    error!(subnet = %before, "our lease was lost, and is ours again");
                } else {
                    error!(
                        %before, now = %held.subnet,
                        "our subnet is another node's now; pods with addresses of the old one \
                         are out of other nodes' reach: restart them"
                    );
                }
                self.board.set_problems("renewal", Vec::new());
                self.hold(held);
            }
            Err(err) => {
                self.renewal = Some(Instant::now() + LOOK);
                let message = format!("our lease is lost ({reason}), and no other was had: {err}");
                let problem = Problem::new(Kind::Lease, before.to_string(), message);
                self.board.set_problems("renewal", vec![problem]);
            }
        }
    }

    fn public_addresses(&self) -> Vec<IpAddr> {
        Family::BOTH.into_iter().filter_map(|family| self.uplink.public(family)).collect()
    }
}
