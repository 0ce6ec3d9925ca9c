//! Counts how often values of each magnitude occurred, for openraft's statistics of its own work.
//!
//! This takes the place of the crate of the same name, with the parts of its interface that openraft
//! uses. That one fills lookup tables for sixteen resolutions at the first use and keeps them: 25 MB,
//! more than all else in a daemon that has nothing to do. When it makes its tables on demand, this
//! crate can go, with its line in the root manifest.
//!
//! There is one resolution here, a bucket for each number of bits, so a percentile is the power of two
//! below the value. The platform reads none of it.

use std::{fmt, marker::PhantomData};

/// Zero, and one for each number of bits.
const BUCKETS: usize = u64::BITS as usize + 1;

/// `T` is what the original can attach to periods of time; there are no periods here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    of: PhantomData<T>,
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Histogram {
            counts: [0; BUCKETS],
            of: PhantomData,
        }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: u64, count: u64) {
        self.counts[bucket(value)] += count;
    }

    /// How many values were recorded.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The least value of the bucket in which the `share` (0 to 1) smallest values end; 0 without values.
    pub fn percentile(&self, share: f64) -> u64 {
        let rank = (self.total() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return least(index);
            }
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of bits that the value has.
fn bucket(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// The least value with so many bits.
fn least(bits: usize) -> u64 {
    bits.checked_sub(1).map_or(0, |shift| 1 << shift)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PercentileStats {
            samples,
            p50,
            p90,
            p99,
            ..
        } = self;
        write!(out, "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}]")
    }
}

/// Histograms side by side, a line for each bucket that has values.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    series: Vec<(String, Histogram)>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    pub fn detailed(&self) -> String {
        let mut lines = String::new();
        for (name, histogram) in &self.series {
            lines += &format!("{name}:\n");
            let filled = histogram
                .counts
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0);
            for (bits, count) in filled {
                lines += &format!("  from {}: {count}\n", least(bits));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_by_their_magnitude() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        for value in [0, 1, 5, 6, 7, u64::MAX] {
            histogram.record(value);
        }
        assert_eq!(histogram.total(), 6);
        assert_eq!(histogram.percentile(0.0), 0);
        assert_eq!(histogram.percentile(0.5), 4);
        assert_eq!(histogram.percentile(1.0), 1 << 63);
        assert_eq!(histogram.percentile_stats().p90, 1 << 63);
    }

    #[test]
    fn a_chart_has_a_line_for_each_magnitude() {
        let mut histogram = Histogram::new();
        histogram.record_n(5, 3);
        assert_eq!(
            AsciiChart::new().add("batches", histogram).detailed(),
            "batches:\n  from 4: 3\n"
        );
    }
}
