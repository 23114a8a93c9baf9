//! The producer's side.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cdc_model::{Change, Marker, SegmentPosition, TableId, TableSchema, TableTruncation};
use cdc_wire::{encode_change_into, encode_schema, encode_truncation, schema_key};
use rdkafka::{
    ClientContext, Message,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError as Driver,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tokio::sync::{Notify, watch};

use crate::{
    BARRIER_TOPIC, DEAD_LETTER_SIZE, DEAD_LETTER_TOPIC, KafkaConfig, KafkaError, POSITION_HEADER, SCHEMA_TOPIC,
    TopicTemplate,
    acknowledgements::{Acknowledgements, Ticket},
    context,
};

/// A broker that is up answers within milliseconds.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// Electing the leaders of a new topic takes well under a second.
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the number of a topic's partitions is asked for again.
const METADATA_RETRY: Duration = Duration::from_secs(1);
const LEADER_POLL: Duration = Duration::from_millis(50);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Waits for room in the queue no longer than this before looking whether the producer still lives.
const ROOM_TIMEOUT: Duration = Duration::from_millis(100);

/// Sends changes in order and knows which are acknowledged by all in-sync replicas.
///
/// Waits out any outage of the brokers with a bounded queue. After an error from [`Self::send_batch`] or
/// [`Self::failure`] it is of no further use: make a new one and send again from [`Self::durable`]; sending a change
/// twice does no harm.
pub struct Publisher {
    producer: ThreadedProducer<Reports>,
    config: KafkaConfig,
    template: TopicTemplate,
    topics: Mutex<HashMap<TableId, Arc<str>>>,
    shared: Arc<Shared>,
}

/// A record to be sent by itself.
#[derive(Clone, Copy, Default)]
pub struct Outgoing<'r> {
    pub topic: &'r str,
    /// Left to the key unless given.
    pub partition: Option<i32>,
    pub key: Option<&'r [u8]>,
    pub payload: Option<&'r [u8]>,
    pub headers: &'r [(String, Option<Bytes>)],
}

/// Records since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublisherCounts {
    pub sent: u64,
    pub acknowledged: u64,
    /// Encoded, before compression.
    pub bytes: u64,
}

struct Shared {
    acknowledgements: Mutex<Acknowledgements>,
    durable: watch::Sender<Option<SegmentPosition>>,
    failure: watch::Sender<Option<KafkaError>>,
    room: Notify,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    bytes: AtomicU64,
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut Acknowledgements) -> T) -> T {
        act(&mut self.acknowledgements.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn settle(&self, batch: Ticket, records: usize) {
        if let Some(position) = self.with(|all| all.settle(batch, records)) {
            self.durable.send_replace(Some(position));
        }
    }

    fn fail(&self, error: &KafkaError) {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| error.clone());
            first
        });
    }
}

/// Receives delivery reports on librdkafka's polling thread; only counts.
struct Reports(Arc<Shared>);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: Driver, reason: &str) {
        context::error(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Ticket;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Ticket) {
        let shared = &self.0;
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((source, message)) => {
                Err(KafkaError::Delivery { topic: message.topic().to_owned(), source: source.clone() })
            }
        };
        match outcome {
            Ok(()) => {
                if !shared.with(|all| all.answer(ticket, Ok(()))) {
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    shared.settle(ticket, 1);
                }
            }
            // The batch keeps its count, so the position never passes it.
            Err(error) => {
                if !shared.with(|all| all.answer(ticket, Err(error.clone()))) {
                    shared.fail(&error);
                }
            }
        }
        shared.room.notify_one();
    }
}

