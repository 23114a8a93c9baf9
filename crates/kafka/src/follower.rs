//! Every table schema that was ever published, kept current.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cdc_model::{TableId, TableSchema};
use cdc_wire::{SchemaLookup, WireError, decode_schema, schema_key};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError as Driver,
};
use tokio::sync::watch;

use crate::{KafkaConfig, KafkaError, SCHEMA_TOPIC, context::Quiet};

/// How long dropping a follower may take.
const POLL: Duration = Duration::from_millis(100);
/// A broker that is up answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads [`SCHEMA_TOPIC`] from its start on a thread of its own, which ends when the last clone is dropped. Versions
/// of a table evolve from each other, so column ids stay what they are for the life of the process.
#[derive(Clone)]
pub struct SchemaFollower {
    consumer: Arc<BaseConsumer<Quiet>>,
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

struct Shared {
    tables: RwLock<HashMap<TableId, Arc<TableSchema>>>,
    /// Counts the schemas read.
    versions: watch::Sender<u64>,
    /// Offset after the last record read.
    next: watch::Sender<i64>,
    /// Keys of records that this release cannot read.
    unreadable: RwLock<HashSet<String>>,
    stop: AtomicBool,
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl SchemaFollower {
    /// Does not wait for a broker.
    pub fn start(config: &KafkaConfig) -> Result<Self, KafkaError> {
        // A group id is demanded though no group is joined: partitions are assigned by hand, nothing is committed.
        let consumer: BaseConsumer<Quiet> = config
            .consumer(SCHEMA_TOPIC, None)
            .set("auto.offset.reset", "earliest")
            .set("statistics.interval.ms", "0")
            .create_with_context(Quiet)
            .map_err(KafkaError::Settings)?;
        let mut partition = TopicPartitionList::new();
        partition
            .add_partition_offset(SCHEMA_TOPIC, 0, Offset::Beginning)
            .and_then(|()| consumer.assign(&partition))
            .map_err(KafkaError::Consume)?;
        let shared = Arc::new(Shared {
            tables: RwLock::default(),
            versions: watch::Sender::new(0),
            next: watch::Sender::new(0),
            unreadable: RwLock::default(),
            stop: AtomicBool::new(false),
        });
        let consumer = Arc::new(consumer);
        let stop = Arc::new(StopOnDrop(Arc::clone(&shared)));
        let this = Self { consumer: Arc::clone(&consumer), shared: Arc::clone(&shared), _stop: stop };
        std::thread::Builder::new()
            .name(SCHEMA_TOPIC.to_owned())
            .spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    match consumer.poll(POLL) {
                        None => {}
                        Some(Ok(message)) => {
                            shared.learn(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                            shared.next.send_replace(message.offset() + 1);
                        }
                        Some(Err(error)) => tracing::info!(%error, "reading table schemas is interrupted"),
                    }
                }
            })
            .map_err(|_| KafkaError::Thread(SCHEMA_TOPIC))?;
        Ok(this)
    }

    /// Changes whenever a schema was read.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.shared.versions.subscribe()
    }

    /// Returns once everything is known that the topic held at the time of the call.
    ///
    /// An agent sends a change only after its table's schema was acknowledged by all replicas in sync, and the topic is
    /// compacted by table, so it always holds one. A record whose schema is not known once this has returned after the
    /// record was read is therefore no agent's, or the topic was tampered with.
    pub async fn read_to_end(&self) -> Result<(), KafkaError> {
        let (low, high) = self.ask(|consumer| consumer.fetch_watermarks(SCHEMA_TOPIC, 0, ANSWER_TIMEOUT)).await?;
        // The last record of a compacted topic is its key's newest and so never removed: it will come.
        let mut next = self.shared.next.subscribe();
        if low < high {
            next.wait_for(|next| *next >= high).await.map_err(|_| KafkaError::Thread(SCHEMA_TOPIC))?;
        }
        Ok(())
    }

    /// Whether the table's newest schema was published by a newer release.
    pub fn is_unreadable(&self, table: TableId) -> bool {
        self.shared.unreadable.read().unwrap_or_else(PoisonError::into_inner).contains(&schema_key(table))
    }

    /// How many partitions a topic has now.
    pub async fn partitions(&self, topic: &str) -> Result<i32, KafkaError> {
        let name = topic.to_owned();
        let metadata = self.ask(move |consumer| consumer.fetch_metadata(Some(&name), ANSWER_TIMEOUT)).await?;
        let partitions =
            metadata.topics().iter().find(|one| one.name() == topic).map_or(0, |one| one.partitions().len());
        Ok(i32::try_from(partitions).unwrap_or(i32::MAX))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Quiet>) -> Result<T, Driver> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let consumer = Arc::clone(&self.consumer);
        let answer = tokio::task::spawn_blocking(move || question(&consumer)).await;
        answer.map_err(|_| KafkaError::Thread(SCHEMA_TOPIC))?.map_err(KafkaError::Consume)
    }
}

impl Shared {
    fn learn(&self, key: &[u8], record: &[u8]) {
        let key = String::from_utf8_lossy(key).into_owned();
        let known = |id: TableId| self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let table = decode_schema(record).and_then(|table| match known(table.id) {
            None => Ok(table),
            Some(old) => old.evolve(table).map_err(|error| WireError::Schema(error.to_string())),
        });
        match table {
            Ok(table) => {
                self.unreadable.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
                self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(table.id, Arc::new(table));
                self.versions.send_modify(|count| *count += 1);
            }
            // Changes of the table will wait for a schema that can be read, so nothing is lost.
            Err(error) => {
                tracing::error!(%error, "a record of {SCHEMA_TOPIC} is skipped");
                self.unreadable.write().unwrap_or_else(PoisonError::into_inner).insert(key);
            }
        }
    }
}

impl SchemaLookup for SchemaFollower {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        self.shared.tables.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}
