//! The rows that were there before: read over CQL and sent as changes beside the stream.
//!
//! A row that is copied is a change like any other: it carries its write times and expiries, and is merged with the stream's
//! in any order. So there are no locks, no watermarks and no pause of the capture. It goes the same way to the target, but
//!
//! - **it moves no position:** what is sent of it repeats the stream's last one ([`crate::deliver`]);
//! - **it waits for the stream:** a page is sent only while the stream has nothing, a range reads one page ahead of the one
//!   that is not acknowledged, and reading slows down with the server ([`throttle`]);
//! - **it is done when it is durable:** [`book`] passes what Kafka has acknowledged or PostgreSQL committed, and no more.
//!
//! # `TRUNCATE`
//!
//! It removes by place in a node's log, and a row that was read has none. It is given the place just behind the last
//! truncation that the agent's node knew of before it read: a later one removes it, wherever it is by then. A page during
//! which the node has noted one is not sent, and reading goes on when the other nodes have had the time to follow.

mod api;
mod book;
mod config;
mod copy;
mod figures;
mod ring;
mod row;
mod throttle;

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use cdc_cassandra::{Cassandra, CassandraError};
use cdc_model::{Change, ColumnKind, CqlType, TableSchema, TokenRange};
use cdc_runtime::Lifecycle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use book::{Cause, SnapshotStatus, State};
pub use config::{ReadConsistency, SnapshotConfig, SnapshotRanges, SnapshotStart};

use crate::{
    SourceError,
    intake::Captured,
    snapshot::{
        book::{Book, Job},
        copy::Copying,
        figures::Figures,
    },
    state_file::replace,
};

const NAME: &str = "snapshots.json";
/// What a kill makes be read again, beside what was in flight.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// How often tables are looked for that are captured since.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Rows read, on their way to the outlet.
pub(crate) struct SnapshotPage {
    pub(crate) changes: Vec<Change>,
    /// To be told once they are durable.
    pub(crate) durable: oneshot::Sender<()>,
}

/// The agent's snapshots: asked for and shown over HTTP, worked on by the agent once it runs.
#[derive(Default)]
pub struct Snapshots {
    agent: OnceLock<Agent>,
    book: Mutex<Option<Book>>,
    /// Held while the file is written, so that an older state never replaces a newer one.
    file: tokio::sync::Mutex<()>,
    /// There is something new to work on.
    added: Notify,
    /// Of the one that is worked on.
    running: Mutex<Option<(u64, CancellationToken)>>,
    figures: Figures,
}

/// What it takes to work.
pub(crate) struct Agent {
    pub(crate) cassandra: Cassandra,
    pub(crate) captured: Captured,
    pub(crate) config: SnapshotConfig,
    pub(crate) state_directory: PathBuf,
    pub(crate) pages: mpsc::Sender<SnapshotPage>,
}

/// What somebody wants copied.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    /// `keyspace.table`.
    pub table: String,
    /// This and nothing else, whoever its primary replica is.
    pub range: Option<TokenRange>,
    /// Other than configured.
    pub ranges: Option<SnapshotRanges>,
}

#[derive(thiserror::Error, Debug)]
pub enum SnapshotError {
    #[error("the agent has not begun: a server it needs is not there yet; /readyz says which")]
    NotReady,
    #[error(
        "table {0} is not captured: it must be among source.tables, as `keyspace.table`, exist, and have `cdc = true`"
    )]
    NotCaptured(String),
    #[error(
        "table {0} has counters, of which CQL tells only the sum: a later increment could not be added to it; have each \
         counter written once more instead, by 0"
    )]
    Counters(String),
    #[error("a snapshot of {table} is unfinished (id {id}); wait for it or cancel it")]
    Unfinished { table: String, id: u64 },
    #[error("no snapshot of {0} is unfinished")]
    NothingToCancel(String),
    #[error("the ring does not show any token of this node; check with `nodetool ring` that it has joined")]
    NoTokens,
    #[error("Cassandra does not answer")]
    Cassandra(#[from] CassandraError),
    #[error("the state directory cannot be written")]
    State(#[from] SourceError),
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").finish_non_exhaustive()
    }
}

impl Snapshots {
    /// All that are remembered, oldest first.
    pub fn statuses(&self) -> Vec<SnapshotStatus> {
        self.book().as_ref().map(Book::statuses).unwrap_or_default()
    }

