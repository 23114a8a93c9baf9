//! A group member's side. Positions live with the target, not in Kafka: at every assignment the owner says where each
//! partition goes on. Offsets are committed to Kafka only as a hint for tools that show lag.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    ClientContext, Message, Offset, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::KafkaError as Driver,
    message::{BorrowedMessage, Headers as _},
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};

use crate::{KafkaConfig, KafkaError, context};

const WATERMARK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.topic, self.partition)
    }
}

/// Where to read a partition from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    Beginning,
    Offset(i64),
}

/// The owner's part in rebalances. All run on the thread that polls, within [`Consumer::poll`] or on drop.
pub trait Assignment: Send + Sync + 'static {
    /// Says where each of these begins, or `None` to say so by [`Consumer::assign`] later. Until then the partitions
    /// held before are read on, and the group waits for this member before it moves any other partition.
    fn assigned(&self, partitions: &[TopicPartition]) -> Option<Vec<Start>>;

    /// These belong to another member from now on, or to none.
    fn revoked(&self, partitions: &[TopicPartition]);

    /// Offset of the next record that a producer will append; every few seconds.
    fn end(&self, partition: &TopicPartition, offset: i64);
}

pub struct Record {
    pub at: TopicPartition,
    pub offset: i64,
    pub key: Option<Bytes>,
    pub payload: Option<Bytes>,
    /// Milliseconds since 1970, if the record carries a time.
    pub timestamp_ms: Option<i64>,
    pub headers: Headers,
}

/// Names and values, in the record's order.
pub type Headers = Vec<(String, Option<Bytes>)>;

impl Record {
    /// Of key, value and headers.
    pub fn bytes(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + length(value)).sum();
        length(&self.key) + length(&self.payload) + headers
    }
}

pub struct Consumer<A: Assignment> {
    driver: BaseConsumer<Context<A>>,
    instance_id: Option<String>,
}

struct Context<A> {
    owner: A,
    next: Mutex<Next>,
    /// The owner has not said yet where the partitions it was given begin.
    is_assigning: AtomicBool,
}

/// Offset wanted next of every partition held, by topic; -1 until the first record after a start from the beginning.
type Next = HashMap<Arc<str>, HashMap<i32, i64>>;

impl<A: Assignment> Context<A> {
    fn next<T>(&self, act: impl FnOnce(&mut Next) -> T) -> T {
        act(&mut self.next.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn all_next(&self) -> Vec<(TopicPartition, i64)> {
        self.next(|next| {
            let of_topic = |(topic, next): (&Arc<str>, &HashMap<i32, i64>)| {
                let topic = Arc::clone(topic);
                let at = move |partition: &i32| TopicPartition { topic: Arc::clone(&topic), partition: *partition };
                next.iter().map(|(partition, next)| (at(partition), *next)).collect::<Vec<_>>()
            };
            next.iter().flat_map(of_topic).collect()
        })
    }
}

impl<A: Assignment> ClientContext for Context<A> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        context::log(level, facility, message);
    }

    fn error(&self, error: Driver, reason: &str) {
        context::error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        for (at, _) in self.all_next() {
            let partition = statistics.topics.get(&*at.topic).and_then(|topic| topic.partitions.get(&at.partition));
            if let Some(partition) = partition.filter(|partition| partition.hi_offset >= 0) {
                self.owner.end(&at, partition.hi_offset);
            }
        }
    }
}

impl<A: Assignment> ConsumerContext for Context<A> {
    fn rebalance(&self, driver: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = partitions(list);
        if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            match self.owner.assigned(&partitions) {
                None => self.is_assigning.store(true, Ordering::Relaxed),
                Some(starts) => self.assign(driver, partitions.into_iter().zip(starts).collect()),
            }
        } else {
            self.revoke(&partitions);
            settled("revoked", partitions.len(), driver.incremental_unassign(list));
        }
    }
}

