//! Rounds: slices of about 20 ms by several ways that alternate, A B B A.

use anyhow::Result;
use lab::bench::Round;

use super::statistics::{mean, median};

/// What a round says of one way, in seconds for each piece.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Time {
    pub(super) median: f64,
    pub(super) mean: f64,
    /// Logarithm of the time over that of the reference in the slices beside it.
    pub(super) over_reference: f64,
    /// Datagrams that did not arrive.
    pub(super) lost: u64,
}

/// A round is cut into slices, and those of all ways alternate: what the machine does
/// beside changes little within so short a time.
pub(super) const SLICES: usize = 11;

/// One round by so many ways: what drifts over a round meets all of them alike. The answer has
/// one time for each way, in their order.
pub(super) fn alternate(
    ways: usize,
    reference: usize,
    mut slice: impl FnMut(usize) -> Result<Round>,
) -> Result<Vec<Time>> {
    let mut order: Vec<usize> = (0..ways).collect();
    let mut slices = vec![Vec::with_capacity(SLICES); ways];
    for _ in 0..SLICES {
        for &way in &order {
            let round = slice(way)?;
            let seconds: Vec<f64> = round.pieces.iter().map(|&nanos| nanos as f64 / 1e9).collect();
            slices[way].push(Time {
                median: median(&seconds),
                mean: mean(&seconds),
                over_reference: 0.0,
                lost: round.lost,
            });
        }
        order.reverse();
    }
    Ok(slices.iter().map(|own| whole(own, &slices[reference])).collect())
}

fn whole(own: &[Time], reference: &[Time]) -> Time {
    let of = |figure: fn(&Time) -> f64| median(&own.iter().map(figure).collect::<Vec<_>>());
    let beside = own.iter().zip(reference).map(|(own, other)| (own.median / other.median).ln());
    Time {
        median: of(|slice| slice.median),
        mean: of(|slice| slice.mean),
        over_reference: median(&beside.collect::<Vec<_>>()),
        lost: own.iter().map(|slice| slice.lost).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_alternate_and_drift_falls_out() {
        let mut order = Vec::new();
        // Way 1 takes twice as long as way 0, and all gets slower from slice to slice.
        let times = alternate(2, 0, |way| {
            order.push(way);
            let nanos = 1_000 * (1 + way as u64) * (100 + order.len() as u64);
            Ok(Round { pieces: vec![nanos; 3], lost: 1 })
        })
        .unwrap();
        assert_eq!(order[..6], [0, 1, 1, 0, 0, 1]);
        assert_eq!(order.len(), 2 * SLICES);
        assert!((times[1].over_reference.exp() - 2.0).abs() < 0.03, "{times:?}");
        assert!(times[0].over_reference.abs() < f64::EPSILON);
        assert_eq!(times[1].lost, SLICES as u64);
    }
}
