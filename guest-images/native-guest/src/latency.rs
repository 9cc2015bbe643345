//! How long requests took: a histogram of bounded size.

use alloc::vec;
use alloc::vec::Vec;

/// Steps per power of two: values are kept to about 3 %.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.ilog2();

/// Durations in nanoseconds, kept to about 3 %; their greatest exactly.
#[derive(Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
    max_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let buckets = bucket(u64::MAX) + 1;
        Self { counts: vec![0; buckets], total: 0, max_ns: 0 }
    }
}

impl Latencies {
    /// Takes note of one.
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The longest, microseconds.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.max_ns / 1000
    }

    /// What `percent` of them did not exceed, microseconds with one decimal as (whole, tenths); 0 if there are none.
    #[must_use]
    pub fn percentile_us(&self, percent: u64) -> (u64, u64) {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let ns = found.map_or(0, |index| upper_end(index).min(self.max_ns));
        (ns / 1000, ns % 1000 / 100)
    }
}

fn bucket(ns: u64) -> usize {
    let power = ns.max(STEPS).ilog2() - STEP_BITS;
    usize::try_from(u64::from(power) * STEPS + (ns >> power)).unwrap_or(0)
}

/// The greatest value of a bucket.
fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let power = index / STEPS - 1;
    let step = index - power * STEPS;
    ((u128::from(step) + 1) << power).saturating_sub(1).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_set() {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|us| latencies.add(us * 1000));
        assert_eq!((latencies.total(), latencies.max_us()), (100, 100));
        let (p50, p99) = (latencies.percentile_us(50).0, latencies.percentile_us(99).0);
        assert!((50..=52).contains(&p50) && (99..=100).contains(&p99), "{p50} {p99}");
        assert_eq!(Latencies::default().percentile_us(50), (0, 0));
    }

    proptest::proptest! {
        #[test]
        fn a_bucket_ends_at_most_a_step_above_its_values(ns: u64) {
            let end = upper_end(bucket(ns));
            assert!(end >= ns && end - ns <= ns / (STEPS - 1), "{ns} in a bucket that ends at {end}");
        }
    }
}
