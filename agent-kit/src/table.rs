//! Hash tables behind one trait: maps in the kernel, and [`MemoryTable`], which refuses what
//! the kernel refuses.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::Pod;

use crate::{
    audit::{Damage, compare},
    bpf,
};

/// Why a table did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the table is full")]
    Full,
    #[error("there is no such row")]
    Missing,
    #[error("{0}")]
    Kernel(#[from] io::Error),
}

impl TableError {
    fn from_kernel(err: io::Error) -> Self {
        match err.raw_os_error() {
            Some(libc::E2BIG) => Self::Full,
            Some(libc::ENOENT) => Self::Missing,
            _ => Self::Kernel(err),
        }
    }
}

/// A table that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open table {path}: {source}")]
pub struct OpenError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Opens the map that is pinned by a name, as what `open` makes of it.
pub fn open_pinned<T>(
    maps: &Path,
    name: &str,
    open: impl FnOnce(OwnedFd) -> io::Result<T>,
) -> Result<T, OpenError> {
    let path = maps.join(name);
    match bpf::obj_get(&path).and_then(open) {
        Ok(table) => Ok(table),
        Err(source) => Err(OpenError { path, source }),
    }
}

/// Rows by key. Which process writes a table is settled outside: there is one.
pub trait Table<K, V>: Send {
    /// Rows it may hold.
    fn capacity(&self) -> u32;
    fn get(&self, key: &K) -> Result<Option<V>, TableError>;
    /// All rows. Rows that come or go meanwhile may be missing.
    fn rows(&self) -> Result<Vec<(K, V)>, TableError>;
    /// Writes a row, whether it was there or not.
    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError>;
    /// Writes rows in order until one fails; says how many were written, and why no more.
    fn insert_all(&mut self, keys: &[K], values: &[V]) -> (usize, Result<(), TableError>) {
        for (index, (key, value)) in keys.iter().zip(values).enumerate() {
            if let Err(err) = self.insert(key, value) {
                return (index, Err(err));
            }
        }
        (keys.len().min(values.len()), Ok(()))
    }
    fn remove(&mut self, key: &K) -> Result<(), TableError>;
}

/// Has a table hold these rows and no others; what is too much goes first, to make room. Gives what
/// there was to do, which is another hand's doing where the rows were written before.
///
/// # Errors
/// At the first row that cannot be written or removed; those before it are.
pub fn hold<K: Copy + Eq + Hash, V: PartialEq, S: BuildHasher>(
    table: &mut impl Table<K, V>,
    wanted: &HashMap<K, V, S>,
) -> Result<Vec<(K, Damage)>, TableError> {
    let found: HashMap<K, V> = table.rows()?.into_iter().collect();
    let is_wanted = |key: &K, row: &V| wanted.get(key).map(|wanted| wanted == row);
    let mut damaged = compare(wanted.keys().copied(), found, is_wanted);
    damaged.sort_by_key(|(_, _, damage)| *damage != Damage::Foreign);
    for (key, _, _) in &damaged {
        match wanted.get(key) {
            Some(row) => table.insert(key, row)?,
            None => match table.remove(key) {
                Ok(()) | Err(TableError::Missing) => {}
                Err(err) => return Err(err),
            },
        }
    }
    Ok(damaged.into_iter().map(|(key, _, damage)| (key, damage)).collect())
}

