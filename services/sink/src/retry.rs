//! Patience with a failing environment: how long to wait, and how often to say so.
//!
//! This is the circuit breaker towards PostgreSQL and Kafka, too. While an operation fails, nothing else of its lane runs, so
//! the next try is the one probe; tries of different lanes and processes fall apart by jitter; the pool bounds
//! connections. Nothing is counted as open, half-open or closed beside that, because nothing else would be sent. Since when
//! an operation fails, and when its next try is, the status shows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cdc_postgres::Disposition;

use crate::SinkMetrics;

const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Short enough that a recovered database is used at once, long enough not to burden one that is starting.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// Someone has to act first, so there is no haste.
const HALT_DELAY: Duration = Duration::from_secs(30);
const REMINDER: Duration = Duration::from_secs(10);

/// The state of one operation that is tried until it succeeds.
pub(crate) struct Patience {
    what: String,
    delay: Duration,
    failing: Option<Failing>,
    /// Where it is shown, and under which name.
    shown: Option<(Arc<SinkMetrics>, String)>,
}

struct Failing {
    since: Instant,
    said: Instant,
    disposition: Disposition,
}

impl Patience {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), delay: FIRST_DELAY, failing: None, shown: None }
    }

    /// Shows in the status what fails.
    pub(crate) fn shown(self, metrics: &Arc<SinkMetrics>, name: impl Into<String>) -> Self {
        Self { shown: Some((Arc::clone(metrics), name.into())), ..self }
    }

    pub(crate) fn succeeded(&mut self) {
        if let Some(failing) = self.failing.take() {
            let seconds = failing.since.elapsed().as_secs_f64();
            tracing::info!(seconds, "{} works again", self.what);
            if let Some((metrics, name)) = &self.shown {
                metrics.works(name);
            }
        }
        self.delay = FIRST_DELAY;
    }

    /// How long to wait before the next try. Logs when the state changes, and now and then while it lasts.
    pub(crate) fn failed(&mut self, disposition: Disposition, error: &dyn std::error::Error) -> Duration {
        let now = Instant::now();
        let known = self.failing.as_ref().filter(|failing| failing.disposition == disposition);
        let say = known.is_none_or(|failing| now - failing.said >= REMINDER);
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        if say {
            let (error, seconds) = (crate::error::chain(error), (now - since).as_secs_f64());
            match disposition {
                Disposition::Retry => {
                    tracing::warn!(error, seconds, "{} fails; trying on, positions are held", self.what);
                }
                Disposition::Quarantine | Disposition::Halt => {
                    tracing::error!(
                        error,
                        seconds,
                        "{} is halted until the cause is removed; positions are held",
                        self.what
                    );
                }
            }
        }
        let said = if say { now } else { known.map_or(now, |failing| failing.said) };
        self.failing = Some(Failing { since, said, disposition });
        let delay = match disposition {
            Disposition::Retry => {
                let delay = self.delay;
                self.delay = (delay * 2).min(LONGEST_DELAY);
                delay.mul_f64(rand::random_range(0.5..1.0))
            }
            Disposition::Quarantine | Disposition::Halt => HALT_DELAY,
        };
        if let Some((metrics, name)) = &self.shown {
            metrics.failing(name, error, since, Some((disposition, now + delay)));
        }
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_limit_and_start_over_after_success() {
        let mut patience = Patience::new("test");
        let error = std::io::Error::other("refused");
        let delays: Vec<Duration> = (0..12).map(|_| patience.failed(Disposition::Retry, &error)).collect();
        assert!(delays[0] <= FIRST_DELAY && delays[11] >= LONGEST_DELAY / 2 && delays[11] <= LONGEST_DELAY);
        assert_eq!(patience.failed(Disposition::Halt, &error), HALT_DELAY);
        patience.succeeded();
        assert!(patience.failed(Disposition::Retry, &error) <= FIRST_DELAY);
    }
}
