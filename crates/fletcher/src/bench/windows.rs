//! Throughput over time.
//!
//! A batch counts evenly over the time from its hand-over to its return, so that a window's rate
//! does not depend on whether a batch ends just before or just behind its border.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Bins per window.
const BINS: usize = 10;
const BIN: Duration = Duration::from_millis(100);

/// Rows done in each tenth of a second since the start.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    bins: Vec<f64>,
}

/// Rates of the whole 1-second windows of a run, in rows a second.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Windows {
    pub(crate) count: usize,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Half of the distance between the tenth and the ninetieth percentile, as a share of the
    /// median.
    pub(crate) spread: f64,
    /// The best second, wherever it begins.
    pub(crate) peak: f64,
}

impl Timeline {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, bins: Vec::new() }
    }

    /// Counts rows that took from `from` to `to`.
    pub(crate) fn add(&mut self, rows: usize, from: Instant, to: Instant) {
        let at = |time: Instant| time.duration_since(self.start).as_secs_f64() / BIN.as_secs_f64();
        let (from, to) = (at(from), at(to).max(at(from) + 1e-9));
        let last = to.ceil() as usize;
        if self.bins.len() < last {
            self.bins.resize(last, 0.0);
        }
        for (bin, count) in self.bins.iter_mut().enumerate().take(last).skip(from as usize) {
            let overlap = to.min(bin as f64 + 1.0) - from.max(bin as f64);
            *count += rows as f64 * overlap.max(0.0) / (to - from);
        }
    }

    /// Rates of whole seconds, one after the other, less the first and the last, in which the
    /// queue fills and drains.
    pub(crate) fn rates(&self) -> Vec<f64> {
        let whole = self.bins.chunks_exact(BINS).map(|window| window.iter().sum());
        let rates: Vec<f64> = whole.collect();
        match rates.len() {
            0..=2 => rates,
            many => rates[1..many - 1].to_vec(),
        }
    }

    /// `None` for a run of less than a second.
    pub(crate) fn windows(&self) -> Option<Windows> {
        let mut rates = self.rates();
        rates.sort_by(f64::total_cmp);
        let (min, max) = (*rates.first()?, *rates.last()?);
        let median = quantile(&rates, 0.5);
        let peak = self.bins.windows(BINS).map(|window| window.iter().sum()).fold(0.0, f64::max);
        let spread = (quantile(&rates, 0.9) - quantile(&rates, 0.1)) / 2.0 / median;
        Some(Windows { count: rates.len(), median, min, max, spread, peak })
    }
}

/// A quantile of sorted values, between its neighbours.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q * last as f64;
    let (low, part) = (place as usize, place.fract());
    let high = sorted[(low + 1).min(last)];
    sorted[low] + part * (high - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_spread_over_the_time_they_took() {
        let start = Instant::now();
        let mut timeline = Timeline::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        for second in 0..5 {
            timeline.add(100, at(1000 * second), at(1000 * second + 500));
            timeline.add(60, at(1000 * second + 500), at(1000 * second + 1000));
        }
        let windows = timeline.windows().unwrap();
        assert_eq!(windows.count, 3);
        assert!((windows.median - 160.0).abs() < 1e-6, "{windows:?}");
        assert!(windows.spread < 1e-6 && (windows.peak - 160.0).abs() < 1e-6, "{windows:?}");
        assert!(Timeline::new(start).windows().is_none());
    }

    #[test]
    fn quantiles_lie_between() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
