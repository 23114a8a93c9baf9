//! A group member's side. Positions live with the target, not in Kafka: at every assignment the owner says where each
//! partition goes on. Offsets are committed to Kafka only as a hint for tools that show lag.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
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
    /// Says where each of these begins; `None` if this process is about to end, and nothing should be read. May
    /// block; beyond `max.poll.interval.ms` (5 minutes) the group goes on without this member, which joins again.
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
}

struct Context<A> {
    owner: A,
    next: Mutex<Next>,
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
        let outcome = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            match self.owner.assigned(&partitions) {
                None => driver.incremental_assign(&TopicPartitionList::new()),
                Some(starts) => {
                    self.next(|next| {
                        for (at, start) in partitions.iter().zip(&starts) {
                            let offset = if let Start::Offset(offset) = start { *offset } else { -1 };
                            next.entry(Arc::clone(&at.topic)).or_default().insert(at.partition, offset);
                        }
                    });
                    let offset = |start: &Start| match start {
                        Start::Beginning => Offset::Beginning,
                        Start::Offset(offset) => Offset::Offset(*offset),
                    };
                    to_list(partitions.iter().zip(&starts).map(|(at, start)| (at, offset(start))))
                        .and_then(|list| driver.incremental_assign(&list))
                }
            }
        } else {
            self.owner.revoked(&partitions);
            self.next(|next| {
                for at in &partitions {
                    next.get_mut(&at.topic).map(|next| next.remove(&at.partition));
                }
            });
            driver.incremental_unassign(list)
        };
        match outcome {
            Ok(()) => tracing::info!(?kind, partitions = partitions.len(), "consumer group rebalanced"),
            // librdkafka has dropped the assignment meanwhile and will offer a new one.
            Err(error) => tracing::warn!(%error, "consumer group rebalance was overtaken"),
        }
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

fn to_list<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, Offset)>) -> Result<TopicPartitionList, Driver> {
    let mut list = TopicPartitionList::new();
    for (at, offset) in offsets {
        list.add_partition_offset(&at.topic, at.partition, offset)?;
    }
    Ok(list)
}

impl<A: Assignment> Consumer<A> {
    /// Joins `group` for the topics of all tables, present and future. Does not wait for a broker.
    pub fn connect(config: &KafkaConfig, group: &str, owner: A) -> Result<Self, KafkaError> {
        let context = Context { owner, next: Mutex::default() };
        let driver: BaseConsumer<_> =
            config.consumer(group).create_with_context(context).map_err(KafkaError::Settings)?;
        driver.subscribe(&[&config.template().pattern()]).map_err(KafkaError::Consume)?;
        Ok(Self { driver })
    }

    pub fn owner(&self) -> &A {
        &self.driver.context().owner
    }

    /// The next record, if one comes within the timeout; also where rebalances happen.
    ///
    /// # Errors
    /// [`KafkaError::OffsetGone`]: reading of that partition has stopped, the others go on.
    /// [`KafkaError::Fatal`]: make a new consumer. Anything else librdkafka repairs by itself: poll on.
    pub fn poll(&self, timeout: Duration) -> Result<Option<Record>, KafkaError> {
        match self.driver.poll(timeout) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(self.record(&message))),
            Some(Err(Driver::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => Err(self.offset_gone()),
            Some(Err(Driver::MessageConsumptionFatal(code))) => Err(KafkaError::Fatal(code.to_string())),
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
