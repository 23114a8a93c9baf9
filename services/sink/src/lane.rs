//! Decoding of one topic's records, between the reader thread and the topic's writer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cdc_kafka::{Record, SchemaFollower};
use cdc_model::Change;
use cdc_postgres::Claim;
use cdc_runtime::Lifecycle;
use cdc_wire::{WireError, decode_change};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{dead_letter::DeadLetters, writer::Chunk};

/// Fetches that may wait for decoding; their bytes are bounded by [`Fetch::room`].
pub(crate) const FETCHES: usize = 256;
/// While a record waits for its table's schema, says so this often.
const REMINDER: Duration = Duration::from_secs(10);

/// Records of one partition, in order.
pub(crate) struct Fetch {
    pub(crate) claim: Arc<Claim>,
    pub(crate) records: Vec<Record>,
    pub(crate) bytes: usize,
    pub(crate) room: OwnedSemaphorePermit,
}

pub(crate) struct Decoder {
    pub(crate) schemas: SchemaFollower,
    pub(crate) dead_letters: Arc<DeadLetters>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) chunks: mpsc::Sender<Chunk>,
}

/// The lane ends: its writer has gone, or a stop came while a record was waiting.
struct Ended;

impl Decoder {
    /// Decodes until the channel is closed and drained.
    pub(crate) async fn run(self, mut fetches: mpsc::Receiver<Fetch>) -> anyhow::Result<()> {
        while let Some(fetch) = fetches.recv().await {
            if self.decode(fetch).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn decode(&self, fetch: Fetch) -> Result<(), Ended> {
        let Fetch { claim, records, bytes, mut room } = fetch;
        let Some(next) = records.last().map(|record| record.offset + 1) else { return Ok(()) };
        let mut changes = Vec::with_capacity(records.len());
        for record in records {
            match decode_change(record.payload.clone(), &self.schemas) {
                Ok(change) => changes.push(change),
                Err(first) => {
                    // What came before must not wait along with it; the room it takes is counted with the rest.
                    if let (false, Some(share)) = (changes.is_empty(), room.split(1)) {
                        self.pass_on(&claim, std::mem::take(&mut changes), 0, record.offset, share).await?;
                    }
                    changes.extend(self.settle(&record, first).await?);
                }
            }
        }
        self.pass_on(&claim, changes, bytes, next, room).await
    }

    async fn pass_on(
        &self,
        claim: &Arc<Claim>,
        changes: Vec<Change>,
        bytes: usize,
        next: i64,
        room: OwnedSemaphorePermit,
    ) -> Result<(), Ended> {
        let chunk = Chunk { claim: Arc::clone(claim), changes, bytes, upto: next.to_string(), _room: room };
        self.chunks.send(chunk).await.map_err(|_| Ended)
    }

    /// Waits for the schema a record needs, or sets the record aside.
    async fn settle(&self, record: &Record, first: WireError) -> Result<Option<Change>, Ended> {
        let soft = self.lifecycle.soft();
        let mut versions = self.schemas.versions();
        let mut error = first;
        let since = Instant::now();
        loop {
            if !error.awaits_schema() {
                soft.run_until_cancelled(self.dead_letters.send(record, &error)).await.ok_or(Ended)?;
                return Ok(None);
            }
            // After marking what was seen, so that a schema read in between is not missed.
            versions.mark_unchanged();
            match decode_change(record.payload.clone(), &self.schemas) {
                Ok(change) => return Ok(Some(change)),
                Err(again) => error = again,
            }
            if !error.awaits_schema() {
                continue;
            }
            if let Ok(changed) = tokio::time::timeout(REMINDER, soft.run_until_cancelled(versions.changed())).await {
                changed.ok_or(Ended)?.map_err(|_| Ended)?;
            } else {
                let seconds = since.elapsed().as_secs();
                tracing::error!(at = %record.at, offset = record.offset, seconds, "reading waits: {error}");
            }
        }
    }
}
