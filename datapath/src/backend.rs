//! One place that a Service's traffic can go to.

use crate::{
    address::{Address, Be16},
    flow::Place,
    service::SetRef,
};

/// Value of the arrays `BACKENDS4` and `BACKENDS6`: 12 and 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backend<A> {
    pub addr: A,
    pub port: Be16,
    /// That of the [`crate::service::SetRef`] whose block this stands in; never 0 in a set.
    pub generation: u16,
    /// Bits of [`backend_flags`].
    pub flags: u32,
}

impl<A: Address> Backend<A> {
    /// True if this is the backend at a place, and one of the set.
    #[inline(always)]
    pub fn is(&self, place: Place<A>, set: SetRef) -> bool {
        self.addr == place.addr && self.port == place.port && self.generation == set.generation
    }
}

/// Key of the hash table `LOADS`: a slot of `BACKENDS4` or `BACKENDS6`. Its value is how many
/// connections the backend there has, in sixteenths, divided by the slots that it has in its set.
#[inline(always)]
#[must_use]
pub const fn load_key(slot: u32, is_v6: bool) -> u32 {
    slot | (is_v6 as u32) << 31
}

/// What a connection adds to a row of `LOADS`.
pub const LOAD: u32 = 16;

/// Bits of `Backend::flags`.
pub mod backend_flags {
    /// On this node, so that its replies pass through here by themselves.
    pub const LOCAL: u32 = 1;
}
