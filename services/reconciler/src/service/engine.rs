//! What compares and waits: connected when it is first needed, and again after it failed, so that the service starts, and
//! answers, without Cassandra.

use std::sync::Arc;
use std::time::Duration;

use cdc_cassandra::{Cassandra, ClusterReader, checks::Wanted};
use cdc_model::TableSchema;
use cdc_postgres::{Strategy, Target};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Letters, Service, Settings};
use crate::barrier::{Barrier, BarrierError, BarrierSettings, Passed};
use crate::{Options, Outcome, PipelineBarrier, Progress, Reconciler, Repair, RepairBounds, Scope};

pub(super) struct Engine {
    pub(super) letters: Letters,
    connected: Mutex<Option<Arc<Connected>>>,
}

struct Connected {
    reader: ClusterReader,
    barrier: Arc<PipelineBarrier>,
}

/// Why the engine cannot be asked, as a sentence.
pub(super) struct Unavailable(pub(super) String);

impl Engine {
    pub(super) fn new(target: Target, settings: &Settings) -> Self {
        let letters = Letters { target, kafka: settings.kafka.clone(), decode: settings.decode };
        Self { letters, connected: Mutex::default() }
    }

    async fn connected(&self, service: &Service) -> Result<Arc<Connected>, Unavailable> {
        let mut place = self.connected.lock().await;
        if let Some(connected) = &*place {
            return Ok(Arc::clone(connected));
        }
        let connected = Arc::new(Box::pin(self.connect(service)).await?);
        *place = Some(Arc::clone(&connected));
        Ok(connected)
    }

    async fn connect(&self, service: &Service) -> Result<Connected, Unavailable> {
        let Settings { cassandra, kafka, captured, marks, .. } = &service.settings;
        let unavailable = |error: &dyn std::error::Error| Unavailable(sentence(error));
        let node = Box::pin(Cassandra::connect(cassandra)).await.map_err(|error| unavailable(&error))?;
        let reader = ClusterReader::connect(cassandra).await.map_err(|error| unavailable(&error))?;
        let settings = BarrierSettings { marks: marks.clone(), captured: captured.clone() };
        let target = self.letters.target.clone();
        let barrier = Box::pin(Barrier::connect(node, target, kafka.as_ref(), settings)).await;
        let barrier = barrier.map_err(|error| unavailable(&error))?;
        let barrier = Arc::new(PipelineBarrier::new(barrier, service.barrier_timeout()));
        Ok(Connected { reader, barrier })
    }

    /// A captured table as Cassandra has it now.
    pub(super) async fn table(
        &self,
        service: &Service,
        keyspace: &str,
        name: &str,
    ) -> Result<Arc<TableSchema>, Unavailable> {
        let connected = self.connected(service).await?;
        let schema = connected.barrier.barrier().cassandra().load_schema().await;
        let schema = match schema {
            Ok(schema) => schema,
            Err(error) => {
                *self.connected.lock().await = None;
                return Err(Unavailable(sentence(&error)));
            }
        };
        let is_it = |table: &TableSchema| table.keyspace == keyspace && table.name == name;
        match schema.into_iter().find(is_it) {
            Some(table) if table.cdc => Ok(Arc::new(table)),
            Some(_) => Err(Unavailable(format!("NOT_CAPTURED: table {keyspace}.{name} does not have `cdc = true`"))),
            None => Err(Unavailable(format!("NO_SUCH_TABLE: Cassandra has no table {keyspace}.{name}"))),
        }
    }

    /// Compares what is asked for, and repairs in it what it may.
    pub(super) async fn compare(
        &self,
        service: &Service,
        scope: &Scope,
        strategy: Strategy,
        repair: Option<(Repair, RepairBounds)>,
        progress: &Arc<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Outcome, Unavailable> {
        let connected = self.connected(service).await?;
        let (repair, bounds) = repair.unzip();
        let options = Options {
            parallel: service.settings.reconciler.parallel,
            repair,
            bounds: bounds.unwrap_or_default(),
            ..Options::default()
        };
        let target = self.letters.target.clone();
        let reconciler = Reconciler::new(connected.reader.clone(), target, connected.barrier.clone(), options);
        let outcome = reconciler.compare(scope, strategy, progress, cancel).await;
        outcome.map_err(|error| Unavailable(sentence(&error)))
    }

    /// Waits until everything written before is in PostgreSQL.
    pub(super) async fn pass(
        &self,
        service: &Service,
        tables: Option<&[Wanted]>,
        timeout: Duration,
    ) -> Result<Result<Passed, BarrierError>, Unavailable> {
        let connected = self.connected(service).await?;
        Ok(Box::pin(connected.barrier.barrier().pass_for(tables, timeout)).await)
    }
}

/// An error with its causes; drivers repeat the inner ones in the outer.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}
