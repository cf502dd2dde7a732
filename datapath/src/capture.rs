//! What the capture's programs tell of a frame that goes into the program which sees frames of uplinks
//! first (XDP), and of what that makes of it.

/// Before the frame's own bytes: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Interface index of the device that it came in by.
    pub device: u32,
    /// Of the frame.
    pub length: u32,
    /// So many of its bytes follow.
    pub captured: u32,
    /// What the program answered, or [`UNDECIDED`].
    pub verdict: u32,
}

/// Of a frame that goes in.
pub const UNDECIDED: u32 = u32::MAX;

/// The one row of the array `PLACES`: where in the structures of the running kernel things stand, and
/// how much of a frame is wanted. 12 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Places {
    /// `xdp_buff::rxq`.
    pub queue: u16,
    /// `xdp_rxq_info::dev`.
    pub device: u16,
    /// `net_device::ifindex`.
    pub index: u16,
    pub pad: u16,
    /// Most bytes of a frame.
    pub snap_length: u32,
}
