//! Where captured changes go.

use std::{collections::HashMap, sync::Arc};

use cdc_kafka::{KafkaError, Publisher};
use cdc_model::{Change, SegmentId, SegmentPosition, TableId, TableSchema, TableTruncation};
use cdc_postgres::Target;
use cdc_sink::{BatchSender, SinkConfig, SinkMetrics};
use tokio::sync::{mpsc, watch};

use crate::{
    SourceError,
    intake::Batch,
    position::{Offsets, OffsetsError},
};

/// The channel behind the capture.
pub enum Outlet {
    /// To Kafka; a change is durable once the broker has acknowledged it. The position file says where to resume.
    Kafka(Publisher),
    /// Straight to PostgreSQL, which commits the position with the rows and says where to resume. The agent claims
    /// the stream `node:<host id>` itself, because only Cassandra knows the host id.
    Direct { target: Target, config: SinkConfig, metrics: Arc<SinkMetrics> },
    /// To a consumer in this process, which acknowledges by sequence number.
    Channel(ChannelOutlet),
}

/// Batches out, acknowledgements back. The receiver sets the watch to the sequence number of the last batch
/// that is durable; everything up to it counts as durable.
pub struct ChannelOutlet {
    pub batches: mpsc::Sender<ChannelBatch>,
    pub durable: watch::Receiver<u64>,
}

#[derive(Debug)]
pub struct ChannelBatch {
    /// Counts up from 1 without gaps within one run of the agent.
    pub sequence: u64,
    /// To be taken before the changes.
    pub truncations: Vec<TableTruncation>,
    /// Empty if only the position moved. Marks of barriers are not among them.
    pub changes: Vec<Change>,
}

/// The sending half of an outlet.
pub(crate) enum Delivery {
    Kafka(KafkaDelivery),
    Direct { batches: BatchSender, run: u64 },
    Channel(mpsc::Sender<ChannelBatch>),
}

impl Delivery {
    /// Returns once the batch is queued; waits while the channel is full.
    pub(crate) async fn send(&mut self, batch: Batch) -> Result<(), SourceError> {
        match self {
            Self::Kafka(kafka) => kafka.send(&batch).await,
            Self::Direct { batches, run } => {
                let position = DirectPosition { run: *run, sequence: batch.sequence };
                let upto = position.text(&batch.offsets);
                let Batch { changes, truncations, markers, .. } = batch;
                let batch = cdc_sink::Batch { changes, truncations, upto, markers };
                batches.send(batch).await.map_err(|_| SourceError::OutletClosed)
            }
            Self::Channel(batches) => {
                let Batch { sequence, truncations, changes, .. } = batch;
                let batch = ChannelBatch { sequence, truncations, changes };
                batches.send(batch).await.map_err(|_| SourceError::OutletClosed)
            }
        }
    }
}

/// Sends changes, and before the first that needs it each version of a table's schema.
pub(crate) struct KafkaDelivery {
    publisher: Arc<Publisher>,
    published: HashMap<TableId, Arc<TableSchema>>,
}

impl KafkaDelivery {
    pub(crate) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, published: HashMap::new() }
    }

    /// Sees that the tables have topics and that their schemas are in Kafka.
    pub(crate) async fn publish(&mut self, tables: &[Arc<TableSchema>]) -> Result<(), KafkaError> {
        // All of them, so that two tables that would share a topic are noticed.
        let all: Vec<_> = self.published.values().chain(tables).cloned().collect();
        self.publisher.ensure_topics(&all).await?;
        for table in tables {
            self.publisher.publish_schema(table).await?;
            self.published.insert(table.id, Arc::clone(table));
        }
        Ok(())
    }

    async fn send(&mut self, batch: &Batch) -> Result<(), SourceError> {
        let truncated = batch.truncations.iter().map(|truncation| &truncation.table);
        for table in truncated.chain(batch.changes.iter().map(|change| &change.table)) {
            let known = self.published.get(&table.id);
            if known.is_some_and(|known| Arc::ptr_eq(known, table)) {
                continue;
            }
            if known.is_some_and(|known| **known == **table) {
                self.published.insert(table.id, Arc::clone(table));
                continue;
            }
            while let Err(error) = self.publish(std::slice::from_ref(table)).await {
                if !is_transient(&error) {
                    return Err(error.into());
                }
                tracing::warn!(%error, table = table.full_name(), "cannot publish a schema: will try again");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
        for truncation in &batch.truncations {
            self.publisher.send_truncation(truncation).await?;
        }
        if batch.markers.is_empty() {
            return Ok(self.publisher.send_batch(&batch.changes, upto(batch.sequence)).await?);
        }
        // A marker says that what stood before it is in Kafka, and the position says the same of the marker.
        let before = SegmentPosition { offset: upto(batch.sequence).offset - 1, ..upto(batch.sequence) };
        self.publisher.send_batch(&batch.changes, before).await?;
        let mut durable = self.publisher.durable();
        tokio::select! {
            reached = durable.wait_for(|durable| *durable >= Some(before)) => {
                reached.map_err(|_| SourceError::OutletClosed)?;
            }
            failure = self.publisher.failure() => return Err(failure.into()),
        }
        for marker in &batch.markers {
            self.publisher.publish_marker(*marker).await?;
        }
        Ok(self.publisher.send_batch(&[], upto(batch.sequence)).await?)
    }
}

/// Kafka hands the position back as it is: a sequence number does, and repeats less than a segment's offset. Twice it, so that
/// there is room for what must come before the batch counts.
fn upto(sequence: u64) -> SegmentPosition {
    SegmentPosition { segment: SegmentId(0), offset: 2 * sequence }
}

pub(crate) fn is_transient(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Unreachable { .. } | KafkaError::NoLeader { .. })
}

