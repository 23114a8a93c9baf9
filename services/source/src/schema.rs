//! Schemas for the capture: followed in the log, read from Cassandra where the log does not say enough.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cdc_cassandra::{Cassandra, CassandraError};
use cdc_commitlog::{Followed, Format, SchemaFile, SchemaHistory, Truncation};
use cdc_model::{Change, SegmentPosition, TableSchema};
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    SourceMetrics,
    intake::{Captured, Halted},
    schema_store::SchemaStore,
};

/// How often the node is asked, when there is nothing to read, whether its schema is another than was read last: a
/// segment without CDC may disappear unread, and a change of the schema with it.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// Longer than this a question that nothing waits for must not hold up the capture.
const COMPARE_PATIENCE: Duration = Duration::from_millis(500);

/// Reads the schema again, from the capture thread.
pub(crate) struct SchemaSource {
    pub(crate) cassandra: Cassandra,
    pub(crate) runtime: Handle,
    pub(crate) stop: CancellationToken,
}

impl SchemaSource {
    /// The schema as it is now.
    fn load(&self) -> Result<SchemaFile, Halted> {
        self.wait_for("the log needs a schema", || self.cassandra.load_schema_file())
    }

    /// Waits for Cassandra as long as it takes.
    pub(crate) fn wait_for<'s, T>(
        &'s self,
        why: &str,
        ask: impl Fn() -> BoxFuture<'s, Result<T, CassandraError>>,
    ) -> Result<T, Halted> {
        let mut complained: Option<Instant> = None;
        loop {
            match self.runtime.block_on(self.stop.run_until_cancelled(ask())).ok_or(Halted)? {
                Ok(answer) => return Ok(answer),
                Err(error) if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) => {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, "capture waits: {why}, and Cassandra does not answer");
                }
                Err(_) => {}
            }
            self.pause(Duration::from_secs(1))?;
        }
    }

    /// `None` if the node does not answer at once.
    fn version(&self) -> Option<Uuid> {
        // A timeout is made within the runtime, where its clock is.
        let asked = async { tokio::time::timeout(COMPARE_PATIENCE, self.cassandra.schema_version()).await };
        self.runtime.block_on(asked).ok()?.ok()
    }

    pub(crate) fn pause(&self, time: Duration) -> Result<(), Halted> {
        let stopped = self.runtime.block_on(async { tokio::time::timeout(time, self.stop.cancelled()).await.is_ok() });
        if stopped { Err(Halted) } else { Ok(()) }
    }
}

pub(crate) struct Schemas {
    pub(crate) source: SchemaSource,
    pub(crate) history: SchemaHistory,
    pub(crate) store: SchemaStore,
}

impl Schemas {
    /// Takes in a mutation of system tables; tells which captured tables were truncated.
    pub(crate) fn follow(
        &mut self,
        format: Format,
        at: SegmentPosition,
        payload: &[u8],
        changes: &[Change],
        captured: &Captured,
        metrics: &SourceMetrics,
    ) -> Vec<(Arc<TableSchema>, Truncation)> {
        let followed = self.history.apply(changes);
        let is_schema = changes.iter().any(|change| change.table.keyspace == "system_schema");
        if is_schema {
            self.store.followed(format, at, payload, &self.history);
        }
        tell(&followed, at, captured);
        let table = |truncation: &Truncation| cdc_commitlog::Schemas::table(&self.history, truncation.table).cloned();
        let truncated =
            followed.truncations.into_iter().filter_map(|truncation| Some((table(&truncation)?, truncation)));
        let truncated: Vec<_> = truncated.filter(|(table, _)| captured.contains(table)).collect();
        for (table, _) in &truncated {
            tracing::info!(table = table.full_name(), position = %at, "table was truncated");
        }
        metrics.truncations.fetch_add(truncated.len() as u64, std::sync::atomic::Ordering::Relaxed);
        truncated
    }

    /// Returns once the history holds the schema as it is now.
    pub(crate) fn refresh(&mut self) -> Result<(), Halted> {
        let schema = self.source.load()?;
        let followed = self.history.refresh(schema);
        for fault in followed.faults {
            tracing::warn!(%fault, "a table is not captured");
        }
        self.store.reset(&self.history);
        Ok(())
    }
}

fn tell(followed: &Followed, at: SegmentPosition, captured: &Captured) {
    let own = |table: &&Arc<TableSchema>| captured.matches(table);
    for table in followed.tables.iter().filter(own) {
        tracing::info!(table = table.full_name(), position = %at, "table was created or altered");
    }
    for table in followed.dropped.iter().filter(own) {
        tracing::warn!(table = table.full_name(), position = %at, "table was dropped; the target keeps its rows");
    }
    for fault in &followed.faults {
        tracing::debug!(%fault, position = %at, "the log alone does not tell this table's schema");
    }
}

/// When the node's schema was last looked at.
#[derive(Default)]
pub(crate) struct Comparison {
    version: Option<Uuid>,
    at: Option<Instant>,
}

impl Comparison {
    /// Reads the schema if it is another than at the last call; the first call always does.
    pub(crate) fn run(&mut self, schemas: &mut Schemas) -> Result<(), Halted> {
        if self.at.is_some_and(|at| at.elapsed() < COMPARE_INTERVAL) {
            return Ok(());
        }
        self.at = Some(Instant::now());
        let Some(version) = schemas.source.version() else { return Ok(()) };
        if self.version != Some(version) {
            schemas.refresh()?;
            self.version = Some(version);
        }
        Ok(())
    }
}
