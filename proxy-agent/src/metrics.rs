//! What Prometheus reads: the agent's own figures, and those that the programs count in their
//! tables, read when they are asked for.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use agent_kit::{array::ArrayView, kubernetes::RequestMetrics, process::ProcessMetrics};
use datapath::service::ServiceCounters;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets, linear_buckets},
        info::Info,
    },
    registry::Registry,
};

use crate::{
    apply::{Refusal, audit::TABLES},
    attach,
    desired::IpFamily,
    show::{self, Counters},
    stale::Ended,
    status::{Board, Problem, unix_seconds},
    told::{NoLocal, Told, Trigger},
};

type Labels = Vec<(&'static str, String)>;
/// A table's name, rows and capacity.
type Fill = (String, u32, u32);
type Gauge64 = Gauge<f64, AtomicU64>;

/// Counting rows of a flow table walks it, so it is done this often at most.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// kube-proxy's names where the meaning is the same, ours otherwise.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sync_duration: Histogram,
    proxy_sync_duration: Family<Labels, Histogram>,
    full_sync_duration: Family<Labels, Histogram>,
    partial_sync_duration: Family<Labels, Histogram>,
    network_programming: Family<Labels, Histogram>,
    service_changes: Changes,
    endpoint_changes: Changes,
    no_local: Family<Labels, Gauge>,
    /// Changes of pods that are not programmed yet.
    triggers: Mutex<Vec<Trigger>>,
    started: f64,
    change_to_programmed: Histogram,
    last_sync: Family<Labels, Gauge64>,
    last_queued: Family<Labels, Gauge64>,
    healthz: Family<Labels, Counter>,
    livez: Family<Labels, Counter>,
    audit_repairs: Family<Labels, Counter>,
    stale_duration: Family<Labels, Histogram>,
    stale_ended: Family<Labels, Counter>,
    sync_failures: Family<Labels, Counter>,
    cleanup_failures: Family<Labels, Counter>,
    checks: Checks,
    attachment_repairs: Family<Labels, Counter>,
    pin_repairs: Counter,
}

/// What is asked of health, as Kubernetes' components tell it (component-base/metrics/prometheus/slis).
#[derive(Debug, Default)]
struct Checks {
    last: Family<Labels, Gauge>,
    total: Family<Labels, Counter>,
    registry: Registry,
}

impl Checks {
    fn registered() -> Self {
        let mut checks = Self::default();
        let last = "Whether the last answer was good";
        checks.registry.register("kubernetes_healthcheck", last, checks.last.clone());
        let total = "Answers by whether they were good";
        checks.registry.register("kubernetes_healthchecks", total, checks.total.clone());
        checks
    }

    fn answered(&self, path: &str, is_good: bool) {
        // kube-proxy's one check, which is always called so.
        let kind = path.trim_start_matches('/').to_owned();
        let check: Labels = vec![("name", "ping".to_owned()), ("type", kind)];
        self.last.get_or_create(&check).set(is_good.into());
        let status = if is_good { "success" } else { "error" };
        let check = [("status", status.to_owned())].into_iter().chain(check).collect();
        self.total.get_or_create(&check).inc();
    }
}

/// Changes of objects, as kube-proxy counts them.
#[derive(Debug, Default)]
struct Changes {
    total: Counter,
    pending: Gauge,
}

impl Changes {
    fn told(&self, count: u64) {
        self.total.inc_by(count);
        self.pending.inc_by(count.try_into().unwrap_or(i64::MAX));
    }
}

/// Triggers that are kept; more are not measured. Only while nothing can be written do they heap up.
const TRIGGERS: usize = 10_000;

/// kube-proxy's buckets: to 60 s by the second, to 2 min by 5 s, to 5 min by 30 s.
fn long_seconds() -> Histogram {
    let fine = [0.25, 0.5].into_iter();
    let rest = linear_buckets(60.0, 5.0, 12).chain(linear_buckets(120.0, 30.0, 7));
    Histogram::new(fine.chain(linear_buckets(1.0, 1.0, 59)).chain(rest))
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn fine_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_125, 2.0, 18))
}