impl Publisher {
    /// Does not wait for a broker: librdkafka connects, and connects again, by itself.
    pub fn connect(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let shared = Arc::new(Shared {
            acknowledgements: Mutex::default(),
            durable: watch::Sender::new(None),
            failure: watch::Sender::new(None),
            room: Notify::new(),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let producer =
            config.producer().create_with_context(Reports(Arc::clone(&shared))).map_err(KafkaError::Settings)?;
        Ok(Self { producer, config: config.clone(), template: config.template(), topics: Mutex::default(), shared })
    }

    /// Creates what is missing of the tables' topics, [`SCHEMA_TOPIC`], [`DEAD_LETTER_TOPIC`] and [`BARRIER_TOPIC`], and
    /// waits until they can be written to.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] may be tried again; [`KafkaError::SharedTopic`] is a configuration error.
    pub async fn ensure_topics(&self, tables: &[Arc<TableSchema>]) -> Result<(), KafkaError> {
        let events = self.template.topics(tables)?;
        let wanted: Vec<&str> =
            events.iter().map(String::as_str).chain([SCHEMA_TOPIC, DEAD_LETTER_TOPIC, BARRIER_TOPIC]).collect();
        let present = self.topics_with_leaders().await?;
        let copies = || TopicReplication::Fixed(self.config.replication_factor.unwrap_or(-1));
        let largest = self.config.message_bytes_max.to_string();
        let largest_letter = (DEAD_LETTER_SIZE * self.config.message_bytes_max).to_string();
        let missing: Vec<NewTopic<'_>> = wanted
            .iter()
            .filter(|topic| !present.contains_key(**topic))
            .map(|topic| {
                if *topic == SCHEMA_TOPIC {
                    NewTopic::new(topic, 1, copies()).set("cleanup.policy", "compact")
                } else if *topic == BARRIER_TOPIC {
                    // Nobody waits as long for one.
                    NewTopic::new(topic, 1, copies()).set("retention.ms", "86400000")
                } else if *topic == DEAD_LETTER_TOPIC {
                    NewTopic::new(topic, 1, copies()).set("max.message.bytes", &largest_letter)
                } else {
                    NewTopic::new(topic, self.config.partitions, copies()).set("max.message.bytes", &largest)
                }
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let admin: AdminClient<DefaultClientContext> = self.config.producer().create().map_err(KafkaError::Settings)?;
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT)).request_timeout(Some(ADMIN_TIMEOUT));
        let results = admin.create_topics(&missing, &options).await.map_err(|source| self.unreachable(source))?;
        for result in results {
            match result {
                Ok(topic) => tracing::info!(topic, "topic created"),
                // Another agent was quicker.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(KafkaError::CreateTopic { topic, reason: code.to_string() }),
            }
        }
        let deadline = Instant::now() + LEADER_TIMEOUT;
        loop {
            let present = self.topics_with_leaders().await?;
            match wanted.iter().find(|topic| !present.get(**topic).is_some_and(|(_, ready)| *ready)) {
                None => return Ok(()),
                Some(topic) if Instant::now() > deadline => {
                    return Err(KafkaError::NoLeader { topic: (*topic).to_owned() });
                }
                Some(_) => tokio::time::sleep(LEADER_POLL).await,
            }
        }
    }

    /// The topics that exist, how many partitions they have, and whether all have leaders.
    async fn topics_with_leaders(&self) -> Result<HashMap<String, (i32, bool)>, KafkaError> {
        let producer = self.producer.clone();
        let metadata = tokio::task::spawn_blocking(move || producer.client().fetch_metadata(None, METADATA_TIMEOUT))
            .await
            .map_err(|_| KafkaError::Thread("kafka metadata"))?
            .map_err(|source| self.unreachable(source))?;
        let ready = |topic: &rdkafka::metadata::MetadataTopic| {
            let ready = topic.partitions().iter().all(|p| p.error().is_none() && p.leader() >= 0);
            let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
            (partitions, ready && partitions > 0)
        };
        Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), ready(topic))).collect())
    }

    fn unreachable(&self, source: Driver) -> KafkaError {
        KafkaError::Unreachable { servers: self.config.bootstrap_servers.join(","), source }
    }

    /// Sends a table's schema and waits until it is acknowledged. To be done before the table's first change, and
    /// before the first change that names a new column.
    pub async fn publish_schema(&self, table: &TableSchema) -> Result<(), KafkaError> {
        self.publish(SCHEMA_TOPIC, schema_key(table.id).as_bytes(), &encode_schema(table)).await
    }

    /// Tells those who wait for a barrier; to be done once everything before the marker is acknowledged. Returns once this
    /// is, too.
    pub async fn publish_marker(&self, marker: Marker) -> Result<(), KafkaError> {
        let payload = serde_json::to_vec(&marker).expect("two ids become JSON");
        self.publish(BARRIER_TOPIC, marker.node.0.as_bytes(), &payload).await
    }

    /// Sends one record to any topic and waits until it is acknowledged.
    pub async fn publish(&self, topic: &str, key: &[u8], payload: &[u8]) -> Result<(), KafkaError> {
        self.publish_record(Outgoing { topic, key: Some(key), payload: Some(payload), ..Outgoing::default() }).await
    }

    /// As [`Self::publish`].
    pub async fn publish_record(&self, record: Outgoing<'_>) -> Result<(), KafkaError> {
        let Outgoing { topic, partition, key, payload, headers } = record;
        let bytes = payload.map_or(0, <[u8]>::len);
        let (ticket, answer) = self.shared.with(Acknowledgements::open_single);
        let headers = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        let mut record = BaseRecord::with_opaque_to(topic, ticket).headers(headers);
        (record.partition, record.key, record.payload) = (partition, key, payload);
        while let Err((error, back)) = self.producer.send(record) {
            self.wait_for_room(topic, bytes, error).await?;
            record = back;
        }
        answer.await.unwrap_or_else(|_| Err(KafkaError::Fatal("the producer was closed".to_owned())))
    }

    /// Sends changes; returns when all are queued, which waits for the brokers while the queue is full.
    ///
    /// `upto` is what [`Self::durable`] shows once these and all changes before them are acknowledged; an empty
    /// batch is complete with the one before it. If the future is dropped half way, the position stays before the
    /// batch for good, so make a new publisher then.
    pub async fn send_batch(&self, changes: &[Change], upto: SegmentPosition) -> Result<(), KafkaError> {
        self.check()?;
        let batch = self.shared.with(|all| {
            let batch = all.open_batch(upto);
            all.sending(batch, changes.len());
            batch
        });
        let mut buffer = Vec::new();
        let mut position = None;
        let mut topic: Option<(TableId, Arc<str>)> = None;
        let mut bytes = 0;
        for change in changes {
            let table = change.table.id;
            let name = match &topic {
                Some((id, name)) if *id == table => Arc::clone(name),
                _ => topic.insert((table, self.topic_of(&change.table))).1.clone(),
            };
            let at = change.provenance.position;
            let (_, headers) = match position.take() {
                Some(same @ (known, _)) if known == at => position.insert(same),
                _ => {
                    let text = at.to_string();
                    let header = Header { key: POSITION_HEADER, value: Some(text.as_str()) };
                    position.insert((at, OwnedHeaders::new_with_capacity(1).insert(header)))
                }
            };
            buffer.clear();
            encode_change_into(change, &mut buffer);
            bytes += buffer.len();
            let mut record = BaseRecord::with_opaque_to(&name, batch)
                .key(&change.partition_key[..])
                .payload(&buffer)
                .headers(headers.clone());
            while let Err((error, back)) = self.producer.send(record) {
                self.wait_for_room(&name, buffer.len(), error).await?;
                record = back;
            }
        }
        self.shared.sent.fetch_add(changes.len() as u64, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.shared.settle(batch, 1);
        Ok(())
    }

    /// Sends a truncation to every partition of its table's topic and returns when all have acknowledged it; waits for the
    /// brokers. So it stands behind what was sent before, and before what is sent then.
    ///
    /// # Errors
    /// As [`Self::send_batch`].
    pub async fn send_truncation(&self, truncation: &TableTruncation) -> Result<(), KafkaError> {
        let topic = self.topic_of(&truncation.table);
        let payload = encode_truncation(truncation);
        let partitions = loop {
            self.check()?;
            match self.topics_with_leaders().await {
                Ok(topics) => match topics.get(&*topic) {
                    Some((partitions, _)) => break *partitions,
                    None => return Err(KafkaError::NoLeader { topic: topic.to_string() }),
                },
                Err(error) => {
                    tracing::warn!(%error, %topic, "a truncation waits for Kafka");
                    tokio::time::sleep(METADATA_RETRY).await;
                }
            }
        };
        for partition in 0..partitions {
            let record = Outgoing { topic: &topic, payload: Some(&payload), ..Outgoing::default() };
            self.publish_record(Outgoing { partition: Some(partition), ..record }).await?;
        }
        Ok(())
    }

    async fn wait_for_room(&self, topic: &str, bytes: usize, error: Driver) -> Result<(), KafkaError> {
        match error {
            Driver::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                // A permit may be left from an earlier report, and a timeout only means another look.
                drop(tokio::time::timeout(ROOM_TIMEOUT, self.shared.room.notified()).await);
                self.check()
            }
            Driver::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => {
                let max = self.config.message_bytes_max;
                Err(KafkaError::TooLarge { topic: topic.to_owned(), bytes, max })
            }
            source => Err(KafkaError::Delivery { topic: topic.to_owned(), source }),
        }
    }

    fn check(&self) -> Result<(), KafkaError> {
        if let Some((_, reason)) = self.producer.client().fatal_error() {
            self.shared.fail(&KafkaError::Fatal(reason));
        }
        self.shared.failure.borrow().clone().map_or(Ok(()), Err)
    }

    fn topic_of(&self, table: &TableSchema) -> Arc<str> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(topics.entry(table.id).or_insert_with(|| self.template.topic(table).into()))
    }

    /// The position up to which every change sent is acknowledged; `None` before the first.
    pub fn durable(&self) -> watch::Receiver<Option<SegmentPosition>> {
        self.shared.durable.subscribe()
    }

    /// Returns when a record was refused for good, or the producer came to an end: nothing after it becomes durable.
    pub async fn failure(&self) -> KafkaError {
        let mut failure = self.shared.failure.subscribe();
        let error = failure.wait_for(Option::is_some).await.map(|error| error.clone());
        match error {
            Ok(Some(error)) => error,
            Ok(None) | Err(_) => KafkaError::Fatal("the producer was closed".to_owned()),
        }
    }

    pub fn counts(&self) -> PublisherCounts {
        PublisherCounts {
            sent: self.shared.sent.load(Ordering::Relaxed),
            acknowledged: self.shared.acknowledged.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }
}