    pub(crate) fn unfinished(&self) -> Vec<SnapshotStatus> {
        self.statuses().into_iter().filter(|status| !status.state.has_ended()).collect()
    }

    /// Returns once the snapshot is on disk, to be worked on whatever happens.
    ///
    /// # Errors
    /// Why there is nothing to copy, or nothing that could be copied right.
    pub async fn request(&self, request: SnapshotRequest) -> Result<SnapshotStatus, SnapshotError> {
        let agent = self.agent.get().ok_or(SnapshotError::NotReady)?;
        let tables = agent.cassandra.load_schema().await?;
        let named = |table: &&TableSchema| table.full_name() == request.table && agent.captured.contains(table);
        let table = tables.iter().find(named).ok_or_else(|| SnapshotError::NotCaptured(request.table.clone()))?;
        check(table)?;
        let parts = match request.range {
            Some(range) => ring::parts(&[range]),
            None => agent.parts(request.ranges.unwrap_or(agent.config.ranges)).await?,
        };
        let status = self.add(table, Cause::Requested, &parts)?;
        self.save().await?;
        self.added.notify_one();
        Ok(status)
    }

    fn add(&self, table: &TableSchema, cause: Cause, parts: &[TokenRange]) -> Result<SnapshotStatus, SnapshotError> {
        let name = table.full_name();
        let mut book = self.book();
        let book = book.as_mut().ok_or(SnapshotError::NotReady)?;
        if let Some(job) = book.unfinished(&name) {
            return Err(SnapshotError::Unfinished { id: job.id, table: name });
        }
        let id = book.add((name, table.id), cause, parts, now_ms());
        let status = book.status_of(id).expect("it was just added");
        tracing::info!(
            table = status.table,
            id,
            ?cause,
            ranges = parts.len(),
            ring_percent = status.ring_percent,
            "snapshot will be made"
        );
        Ok(status)
    }

    /// Ends the unfinished one of a table. What was copied stays.
    ///
    /// # Errors
    /// If there is none.
    pub async fn cancel(&self, table: &str) -> Result<SnapshotStatus, SnapshotError> {
        let status = {
            let mut book = self.book();
            let book = book.as_mut().ok_or(SnapshotError::NotReady)?;
            let nothing = || SnapshotError::NothingToCancel(table.to_owned());
            let id = book.unfinished(table).ok_or_else(nothing)?.id;
            book.end(id, State::Cancelled, None, now_ms());
            if let Some((_, cancel)) = self.running().as_ref().filter(|(running, _)| *running == id) {
                cancel.cancel();
            }
            book.status_of(id).ok_or_else(nothing)?
        };
        tracing::info!(table, id = status.id, "snapshot is cancelled");
        self.save().await?;
        Ok(status)
    }

