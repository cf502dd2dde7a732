//! Where packets go that leave by an uplink before the kernel has made socket buffers of them.

use crate::address::{Be16, Mac};

/// Value of the array `UPLINKS`, at the place that an interface index has ([`place`]): a device whose
/// frames are seen before the kernel sees them. 16 bytes; all zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Uplink {
    /// The interface index: two may have one place, of which one has the row.
    pub device: u32,
    pub mac: Mac,
    /// 1 if frames that came in by another device may be sent out by this one.
    pub sends: u16,
    /// One of [`mode`].
    pub mode: u32,
}

/// Who runs the program that sees a device's frames.
pub mod mode {
    /// The driver.
    pub const NATIVE: u32 = 1;
    /// The kernel, which has made a socket buffer.
    pub const GENERIC: u32 = 2;
}

/// Rows of `UPLINKS`; a power of two.
pub const UPLINKS_LEN: u32 = 256;

/// The place of a device in `UPLINKS`.
#[inline(always)]
#[must_use]
pub const fn place(device: u32) -> u32 {
    device & (UPLINKS_LEN - 1)
}

/// Value of the per-CPU arrays `NEXTHOPS4/6`, at the place that a hash of the destination tells, or beside it:
/// what the kernel's routes and neighbours say, and the overlay's table of nodes. Asked anew each tick.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHop<A> {
    /// Whose way this is.
    pub destination: A,
    /// From where.
    pub source: A,
    /// Ends of the tunnel, if there is one.
    pub underlay: A,
    pub own: A,
    /// When the kernel was asked, in units of [`crate::flow::TICK_NS`].
    pub since: u32,
    /// Interface index of the device that packets leave by; zero if the kernel has to see to them.
    pub device: u32,
    /// Longest packet that may go this way, without what the tunnel adds.
    pub mtu: u32,
    /// In this machine's byte order.
    pub vni: u32,
    /// Of the frame.
    pub to: Mac,
    pub from: Mac,
    /// Of the frame in the tunnel.
    pub inner_to: Mac,
    pub inner_from: Mac,
    /// UDP port of the tunnel; zero if there is none.
    pub port: Be16,
    /// Its source ports, in this machine's byte order.
    pub first_source_port: u16,
    pub last_source_port: u16,
    /// [`crate::underlay::Underlay::constant`].
    pub constant: u16,
}

/// Value of the per-CPU array `SEENSENDERS`, at the place that the last byte of the address tells: one of
/// `SENDERS`, which need not be asked again in the same tick. 12 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SeenSender {
    pub mac: Mac,
    pub pad: u16,
    /// When `SENDERS` had it, in units of [`crate::flow::TICK_NS`].
    pub since: u32,
}

/// Rows of `SEENSENDERS`; a power of two.
pub const SEENSENDERS_LEN: u32 = 256;

/// Rows of `NEXTHOPS4/6`; a power of two.
pub const NEXTHOPS_LEN: u32 = 1_024;
