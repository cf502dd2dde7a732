//! The kernel's own count of runs and time of eBPF programs, on while a descriptor is open: no
//! setting is left behind by a benchmark that was ended.

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

use crate::bpf;

/// Says `ready` and counts until ended.
pub(crate) fn count() -> io::Result<()> {
    let _counting = bpf::enable_stats()?;
    println!("ready");
    io::stdout().flush()?;
    loop {
        thread::sleep(Duration::from_hours(1));
    }
}
