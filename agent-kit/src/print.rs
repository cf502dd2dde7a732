//! Figures and tables for people.

use std::time::Duration;

use comfy_table::{Table, TableStyle};

/// A table with aligned columns and no lines.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `3d4h`, `5m12s`, `1.4s`.
pub fn age(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    whole_age(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs())
}

/// `3d4h`, `5m12s`, `1s`.
pub fn whole_age(whole: u64) -> String {
    match whole {
        0..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// `0.35 ms`, `2.10 s`.
pub fn duration(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.2} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // In tenths of a unit, which no figure that fits a counter can lose.
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!([age(1.44), age(75.0), age(90_000.0)], ["1.4s", "1m15s", "1d1h"]);
        assert_eq!([bytes(12), bytes(1536), bytes(3 << 30)], ["12 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!([duration(0.000_35), duration(2.1)], ["0.35 ms", "2.10 s"]);
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&["A", "B"], [vec!["long".into(), "1".into()]]);
        assert_eq!(text, "A     B\nlong  1\n");
    }
}
