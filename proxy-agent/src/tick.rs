//! The clock of the programs.

use datapath::flow::TICK_NS;
use rustix::time::{ClockId, clock_gettime};

/// `bpf_ktime_get_coarse_ns` in units of [`TICK_NS`].
pub fn now() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
    (ns / TICK_NS) as u32
}
