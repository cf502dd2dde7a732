//! The wait for programs that may still read what was taken out of a table.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use crate::bpf::{self, MapLayout, map_type};

/// Waits until every program that ran when it was called has ended.
///
/// The kernel gives user space no such call, but an update of a map of maps from user space
/// ends with one: the caller is promised that no running program uses the old inner map
/// (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`). So there is a map of maps that no
/// program knows, and its one slot is written with what it holds. It is pinned nowhere and
/// goes with the process.
#[derive(Debug)]
pub struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Barrier {
    pub fn new() -> io::Result<Self> {
        let layout = MapLayout {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
        };
        let inner = bpf::map_create(layout, None)?;
        let layout = MapLayout { map_type: map_type::ARRAY_OF_MAPS, ..layout };
        let outer = bpf::map_create(layout, Some(inner.as_fd()))?;
        Ok(Self { outer, inner })
    }

    /// Takes some 8 ms: once per batch of changes, never once per Service.
    pub fn wait(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        bpf::map_update(self.outer.as_fd(), &0_u32, &self.inner.as_raw_fd().cast_unsigned())
    }
}
