//! The lines that a benchmark prints about the times that it took.

use std::fmt;
use std::time::Duration;

/// The median, and a percentile that shows the slow ones.
pub(crate) struct Times {
    pub(crate) median: Duration,
    percentile: usize,
    slow: Duration,
}

impl Times {
    pub(crate) fn of(mut times: Vec<Duration>, percentile: usize) -> Self {
        times.sort();
        Self {
            median: times[times.len() / 2],
            percentile,
            slow: times[times.len() * percentile / 100],
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let Self {
            median,
            percentile,
            slow,
        } = self;
        let (median, slow) = (ms(*median), ms(*slow));
        write!(f, "p50 {median:7.2} ms  p{percentile} {slow:7.2} ms")
    }
}
