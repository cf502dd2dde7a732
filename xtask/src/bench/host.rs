//! The machine that a benchmark runs on, as its report tells.

use std::{fmt, fs};

use serde::Serialize;

/// The machine it was measured on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Host {
    cpu: String,
    cores: usize,
    kernel: String,
    /// Load averages of a minute, before and after.
    load: [f64; 2],
}

impl Host {
    pub(super) fn new() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let models: Vec<&str> = info
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, model)| model)
            .collect();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: models.first().copied().unwrap_or("unknown").into(),
            cores: models.len(),
            kernel: kernel.trim().into(),
            load: [load(), load()],
        }
    }

    pub(super) fn finish(&mut self) {
        self.load[1] = load();
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, load } = self;
        write!(
            f,
            "Measured on {cpu}, {cores} cores, Linux {kernel}; load average {:.2} before, {:.2} \
             after.",
            load[0], load[1]
        )
    }
}
