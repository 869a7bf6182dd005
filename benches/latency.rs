//! Latencies with their tail: criterion's estimate is of the mean, and a mean hides what clients wait for.

use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When it was due.
    pub since: Instant,
    /// Its latency.
    pub took: Duration,
}

/// Latencies, exact to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    ///
    /// # Panics
    /// Never: the bounds are fixed and valid.
    pub fn new() -> Self {
        let minute = 60_000_000_000;
        Self(Histogram::new_with_bounds(100, minute, 3).expect("fixed and valid bounds"))
    }

    /// Adds one; more than a minute counts as a minute.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Adds all of `other`.
    ///
    /// # Panics
    /// Never: all have the same bounds.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the same bounds");
    }

    /// The latency that the share `quantile` of all does not exceed, in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "at most a minute in nanoseconds"
    )]
    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

impl<'a> FromIterator<&'a Answered> for Latencies {
    fn from_iter<I: IntoIterator<Item = &'a Answered>>(answered: I) -> Self {
        let mut latencies = Self::new();
        answered
            .into_iter()
            .for_each(|request| latencies.record(request.took));
        latencies
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| self.micros(quantile));
        write!(
            f,
            "p50 {p50:.1} us, p99 {p99:.1} us, p99.9 {p999:.1} us ({} samples)",
            self.count()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_all_that_was_added() {
        let mut all = Latencies::new();
        let mut other = Latencies::new();
        for micros in 1..=500 {
            all.record(Duration::from_micros(micros));
            other.record(Duration::from_micros(500 + micros));
        }
        all.add(&other);
        assert_eq!(all.count(), 1000);
        assert!((all.micros(0.5) - 500.0).abs() < 1.0);
        assert!((all.micros(0.99) - 990.0).abs() < 1.0);
    }
}
