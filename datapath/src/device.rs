//! What the programs must know of a device they run on.

use crate::address::{Ipv4, Ipv6, Mac};

/// Value of the hash table `DEVICES`, keyed by interface index: 36 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Source of connections masqueraded out of this device, as `MASQUERADE` would choose it;
    /// zero if the device has no address of the family.
    pub masquerade4: Ipv4,
    pub masquerade6: Ipv6,
    /// Where a bridge's own hook sees what leaves toward the pods on it, and not this port's: the
    /// bridge's address. A frame to another goes from port to port, and past the bridge's hook.
    /// Zero elsewhere.
    pub bridge: Mac,
    /// The device's own address.
    pub mac: Mac,
    /// One of [`way`].
    pub way: u32,
}

/// What may leave by a device past bridge and IP stack ([`crate::forward`]).
pub mod way {
    pub const NONE: u32 = 0;
    /// What goes out of the node.
    pub const OUT: u32 = 1;
    /// What goes into the pod behind it, a veth's other end.
    pub const POD: u32 = 2;
}

/// What an address family finds in a [`Device`].
pub trait Masquerade: crate::address::Family {
    fn masquerade(device: &Device) -> Self::Address;
}

impl Masquerade for crate::address::V4 {
    #[inline(always)]
    fn masquerade(device: &Device) -> Ipv4 {
        device.masquerade4
    }
}

impl Masquerade for crate::address::V6 {
    #[inline(always)]
    fn masquerade(device: &Device) -> Ipv6 {
        device.masquerade6
    }
}