fn settled(what: &str, partitions: usize, outcome: Result<(), Driver>) {
    match outcome {
        Ok(()) => tracing::info!(partitions, "consumer group rebalanced, partitions {what}"),
        // librdkafka has dropped the assignment meanwhile and will offer a new one.
        Err(error) => tracing::warn!(%error, "consumer group rebalance was overtaken"),
    }
}

impl<A: Assignment> Context<A> {
    fn assign(&self, driver: &BaseConsumer<Self>, starts: Vec<(TopicPartition, Start)>) {
        self.is_assigning.store(false, Ordering::Relaxed);
        self.next(|next| {
            for (at, start) in &starts {
                let offset = if let Start::Offset(offset) = start { *offset } else { -1 };
                next.entry(Arc::clone(&at.topic)).or_default().insert(at.partition, offset);
            }
        });
        let offset = |start: &Start| match start {
            Start::Beginning => Offset::Beginning,
            Start::Offset(offset) => Offset::Offset(*offset),
        };
        let list = to_list(starts.iter().map(|(at, start)| (at, offset(start))));
        let outcome = list.and_then(|list| driver.incremental_assign(&list));
        if outcome.is_err() {
            self.revoke(&starts.iter().map(|(at, _)| at.clone()).collect::<Vec<_>>());
        }
        settled("assigned", starts.len(), outcome);
    }

    fn revoke(&self, partitions: &[TopicPartition]) {
        self.owner.revoked(partitions);
        self.next(|next| {
            for at in partitions {
                next.get_mut(&at.topic).map(|next| next.remove(&at.partition));
            }
        });
    }
}

/// None if a name is not UTF-8, where the driver panics: a foreign record must not end the process, and what it says
/// in its headers is not needed to apply it.
fn headers(message: &BorrowedMessage<'_>) -> Headers {
    let Some(headers) = message.headers() else { return Vec::new() };
    let read = || headers.iter().map(|h| (h.key.to_owned(), h.value.map(Bytes::copy_from_slice))).collect();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_default()
}

fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|e| TopicPartition { topic: e.topic().into(), partition: e.partition() }).collect()
}

pub(crate) fn to_list<'a>(
    offsets: impl Iterator<Item = (&'a TopicPartition, Offset)>,
) -> Result<TopicPartitionList, Driver> {
    let mut list = TopicPartitionList::new();
    for (at, offset) in offsets {
        list.add_partition_offset(&at.topic, at.partition, offset)?;
    }
    Ok(list)
}

impl<A: Assignment> Consumer<A> {
    /// Joins `group` for the topics of all tables, present and future. Does not wait for a broker. With an
    /// `instance_id` it is a static member: its partitions wait for it while it restarts.
    pub fn connect(config: &KafkaConfig, group: &str, instance_id: Option<&str>, owner: A) -> Result<Self, KafkaError> {
        let context = Context { owner, next: Mutex::default(), is_assigning: AtomicBool::default() };
        let driver: BaseConsumer<_> =
            config.consumer(group, instance_id).create_with_context(context).map_err(KafkaError::Settings)?;
        driver.subscribe(&[&config.template().pattern()]).map_err(KafkaError::Consume)?;
        Ok(Self { driver, instance_id: instance_id.map(str::to_owned) })
    }

    pub fn owner(&self) -> &A {
        &self.driver.context().owner
    }

    /// The owner's answer to the last [`Assignment::assigned`] that it left open, of all its partitions.
    pub fn assign(&self, starts: Vec<(TopicPartition, Start)>) {
        self.driver.context().assign(&self.driver, starts);
    }

    /// Whether [`Self::assign`] is waited for.
    pub fn is_assigning(&self) -> bool {
        self.driver.context().is_assigning.load(Ordering::Relaxed)
    }

