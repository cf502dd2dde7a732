//! What Prometheus reads.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use crate::{
    peers::Path,
    status::{Board, Kind},
};

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    change_to_programmed: Histogram,
    sync_duration: Histogram,
    renewals: Counter,
    expiry: Gauge<f64, AtomicU64>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_125, 2.0, 18))
}

impl Metrics {
    pub fn new(board: Arc<Board>) -> Self {
        let mut registry = Registry::default();
        let (change_to_programmed, sync_duration) = (seconds(), seconds());
        let (renewals, expiry) = (Counter::default(), Gauge::default());
        registry.register(
            "millrace_change_to_programmed_seconds",
            "Time from word of a change to its being in force",
            change_to_programmed.clone(),
        );
        registry.register(
            "millrace_sync_duration_seconds",
            "Time to compare what shall be with what is, and to write the difference",
            sync_duration.clone(),
        );
        registry.register("millrace_lease_renewals", "Terms of our own lease", renewals.clone());
        registry.register(
            "millrace_lease_expiry_timestamp_seconds",
            "When our own lease ends; 0 if never",
            expiry.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned())]);
        registry.register("millrace_build", "The agent's version", build);
        registry.register_collector(Box::new(Figures { board }));
        Self { registry, change_to_programmed, sync_duration, renewals, expiry }
    }

    pub fn change_to_programmed(&self, duration: Duration) {
        self.change_to_programmed.observe(duration.as_secs_f64());
    }

    pub fn synced(&self, duration: Duration) {
        self.sync_duration.observe(duration.as_secs_f64());
    }

    /// Our lease has another term.
    pub fn leased(&self, expires: Option<u64>) {
        self.renewals.inc();
        // Exact until the year 285,000,000.
        #[allow(clippy::cast_precision_loss, reason = "a time of day")]
        self.expiry.set(expires.unwrap_or(0) as f64);
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// What stands on the board.
#[derive(Debug)]
struct Figures {
    board: Arc<Board>,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.board.status();
        let (traffic, peers) = {
            let state = self.board.state();
            (state.traffic, state.peers.clone())
        };
        let mut family = encoder.encode_descriptor(
            "millrace_overlay_peers",
            "Other nodes' subnets by how packets reach them",
            None,
            MetricType::Gauge,
        )?;
        for path in [Path::Vxlan, Path::Direct] {
            let count = peers.iter().filter(|peer| peer.path == path).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("path", path.name())])?)?;
        }
        for (name, help, figures) in [
            (
                "millrace_overlay_packets",
                "Packets through the tunnel devices",
                [("in", traffic.received_packets), ("out", traffic.sent_packets)],
            ),
            (
                "millrace_overlay_bytes",
                "Bytes through the tunnel devices",
                [("in", traffic.received_bytes), ("out", traffic.sent_bytes)],
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (direction, count) in figures {
                let counter = ConstCounter::new(count);
                counter.encode(family.encode_family(&[("direction", direction)])?)?;
            }
        }
        if let Some(drops) = &self.board.state().drops {
            let help = "Packets refused by the programs";
            let mut family =
                encoder.encode_descriptor("millrace_drops", help, None, MetricType::Counter)?;
            for (hook, reason, count) in drops.all() {
                let labels = [("reason", reason.name()), ("hook", hook.name())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let repairs = ConstCounter::new(status.repairs);
        repairs.encode(encoder.encode_descriptor(
            "millrace_overlay_repairs",
            "Devices and entries that were not as the agent had left them",
            None,
            MetricType::Counter,
        )?)?;
        for (name, help, value) in [
            (
                "millrace_store_connected",
                "Whether the store of leases is heard",
                status.store_reached,
            ),
            (
                "millrace_ready",
                "Whether pods can be reached and subnet.env is written",
                status.ready,
            ),
        ] {
            let gauge = ConstGauge::new(i64::from(value));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "millrace_problems",
            "What a person should see to, by kind",
            None,
            MetricType::Gauge,
        )?;
        for kind in Kind::ALL {
            let count = status.problems.iter().filter(|problem| problem.kind == kind).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("kind", kind.label())])?)?;
        }
        Ok(())
    }
}