    /// Opens the book; before [`Self::work`].
    pub(crate) fn open(&self, agent: Agent) -> Result<(), SourceError> {
        let path = agent.state_directory.join(NAME);
        let node = agent.cassandra.host_id();
        let book = match fs::read(&path) {
            Ok(text) => Book::open(node, &text).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "is damaged or not of this node: it begins anew");
                Book::new(node)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::new(node),
            Err(source) => return Err(SourceError::State { path, source }),
        };
        *self.book() = Some(book);
        // A second agent in one process does not happen.
        drop(self.agent.set(agent));
        Ok(())
    }

    /// Makes one snapshot after the other, until the soft stop.
    pub(crate) async fn work(self: Arc<Self>, lifecycle: Lifecycle) -> Result<(), SourceError> {
        let stop = lifecycle.soft();
        let Some(agent) = self.agent.get() else { return Ok(()) };
        while !stop.is_cancelled() {
            if agent.config.start == SnapshotStart::Initial
                && let Err(error) = self.look_for_tables(agent).await
            {
                tracing::warn!(%error, "cannot look for tables to copy: will try again");
            }
            self.save().await?;
            let cancel = CancellationToken::new();
            let Some(job) = self.begin(&cancel) else {
                let looking = tokio::time::timeout(LOOK_INTERVAL, self.added.notified());
                stop.run_until_cancelled(looking).await;
                continue;
            };
            let (id, table) = (job.id, job.table.clone());
            tracing::info!(table, id, "snapshot begins or goes on");
            let copying = Copying::new(&self, agent, job);
            let mut copy = Box::pin(copying.run());
            let mut tick = tokio::time::interval(SAVE_INTERVAL);
            let ended = loop {
                // What is dropped is a page that was not acknowledged: it is read again, or not wanted.
                tokio::select! {
                    ended = &mut copy => break Some(ended),
                    () = cancel.cancelled() => break None,
                    () = stop.cancelled() => break None,
                    _ = tick.tick() => self.save().await?,
                }
            };
            drop(copy);
            self.figures.pause_ms.store(0, Relaxed);
            *self.running() = None;
            match ended {
                Some(Ok(())) => {
                    self.end(id, State::Done, None);
                    let rows = self.status_of(id).map_or(0, |status| status.rows);
                    tracing::info!(table, id, rows, "snapshot is done");
                }
                Some(Err(refused)) => {
                    tracing::error!(table, id, error = refused.0, "snapshot cannot be made");
                    self.end(id, State::Failed, Some(refused.0));
                }
                None => {}
            }
        }
        self.save().await
    }

    /// Under one lock, so that a cancellation finds it either not begun or running.
    fn begin(&self, cancel: &CancellationToken) -> Option<Job> {
        let mut book = self.book();
        let job = book.as_mut()?.begin()?;
        *self.running() = Some((job.id, cancel.clone()));
        Some(job)
    }

    /// Begins a snapshot of each captured table that had none.
    async fn look_for_tables(&self, agent: &Agent) -> Result<(), SnapshotError> {
        let tables = agent.cassandra.load_schema().await?;
        for table in tables.iter().filter(|table| agent.captured.contains(table)) {
            if self.book().as_ref().is_none_or(|book| book.has_begun(table.id)) {
                continue;
            }
            if let Err(error) = check(table) {
                tracing::warn!(%error, "a table is not copied");
                self.book().as_mut().into_iter().for_each(|book| book.pass_over(table.id));
                continue;
            }
            let parts = agent.parts(agent.config.ranges).await?;
            self.add(table, Cause::Initial, &parts)?;
        }
        Ok(())
    }

    /// Returns once what is new is on disk.
    async fn save(&self) -> Result<(), SourceError> {
        let _file = self.file.lock().await;
        let Some(agent) = self.agent.get() else { return Ok(()) };
        let sealed = self.book().as_mut().filter(|book| book.dirty).map(Book::sealed);
        let Some(text) = sealed else { return Ok(()) };
        let (directory, path) = (agent.state_directory.clone(), agent.state_directory.join(NAME));
        let failed = {
            let path = path.clone();
            move |source| SourceError::State { path, source }
        };
        let write = tokio::task::spawn_blocking(move || replace(&directory, &path, &text));
        write.await.expect("writing a file does not panic").map_err(failed)
    }

    fn end(&self, id: u64, state: State, why: Option<String>) {
        self.book().as_mut().into_iter().for_each(|book| book.end(id, state, why.clone(), now_ms()));
    }

    fn status_of(&self, id: u64) -> Option<SnapshotStatus> {
        self.book().as_ref().and_then(|book| book.status_of(id))
    }

    fn book(&self) -> MutexGuard<'_, Option<Book>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Option<(u64, CancellationToken)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    async fn parts(&self, ranges: SnapshotRanges) -> Result<Vec<TokenRange>, SnapshotError> {
        let node = self.cassandra.host_id();
        let primary = match ranges {
            SnapshotRanges::All => vec![TokenRange::RING],
            SnapshotRanges::Primary => {
                let nodes = self.cassandra.ring().await?;
                if nodes.len() > 1 {
                    tracing::info!(
                        nodes = nodes.len(),
                        "the ranges of this node are copied; those of the others by the agents beside them"
                    );
                }
                ring::primary(&nodes, node)
            }
        };
        if primary.is_empty() { Err(SnapshotError::NoTokens) } else { Ok(ring::parts(&primary)) }
    }
}

/// Whether what CQL tells of the table's rows is enough to merge them with changes.
fn check(table: &TableSchema) -> Result<(), SnapshotError> {
    let mut columns = [ColumnKind::Regular, ColumnKind::Static].into_iter().flat_map(|kind| table.live_columns(kind));
    if columns.any(|(_, column)| column.ty == CqlType::Counter) {
        return Err(SnapshotError::Counters(table.full_name()));
    }
    Ok(())
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}