impl Metrics {
    pub fn new(
        maps: &Path,
        services: ArrayView<ServiceCounters>,
        board: Arc<Board>,
        requests: &RequestMetrics,
    ) -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            sync_duration: fine_seconds(),
            proxy_sync_duration: Family::new_with_constructor(seconds),
            full_sync_duration: Family::new_with_constructor(seconds),
            partial_sync_duration: Family::new_with_constructor(seconds),
            network_programming: Family::new_with_constructor(long_seconds),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            no_local: Family::default(),
            triggers: Mutex::default(),
            started: unix_seconds(),
            change_to_programmed: fine_seconds(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            audit_repairs: Family::default(),
            stale_duration: Family::new_with_constructor(seconds),
            stale_ended: Family::default(),
            sync_failures: Family::default(),
            cleanup_failures: Family::default(),
            checks: Checks::registered(),
            attachment_repairs: Family::default(),
            pin_repairs: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "millrace_sync_duration_seconds",
            "Time to write the difference into the tables",
            metrics.sync_duration.clone(),
        );
        registry.register(
            "millrace_change_to_programmed_seconds",
            "Time from word of a change to its being in force",
            metrics.change_to_programmed.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time to write the difference into the tables",
            metrics.proxy_sync_duration.clone(),
        );
        registry.register(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Time to write all that the source told first",
            metrics.full_sync_duration.clone(),
        );
        registry.register(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Time to write a difference after that",
            metrics.partial_sync_duration.clone(),
        );
        registry.register(
            "kubeproxy_network_programming_duration_seconds",
            "Time from a change of pods, as their EndpointSlice says, to its being in force",
            metrics.network_programming.clone(),
        );
        for (changes, what, total, pending) in [
            (
                &metrics.service_changes,
                "Services",
                "kubeproxy_sync_proxy_rules_service_changes",
                "kubeproxy_sync_proxy_rules_service_changes_pending",
            ),
            (
                &metrics.endpoint_changes,
                "EndpointSlices and Endpoints",
                "kubeproxy_sync_proxy_rules_endpoint_changes",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            ),
        ] {
            registry.register(total, format!("Changes of {what}"), changes.total.clone());
            let help = format!("Changes of {what} that are not in force yet");
            registry.register(pending, help, changes.pending.clone());
        }
        registry.register(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Services' ports whose policy is Local, with endpoints on other nodes only",
            metrics.no_local.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When the tables were last brought up to date",
            metrics.last_sync.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change was last taken note of",
            metrics.last_queued.clone(),
        );
        registry.register(
            "kubeproxy_proxy_healthz",
            "Answers of /healthz by code",
            metrics.healthz.clone(),
        );
        registry.register(
            "kubeproxy_proxy_livez",
            "Answers of /livez by code",
            metrics.livez.clone(),
        );
        registry.register(
            "millrace_audit_repairs",
            "Rows that were not as the agent had written them",
            metrics.audit_repairs.clone(),
        );
        registry.register(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Time to end flows and sockets whose endpoint serves no more",
            metrics.stale_duration.clone(),
        );
        for (name, help, counter) in [
            (
                "kubeproxy_conntrack_reconciler_deleted_entries",
                "Flows and sockets that were ended because their endpoint serves no more",
                &metrics.stale_ended,
            ),
            (
                "kubeproxy_sync_proxy_rules_nftables_sync_failures",
                "Times that not all of a difference could be written into the tables",
                &metrics.sync_failures,
            ),
            (
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures",
                "Times that what was taken out of the tables could not be given free",
                &metrics.cleanup_failures,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        requests.register(&mut registry);
        registry.register(
            "millrace_attachment_repairs",
            "Programs that another hand had taken off their hooks, and that are on again",
            metrics.attachment_repairs.clone(),
        );
        registry.register(
            "millrace_pin_repairs",
            "Pins of tables and links that another hand had removed, and that are there again",
            metrics.pin_repairs.clone(),
        );
        for family in families() {
            // Told before there is anything to tell.
            drop(metrics.network_programming.get_or_create(&family));
            drop(metrics.stale_duration.get_or_create(&family));
            for counter in [&metrics.stale_ended, &metrics.sync_failures, &metrics.cleanup_failures]
            {
                drop(counter.get_or_create(&family));
            }
        }
        metrics.no_local(NoLocal::default());
        registry.register_collector(Box::new(ProcessMetrics));
        for table in TABLES {
            // Told as 0 from the start.
            drop(metrics.audit_repairs.get_or_create(&vec![("table", table.to_owned())]));
        }
        for program in attach::programs() {
            drop(metrics.attachment_repairs.get_or_create(&program_label(program)));
        }
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned())]);
        registry.register("millrace_build", "The agent's version", build);
        registry.register_collector(Box::new(Tables {
            counters: Counters::open(maps, services).ok(),
            maps: maps.into(),
            board,
            filled: Mutex::default(),
        }));
        Self { registry, ..metrics }
    }

    /// The source told of this, which is not in force yet.
    pub fn told(&self, told: &Told) {
        self.service_changes.told(told.services);
        self.endpoint_changes.told(told.endpoints);
        let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
        // What came before is no fault of this process.
        let news = told.triggers.iter().filter(|trigger| unix(**trigger) > self.started);
        let room = TRIGGERS.saturating_sub(triggers.len());
        triggers.extend(news.take(room));
    }

    /// All that was told is in force.
    pub fn settled(&self) {
        self.service_changes.pending.set(0);
        self.endpoint_changes.pending.set(0);
        let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_seconds();
        let [v4, v6] = families();
        for trigger in triggers.drain(..) {
            let family = if trigger.family == IpFamily::V4 { &v4 } else { &v6 };
            self.network_programming.get_or_create(family).observe((now - unix(trigger)).max(0.0));
        }
    }

    pub fn no_local(&self, counts: NoLocal) {
        for (policy, counts) in [("internal", counts.internal), ("external", counts.external)] {
            for (mut labels, count) in families().into_iter().zip(counts) {
                labels.insert(0, ("traffic_policy", policy.to_owned()));
                self.no_local.get_or_create(&labels).set(count.into());
            }
        }
    }

    /// The difference was written; the first time, that was all there is.
    pub fn synced(&self, duration: Duration, is_full: bool) {
        self.sync_duration.observe(duration.as_secs_f64());
        let kind = if is_full { &self.full_sync_duration } else { &self.partial_sync_duration };
        for family in families() {
            self.proxy_sync_duration.get_or_create(&family).observe(duration.as_secs_f64());
            kind.get_or_create(&family).observe(duration.as_secs_f64());
            self.last_sync.get_or_create(&family).set(unix_seconds());
        }
    }

    /// The source told of a change.
    pub fn queued(&self) {
        for family in families() {
            self.last_queued.get_or_create(&family).set(unix_seconds());
        }
    }

    pub fn change_to_programmed(&self, duration: Duration) {
        self.change_to_programmed.observe(duration.as_secs_f64());
    }

    /// A row was not as it was written.
    pub fn repaired(&self, table: &str) {
        self.audit_repairs.get_or_create(&vec![("table", table.to_owned())]).inc();
    }

    /// Flows whose endpoint serves no more were looked for, first of IPv4.
    pub fn stale_ended(&self, ended: [Ended; 2], duration: Duration) {
        for (family, ended) in families().iter().zip(ended) {
            self.stale_duration.get_or_create(family).observe(duration.as_secs_f64());
            self.stale_ended.get_or_create(family).inc_by(ended.flows + ended.sockets);
        }
    }

    /// This of a difference could not be written.
    pub fn refused(&self, refusals: &[Refusal]) {
        for (family, other) in families().iter().zip(["6", "4"]) {
            // Tables that are not one family's are both's.
            if refusals.iter().any(|refusal| !refusal.table.ends_with(other)) {
                self.sync_failures.get_or_create(family).inc();
            }
        }
    }

    /// What was taken out of the tables cannot be used again yet.
    pub fn not_cleaned(&self) {
        for family in families() {
            self.cleanup_failures.get_or_create(&family).inc();
        }
    }

    /// A program was not on its hook, and is again.
    pub fn mended(&self, program: &str) {
        self.attachment_repairs.get_or_create(&program_label(program)).inc();
    }

    /// So many pins were gone, and are there again.
    pub fn pinned(&self, count: usize) {
        self.pin_repairs.inc_by(count as u64);
    }

    pub fn answered(&self, path: &str, code: u16) {
        self.checks.answered(path, code == 200);
        let counters = if path == "/livez" { &self.livez } else { &self.healthz };
        counters.get_or_create(&vec![("code", code.to_string())]).inc();
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        text(&self.registry)
    }

    /// The text of `/metrics/slis`.
    pub fn slis(&self) -> String {
        text(&self.checks.registry)
    }
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

