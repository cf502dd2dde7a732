//! From backends to the slots of their set. The programs choose among slots, and know nothing of
//! weights: one with more weight stands in more slots.

use datapath::algorithm::Algorithm;

use crate::{desired::DesiredBackend, maglev};

/// Longest set: its count is 16 bits wide, and each slot may bear another generation.
pub const LONGEST_SET: usize = 65_000;

/// Slots for each backend, on average, that weights may take: so many tell them apart to a
/// hundredth.
const PER_BACKEND: u64 = 100;

/// The slots of a set; `backends` sorted, each once, none of weight zero.
#[must_use]
pub fn slots(
    backends: Vec<DesiredBackend>,
    weight_of: impl Fn(&DesiredBackend) -> u16,
    algorithm: Algorithm,
) -> Vec<DesiredBackend> {
    let weights: Vec<u64> = backends.iter().map(|backend| weight_of(backend).into()).collect();
    let is_even = weights.windows(2).all(|pair| pair[0] == pair[1]);
    // By whatever algorithm one is the one.
    if backends.len() < 2 || (is_even && algorithm != Algorithm::Maglev) {
        return backends;
    }
    let turns = turns(&reduced(weights));
    let slots = match algorithm {
        Algorithm::Maglev => maglev::table(&backends, &turns),
        _ => turns,
    };
    slots.into_iter().map(|nth| backends[nth]).collect()
}

/// The backends of a set, each once, in the order of their places: the set to make do with where there
/// is no room for a longer one. Nodes that have the same backends still agree on it.
#[must_use]
pub fn once_each(slots: &[DesiredBackend]) -> Vec<DesiredBackend> {
    let mut backends = slots.to_vec();
    backends.sort_unstable_by_key(DesiredBackend::place);
    backends.dedup();
    backends
}

/// The same proportions, as nearly as there is room for, in numbers as small as can be.
fn reduced(mut weights: Vec<u64>) -> Vec<u64> {
    let count = weights.len() as u64;
    let room = (PER_BACKEND * count).min(LONGEST_SET as u64);
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u64 = weights.iter().sum::<u64>() / divisor;
    for weight in &mut weights {
        *weight /= divisor;
        if sum > room {
            // Less the one slot that each has at least.
            *weight = 1 + (*weight * (room - count)) / sum;
        }
    }
    weights
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Places of backends, each as often as it weighs, spread evenly, so that taking turns sends
/// nobody many connections in a row.
fn turns(weights: &[u64]) -> Vec<usize> {
    let mut turns: Vec<(u64, usize)> = Vec::new();
    for (nth, &weight) in weights.iter().enumerate() {
        // Of a round of length 1, in 2^-32.
        turns.extend((0..weight).map(|turn| (((2 * turn + 1) << 31) / weight, nth)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, nth)| nth).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use proptest::prelude::*;

    use super::*;

    fn backend(nth: usize) -> DesiredBackend {
        let address = IpAddr::from([10, 1, (nth >> 8) as u8, nth as u8]);
        DesiredBackend { address, port: 80, local: false }
    }

    /// How many slots each has.
    fn shares(weights: &[u16], algorithm: Algorithm) -> Vec<usize> {
        let backends: Vec<_> = (0..weights.len()).map(backend).collect();
        let weight_of = |wanted: &DesiredBackend| {
            weights[backends.iter().position(|backend| backend == wanted).unwrap()]
        };
        let mut shares = BTreeMap::new();
        for slot in slots(backends.clone(), weight_of, algorithm) {
            *shares.entry(slot).or_default() += 1;
        }
        backends.iter().map(|backend| shares[backend]).collect()
    }

    #[test]
    fn without_weights_each_has_one() {
        for algorithm in [Algorithm::Random, Algorithm::RoundRobin, Algorithm::SourceHash] {
            assert_eq!(shares(&[1, 1, 1], algorithm), [1, 1, 1]);
            assert_eq!(shares(&[7, 7], algorithm), [1, 1]);
        }
        assert_eq!(slots(Vec::new(), |_| 1, Algorithm::Maglev), []);
        assert_eq!(shares(&[3], Algorithm::Maglev), [1], "by whatever way it is the one");
    }

    #[test]
    fn weights_are_slots() {
        assert_eq!(shares(&[1, 2, 3], Algorithm::Random), [1, 2, 3]);
        assert_eq!(shares(&[10, 20, 30], Algorithm::Random), [1, 2, 3]);
        assert_eq!(shares(&[1, 65_535], Algorithm::Random), [1, 198]);
    }

    #[test]
    fn where_room_is_short_each_has_one() {
        let backends: Vec<_> = (0..3).map(backend).collect();
        let table = slots(backends.clone(), |_| 1, Algorithm::Maglev);
        assert_eq!((table.len(), once_each(&table)), (509, backends));
    }

    #[test]
    fn turns_are_spread() {
        assert_eq!(turns(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(turns(&[4, 2, 1]), [0, 1, 0, 2, 0, 1, 0]);
    }

    #[test]
    fn maglevs_table_has_weights_too() {
        let shares = shares(&[1, 3], Algorithm::Maglev);
        assert!(shares[1].abs_diff(3 * shares[0]) <= 3, "{shares:?}");
    }

    proptest! {
        #[test]
        fn every_backend_has_its_share(weights in prop::collection::vec(1..=1000_u16, 1..40)) {
            let shares = shares(&weights, Algorithm::Random);
            let (sum, slots): (usize, usize) =
                (weights.iter().map(|&weight| usize::from(weight)).sum(), shares.iter().sum());
            prop_assert!(slots <= (PER_BACKEND as usize) * weights.len());
            for (&weight, &share) in weights.iter().zip(&shares) {
                let wanted = usize::from(weight) * slots / sum;
                prop_assert!(share > 0);
                prop_assert!(share.abs_diff(wanted) <= 2 + wanted / 32, "{wanted} {share}");
            }
        }
    }
}
