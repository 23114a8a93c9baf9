//! Every table schema that was ever published, kept current.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cdc_model::{TableId, TableSchema};
use cdc_wire::{SchemaLookup, WireError, decode_schema};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::KafkaError as Driver,
};
use tokio::sync::watch;

use crate::{KafkaConfig, KafkaError, SCHEMA_TOPIC, context};

/// How long dropping a follower may take.
const POLL: Duration = Duration::from_millis(100);

/// Reads [`SCHEMA_TOPIC`] from its start on a thread of its own, which ends when the last clone is dropped. Versions
/// of a table evolve from each other, so column ids stay what they are for the life of the process.
#[derive(Clone)]
pub struct SchemaFollower {
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

struct Shared {
    tables: RwLock<HashMap<TableId, Arc<TableSchema>>>,
    /// Counts the schemas read.
    versions: watch::Sender<u64>,
    stop: AtomicBool,
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: Driver, reason: &str) {
        context::error(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

impl SchemaFollower {
    /// Does not wait for a broker.
    pub fn start(config: &KafkaConfig) -> Result<Self, KafkaError> {
        // A group id is demanded though no group is joined: partitions are assigned by hand, nothing is committed.
        let consumer: BaseConsumer<Quiet> = config
            .consumer(SCHEMA_TOPIC)
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
            stop: AtomicBool::new(false),
        });
        let this = Self { shared: Arc::clone(&shared), _stop: Arc::new(StopOnDrop(Arc::clone(&shared))) };
        std::thread::Builder::new()
            .name(SCHEMA_TOPIC.to_owned())
            .spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    match consumer.poll(POLL) {
                        None => {}
                        Some(Ok(message)) => shared.learn(message.payload().unwrap_or_default()),
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
}

impl Shared {
    fn learn(&self, record: &[u8]) {
        let known = |id: TableId| self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let table = decode_schema(record).and_then(|table| match known(table.id) {
            None => Ok(table),
            Some(old) => old.evolve(table).map_err(|error| WireError::Schema(error.to_string())),
        });
        match table {
            Ok(table) => {
                self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(table.id, Arc::new(table));
                self.versions.send_modify(|count| *count += 1);
            }
            // Changes of the table will wait for a schema that can be read, so nothing is lost.
            Err(error) => tracing::error!(%error, "a record of {SCHEMA_TOPIC} is skipped"),
        }
    }
}

impl SchemaLookup for SchemaFollower {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        self.shared.tables.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}
