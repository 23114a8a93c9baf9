//! Measures the delay from Cassandra's acknowledgement of a write to its visibility in PostgreSQL, as a client of both
//! sees it: the clock stops when the answer that contains the row has arrived, so the poll's own time is included.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use crate::Sample;

/// Its mean of 1 ms is in every delay; half of it would cost the servers on a small machine a quarter of a core.
const POLL_PERIOD: Duration = Duration::from_millis(2);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// One poll asks for this many of the oldest and of the newest rows each: a stuck row hides none of the others.
const ASKED_OF_EACH_END: usize = 64;
/// Beyond this the backlog speaks for itself; further samples are counted as skipped.
const MOST_PENDING: usize = 8_192;
/// A longer one counts as this.
const LONGEST_DELAY_US: u64 = 3_600_000_000;
#[derive(Debug)]
pub struct Delays {
    total: Histogram<u64>,
    recent: Histogram<u64>,
    pending: usize,
    skipped: u64,
}

impl Delays {
    fn new() -> Self {
        // With bounds, as a histogram that grows by itself does not do so for a saturating record.
        let histogram = || Histogram::new_with_max(LONGEST_DELAY_US, 3).expect("the bounds are valid");
        Self { total: histogram(), recent: histogram(), pending: 0, skipped: 0 }
    }

    /// Milliseconds at this percentile (0 to 100) over the whole run; 0 without samples.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        milliseconds(&self.total, percentile)
    }

    /// The same since the last call of [`Self::forget_recent`].
    pub fn recent_percentile_ms(&self, percentile: f64) -> f64 {
        milliseconds(&self.recent, percentile)
    }

    pub fn forget_recent(&mut self) {
        self.recent.reset();
    }

    pub fn count(&self) -> u64 {
        self.total.len()
    }

    pub fn max_ms(&self) -> f64 {
        milliseconds(&self.total, 100.0)
    }

    /// Samples acknowledged and not yet visible.
    pub fn pending(&self) -> usize {
        self.pending
    }

    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn record(&mut self, delay: Duration) {
        let microseconds = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.total.saturating_record(microseconds);
        self.recent.saturating_record(microseconds);
    }
}

fn milliseconds(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    Duration::from_micros(histogram.value_at_percentile(percentile)).as_secs_f64() * 1e3
}

pub struct DelayProbe {
    postgres: tokio_postgres::Config,
    query: String,
    samples: mpsc::Receiver<Sample>,
    pending: Vec<Sample>,
    delays: Arc<Mutex<Delays>>,
}

impl DelayProbe {
    /// Watches `table` (as SQL names it, such as `public.cdc_users`) by its column `id`.
    pub fn new(postgres: tokio_postgres::Config, table: &str, samples: mpsc::Receiver<Sample>) -> Self {
        let query = format!("select id from {table} where id = any($1)");
        Self { postgres, query, samples, pending: Vec::new(), delays: Arc::new(Mutex::new(Delays::new())) }
    }

    pub fn delays(&self) -> Arc<Mutex<Delays>> {
        self.delays.clone()
    }

    /// Runs until the senders of samples are gone and every sample is visible. Connects anew when PostgreSQL goes.
    pub async fn run(mut self) {
        loop {
            if let Ok((client, connection)) = self.postgres.connect(NoTls).await {
                tokio::select! {
                    done = self.watch(&client) => if done.is_ok() { return },
                    _ = connection => {}
                }
            }
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }

    async fn watch(&mut self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let mut statement: Option<Statement> = None;
        loop {
            if self.pending.is_empty() {
                match self.samples.recv().await {
                    Some(sample) => self.pending.push(sample),
                    None => return Ok(()),
                }
            }
            while let Ok(sample) = self.samples.try_recv() {
                if self.pending.len() < MOST_PENDING {
                    self.pending.push(sample);
                } else {
                    self.delays_mut().skipped += 1;
                }
            }
            let statement = match &statement {
                Some(statement) => statement,
                None => match client.prepare(&self.query).await {
                    Ok(prepared) => statement.insert(prepared),
                    // The pipeline creates the table when the first row comes.
                    Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                        tokio::time::sleep(POLL_PERIOD).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let rows = client.query(statement, &[&self.asked()]).await?;
            let seen = Instant::now();
            let visible: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
            self.record(&visible, seen);
            tokio::time::sleep(POLL_PERIOD).await;
        }
    }

    fn record(&mut self, visible: &HashSet<Uuid>, seen: Instant) {
        let mut delays = self.delays.lock().expect("no panic while held");
        self.pending.retain(|sample| {
            let still_pending = !visible.contains(&sample.id);
            if !still_pending {
                delays.record(seen.saturating_duration_since(sample.acknowledged));
            }
            still_pending
        });
        delays.pending = self.pending.len();
    }

    fn delays_mut(&self) -> MutexGuard<'_, Delays> {
        self.delays.lock().expect("no panic while held")
    }

    fn asked(&self) -> Vec<Uuid> {
        let newest =
            self.pending.len().saturating_sub(ASKED_OF_EACH_END).max(ASKED_OF_EACH_END.min(self.pending.len()));
        let oldest = &self.pending[..ASKED_OF_EACH_END.min(self.pending.len())];
        oldest.iter().chain(&self.pending[newest..]).map(|sample| sample.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_milliseconds_over_the_whole_range_of_delays() {
        let mut delays = Delays::new();
        for milliseconds in 1..=1_000 {
            delays.record(Duration::from_millis(milliseconds));
        }
        delays.record(Duration::from_secs(86_400));
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.002, "{found}");
        close(delays.percentile_ms(50.0), 501.0);
        close(delays.recent_percentile_ms(99.0), 991.0);
        close(delays.max_ms(), 3_600_000.0);
        delays.forget_recent();
        assert_eq!((delays.count(), delays.recent_percentile_ms(99.0)), (1_001, 0.0));
    }
}