/// A counter of the programs', a row for each value of one label.
fn encode_counts(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    label: &'static str,
    rows: impl Iterator<Item = (&'static str, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in rows {
        let labels: Labels = vec![(label, value.into())];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn program_label(program: &str) -> Labels {
    vec![("program", program.to_owned())]
}

fn families() -> [Labels; 2] {
    ["IPv4", "IPv6"].map(|family| vec![("ip_family", family.to_owned())])
}

/// Seconds since 1970.
fn unix(trigger: Trigger) -> f64 {
    Duration::from_millis(trigger.at_ms).as_secs_f64()
}

/// What stands in tables.
#[derive(Debug)]
struct Tables {
    counters: Option<Counters>,
    maps: std::path::PathBuf,
    board: Arc<Board>,
    filled: Mutex<Option<(Instant, Vec<Fill>)>>,
}

impl Collector for Tables {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        self.encode_services(&mut encoder)?;
        self.encode_drops(&mut encoder)?;
        self.encode_carried(&mut encoder)?;
        self.encode_forwarded(&mut encoder)?;
        self.encode_fill(&mut encoder)?;
        let problems = self.board.state().problems();
        let mut family = encoder.encode_descriptor(
            "millrace_problems",
            "Things that a person should see to",
            None,
            MetricType::Gauge,
        )?;
        for kind in Problem::kinds() {
            let count = problems.iter().filter(|problem| problem.kind == kind).count();
            let labels: Labels = vec![("kind", kind.to_owned())];
            ConstGauge::new(count.cast_signed() as i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Tables {
    fn encode_services(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(counters) = &self.counters else { return Ok(()) };
        let services = counters.services();
        let label = |name: &show::Name, path: &str| -> Labels {
            vec![
                ("namespace", name.namespace.clone()),
                ("service", name.service.clone()),
                ("port", name.port.clone()),
                ("path", path.to_owned()),
            ]
        };
        let mut family = encoder.encode_descriptor(
            "millrace_service_connections",
            "Connections begun",
            None,
            MetricType::Counter,
        )?;
        for (name, count) in &services {
            for (path, value) in
                [("socket", count.socket_connections), ("packet", count.packet_connections)]
            {
                ConstCounter::new(value).encode(family.encode_family(&label(name, path))?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "millrace_service_packets",
            "Packets translated, both directions",
            None,
            MetricType::Counter,
        )?;
        for (name, count) in &services {
            let labels = label(name, "packet");
            ConstCounter::new(count.packets).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "millrace_service_bytes",
            "Their length from the network header on",
            None,
            MetricType::Counter,
        )?;
        for (name, count) in &services {
            let labels = label(name, "packet");
            ConstCounter::new(count.bytes).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_drops(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(counters) = &self.counters else { return Ok(()) };
        let mut family = encoder.encode_descriptor(
            "millrace_drops",
            "Packets dropped or refused, and connections refused",
            None,
            MetricType::Counter,
        )?;
        for (hook, reason, count) in counters.drops() {
            let labels: Labels =
                vec![("reason", reason.name().into()), ("hook", hook.name().into())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_carried(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(counters) = &self.counters else { return Ok(()) };
        let name = "millrace_xdp_packets";
        let help = "Packets dealt with before the kernel made socket buffers of them";
        let rows = counters.carried().into_iter().map(|(leg, count)| (leg.label(), count));
        encode_counts(encoder, name, help, "leg", rows)
    }

    fn encode_forwarded(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(counters) = &self.counters else { return Ok(()) };
        let (name, help) =
            ("millrace_fast_path_packets", "Packets that passed bridge and IP stack by");
        let rows = counters.forwarded().into_iter().map(|(way, count)| (way.name(), count));
        encode_counts(encoder, name, help, "to", rows)
    }

    fn encode_fill(&self, encoder: &mut DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut tables: Vec<Fill> = self
            .board
            .state()
            .tables
            .iter()
            .map(|status| (status.table.clone(), status.entries, status.capacity))
            .collect();
        tables.extend(self.filled());
        let mut family = encoder.encode_descriptor(
            "millrace_table_entries",
            "Rows in use",
            None,
            MetricType::Gauge,
        )?;
        for (table, entries, _) in &tables {
            let labels: Labels = vec![("table", table.clone())];
            ConstGauge::new(i64::from(*entries)).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "millrace_table_capacity",
            "Rows that fit",
            None,
            MetricType::Gauge,
        )?;
        for (table, _, capacity) in &tables {
            let labels: Labels = vec![("table", table.clone())];
            ConstGauge::new(i64::from(*capacity)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn filled(&self) -> Vec<Fill> {
        let mut counted = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        match &*counted {
            Some((at, filled)) if at.elapsed() < COUNT_EVERY => filled.clone(),
            _ => {
                let filled = show::filled_by_programs(&self.maps);
                *counted = Some((Instant::now(), filled.clone()));
                filled
            }
        }
    }
}
