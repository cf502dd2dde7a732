//! What a proxy says of its node, without the proxy: the table pinned where its own would be.

use std::{fs, os::fd::AsFd, path::PathBuf};

use agent_kit::{
    bpf::{self, MapLayout, map_type},
    table::{MapTable, Table},
};
use datapath::settings::Settings;

use crate::bed::{Bed, ok};

pub(crate) struct Word {
    pin: PathBuf,
}

impl Word {
    pub(crate) fn new<S>(bed: &Bed<S>, node: &str) -> Self {
        let maps = bed.lab.bpffs(node).join("proxy/maps");
        ok(fs::create_dir_all(&maps));
        Self { pin: maps.join("SETTINGS") }
    }

    /// Pins a table of rows of a size.
    pub(crate) fn pin(&self, size: usize) {
        let layout = MapLayout {
            map_type: map_type::ARRAY,
            key_size: 4,
            value_size: ok(size.try_into()),
            max_entries: 1,
            flags: 0,
        };
        let map = ok(bpf::map_create(layout, None));
        ok(bpf::obj_pin(map.as_fd(), &self.pin));
    }

    /// Says that clients are answered.
    pub(crate) fn come(&self) {
        self.pin(size_of::<Settings>());
        self.say(1);
    }

    pub(crate) fn say(&self, dsr: u16) {
        let maps = self.pin.parent().expect("a directory");
        let mut table = ok(MapTable::open(maps, "SETTINGS"));
        ok(table.insert(&0_u32, &Settings { dsr, ..Settings::default() }));
    }

    pub(crate) fn go(&self) {
        ok(fs::remove_file(&self.pin));
    }
}
