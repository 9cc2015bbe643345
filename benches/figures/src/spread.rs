//! Many measurements in four numbers.

use serde::{Deserialize, Serialize};

/// The middle and the upper end of a series. A figure that was measured once has only its `p50`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The value that half of the series does not exceed.
    pub p50: f64,
    /// The value that 99 of 100 do not exceed; of fewer than 100 values, the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// The largest value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// How many values there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
}

impl Spread {
    /// Of a series in any order; `None` of an empty one.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
            values.get(rank).copied()
        };
        Some(Self { p50: at(50)?, p99: at(99), max: values.last().copied(), n: Some(values.len()) })
    }

    /// Of a value that was measured once.
    #[must_use]
    pub fn single(value: f64) -> Self {
        Self { p50: value, p99: None, max: None, n: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_values_of_the_series() {
        let hundred = (1..=100).rev().map(f64::from).collect();
        let spread = Spread::of(hundred).unwrap();
        assert_eq!(
            (spread.p50, spread.p99, spread.max, spread.n),
            (50.0, Some(99.0), Some(100.0), Some(100))
        );
        let three = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.p50, three.p99, three.max), (2.0, Some(3.0), Some(3.0)));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn a_single_value_is_written_without_a_spread() {
        assert_eq!(serde_json::to_string(&Spread::single(7.5)).unwrap(), r#"{"p50":7.5}"#);
    }

    proptest! {
        #[test]
        fn the_middle_is_below_the_end(values in proptest::collection::vec(0.0..1e9f64, 1..300)) {
            let spread = Spread::of(values.clone()).unwrap();
            prop_assert!(spread.p50 <= spread.p99.unwrap() && spread.p99 <= spread.max);
            let not_above = values.iter().filter(|v| **v <= spread.p50).count();
            prop_assert!(not_above * 2 >= values.len());
        }
    }
}
