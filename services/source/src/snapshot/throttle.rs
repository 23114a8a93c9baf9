//! How fast a snapshot reads: not faster than configured, and slower while Cassandra gets slower by it.

use std::time::{Duration, Instant};

/// What a page takes counts as normal below this, whatever it took before: a cached page takes next to nothing.
const UNREMARKABLE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A page that takes so much longer than the quickest ones shows a node that has too much to do.
const SLOWER: u32 = 2;
/// What is normal rises by this part with each page, so that a node that stays slower is read on in time.
const DRIFT: u32 = 50;

/// Shared by the ranges that are read at a time.
#[derive(Debug)]
pub(super) struct Throttle {
    rows_per_second: Option<u32>,
    /// When the rows read so far are paid for.
    free_at: Option<Instant>,
    normal: Option<Duration>,
    pause: Duration,
}

impl Throttle {
    pub(super) fn new(rows_per_second: Option<u32>) -> Self {
        Self { rows_per_second, free_at: None, normal: None, pause: Duration::ZERO }
    }

    /// A page of so many rows took so long; how long to wait before the next. A page that was not full says nothing of the
    /// server's speed.
    pub(super) fn read(&mut self, now: Instant, rows: usize, is_full: bool, took: Duration) -> Duration {
        if is_full {
            let normal = self.normal.map_or(took, |normal| (normal + normal / DRIFT).min(took));
            self.normal = Some(normal);
            self.pause = if took > SLOWER * normal.max(UNREMARKABLE) {
                (2 * self.pause).max(took).min(PAUSE_MAX)
            } else if self.pause > UNREMARKABLE {
                self.pause / 2
            } else {
                Duration::ZERO
            };
        }
        let Some(rate) = self.rows_per_second else { return self.pause };
        let price =
            Duration::from_secs_f64(u32::try_from(rows).map_or(f64::from(u32::MAX), f64::from) / f64::from(rate));
        let free_at = self.free_at.map_or(now, |at| at.max(now)) + price;
        self.free_at = Some(free_at);
        self.pause.max(free_at - now)
    }

    /// Of slowness alone.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pages(throttle: &mut Throttle, count: usize, took: Duration) -> Duration {
        let now = Instant::now();
        (0..count).map(|_| throttle.read(now, 1000, true, took)).last().unwrap_or_default()
    }

    #[test]
    fn no_more_rows_are_read_than_configured() {
        let mut throttle = Throttle::new(Some(1000));
        let begin = Instant::now();
        let mut now = begin;
        for _ in 0..10 {
            now += throttle.read(now, 500, true, MS);
        }
        assert_eq!(now - begin, Duration::from_secs(5));
        // What was not used is not saved up.
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.read(later, 500, true, MS), 500 * MS);
    }

    #[test]
    fn reading_pauses_while_pages_take_twice_as_long_and_goes_on_when_they_do_not() {
        let mut throttle = Throttle::new(None);
        assert_eq!(pages(&mut throttle, 5, 50 * MS), Duration::ZERO);
        assert_eq!(pages(&mut throttle, 1, 90 * MS), Duration::ZERO);
        assert_eq!(pages(&mut throttle, 1, 150 * MS), 150 * MS);
        assert_eq!(pages(&mut throttle, 1, 150 * MS), 300 * MS);
        assert_eq!(pages(&mut throttle, 20, Duration::from_secs(2)), PAUSE_MAX);
        assert_eq!(pages(&mut throttle, 10, 50 * MS), Duration::ZERO);
    }

    #[test]
    fn a_server_that_stays_slower_is_read_on_without_pauses_in_the_end() {
        let mut throttle = Throttle::new(None);
        pages(&mut throttle, 5, 50 * MS);
        assert!(pages(&mut throttle, 5, 200 * MS) > Duration::ZERO);
        assert_eq!(pages(&mut throttle, 60, 200 * MS), Duration::ZERO);
    }

    #[test]
    fn short_pages_and_quick_ones_tell_nothing() {
        let mut throttle = Throttle::new(None);
        pages(&mut throttle, 5, MS);
        assert_eq!(pages(&mut throttle, 5, 15 * MS), Duration::ZERO);
        assert_eq!(throttle.read(Instant::now(), 3, false, Duration::from_secs(9)), Duration::ZERO);
    }
}
