//! How many flows one source outside may begin: so that a flood of new ones from few sources does not
//! push out what others have begun, nor cost the node the work of choosing and writing for each.
//!
//! Of each source ([`Address::origin`]) the LRU table `RATES` knows one number: when as many flows as
//! it has begun would have come if they had come evenly (GCRA, ITU-T I.371 annex A). What is refused
//! leaves it as it is. The packet path charges, where a flow begins; the program on the wire only asks,
//! so that no packet is charged twice.

use crate::{
    address::Address,
    flow::FlowKey,
    frontend::FrontendKey,
    header::{self, Network},
    tables::Tables,
    underlay::Underlay,
    wire::Rows,
};

/// A source that was silent may begin as many flows at once as it may in this time.
pub const BURST_NS: u64 = 2_000_000_000;

/// Most flows a second that can be told from any number.
pub const MOST: u32 = 1_000_000;

/// `Settings::new_flow_interval` for so many flows a second, zero for any number.
#[must_use]
pub const fn interval(per_second: u32) -> u32 {
    if per_second == 0 {
        0
    } else if per_second > MOST {
        1_000_000_000 / MOST
    } else {
        1_000_000_000 / per_second
    }
}

/// The number of a source that begins another flow now; `None` if it may not. It is zero for one that
/// is not known.
#[inline(always)]
#[must_use]
pub const fn charge(number: u64, now: u64, interval: u32) -> Option<u64> {
    let from = if number > now { number } else { now };
    let next = from + interval as u64;
    if next - now > BURST_NS { None } else { Some(next) }
}

/// True if the flow in [`crate::tables::FlowTables::parties`] is one more than its source may begin.
#[inline(always)]
pub fn refuses<F: Network, T: Tables<F>>(tables: &mut T) -> bool {
    let interval = tables.settings().new_flow_interval;
    interval != 0 && {
        let origin = tables.parties().client.addr.origin();
        !tables.charge(origin, interval)
    }
}

/// True if a packet without a row of an answered flow would begin one that the packet path is going to
/// refuse. Most are told by the first look-up.
#[inline(always)]
pub fn foresees<F: Underlay, R: Rows<F>>(rows: &mut R, key: &FlowKey<F::Address>) -> bool {
    rows.is_over_rate(key.src.origin())
        && !rows.is_pending(key)
        && rows.is_frontend(&FrontendKey::new(key.dst, key.dst_port, key.proto))
}

/// True for the flags of a packet that may begin a flow, of TCP or UDP.
#[inline(always)]
#[must_use]
pub const fn may_begin(proto: u8, flags: u8) -> bool {
    proto == crate::address::protocol::UDP || header::opens(flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Ipv4, Ipv6};

    /// Flows that a source begins of so many tries, `gap` nanoseconds apart.
    fn begun(per_second: u32, tries: u32, gap: u64) -> u32 {
        let (mut number, mut begun, mut now) = (0, 0, 1 << 40);
        for _ in 0..tries {
            if let Some(next) = charge(number, now, interval(per_second)) {
                number = next;
                begun += 1;
            }
            now += gap;
        }
        begun
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        for per_second in [1, 2, 10, 1_000, MOST] {
            assert_eq!(begun(per_second, 4 * per_second, 0), 2 * per_second, "{per_second}");
        }
        // For ten seconds, ten times too many, and as many as may be.
        assert_eq!(begun(10, 1_000, 10_000_000), 20 + 99);
        assert_eq!(begun(10, 100, 100_000_000), 100);
        assert_eq!(begun(3, 30, 333_333_333), 30);
    }

    #[test]
    fn any_number_is_no_interval() {
        assert_eq!(interval(0), 0);
        assert_eq!(interval(u32::MAX), interval(MOST));
    }

    #[test]
    fn one_source_is_an_address_or_a_network_of_64_bits() {
        let v4 = |last| Ipv4::from_bytes([192, 0, 2, last]).origin();
        assert_ne!(v4(1), v4(2));
        let v6 = |at: usize| {
            let mut bytes = [0x20; 16];
            bytes[at] = 1;
            Ipv6::from_bytes(bytes).origin()
        };
        assert_ne!(v6(7), v6(15));
        assert_ne!(v6(0), v6(7));
        assert_eq!(v6(8), v6(15));
        let documentation = Ipv6::from_raw([0x2001_0db8_u32.to_be(), 0, 0, 0]).origin();
        assert_ne!(documentation, Ipv4::from_raw(0x2001_0db8_u32.to_be()).origin());
    }
}
