//! What Prometheus' client libraries tell of a process, under the names that they all use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), and of its
//! network namespace as Go's does. Read from /proc when it is asked for; what cannot be read is
//! left out.

#![expect(clippy::cast_precision_loss, reason = "no process has 2^53 of any of this")]

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Registers as a collector.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessMetrics;

/// Of `/proc/self/stat`, counted behind the name in parentheses, the state being the first.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Stat {
    cpu_seconds: f64,
    /// Since the machine started.
    start_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

fn stat(text: &str, ticks_per_second: u64, page_bytes: u64) -> Option<Stat> {
    // The name may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
    Some(Stat {
        cpu_seconds: seconds(number(11)? + number(12)?),
        start_seconds: seconds(number(19)?),
        virtual_bytes: number(20)?,
        resident_bytes: number(21)? * page_bytes,
    })
}

/// When the machine started, in seconds since 1970.
fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit of `/proc/self/limits`; without one, infinity.
fn limit(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

/// A counter of `/proc/self/net/netstat`, whose lines come in pairs: names, then numbers.
fn octets(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let index = names.split_whitespace().position(|found| found == name)?;
    numbers.split_whitespace().nth(index)?.parse().ok()
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (ticks, page) = (rustix::param::clock_ticks_per_second(), rustix::param::page_size());
        let stat = stat(&read("/proc/self/stat"), ticks, page as u64);
        let limits = read("/proc/self/limits");
        let netstat = read("/proc/self/net/netstat");
        let boot = boot_time(&read("/proc/stat"));
        let start = stat.zip(boot).map(|(stat, boot)| boot + stat.start_seconds);
        let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
        let bytes = |name| octets(&netstat, name).map(|bytes| bytes as f64);
        for (name, help, kind, value) in [
            (
                "process_cpu_seconds",
                "Processor time that this process used",
                MetricType::Counter,
                stat.map(|stat| stat.cpu_seconds),
            ),
            (
                "process_network_receive_bytes",
                "Bytes that this network namespace received by IP",
                MetricType::Counter,
                bytes("InOctets"),
            ),
            (
                "process_network_transmit_bytes",
                "Bytes that this network namespace sent by IP",
                MetricType::Counter,
                bytes("OutOctets"),
            ),
            ("process_open_fds", "Open files", MetricType::Gauge, open),
            (
                "process_max_fds",
                "Files that may be open",
                MetricType::Gauge,
                limit(&limits, "Max open files"),
            ),
            (
                "process_resident_memory_bytes",
                "Memory that is resident",
                MetricType::Gauge,
                stat.map(|stat| stat.resident_bytes as f64),
            ),
            (
                "process_virtual_memory_bytes",
                "Address space in use",
                MetricType::Gauge,
                stat.map(|stat| stat.virtual_bytes as f64),
            ),
            (
                "process_virtual_memory_max_bytes",
                "Address space that may be in use",
                MetricType::Gauge,
                limit(&limits, "Max address space"),
            ),
            (
                "process_start_time_seconds",
                "When this process started, since 1970",
                MetricType::Gauge,
                start,
            ),
        ] {
            let Some(value) = value else { continue };
            let family = encoder.encode_descriptor(name, help, None, kind)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(family)?,
                _ => ConstGauge::new(value).encode(family)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read_by_position_and_name() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 5 0 1200 8192 3 rest";
        let found = stat(text, 100, 4096).unwrap();
        assert_eq!((found.cpu_seconds, found.start_seconds), (2.0, 12.0));
        assert_eq!((found.virtual_bytes, found.resident_bytes), (8_192, 12_288));
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024  \
                      4096  files\nMax address space         unlimited  unlimited  bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(f64::INFINITY));
        let netstat = "TcpExt: A\nTcpExt: 1\nIpExt: X InOctets OutOctets\nIpExt: 1 2 3\n";
        assert_eq!([octets(netstat, "InOctets"), octets(netstat, "OutOctets")], [Some(2), Some(3)]);
        assert_eq!(boot_time("cpu 1\nbtime 77\n"), Some(77.0));
    }

    #[test]
    fn this_process_has_them_all() {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(ProcessMetrics));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert_eq!(text.matches("# TYPE process_").count(), 9, "{text}");
    }
}
