//! Measures how many processors the machine has, and how many of them were idle lately.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The kernel counts idle time in hundredths of a second; over this time the error is a tenth of a processor.
const WINDOW: Duration = Duration::from_millis(100);

/// Idle processors below which the machine counts as busy.
const BUSY_BELOW: f64 = 0.3;

/// The processors on which sandboxes are created and run.
pub trait Processors: fmt::Debug + Send + Sync {
    /// Returns the number of processors that this process may use, at least 1.
    fn count(&self) -> usize;

    /// Returns the average number of idle processors in the last moments.
    fn idle(&self) -> f64;
}

/// Processors of which a fixed number is idle.
#[derive(Clone, Copy, Debug)]
pub struct FixedProcessors {
    /// Number of processors.
    pub count: usize,
    /// Number of idle processors.
    pub idle: f64,
}

impl Processors for FixedProcessors {
    fn count(&self) -> usize {
        self.count
    }

    fn idle(&self) -> f64 {
        self.idle
    }
}

/// The processors of this machine, as `/proc/uptime` describes them (proc(5)).
#[derive(Debug, Default)]
pub struct HostProcessors {
    last: Mutex<Option<Sample>>,
}

/// The idle time of all processors since the machine started, at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    taken: Instant,
    idle_seconds: f64,
    /// Number of idle processors between the previous sample and this one.
    idle: f64,
}

impl Processors for HostProcessors {
    fn count(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Takes a new sample if the last one is older than a tenth of a second. Without an earlier sample, or without
    /// `/proc`, all processors count as idle.
    fn idle(&self) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sample) = &*last
            && sample.taken.elapsed() < WINDOW
        {
            return sample.idle;
        }
        let all = f64::from(u32::try_from(self.count()).unwrap_or(u32::MAX));
        let Some(idle_seconds) = std::fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(|text| idle_seconds(&text))
        else {
            return all;
        };
        let idle = last.map_or(all, |before| {
            (idle_seconds - before.idle_seconds) / before.taken.elapsed().as_secs_f64()
        });
        *last = Some(Sample {
            taken: Instant::now(),
            idle_seconds,
            idle,
        });
        idle
    }
}

/// Returns whether the machine is busy, so that further work slows down what runs.
pub(super) fn is_busy(processors: &dyn Processors) -> bool {
    processors.idle() < BUSY_BELOW
}

/// Returns the second number of `/proc/uptime`, the idle seconds of all processors together.
fn idle_seconds(text: &str) -> Option<f64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_the_second_number() {
        assert_eq!(idle_seconds("350735.47 234388.90\n"), Some(234_388.90));
        assert_eq!(idle_seconds("350735.47\n"), None);
        assert_eq!(idle_seconds("1 idle\n"), None);
    }

    #[test]
    #[allow(clippy::cast_precision_loss)] // There are few processors.
    fn no_more_processors_are_idle_than_there_are() {
        let processors = HostProcessors::default();
        processors.idle();
        std::thread::sleep(WINDOW * 2);
        let idle = processors.idle();
        // Two readings are each exact to a hundredth of a second for each processor.
        let most = 1.2 * processors.count() as f64;
        assert!((0.0..=most).contains(&idle), "{idle}");
        assert!(processors.last.lock().unwrap().is_some(), "/proc was read");
    }
}