/// The acknowledging half of an outlet.
pub(crate) enum Durable {
    Kafka { publisher: Arc<Publisher>, durable: watch::Receiver<Option<SegmentPosition>> },
    Direct { durable: watch::Receiver<Option<String>>, run: u64 },
    Channel(watch::Receiver<u64>),
}

impl Durable {
    /// Number of the last batch that is durable with all before it; 0 if none is.
    pub(crate) fn sequence(&self) -> u64 {
        match self {
            Self::Kafka { durable, .. } => durable.borrow().map_or(0, |position| position.offset / 2),
            Self::Direct { durable, run } => {
                let position = durable.borrow().as_deref().and_then(DirectPosition::of);
                position.filter(|position| position.run == *run).map_or(0, |position| position.sequence)
            }
            Self::Channel(durable) => *durable.borrow(),
        }
    }

    /// Waits for news. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Result<(), SourceError> {
        let changed = match self {
            Self::Kafka { publisher, durable } => {
                tokio::select! {
                    changed = durable.changed() => changed,
                    failure = publisher.failure() => return Err(failure.into()),
                }
            }
            Self::Direct { durable, .. } => durable.changed().await,
            Self::Channel(durable) => durable.changed().await,
        };
        changed.map_err(|_| SourceError::OutletClosed)
    }
}

/// What direct mode adds to the offsets it stores, so that one batch's position is never mistaken for another's:
/// the offsets alone may be the same twice, and an earlier run counted its batches too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DirectPosition {
    /// When the agent started, milliseconds since 1970.
    run: u64,
    sequence: u64,
}

impl DirectPosition {
    /// `<offsets>#<run>.<sequence>`.
    fn text(self, offsets: &Offsets) -> String {
        format!("{offsets}#{}.{}", self.run, self.sequence)
    }

    fn of(text: &str) -> Option<Self> {
        let (run, sequence) = text.split_once('#')?.1.split_once('.')?;
        Some(Self { run: run.parse().ok()?, sequence: sequence.parse().ok()? })
    }
}

/// The offsets of a position stored in direct mode.
pub(crate) fn stored_offsets(position: &str) -> Result<Offsets, OffsetsError> {
    position.split('#').next().unwrap_or_default().parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_position_gives_back_its_offsets_and_its_batch() {
        let offsets: Offsets = "7:20,8:40".parse().unwrap();
        let direct = DirectPosition { run: 3, sequence: 17 };
        let text = direct.text(&offsets);
        assert_eq!(text, "7:20,8:40#3.17");
        assert_eq!(DirectPosition::of(&text), Some(direct));
        assert_eq!(stored_offsets(&text).unwrap(), offsets);
        assert_eq!(stored_offsets("7:20").unwrap().to_string(), "7:20");
        assert_eq!(stored_offsets("#3.18").unwrap(), Offsets::default());
    }

    #[test]
    fn acknowledgements_of_an_earlier_run_do_not_count() {
        let (_sender, durable) = watch::channel(Some("7:20#2.99".to_owned()));
        assert_eq!(Durable::Direct { durable: durable.clone(), run: 3 }.sequence(), 0);
        assert_eq!(Durable::Direct { durable, run: 2 }.sequence(), 99);
    }
}
