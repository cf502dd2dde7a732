//! Where packets to a pod of this node go past bridge and IP stack.

use crate::address::{Family, Mac};

/// Value of the LRU tables `HOMES4/6` of both objects, keyed by a pod's address. Learned from what the pod
/// sends. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Home {
    /// Interface index of the node's end of the pod's veth pair; zero while two devices say
    /// that the address is theirs.
    pub device: u32,
    /// When the pod last sent something, in units of [`crate::flow::TICK_NS`].
    pub last: u32,
    pub mac: Mac,
    pub pad: u16,
}

/// What is learned holds for this long without being said again, in [`crate::flow::TICK_NS`]: a
/// packet sent to a device that is gone is lost, where the stack would look for the pod.
pub const HOME_TICKS: u32 = 30;

/// Access to the table of one family.
pub trait Homes<F: Family> {
    fn home(&mut self, pod: F::Address) -> Option<&mut Home>;
    fn settle(&mut self, pod: F::Address, home: Home);
}

impl Home {
    /// True if what was learned holds at this time.
    #[inline(always)]
    #[must_use]
    pub const fn is_known(&self, now: u32) -> bool {
        self.device != 0 && !self.is_old(now)
    }

    #[inline(always)]
    const fn is_old(&self, now: u32) -> bool {
        now.wrapping_sub(self.last) > HOME_TICKS
    }
}

/// Learns where a pod is. An address that two devices claim within [`HOME_TICKS`] is left to the
/// bridge until one of them falls silent.
#[inline(always)]
pub fn learn<F: Family, H: Homes<F>>(
    homes: &mut H,
    pod: F::Address,
    device: u32,
    mac: Mac,
    now: u32,
) {
    let Some(home) = homes.home(pod) else {
        return homes.settle(pod, Home { device, last: now, mac, pad: 0 });
    };
    if home.device == device && home.mac == mac {
        // Written only when it changes: the cache line is shared by processors.
        if home.last != now {
            home.last = now;
        }
    } else if home.is_old(now) {
        // A new row, for the fields of one that stands cannot change at once.
        homes.settle(pod, Home { device, last: now, mac, pad: 0 });
    } else if home.device != 0 {
        home.device = 0;
    }
}
