//! Drives the seeded writes at a chosen rate with a bounded number in flight.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use scylla::client::session::Session;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::writes::{Form, Operation, Write, WriteTime, Writes};

/// How often new writes are released at a bounded rate: bursts stay at a few writes.
const RELEASE_PERIOD: Duration = Duration::from_millis(1);
/// A stall of the server is caught up with, but not by more than this.
const LONGEST_CATCH_UP: Duration = Duration::from_secs(1);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub seed: u64,
    /// Operations per second; `None` is as fast as `concurrency` allows.
    pub rate: Option<u32>,
    /// Operations in all; `None` until stopped.
    pub limit: Option<u64>,
    /// Operations in flight at most.
    pub concurrency: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { seed: 1, rate: Some(1_000), limit: None, concurrency: 128 }
    }
}

/// An acknowledged insert of a row that nothing else writes to.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub id: Uuid,
    pub acknowledged: Instant,
}

#[derive(Default, Debug)]
pub struct LoadCounters {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

impl LoadCounters {
    /// Statements acknowledged by Cassandra; each statement of a batch counts.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Statements that failed or timed out. They may have been applied all the same.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn first_failure(&self) -> Option<String> {
        self.first_failure.lock().expect("no panic while held").clone()
    }
}

pub struct Load {
    options: LoadOptions,
    writes: Writes,
    client: Client,
}

impl Load {
    /// The schema of [`crate::shop`] must exist. Samples that do not fit into the channel are skipped.
    pub fn new(session: Arc<Session>, options: LoadOptions, samples: Option<mpsc::Sender<Sample>>) -> Self {
        let client = Client {
            session,
            prepared: RwLock::default(),
            newest_write_time: AtomicI64::new(0),
            samples,
            counters: Arc::default(),
        };
        Self { writes: Writes::new(options.seed), options, client }
    }

    pub fn counters(&self) -> Arc<LoadCounters> {
        self.client.counters.clone()
    }

    /// Writes until `stop` or the limit, then waits for what is in flight. Failed writes are counted, not returned:
    /// servers are restarted under this load.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) {
        let Self { options, writes, client } = self;
        let client = &*client;
        let limit = options.limit.unwrap_or(u64::MAX);
        let mut stop = pin!(stop);
        let mut in_flight = FuturesUnordered::new();
        let mut tick = tokio::time::interval(RELEASE_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pace = options.rate.map(Pace::new);
        let mut issued = 0;
        while issued < limit {
            while issued < limit && in_flight.len() < options.concurrency && pace.as_mut().is_none_or(Pace::take) {
                in_flight.push(client.execute(writes.next_operation()));
                issued += 1;
            }
            tokio::select! {
                () = &mut stop => break,
                Some(()) = in_flight.next() => {}
                _ = tick.tick() => {}
            }
        }
        while in_flight.next().await.is_some() {}
    }
}

/// Releases `rate` operations per second.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate.max(1), next: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        if self.next > now {
            return false;
        }
        let earliest = now.checked_sub(LONGEST_CATCH_UP).unwrap_or(self.next);
        self.next = self.next.max(earliest) + self.interval;
        true
    }
}

struct Client {
    session: Arc<Session>,
    prepared: RwLock<HashMap<&'static str, PreparedStatement>>,
    newest_write_time: AtomicI64,
    samples: Option<mpsc::Sender<Sample>>,
    counters: Arc<LoadCounters>,
}

impl Client {
    async fn execute(&self, operation: Operation) {
        let statements = match &operation.form {
            Form::Single(_) | Form::Conditional(_) => 1,
            Form::LoggedBatch(writes) | Form::UnloggedBatch(writes) => writes.len() as u64,
        };
        match self.write(operation.form, operation.time).await {
            Ok(()) => {
                let acknowledged = Instant::now();
                self.counters.acknowledged.fetch_add(statements, Ordering::Relaxed);
                if let (Some(samples), Some(id)) = (&self.samples, operation.sample) {
                    // A full channel only thins out the samples.
                    samples.try_send(Sample { id, acknowledged }).ok();
                }
            }
            Err(error) => {
                self.counters.failed.fetch_add(statements, Ordering::Relaxed);
                self.counters
                    .first_failure
                    .lock()
                    .expect("no panic while held")
                    .get_or_insert_with(|| format!("{error:#}"));
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }

    async fn write(&self, form: Form, time: WriteTime) -> anyhow::Result<()> {
        match form {
            Form::Conditional(write) => {
                let statement = self.prepare(write.cql).await?;
                self.session.execute_unpaged(&statement, write.values).await.context(write.cql)?;
            }
            Form::Single(write) => {
                let mut statement = self.prepare(write.cql).await?;
                statement.set_timestamp(Some(self.write_time(time)));
                self.session.execute_unpaged(&statement, write.values).await.context(write.cql)?;
            }
            Form::LoggedBatch(writes) => self.batch(BatchType::Logged, writes, time).await?,
            Form::UnloggedBatch(writes) => self.batch(BatchType::Unlogged, writes, time).await?,
        }
        Ok(())
    }

    async fn batch(&self, kind: BatchType, writes: Vec<Write>, time: WriteTime) -> anyhow::Result<()> {
        let mut batch = Batch::new(kind);
        batch.set_timestamp(Some(self.write_time(time)));
        let mut values = Vec::with_capacity(writes.len());
        for write in writes {
            batch.append_statement(self.prepare(write.cql).await?);
            values.push(write.values);
        }
        self.session.batch(&batch, values).await.context("batch")?;
        Ok(())
    }

    async fn prepare(&self, cql: &'static str) -> anyhow::Result<PreparedStatement> {
        if let Some(statement) = self.prepared.read().expect("no panic while held").get(cql) {
            return Ok(statement.clone());
        }
        let statement = self.session.prepare(cql).await.with_context(|| format!("prepare {cql}"))?;
        self.prepared.write().expect("no panic while held").insert(cql, statement.clone());
        Ok(statement)
    }

    /// Microseconds. `Now` never repeats within this process.
    fn write_time(&self, time: WriteTime) -> i64 {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_micros();
        let clock = i64::try_from(clock).expect("the clock is before the year 292,000");
        match time {
            WriteTime::Now => {
                let advance = |newest: i64| clock.max(newest + 1);
                let before = self.newest_write_time.update(Ordering::Relaxed, Ordering::Relaxed, advance);
                advance(before)
            }
            WriteTime::Past(ago) => clock - ago,
            WriteTime::ThisSecond => clock - clock % 1_000_000,
        }
    }
}
