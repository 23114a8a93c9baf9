//! Direct mode: one stream, from an agent in the same process.

use std::sync::Arc;

use cdc_model::{Change, Marker, TableTruncation};
use cdc_postgres::{Advance, Claim, StreamName, Target};
use cdc_runtime::Lifecycle;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::{
    SinkConfig, SinkError, SinkMetrics,
    lot::Lot,
    retry::Patience,
    sweeper,
    writer::{CHUNKS, Chunk, Streams, Writer},
};

/// Changes and the position they reach, in the words of their source.
#[derive(Default)]
pub struct Batch {
    pub changes: Vec<Change>,
    pub truncations: Vec<TableTruncation>,
    pub upto: String,
    /// Passed by the position.
    pub markers: Vec<Marker>,
}

/// A claimed stream with a writer behind it.
pub struct Applier {
    /// Drop it, and all clones, to let the writer finish what is queued and end.
    pub batches: BatchSender,
    /// Everything up to here is committed: at first what an earlier process left, `None` if nothing.
    pub durable: watch::Receiver<Option<String>>,
}

/// Sends batches in order; bounded by bytes.
#[derive(Clone)]
pub struct BatchSender {
    chunks: mpsc::Sender<Chunk>,
    claim: Arc<Claim>,
    room: Arc<Semaphore>,
    capacity: u32,
}

/// The writer has ended; the lifecycle knows why.
#[derive(thiserror::Error, Debug)]
#[error("the writer has ended")]
pub struct Closed;

struct Single(watch::Sender<Option<String>>);

impl Streams for Single {
    fn holds(&self, _: &Claim) -> bool {
        true
    }

    fn lost(&self, claim: &Claim) -> Result<(), SinkError> {
        Err(SinkError::Fenced(claim.stream.clone()))
    }

    fn committed(&self, advance: &Advance) {
        self.0.send_replace(Some(advance.position.clone()));
    }
}

impl Applier {
    /// Claims the stream, waiting for PostgreSQL as long as it takes, and starts a writer and a TTL sweeper.
    ///
    /// On a soft stop the writer goes on until the last [`BatchSender`] is dropped and its queue is empty; on a hard
    /// stop it ends at once. If another process claims the stream, the writer's task fails.
    ///
    /// # Errors
    /// [`SinkError::Stopped`] if the soft stop came first.
    pub async fn start(
        target: Target,
        stream: StreamName,
        config: &SinkConfig,
        metrics: Arc<SinkMetrics>,
        lifecycle: &Lifecycle,
    ) -> Result<Self, SinkError> {
        let claim =
            lifecycle.soft().run_until_cancelled(claim(&target, &stream, &metrics)).await.ok_or(SinkError::Stopped)?;
        let (chunks, queue) = mpsc::channel(CHUNKS);
        let durable = watch::Sender::new(claim.position.clone());
        let watch = durable.subscribe();
        let capacity = capacity(config);
        sweeper::spawn(&target, config, &metrics, lifecycle);
        let writer = Writer {
            target,
            config: config.clone(),
            metrics,
            streams: Single(durable),
            dead_letters: None,
            lifecycle: lifecycle.clone(),
            name: stream.to_string(),
        };
        lifecycle.spawn(format!("write {stream}"), writer.run(queue));
        let room = Arc::new(Semaphore::new(usize::try_from(capacity).expect("32 bits fit")));
        Ok(Self { batches: BatchSender { chunks, claim: Arc::new(claim), room, capacity }, durable: watch })
    }
}

/// One batch being written and one gathering.
pub(crate) fn capacity(config: &SinkConfig) -> u32 {
    u32::try_from(2 * config.batch_bytes).unwrap_or(u32::MAX / 2)
}

/// Claims a stream, however long it takes.
pub(crate) async fn claim(target: &Target, stream: &StreamName, metrics: &Arc<SinkMetrics>) -> Claim {
    let mut patience = Patience::new(format!("claiming {stream}")).shown(metrics, stream.to_string());
    loop {
        match target.claim(stream).await {
            Ok(claim) => {
                patience.succeeded();
                return claim;
            }
            Err(error) => tokio::time::sleep(patience.failed(error.disposition(), &error)).await,
        }
    }
}

impl BatchSender {
    /// Waits while the queue is full. Not cancel-safe: a dropped future drops the batch.
    pub async fn send(&self, batch: Batch) -> Result<(), Closed> {
        let bytes: usize = batch.changes.iter().map(Change::weight).sum();
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.capacity);
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(permits) => room.map_err(|_| Closed)?,
            () = self.chunks.closed() => return Err(Closed),
        };
        let Batch { changes, truncations, upto, markers } = batch;
        let lot = Arc::new(Lot { changes, truncations, ..Lot::default() });
        let chunk = Chunk { claim: Arc::clone(&self.claim), lot, bytes, upto, markers, _room: room };
        self.chunks.send(chunk).await.map_err(|_| Closed)
    }
}
