//! What another hand did to rows that one agent writes: found by comparing what was written with
//! what stands there.

use std::{collections::HashMap, fmt, hash::Hash};

/// What is wrong with a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Damage {
    Missing,
    /// Nobody here wrote it.
    Foreign,
    Changed,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Foreign => "foreign",
            Self::Changed => "changed",
        })
    }
}

/// A row that is not as it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Difference {
    pub table: &'static str,
    pub key: String,
    pub damage: Damage,
}

/// Rows that were written and are missing, and rows that are there and differ. `is_as_written` is
/// `None` for a row that nobody here wrote.
#[expect(clippy::implicit_hasher, reason = "all are made here, with the usual one")]
pub fn compare<K: Copy + Eq + Hash, V>(
    written: impl Iterator<Item = K>,
    found: HashMap<K, V>,
    is_as_written: impl Fn(&K, &V) -> Option<bool>,
) -> Vec<(K, Option<V>, Damage)> {
    let missing = written.filter(|key| !found.contains_key(key));
    let mut damaged: Vec<_> = missing.map(|key| (key, None, Damage::Missing)).collect();
    damaged.extend(found.into_iter().filter_map(|(key, row)| match is_as_written(&key, &row) {
        Some(true) => None,
        Some(false) => Some((key, Some(row), Damage::Changed)),
        None => Some((key, Some(row), Damage::Foreign)),
    }));
    damaged
}

/// Damaged rows of a table, by their keys in words.
pub fn told<K>(
    table: &'static str,
    damaged: Vec<(K, Damage)>,
    words: impl Fn(K) -> String,
) -> Vec<Difference> {
    let told = |(key, damage)| Difference { table, key: words(key), damage };
    damaged.into_iter().map(told).collect()
}
