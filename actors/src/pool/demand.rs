//! Estimates how many clean sandboxes of a kind are needed, from those that were taken lately.

use std::time::Duration;

use tokio::time::Instant;

/// Time constant of the decay: a sandbox that was taken this long ago counts for about a third (1/e).
const MEMORY: Duration = Duration::from_secs(60);

/// As many clean sandboxes are kept as are taken during one creation, times this factor, because requests come in
/// bursts.
const BURST: f64 = 3.0;

/// The demand for clean sandboxes of one kind.
#[derive(Debug)]
pub(super) struct Demand {
    /// Sandboxes taken per second, as of `updated`.
    rate: f64,
    updated: Instant,
    /// Average duration of a creation.
    create_time: Duration,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            rate: 0.0,
            updated: Instant::now(),
            create_time: Duration::ZERO,
        }
    }
}

impl Demand {
    /// Notes that a sandbox was taken, or had to be created because none was idle.
    pub(super) fn note_taken(&mut self) {
        self.rate = self.rate_now() + 1.0 / MEMORY.as_secs_f64();
        self.updated = Instant::now();
    }

    /// Notes that a sandbox was created, and how long that took.
    pub(super) fn note_created(&mut self, time: Duration) {
        self.create_time = if self.create_time.is_zero() {
            time
        } else {
            (self.create_time * 3 + time) / 4
        };
    }

    /// Returns the average duration of a creation; zero while none is known.
    pub(super) fn create_time(&self) -> Duration {
        self.create_time
    }

    /// Returns how many clean sandboxes should be idle, between `min` and `max`.
    pub(super) fn target(&self, min: usize, max: usize) -> usize {
        let wanted = (self.rate_now() * self.create_time.as_secs_f64() * BURST).ceil();
        // A float cast saturates, and the number is small.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (wanted as usize).clamp(min, max.max(min))
    }

    fn rate_now(&self) -> f64 {
        let past = self.updated.elapsed().as_secs_f64() / MEMORY.as_secs_f64();
        self.rate * (-past).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_number_follows_the_rate_and_the_time_that_making_takes() {
        let mut demand = Demand::default();
        assert_eq!(demand.target(1, 8), 1);
        demand.note_created(Duration::from_millis(500));
        for _ in 0..600 {
            demand.note_taken();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Two a second, half a second each: one while one is made, three with bursts.
        assert_eq!(demand.target(1, 8), 3);
        assert_eq!(demand.target(1, 2), 2);
        for _ in 0..20 {
            demand.note_created(Duration::from_secs(5));
        }
        assert_eq!(demand.target(1, 8), 8);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(demand.target(1, 8), 1);
        assert_eq!(demand.target(0, 8), 1, "a request came, not long ago");
        tokio::time::sleep(Duration::from_secs(36_000)).await;
        assert_eq!(demand.target(0, 8), 1);
    }
}
