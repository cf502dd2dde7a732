//! Waiting for rows of a pinned table, as the programs would find them.

use std::{io, path::Path, thread, time::Duration};

use lab::bench::{Seen, clock};

use crate::bpf::Table;

/// Between two looks; leaves the processors to who writes the rows.
const PAUSE: Duration = Duration::from_micros(200);

/// Looks until every key has a row, or none has. There may be no table yet.
pub(crate) fn watch(
    pin: &Path,
    keys: &[Vec<u8>],
    present: bool,
    patience_millis: u64,
) -> io::Result<Seen> {
    let give_up = clock() + patience_millis * 1_000_000;
    let mut seen = Seen::default();
    let mut table = None;
    let mut left = keys;
    while clock() < give_up {
        if table.is_none() {
            table = Table::open(pin).ok();
        }
        if let Some(table) = &table {
            while let [key, rest @ ..] = left {
                seen.asked += 1;
                if table.has(key)? != present {
                    break;
                }
                left = rest;
            }
            if left.is_empty() {
                seen.at = clock();
                seen.complete = true;
                return Ok(seen);
            }
        }
        thread::sleep(PAUSE);
    }
    seen.silent = left.len() as u64;
    Ok(seen)
}
