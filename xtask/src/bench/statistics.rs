//! Numbers from measurements: quantiles, and ratios with the interval they are known to.

/// A ratio and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Ratio {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Paired samples that it rests on.
    pub(super) pairs: usize,
}

/// A ratio is known well enough when its interval reaches this far to each side.
const REACH: f64 = 0.015;

impl Ratio {
    /// From logarithms of quotients, by their mean and Student's interval; `None` for fewer
    /// than two.
    pub(super) fn of_logs(logs: &[f64]) -> Option<Self> {
        let (mean, error) = mean_and_error(logs)?;
        let reach = student(logs.len() - 1) * error;
        Some(Self {
            value: mean.exp(),
            low: (mean - reach).exp(),
            high: (mean + reach).exp(),
            pairs: logs.len(),
        })
    }

    /// Half the width of the interval, relative to the ratio.
    pub(super) fn reach(&self) -> f64 {
        (self.high / self.low).sqrt() - 1.0
    }

    /// Whether its interval reaches so little to each side that more rounds would tell no more.
    pub(super) fn is_known(&self) -> bool {
        self.reach() < REACH
    }

    /// How this ratio compares with another that was measured apart.
    pub(super) fn over(&self, other: &Self) -> Self {
        let log = (self.value / other.value).ln();
        let half = |ratio: &Self| (ratio.high / ratio.low).ln() / 2.0;
        let reach = half(self).hypot(half(other));
        Self {
            value: log.exp(),
            low: (log - reach).exp(),
            high: (log + reach).exp(),
            pairs: self.pairs.min(other.pairs),
        }
    }
}

/// Mean and its standard error.
fn mean_and_error(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 2 {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (squares / (count - 1.0) / count).sqrt()))
}

/// Student's t for a two-sided interval of 95 %, by degrees of freedom.
fn student(freedom: usize) -> f64 {
    const FIRST: [f64; 10] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    match freedom {
        0 => f64::INFINITY,
        1..=10 => FIRST[freedom - 1],
        // Cornish and Fisher's expansion, right to three digits from here on.
        _ => {
            let z: f64 = 1.959_964;
            let n = freedom as f64;
            let first = (z.powi(3) + z) / 4.0;
            let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
            let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
            z + first / n + second / n.powi(2) + third / n.powi(3)
        }
    }
}

/// The smallest value that this part of all values does not exceed; of none, 0.
pub(super) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

pub(super) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

pub(super) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_that_never_varies_is_known_exactly() {
        let ratio = Ratio::of_logs(&[0.97_f64.ln(); 3]).unwrap();
        assert!((ratio.value - 0.97).abs() < 1e-12);
        assert!(ratio.reach() < 1e-9);
        assert_eq!(ratio.pairs, 3);
    }

    #[test]
    fn the_interval_is_students() {
        // Logs 0.00, 0.02: mean 0.01, standard error 0.01, one degree of freedom.
        let ratio = Ratio::of_logs(&[0.0, 0.02]).unwrap();
        assert!((ratio.value.ln() - 0.01).abs() < 1e-12);
        assert!((ratio.high.ln() - (0.01 + 12.706 * 0.01)).abs() < 1e-9);
        assert!((ratio.low.ln() - (0.01 - 12.706 * 0.01)).abs() < 1e-9);
        assert_eq!(Ratio::of_logs(&[0.0]), None);
    }

    #[test]
    fn students_t_is_that_of_the_tables() {
        for (freedom, t) in [(1, 12.706), (10, 2.228), (11, 2.201), (19, 2.093), (39, 2.023)] {
            assert!((student(freedom) - t).abs() < 0.001, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn two_ratios_compare_with_the_doubt_of_both() {
        let narrow = Ratio { value: 0.98, low: 0.98, high: 0.98, pairs: 9 };
        let wide = Ratio { value: 0.98, low: 0.97, high: 0.98 * 0.98 / 0.97, pairs: 20 };
        let both = narrow.over(&wide);
        assert!((both.value - 1.0).abs() < 1e-12);
        assert!((both.low - 0.97 / 0.98).abs() < 1e-9);
        assert_eq!(both.pairs, 9);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((quantile(&values, 0.99) - 198.0).abs() < f64::EPSILON);
        assert!((quantile(&values, 1.0) - 200.0).abs() < f64::EPSILON);
        assert!((median(&values) - 100.0).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
        assert!((median(&[7.0]) - 7.0).abs() < f64::EPSILON);
    }
}
