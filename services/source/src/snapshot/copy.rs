//! Reads the parts of a table and sends them on.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use cdc_cassandra::{CassandraError, Fields, TableReader, TableStanding};
use cdc_model::{
    Change, ChangeBody, ColumnId, ColumnKind, CqlType, LocalTime, Provenance, RowKey, RowState, SegmentPosition,
    TableSchema, TokenRange, WriteTime, token,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;

use super::{
    Agent, SnapshotPage, Snapshots,
    book::{Job, Part},
    check, now_ms,
    row::{self, Seen},
    throttle::Throttle,
};

/// Of the first page of a range: how large rows are is not known yet.
const FIRST_ROWS: u32 = 100;
/// A page gets no more rows than have come to this.
const PAGE_BYTES: usize = 1 << 20;
/// Cassandra's `truncate_request_timeout`: until then nodes may still have what others have removed.
const TRUNCATION: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Why it cannot be made, ever.
pub(super) struct Refused(pub(super) String);

/// A snapshot that is being made.
pub(super) struct Copying<'s> {
    snapshots: &'s Snapshots,
    agent: &'s Agent,
    job: Job,
    throttle: Mutex<Throttle>,
    /// Shared by the parts, and renewed when the schema is another.
    reading: tokio::sync::Mutex<Option<Arc<Reading>>>,
}

struct Reading {
    schema_version: uuid::Uuid,
    table: Arc<TableSchema>,
    reader: TableReader,
    regular_lists: Vec<ColumnId>,
    static_lists: Vec<ColumnId>,
}

/// Why a part must be taken up again behind what was sent.
enum Interruption {
    /// The schema changed, or the table was truncated.
    Again,
    Failed(CassandraError),
    Refused(Refused),
}

impl From<CassandraError> for Interruption {
    fn from(error: CassandraError) -> Self {
        Self::Failed(error)
    }
}

/// How far a part is.
struct Course {
    end: i64,
    /// Everything up to here was read and sent.
    sent: i64,
    /// The last page, until it is acknowledged.
    in_flight: Option<InFlight>,
}

struct InFlight {
    durable: Option<oneshot::Receiver<()>>,
    upto: i64,
    rows: u64,
}

impl<'s> Copying<'s> {
    pub(super) fn new(snapshots: &'s Snapshots, agent: &'s Agent, job: Job) -> Self {
        let throttle = Mutex::new(Throttle::new(agent.config.rows_per_second));
        Self { snapshots, agent, job, throttle, reading: tokio::sync::Mutex::default() }
    }

    /// Until all parts are acknowledged.
    pub(super) async fn run(&self) -> Result<(), Refused> {
        let parts = stream::iter(self.job.parts()).map(|part| self.copy(part));
        parts.buffer_unordered(self.agent.config.parallel).try_collect::<()>().await
    }

