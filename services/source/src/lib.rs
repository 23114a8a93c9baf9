//! The agent beside a Cassandra node: captures its commit log and hands changes on.
//!
//! ```text
//! capture thread ──batches──► delivery ──► Kafka, PostgreSQL or a channel
//!                                │                    │ durable
//!                 snapshots ──────┘└──notes──► keeper ◄─┘──► position file ──► deletion of segments
//! ```
//!
//! Every queue is bounded, so a channel that does not take more stops the reading and nothing else. Stopping goes in
//! this order: the capture ends and hands on what it has, delivery sends it, the keeper waits until it is durable and
//! writes the position.

mod capture;
mod config;
mod intake;
mod keeper;
mod metrics;
mod outlet;
mod position;
mod position_file;
mod quarantine;
mod schema;
mod schema_store;
mod segment;
mod snapshot;
mod start;
mod state_file;
mod truncation;

use std::sync::Arc;

use cdc_cassandra::CassandraConfig;
use cdc_runtime::Lifecycle;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

pub use config::{KeystoreConfig, SourceConfig};
pub use metrics::{SourceMetrics, SourceStatus};
pub use outlet::{ChannelBatch, ChannelOutlet, Outlet};
pub use position::{Offsets, OffsetsError};
pub use position_file::PositionFileError;
pub use quarantine::QuarantineError;
pub use schema_store::SchemaStoreError;
pub use snapshot::{
    Cause, ReadConsistency, SnapshotConfig, SnapshotError, SnapshotRanges, SnapshotRequest, SnapshotStart,
    SnapshotStatus, Snapshots, State as SnapshotState,
};

use crate::{
    intake::Batch,
    keeper::{Note, Of},
    outlet::Delivery,
    snapshot::SnapshotPage,
    start::{Started, start},
};

/// Batches between capture and delivery; with the one being built and the one being sent, of a sixteenth of
/// `memory_bytes` each, they stay well inside it.
const BATCHES: usize = 8;
/// Batches sent and not yet durable are bounded by the outlet; this only lets the keeper write its file meanwhile.
const NOTES: usize = 4096;
/// Pages of snapshots that wait for the stream to have nothing; each reader waits for its own.
const PAGES: usize = 1;

/// Runs the agent until `lifecycle` stops it. Waits for Cassandra, and in Kafka mode for Kafka, as long as it takes.
///
/// `metrics` is shared with the admin server: [`SourceMetrics::status`] is its `/status`.
///
/// # Errors
/// What a person must put right: configuration, another node's positions, a log that cannot be read at all.
pub fn run(
    config: SourceConfig,
    cassandra: CassandraConfig,
    outlet: Outlet,
    metrics: Arc<SourceMetrics>,
    lifecycle: Lifecycle,
) -> BoxFuture<'static, Result<(), SourceError>> {
    Box::pin(async move {
        let hard = lifecycle.hard().clone();
        let agent = async {
            let (outbox, batches) = mpsc::channel(BATCHES);
            let (pages, copied) = mpsc::channel(PAGES);
            let starting = start(&config, &cassandra, outlet, &metrics, &lifecycle, (outbox, pages));
            let started = tokio::select! {
                started = starting => started?,
                () = lifecycle.soft().cancelled() => return Ok(()),
            };
            let Some(Started { capture, delivery, durable, keeper }) = started else { return Ok(()) };
            lifecycle.spawn_thread("source capture", move |_| capture().run()).map_err(SourceError::Thread)?;
            lifecycle.spawn("source snapshots", Arc::clone(metrics.snapshots()).work(lifecycle.clone()));
            let (notes, noted) = mpsc::channel(NOTES);
            let delivering = deliver(batches, copied, delivery, notes, &metrics, keeper.position.offsets.clone());
            tokio::try_join!(delivering, keeper.run(noted, durable)).map(|_| ())
        };
        // At a hard stop what was not durable is read again after the next start.
        hard.run_until_cancelled(agent).await.unwrap_or(Ok(()))
    })
}

/// Until the capture has ended and everything of it is sent. What is copied is sent only while nothing else is there, and
/// repeats the position of what was sent last, `offsets` in the beginning.
async fn deliver(
    mut batches: mpsc::Receiver<Batch>,
    mut pages: mpsc::Receiver<SnapshotPage>,
    mut delivery: Delivery,
    notes: mpsc::Sender<Note>,
    metrics: &SourceMetrics,
    mut offsets: Offsets,
) -> Result<(), SourceError> {
    // Of what is sent; the capture's own numbers have gaps then.
    for sequence in 1.. {
        let (batch, of) = tokio::select! {
            biased;
            batch = batches.recv() => {
                let Some(mut batch) = batch else { break };
                offsets.clone_from(&batch.offsets);
                // Before the acknowledgement can come.
                metrics.sent(&offsets);
                let (captured, finished) = (batch.sequence, std::mem::take(&mut batch.finished));
                (Batch { sequence, ..batch }, Of::Log { captured, offsets: offsets.clone(), finished })
            }
            Some(page) = pages.recv() => {
                (Batch { sequence, ..Batch::copied(page.changes, offsets.clone()) }, Of::Snapshot(page.durable))
            }
        };
        delivery.send(batch).await?;
        notes.send(Note { sequence, of }).await.map_err(|_| SourceError::OutletClosed)?;
    }
    Ok(())
}

#[derive(thiserror::Error, Debug)]
pub enum SourceError {
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    #[error(
        "cannot look into source.cdc_raw_directory {path}; it must be this node's cdc_raw_directory, readable and \
         writable for the agent"
    )]
    Directory { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    PositionFile(#[from] PositionFileError),
    #[error("PostgreSQL holds a position of this node that cannot be read")]
    StoredPosition(#[from] OffsetsError),
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    #[error("source.keystore cannot be used")]
    Keystore(#[from] cdc_commitlog::KeystoreError),
    #[error(transparent)]
    SchemaStore(#[from] SchemaStoreError),
    #[error("cannot write {path}; the state directory must exist and have space")]
    State { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Segment(#[from] cdc_commitlog::ReadError),
    #[error(transparent)]
    Kafka(#[from] cdc_kafka::KafkaError),
    #[error(transparent)]
    Sink(#[from] cdc_sink::SinkError),
    #[error("the channel behind the capture is closed")]
    OutletClosed,
    #[error("the capture thread cannot be started")]
    Thread(#[source] std::io::Error),
}
