//! What the programs must know of a device they run on.

use crate::address::{Ipv4, Ipv6};

/// Value of the hash table `DEVICES`, keyed by interface index: 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// Source of connections masqueraded out of this device, as `MASQUERADE` would choose it;
    /// zero if the device has no address of the family.
    pub masquerade4: Ipv4,
    pub masquerade6: Ipv6,
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
