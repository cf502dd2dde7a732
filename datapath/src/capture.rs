//! What is told of a frame to those who capture: before the program that sees frames of uplinks first
//! (XDP), and behind it.

/// The one row of the array `CAPTURE`: 16 bytes. All zero while nobody captures.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capture {
    /// Nanoseconds of the monotonic clock: who captures says so again and again. What one leaves who was
    /// killed, the first frame after that puts back to zero.
    pub until: u64,
    /// Most bytes of a frame.
    pub snap_length: u32,
    pub pad: u32,
}

/// Before the frame's own bytes in the rings of `SEEN`: 24 bytes.
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
    /// What the program answered (`enum xdp_action`), or [`UNDECIDED`].
    pub verdict: u32,
}

/// Of a frame that goes in.
pub const UNDECIDED: u32 = u32::MAX;