    /// The next record, if one comes within the timeout; also where rebalances happen.
    ///
    /// # Errors
    /// [`KafkaError::OffsetGone`]: reading of that partition has stopped, the others go on.
    /// [`KafkaError::Fatal`]: make a new consumer. [`KafkaError::Replaced`]: do not. Anything else librdkafka repairs by itself: poll on.
    pub fn poll(&self, timeout: Duration) -> Result<Option<Record>, KafkaError> {
        match self.driver.poll(timeout) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(self.record(&message))),
            Some(Err(Driver::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => Err(self.offset_gone()),
            Some(Err(Driver::MessageConsumptionFatal(code))) => Err(self.fatal(code)),
            Some(Err(error)) => Err(KafkaError::Consume(error)),
        }
    }

    fn record(&self, message: &BorrowedMessage<'_>) -> Record {
        let (partition, offset) = (message.partition(), message.offset());
        let topic = self.driver.context().next(|next| {
            let topic = next.get_key_value(message.topic()).map(|(topic, _)| Arc::clone(topic));
            if let Some(next) = next.get_mut(message.topic()).and_then(|next| next.get_mut(&partition)) {
                *next = offset + 1;
            }
            topic
        });
        let at = TopicPartition { topic: topic.unwrap_or_else(|| message.topic().into()), partition };
        Record {
            at,
            offset,
            key: message.key().map(Bytes::copy_from_slice),
            payload: message.payload().map(Bytes::copy_from_slice),
            timestamp_ms: message.timestamp().to_millis(),
            headers: headers(message),
        }
    }

    fn fatal(&self, code: RDKafkaErrorCode) -> KafkaError {
        match (self.driver.client().fatal_error(), &self.instance_id) {
            (Some((RDKafkaErrorCode::FencedInstanceId, _)), Some(id)) => {
                KafkaError::Replaced { instance_id: id.clone() }
            }
            (Some((_, reason)), _) => KafkaError::Fatal(reason),
            (None, _) => KafkaError::Fatal(code.to_string()),
        }
    }

    /// Finds out which partition it was, as the error does not say.
    fn offset_gone(&self) -> KafkaError {
        for (at, wanted) in self.driver.context().all_next() {
            match self.driver.fetch_watermarks(&at.topic, at.partition, WATERMARK_TIMEOUT) {
                Ok((low, high)) if wanted >= 0 && !(low..=high).contains(&wanted) => {
                    return KafkaError::OffsetGone {
                        topic: at.topic.to_string(),
                        partition: at.partition,
                        wanted,
                        low,
                        high,
                    };
                }
                Ok(_) => {}
                Err(error) => return KafkaError::Consume(error),
            }
        }
        KafkaError::Consume(Driver::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))
    }

    /// Stops reading these and drops what was read ahead; [`Self::resume`] goes on after the last record given out.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = to_list(partitions.iter().map(|at| (at, Offset::Invalid))).map_err(KafkaError::Consume)?;
        self.driver.pause(&list).map_err(KafkaError::Consume)
    }

    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = to_list(partitions.iter().map(|at| (at, Offset::Invalid))).map_err(KafkaError::Consume)?;
        self.driver.resume(&list).map_err(KafkaError::Consume)
    }

    /// Tells Kafka how far the target has come, for those who ask Kafka about lag; not waited for, nothing rests on it.
    pub fn hint<'a>(&self, next: impl Iterator<Item = (&'a TopicPartition, i64)>) -> Result<(), KafkaError> {
        let list = to_list(next.map(|(at, next)| (at, Offset::Offset(next)))).map_err(KafkaError::Consume)?;
        if list.count() == 0 {
            return Ok(());
        }
        self.driver.commit(&list, CommitMode::Async).map_err(KafkaError::Consume)
    }
}

impl<A: Assignment> Drop for Consumer<A> {
    /// librdkafka does not leave the group before it has its answer.
    fn drop(&mut self) {
        if self.is_assigning() {
            self.assign(Vec::new());
        }
    }
}
