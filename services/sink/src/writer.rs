//! The last step of both modes: folds queued chunks into batches and writes them with their positions.

use std::{collections::BTreeMap, sync::Arc};

use cdc_model::{Change, Marker};
use cdc_postgres::{Advance, ApplyError, Claim, Delivery, StreamName, Target, TargetError};
use cdc_runtime::Lifecycle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    SinkConfig, SinkError, SinkMetrics,
    dead_letter::DeadLetters,
    lot::{Lot, Lots},
    retry::Patience,
};

/// Chunks that may wait for a writer; their bytes are bounded by their permits.
pub(crate) const CHUNKS: usize = 256;

/// A lot of one stream, and the position it reaches.
pub(crate) struct Chunk {
    pub(crate) claim: Arc<Claim>,
    pub(crate) lot: Arc<Lot>,
    pub(crate) bytes: usize,
    pub(crate) upto: String,
    /// Passed by the position; in direct mode.
    pub(crate) markers: Vec<Marker>,
    /// Room in memory, given back once the chunk is written or dropped.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What is told to the owner of the streams.
pub(crate) trait Streams: Send + Sync + 'static {
    /// Whether the claim is still ours as far as we know; chunks of others are dropped.
    fn holds(&self, claim: &Claim) -> bool;

    /// Another process has the stream.
    ///
    /// # Errors
    /// If this process cannot go on without it.
    fn lost(&self, claim: &Claim) -> Result<(), SinkError>;

    /// Everything up to the position is in the target.
    fn committed(&self, advance: &Advance);
}

pub(crate) struct Writer<S> {
    pub(crate) target: Target,
    pub(crate) config: SinkConfig,
    pub(crate) metrics: Arc<SinkMetrics>,
    pub(crate) streams: S,
    /// In Kafka mode.
    pub(crate) dead_letters: Option<Arc<DeadLetters>>,
    pub(crate) lifecycle: Lifecycle,
    /// For logs.
    pub(crate) name: String,
}

impl<S: Streams> Writer<S> {
    /// Writes until the channel is closed and drained, or until the hard stop.
    pub(crate) async fn run(self, mut chunks: mpsc::Receiver<Chunk>) -> Result<(), SinkError> {
        let mut patience = Patience::new(format!("applying {}", self.name)).shown(&self.metrics, &self.name);
        let hard = self.lifecycle.hard().clone();
        while let Some(Some(first)) = hard.run_until_cancelled(chunks.recv()).await {
            let mut batch = vec![first];
            let (mut rows, mut bytes) = (batch[0].lot.len(), batch[0].bytes);
            while rows < self.config.batch_rows && bytes < self.config.batch_bytes {
                let Ok(chunk) = chunks.try_recv() else { break };
                rows += chunk.lot.len();
                bytes += chunk.bytes;
                batch.push(chunk);
            }
            match hard.run_until_cancelled(self.write(batch, &mut patience)).await {
                None => break,
                Some(result) => result?,
            }
        }
        Ok(())
    }

    async fn write(&self, mut batch: Vec<Chunk>, patience: &mut Patience) -> Result<(), SinkError> {
        let written_at = batch.iter().find_map(|chunk| chunk.lot.changes.first()).map(newest_write);
        let mut failed = false;
        loop {
            batch.retain(|chunk| self.streams.holds(&chunk.claim));
            let advances = advances(&batch);
            if advances.is_empty() {
                return Ok(());
            }
            let delivery = Delivery {
                changes: batch.iter().flat_map(|chunk| &chunk.lot.changes).cloned().collect(),
                truncations: batch.iter().flat_map(|chunk| &chunk.lot.truncations).cloned().collect(),
                undecoded: batch.iter().flat_map(|chunk| &chunk.lot.undecoded).cloned().collect(),
                origins: Some(Arc::new(Lots(batch.iter().map(|chunk| Arc::clone(&chunk.lot)).collect()))),
                commit: &advances,
                markers: batch.iter().flat_map(|chunk| &chunk.markers).copied().collect(),
                flood: Some(self.config.flood_limit()),
            };
            match self.target.deliver(delivery).await {
                Ok(applied) => {
                    patience.succeeded();
                    self.metrics.applied(&applied, written_at);
                    for ((table, error_type), letters) in &applied.letters {
                        tracing::error!(table, %error_type, letters, "set aside in _cdc.dlq; see `cdc dlq list`");
                    }
                    // What failed may have left letters, too.
                    if let Some(dead_letters) = self.dead_letters.as_ref().filter(|_| failed || applied.quarantined > 0)
                    {
                        dead_letters.publish().await;
                    }
                    if applied.quarantined > 0 {
                        // The positions have waited for that; nothing but them is left.
                        batch.iter_mut().for_each(|chunk| chunk.lot = Arc::default());
                        continue;
                    }
                    for advance in &advances {
                        self.streams.committed(advance);
                    }
                    return Ok(());
                }
                Err(ApplyError::Fenced { stream }) => {
                    let Some(claim) = advances.iter().map(|a| &a.claim).find(|claim| claim.stream == stream) else {
                        return Err(SinkError::Fenced(stream));
                    };
                    if self.streams.holds(claim) {
                        self.streams.lost(claim)?;
                    }
                    batch.retain(|chunk| chunk.claim.stream != stream);
                }
                Err(ApplyError::Target(TargetError::Overtaken { table })) => {
                    tracing::debug!(table, "truncated meanwhile: what is gone of the batch is left out");
                }
                Err(error) => {
                    failed = true;
                    let delay = patience.failed(error.disposition(), &error);
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }
}

/// The last position of each stream.
fn advances(batch: &[Chunk]) -> Vec<Advance> {
    let last: BTreeMap<&StreamName, &Chunk> = batch.iter().map(|chunk| (&chunk.claim.stream, chunk)).collect();
    last.into_values().map(|chunk| Advance { claim: (*chunk.claim).clone(), position: chunk.upto.clone() }).collect()
}

fn newest_write(change: &Change) -> cdc_model::WriteTime {
    use cdc_model::ChangeBody;
    match &change.body {
        ChangeBody::Row { row, .. } | ChangeBody::Static(row) => row.newest_write(),
        ChangeBody::DeletePartition(deletion) => deletion.time,
        ChangeBody::DeleteRange(range) => range.deletion.time,
    }
}
