//! Decoding of one topic's records, between the reader thread and the topic's writer.

use std::{sync::Arc, time::Duration};

use cdc_kafka::{Record, SCHEMA_TOPIC, SchemaFollower};
use cdc_postgres::{Claim, Disposition};
use cdc_runtime::Lifecycle;
use cdc_wire::table_of;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    lot::Lot,
    poison::{Event, Poison, decode},
    retry::Patience,
    writer::Chunk,
};

/// Fetches that may wait for decoding; their bytes are bounded by [`Fetch::room`].
pub(crate) const FETCHES: usize = 256;
/// While a record waits, for the schema topic to be read or this process to be updated, says so this often.
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
    /// Of the topic, as it was created; `None` once it has another number, because records of before the change stand
    /// where the old number put them.
    pub(crate) partitions: Option<i32>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) chunks: mpsc::Sender<Chunk>,
}

/// The lane ends: its writer has gone, or a stop came while a record was waiting.
struct Ended;

impl Decoder {
    /// Decodes until the channel is closed and drained.
    pub(crate) async fn run(mut self, mut fetches: mpsc::Receiver<Fetch>) -> anyhow::Result<()> {
        while let Some(fetch) = fetches.recv().await {
            if self.decode(fetch).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn decode(&mut self, fetch: Fetch) -> Result<(), Ended> {
        let Fetch { claim, records, bytes, mut room } = fetch;
        let Some(next) = records.last().map(|record| record.offset + 1) else { return Ok(()) };
        let mut lot = Lot { changes: Vec::with_capacity(records.len()), ..Lot::default() };
        lot.records.reserve_exact(records.len());
        for record in records {
            let event = match decode(&record, self.partitions, &self.schemas) {
                Ok(event) => Ok(event),
                Err(first) => {
                    // What came before must not wait along with it; the room it takes is counted with the rest.
                    if let (true, Some(share)) = (lot.len() > 0, room.split(1)) {
                        self.pass_on(&claim, std::mem::take(&mut lot), 0, record.offset, share).await?;
                    }
                    self.settle(&record, first).await?
                }
            };
            match event {
                Ok(Event::Change(change)) => {
                    lot.changes.push(change);
                    lot.records.push(record);
                }
                Ok(Event::Truncation(truncation)) => lot.truncations.push(truncation),
                Err(poison) => lot.undecoded.push(poison.undecoded(&record, &self.schemas)),
            }
        }
        self.pass_on(&claim, lot, bytes, next, room).await
    }

    async fn pass_on(
        &self,
        claim: &Arc<Claim>,
        lot: Lot,
        bytes: usize,
        next: i64,
        room: OwnedSemaphorePermit,
    ) -> Result<(), Ended> {
        let (claim, lot, upto) = (Arc::clone(claim), Arc::new(lot), next.to_string());
        let chunk = Chunk { claim, lot, bytes, upto, markers: Vec::new(), _room: room };
        self.chunks.send(chunk).await.map_err(|_| Ended)
    }

    /// Finds out whether a record is poison, or we do not know enough yet.
    async fn settle(&mut self, record: &Record, first: Poison) -> Result<Result<Event, Poison>, Ended> {
        let soft = self.lifecycle.soft().clone();
        let mut patience = Patience::new(format!("reading {}", record.at));
        let mut versions = self.schemas.versions();
        let (mut poison, mut read_to_end) = (first, false);
        loop {
            let answer = match &poison {
                Poison::PartitionMismatch => {
                    let topic = &record.at.topic;
                    soft.run_until_cancelled(self.schemas.partitions(topic)).await.ok_or(Ended)?.map(|partitions| {
                        let still = self.partitions == Some(partitions);
                        if !still {
                            tracing::warn!(%topic, partitions, "the topic has not as many partitions as kafka.partitions \
                                says: where its records stand is not looked at");
                            self.partitions = None;
                        }
                        still
                    })
                }
                Poison::Wire(error) if error.awaits_schema() && !read_to_end => {
                    let reading = soft.run_until_cancelled(self.schemas.read_to_end());
                    if let Ok(read) = tokio::time::timeout(REMINDER, reading).await {
                        let read = read.ok_or(Ended)?;
                        read_to_end = read.is_ok();
                        read.map(|()| false)
                    } else {
                        tracing::warn!(at = %record.at, offset = record.offset, "reading waits for {SCHEMA_TOPIC}");
                        Ok(false)
                    }
                }
                Poison::Wire(error) if error.awaits_schema() && self.is_written_by_a_newer_release(record) => {
                    tracing::error!(at = %record.at, offset = record.offset, "reading waits: {error}; update this sink");
                    let changed = soft.run_until_cancelled(versions.changed());
                    if let Ok(changed) = tokio::time::timeout(REMINDER, changed).await {
                        changed.ok_or(Ended)?.map_err(|_| Ended)?;
                    }
                    Ok(false)
                }
                _ => Ok(true),
            };
            match answer {
                Ok(true) => return Ok(Err(poison)),
                Ok(false) => match decode(record, self.partitions, &self.schemas) {
                    Ok(event) => return Ok(Ok(event)),
                    Err(again) => poison = again,
                },
                Err(error) => {
                    let delay = patience.failed(Disposition::Retry, &error);
                    soft.run_until_cancelled(tokio::time::sleep(delay)).await.ok_or(Ended)?;
                }
            }
        }
    }

    /// Its schema is there and cannot be read: nothing is wrong with the record.
    fn is_written_by_a_newer_release(&self, record: &Record) -> bool {
        let table = record.payload.as_deref().and_then(table_of);
        table.is_some_and(|table| self.schemas.is_unreadable(table))
    }
}
