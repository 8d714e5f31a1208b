//! How many clean sandboxes a runtime needs, by what is taken of late.

use std::time::Duration;

use tokio::time::Instant;

/// Time constant of the decay: a sandbox that was taken this long ago counts a third.
const MEMORY: Duration = Duration::from_secs(60);

/// As many wait as are taken while one is made, times this: requests come in bursts.
const BURST: f64 = 3.0;

/// The demand for one runtime's clean sandboxes.
#[derive(Debug)]
pub(super) struct Demand {
    /// Per second, as of `updated`.
    rate: f64,
    updated: Instant,
    /// How long making one takes.
    making: Duration,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            rate: 0.0,
            updated: Instant::now(),
            making: Duration::ZERO,
        }
    }
}

impl Demand {
    /// Notes that a sandbox was taken, or had to be made because none was idle.
    pub(super) fn taken(&mut self) {
        self.rate = self.rate_now() + 1.0 / MEMORY.as_secs_f64();
        self.updated = Instant::now();
    }

    /// Notes that a sandbox was made, and how long that took.
    pub(super) fn made(&mut self, time: Duration) {
        self.making = if self.making.is_zero() {
            time
        } else {
            (self.making * 3 + time) / 4
        };
    }

    /// Average duration of making one; zero while none is known.
    pub(super) fn making(&self) -> Duration {
        self.making
    }

    /// How many should wait, within `least` and `most`.
    pub(super) fn clean(&self, least: usize, most: usize) -> usize {
        let wanted = (self.rate_now() * self.making.as_secs_f64() * BURST).ceil();
        // A float cast saturates, and the number is small.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (wanted as usize).clamp(least, most.max(least))
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
        assert_eq!(demand.clean(1, 8), 1);
        demand.made(Duration::from_millis(500));
        for _ in 0..600 {
            demand.taken();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Two a second, half a second each: one while one is made, three with bursts.
        assert_eq!(demand.clean(1, 8), 3);
        assert_eq!(demand.clean(1, 2), 2);
        for _ in 0..20 {
            demand.made(Duration::from_secs(5));
        }
        assert_eq!(demand.clean(1, 8), 8);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(demand.clean(1, 8), 1);
        assert_eq!(demand.clean(0, 8), 1, "somebody came, not long ago");
        tokio::time::sleep(Duration::from_secs(36_000)).await;
        assert_eq!(demand.clean(0, 8), 1);
    }
}