/// A hash map in the kernel.
#[derive(Debug)]
pub struct MapTable<K, V> {
    map: OwnedFd,
    capacity: u32,
    row: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> MapTable<K, V> {
    /// Opens the map that is pinned by a name.
    pub fn open(maps: &Path, name: &str) -> Result<Self, OpenError> {
        open_pinned(maps, name, Self::new)
    }

    /// Takes an open map, whose key and value must have the sizes of `K` and `V`.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let layout = bpf::map_layout(map.as_fd())?;
        let sizes = (layout.key_size as usize, layout.value_size as usize);
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::other(format!(
                "rows are {}+{} bytes, not {}+{}; another version of the agent made the table",
                sizes.0,
                sizes.1,
                size_of::<K>(),
                size_of::<V>()
            )));
        }
        Ok(Self { map, capacity: layout.max_entries, row: PhantomData })
    }

    /// Writes a row over the one that is there.
    ///
    /// # Errors
    /// [`TableError::Missing`] if there is none.
    pub fn replace(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        bpf::map_replace(self.map.as_fd(), key, value).map_err(TableError::from_kernel)
    }

    /// Hands all rows to `visit`, some thousand at a time, with a buffer bounded by that.
    pub fn visit(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), TableError> {
        let mut room = 4096;
        let (mut keys, mut values) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let mut cursor = None;
        loop {
            match bpf::map_lookup_batch(self.map.as_fd(), cursor, &mut keys, &mut values) {
                Ok(next) => {
                    keys.iter().zip(&values).for_each(|(key, value)| visit(key, value));
                    if next.is_none() {
                        return Ok(());
                    }
                    cursor = next;
                }
                // One bucket holds more than the buffer: a hash under attack, or tiny.
                Err(err) if err.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    keys = Vec::with_capacity(room);
                    values = Vec::with_capacity(room);
                }
                Err(err) => return Err(TableError::from_kernel(err)),
            }
        }
    }
}

impl<K: Pod, V: Pod> Table<K, V> for MapTable<K, V> {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        bpf::map_lookup(self.map.as_fd(), key).map_err(TableError::from_kernel)
    }

    fn rows(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut rows = Vec::new();
        self.visit(|key, value| rows.push((*key, *value)))?;
        Ok(rows)
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        bpf::map_update(self.map.as_fd(), key, value).map_err(TableError::from_kernel)
    }

    fn insert_all(&mut self, keys: &[K], values: &[V]) -> (usize, Result<(), TableError>) {
        if keys.len() < 2 {
            return match keys.first().zip(values.first()) {
                Some((key, value)) => match self.insert(key, value) {
                    Ok(()) => (1, Ok(())),
                    Err(err) => (0, Err(err)),
                },
                None => (0, Ok(())),
            };
        }
        let (written, result) = bpf::map_update_batch(self.map.as_fd(), keys, values);
        (written, result.map_err(TableError::from_kernel))
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        bpf::map_delete(self.map.as_fd(), key).map_err(TableError::from_kernel)
    }
}

/// A table in this process's memory, for tests and dry runs.
#[derive(Clone, Debug)]
pub struct MemoryTable<K, V> {
    rows: HashMap<K, V>,
    capacity: u32,
}

impl<K: Eq + Hash, V> MemoryTable<K, V> {
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        Self { rows: HashMap::new(), capacity }
    }
}

impl<K: Copy + Eq + Hash + Send, V: Copy + Send> Table<K, V> for MemoryTable<K, V> {
    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        Ok(self.rows.get(key).copied())
    }

    fn rows(&self) -> Result<Vec<(K, V)>, TableError> {
        Ok(self.rows.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        if self.rows.len() >= self.capacity as usize && !self.rows.contains_key(key) {
            return Err(TableError::Full);
        }
        self.rows.insert(*key, *value);
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<(), TableError> {
        self.rows.remove(key).map(drop).ok_or(TableError::Missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_refuses_what_the_kernel_refuses() {
        let mut table = MemoryTable::new(1);
        table.insert(&1, &10).unwrap();
        table.insert(&1, &11).unwrap();
        assert!(matches!(table.insert(&2, &20), Err(TableError::Full)));
        assert!(matches!(table.remove(&2), Err(TableError::Missing)));
        assert_eq!(table.rows().unwrap(), [(1, 11)]);
    }

    #[test]
    fn a_table_comes_to_hold_what_is_wanted_and_tells_what_it_was() {
        let mut table = MemoryTable::new(3);
        for (key, value) in [(1, 10), (2, 21), (4, 40)] {
            table.insert(&key, &value).unwrap();
        }
        let wanted: HashMap<u32, u32> = [(1, 10), (2, 20), (3, 30)].into();
        // The table is full: there is room for what is missing once what is foreign is gone.
        let mut damaged = hold(&mut table, &wanted).unwrap();
        damaged.sort_unstable();
        assert_eq!(damaged, [(2, Damage::Changed), (3, Damage::Missing), (4, Damage::Foreign)]);
        let rows: HashMap<u32, u32> = table.rows().unwrap().into_iter().collect();
        assert_eq!(rows, wanted);
        assert_eq!(hold(&mut table, &wanted).unwrap(), []);
    }
}
