//! A table that makes room by evicting what was used least recently.
//!
//! The kernel's (`kernel/bpf/bpf_lru_list.c`) is less exact, and evicts many rows at once: what
//! must hold there must hold whichever row goes, for which tests remove rows by hand.

use core::hash::Hash;
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Debug)]
pub struct Lru<K, V> {
    rows: HashMap<K, (u64, V)>,
    /// Keys by when they were used last.
    order: BTreeMap<u64, K>,
    clock: u64,
    capacity: usize,
}

impl<K: Copy + Eq + Hash, V> Lru<K, V> {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { rows: HashMap::new(), order: BTreeMap::new(), clock: 0, capacity }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    /// Looks a row up, which uses it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.clock += 1;
        let (used, value) = self.rows.get_mut(key)?;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(*used, *key);
        Some(value)
    }

    /// Writes a row, in place of another if there is no room.
    pub fn insert(&mut self, key: K, value: V) {
        if !self.rows.contains_key(&key)
            && self.rows.len() >= self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.rows.remove(&oldest);
        }
        self.clock += 1;
        if let Some((used, _)) = self.rows.insert(key, (self.clock, value)) {
            self.order.remove(&used);
        }
        self.order.insert(self.clock, key);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (used, value) = self.rows.remove(key)?;
        self.order.remove(&used);
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, (_, value))| (key, value))
    }

    /// All rows, to change, which does not use them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.rows.iter_mut().map(|(key, (_, value))| (key, value))
    }

    pub fn clear(&mut self) {
        self.rows.clear();
        self.order.clear();
    }
}