    async fn copy(&self, part: Part) -> Result<(), Refused> {
        let mut course = Course { end: part.end, sent: part.next, in_flight: None };
        let mut wait = RETRY_MIN;
        loop {
            let sent = course.sent;
            match self.read(&mut course).await {
                Ok(()) => {
                    self.acknowledged(&mut course).await;
                    return Ok(());
                }
                Err(Interruption::Again) => {}
                Err(Interruption::Refused(refused)) => return Err(refused),
                Err(Interruption::Failed(error)) if error.is_refused() => {
                    return Err(Refused(format!("Cassandra refuses to read the table: {}", causes(&error))));
                }
                Err(Interruption::Failed(error)) => {
                    wait = if course.sent > sent { RETRY_MIN } else { (2 * wait).min(RETRY_MAX) };
                    self.snapshots.figures.failures.fetch_add(1, Relaxed);
                    self.trouble(Some(format!("Cassandra is asked again: {}", causes(&error))));
                    tracing::warn!(table = self.job.table, %error, "a page cannot be read: will try again in {wait:?}");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Reads and sends from where the part is to its end.
    async fn read(&self, course: &mut Course) -> Result<(), Interruption> {
        let mut standing = self.agent.cassandra.standing(self.job.table_id).await?;
        let reading = self.reading(&standing).await?;
        self.wait_until_it_can_be_told(&reading, &standing).await;
        let mut pages = reading.reader.pages(TokenRange { start: course.sent, end: course.end });
        let mut asked_rows = FIRST_ROWS.min(self.agent.config.page_rows);
        loop {
            pages.set_page_rows(i32::try_from(asked_rows).unwrap_or(i32::MAX));
            let mut rows: Vec<(RowKey, RowState)> = Vec::new();
            let page = pages.next(|key, row| rows.push((key, row))).await?;
            let later = self.agent.cassandra.standing(self.job.table_id).await?;
            if later.truncation != standing.truncation {
                return Err(Interruption::Again);
            }
            self.trouble(None);
            // The last partition may go on.
            let upto = match rows.last() {
                Some((key, _)) if !page.is_last => token(&key.partition).0.saturating_sub(1).max(course.sent),
                _ if page.is_last => course.end,
                _ => course.sent,
            };
            let bytes: usize = rows.iter().map(|(key, row)| key.partition.len() + row.weight() + 64).sum();
            let is_full = !page.is_last && asked_rows == self.agent.config.page_rows;
            let pause = self.throttle().read(Instant::now(), page.rows, is_full, page.took);
            asked_rows = rows_for(bytes, rows.len(), self.agent.config.page_rows);
            let seen = self.seen(&page);
            let count = page.rows as u64;
            let changes = changes(rows, &reading, seen, self.provenance(&standing));
            self.acknowledged(course).await;
            let durable = self.send(changes).await;
            course.in_flight = Some(InFlight { durable, upto, rows: count });
            course.sent = upto;
            if page.is_last {
                return Ok(());
            }
            let slowed = self.throttle().pause();
            self.snapshots.figures.pause_ms.store(u64::try_from(slowed.as_millis()).unwrap_or(u64::MAX), Relaxed);
            tokio::time::sleep(pause).await;
            if later.schema_version != reading.schema_version {
                return Err(Interruption::Again);
            }
            standing = later;
        }
    }

    /// `None`: there is nothing to wait for.
    async fn send(&self, changes: Vec<Change>) -> Option<oneshot::Receiver<()>> {
        if changes.is_empty() {
            return None;
        }
        let (durable, acknowledged) = oneshot::channel();
        if self.agent.pages.send(SnapshotPage { changes, durable }).await.is_err() {
            // The agent is ending; so will this.
            std::future::pending::<()>().await;
        }
        Some(acknowledged)
    }

    /// Waits for the page in flight and notes it.
    async fn acknowledged(&self, course: &mut Course) {
        let Some(InFlight { durable, upto, rows }) = course.in_flight.take() else { return };
        if let Some(durable) = durable
            && durable.await.is_err()
        {
            std::future::pending::<()>().await;
        }
        self.snapshots.figures.rows.fetch_add(rows, Relaxed);
        let mut book = self.snapshots.book();
        book.as_mut().into_iter().for_each(|book| book.advance(self.job.id, course.end, upto, rows));
    }

    /// For the schema as it is by now.
    async fn reading(&self, standing: &TableStanding) -> Result<Arc<Reading>, Interruption> {
        let mut current = self.reading.lock().await;
        if let Some(reading) = current.as_ref().filter(|reading| reading.schema_version == standing.schema_version) {
            return Ok(Arc::clone(reading));
        }
        let tables = self.agent.cassandra.load_schema().await?;
        let table = tables.into_iter().find(|table| table.id == self.job.table_id);
        let table = table
            .filter(|table| self.agent.captured.contains(table))
            .ok_or_else(|| Interruption::Refused(Refused("the table is gone or not captured any more".to_owned())))?;
        check(&table).map_err(|error| Interruption::Refused(Refused(error.to_string())))?;
        let table = Arc::new(table);
        let consistency = self.agent.config.consistency.into();
        let reader = self.agent.cassandra.reader().table(Arc::clone(&table), Fields::All, consistency).await?;
        let lists = |kind| {
            let lists = table.live_columns(kind);
            lists
                .filter(|(_, column)| matches!(column.ty, CqlType::List { frozen: false, .. }))
                .map(|(id, _)| id)
                .collect()
        };
        let (regular_lists, static_lists) = (lists(ColumnKind::Regular), lists(ColumnKind::Static));
        let schema_version = standing.schema_version;
        let reading = Arc::new(Reading { schema_version, table, reader, regular_lists, static_lists });
        Ok(Arc::clone(current.insert(reading)))
    }

    /// Elements of lists are left to the stream if they are younger than the horizon, so that must not be before the table
    /// was captured for sure; and a truncation must have reached all nodes.
    async fn wait_until_it_can_be_told(&self, reading: &Reading, standing: &TableStanding) {
        let since = |then_ms: i64| Duration::from_millis(u64::try_from(now_ms().saturating_sub(then_ms)).unwrap_or(0));
        let mut wait = Duration::ZERO;
        if !(reading.regular_lists.is_empty() && reading.static_lists.is_empty()) {
            wait = (2 * self.agent.config.clock_skew()).saturating_sub(since(self.job.created_ms));
        }
        if let Some(truncation) = standing.truncation {
            wait = wait.max(TRUNCATION.saturating_sub(since(truncation.wall_ms)));
        }
        if !wait.is_zero() {
            self.trouble(Some(format!("waits {} s: it begins once all nodes agree on the table", wait.as_secs() + 1)));
            tokio::time::sleep(wait).await;
            self.trouble(None);
        }
    }

    fn seen(&self, page: &cdc_cassandra::Page) -> Seen {
        let asked = page.asked.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let horizon = asked.saturating_sub(self.agent.config.clock_skew());
        Seen {
            horizon: WriteTime(i64::try_from(horizon.as_micros()).unwrap_or(i64::MAX)),
            now: LocalTime(i64::try_from(asked.as_secs()).unwrap_or(i64::MAX - 1)),
            late_seconds: page.late_seconds,
        }
    }

    /// Just behind the last truncation known.
    fn provenance(&self, standing: &TableStanding) -> Provenance {
        let truncated = standing.truncation.and_then(|truncation| truncation.at);
        let behind = |at: SegmentPosition| SegmentPosition { offset: at.offset + 1, ..at };
        Provenance { node: self.agent.cassandra.host_id(), position: truncated.map_or(SegmentPosition::START, behind) }
    }

    fn trouble(&self, trouble: Option<String>) {
        self.snapshots.book().as_mut().into_iter().for_each(|book| book.trouble(trouble.clone()));
    }

    fn throttle(&self) -> std::sync::MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn changes(rows: Vec<(RowKey, RowState)>, reading: &Reading, seen: Seen, provenance: Provenance) -> Vec<Change> {
    let change = |(key, row): (RowKey, RowState)| {
        let body = match key.clustering {
            Some(clustering) => {
                let row = row::change(ColumnKind::Regular, row, &reading.regular_lists, seen);
                ChangeBody::Row { clustering, row }
            }
            None => ChangeBody::Static(row::change(ColumnKind::Static, row, &reading.static_lists, seen)),
        };
        Change { table: Arc::clone(&reading.table), partition_key: key.partition, body, provenance }
    };
    rows.into_iter().map(change).collect()
}

/// How many rows come to [`PAGE_BYTES`], going by those that were read.
fn rows_for(bytes: usize, rows: usize, most: u32) -> u32 {
    let fit = PAGE_BYTES.saturating_mul(rows.max(1)) / bytes.max(1);
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, most)
}

/// Drivers repeat the inner errors in the outer ones, and none of them values.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_rows_make_short_pages() {
        assert_eq!(rows_for(0, 0, 1000), 1000);
        assert_eq!(rows_for(100 * 100, 100, 1000), 1000);
        assert_eq!(rows_for(100 << 20, 100, 1000), 1);
        assert_eq!(rows_for(10 << 20, 100, 1000), 10);
    }
}
