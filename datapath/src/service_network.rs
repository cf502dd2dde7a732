//! The networks that cluster IPs are given out of (ServiceCIDRs). An address in one that no Service
//! has is nobody's: what leaves the node for it would go astray.

use crate::address::Address;

/// Row of the array `SERVICECOVER`, by family (4: the first, 6: the second): what all rows of
/// `SERVICENETS4` or `SERVICENETS6` have in common, so that hardly any packet needs to be looked up
/// there. 32 bytes; of IPv4 the first word alone counts.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cover {
    pub network: [u32; 4],
    /// All zero, as a row that nobody wrote: every address may be in one.
    pub mask: [u32; 4],
}

impl Cover {
    /// Of no network: an address that no packet is sent to, or that of a broadcast.
    pub const NONE: Self = Self { network: [u32::MAX; 4], mask: [u32::MAX; 4] };

    /// True if an address may be in one of the networks.
    #[inline(always)]
    #[must_use]
    pub fn may_hold<A: Address>(&self, address: A) -> bool {
        let words = address.words();
        let differs = |nth: usize| (words[nth] ^ self.network[nth]) & self.mask[nth];
        if size_of::<A>() == size_of::<u32>() {
            differs(0) == 0
        } else {
            differs(0) | differs(1) | differs(2) | differs(3) == 0
        }
    }

    /// The network that has all of these, each an address and a length.
    #[must_use]
    pub fn of<A: Address>(networks: &[(A, u32)]) -> Self {
        let Some(&(first, longest)) = networks.first() else { return Self::NONE };
        let bits = size_of::<A>() as u32 * 8;
        let is_shared = |length: &u32| {
            networks.iter().all(|&(other, bits)| *length <= bits && other.shares(first, *length))
        };
        let length = (0..=longest.min(bits)).rev().find(is_shared).unwrap_or(0);
        let mut mask = [0; 4];
        for (nth, word) in mask.iter_mut().enumerate() {
            let ones = length.saturating_sub(32 * nth as u32).min(32);
            *word = u32::MAX.checked_shl(32 - ones).unwrap_or(0).to_be();
        }
        let words = first.words();
        Self { network: core::array::from_fn(|nth| words[nth] & mask[nth]), mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Ipv4, Ipv6};

    fn v4(text: &str) -> Ipv4 {
        text.parse::<std::net::Ipv4Addr>().unwrap().into()
    }

    fn v6(text: &str) -> Ipv6 {
        text.parse::<std::net::Ipv6Addr>().unwrap().into()
    }

    #[test]
    fn one_network_is_covered_to_the_bit() {
        let cover = Cover::of(&[(v4("10.96.0.0"), 12)]);
        assert!(["10.96.0.0", "10.111.255.255"].iter().all(|text| cover.may_hold(v4(text))));
        assert!(!["10.95.255.255", "10.112.0.0"].iter().any(|text| cover.may_hold(v4(text))));
        let cover = Cover::of(&[(v6("fd00:96::"), 108)]);
        assert!(["fd00:96::", "fd00:96::f:ffff"].iter().all(|text| cover.may_hold(v6(text))));
        assert!(!["fd00:96::10:0", "fd01:96::"].iter().any(|text| cover.may_hold(v6(text))));
        let cover = Cover::of(&[(v4("10.96.0.1"), 32)]);
        assert!(cover.may_hold(v4("10.96.0.1")) && !cover.may_hold(v4("10.96.0.0")));
    }

    #[test]
    fn several_are_covered_by_what_they_share() {
        let cover = Cover::of(&[(v4("10.96.0.0"), 16), (v4("10.100.0.0"), 24)]);
        assert!(["10.96.1.1", "10.100.0.1"].iter().all(|text| cover.may_hold(v4(text))));
        assert!(!["10.32.0.1", "11.96.0.1"].iter().any(|text| cover.may_hold(v4(text))));
        let cover = Cover::of(&[(v4("10.0.0.0"), 8), (v4("192.168.0.0"), 16)]);
        assert!(cover.may_hold(v4("8.8.8.8")));
    }

    #[test]
    fn no_network_covers_nothing_and_no_row_everything() {
        assert!(!Cover::of::<Ipv4>(&[]).may_hold(v4("10.96.0.1")));
        assert!(!Cover::NONE.may_hold(v6("fd00::1")));
        assert!(Cover::default().may_hold(v4("10.96.0.1")));
        assert!(Cover::default().may_hold(v6("fd00::1")));
    }
}
