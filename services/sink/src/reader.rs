//! The thread that owns the Kafka consumer: it takes records off and hands them to the lanes of their topics.
//!
//! A lane that is full holds the thread up for a moment ([`FULL`]), because a writer that is merely busy makes room
//! soon. If it does not, the lane's partitions are paused and the other topics go on.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cdc_kafka::{Assignment, Consumer, KafkaConfig, KafkaError, Record, SchemaFollower, Start, TopicPartition};
use cdc_postgres::{Advance, Claim, Disposition, StreamName, Target};
use cdc_runtime::Lifecycle;
use futures::StreamExt as _;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::{
    SinkConfig, SinkError, SinkMetrics,
    applier::{capacity, claim},
    dead_letter::DeadLetters,
    lane::{Decoder, FETCHES, Fetch},
    retry::Patience,
    writer::{CHUNKS, Streams, Writer},
};

const POLL: Duration = Duration::from_millis(100);
/// While a lane is paused or partitions are being claimed, this often is looked whether that is over.
const POLL_WAITING: Duration = Duration::from_millis(10);
const FULL: Duration = Duration::from_millis(500);
/// Records taken off at once, so that a lane is woken once for many.
const TAKE: usize = 500;
const HINT_INTERVAL: Duration = Duration::from_secs(1);
/// Partitions claimed at a time; the writers need connections, too.
const CLAIMS: usize = 4;
/// A record's share of memory beside its bytes, with a header or two.
const RECORD_OVERHEAD: usize = 512;
/// A lane's least share of the memory, bytes.
const LANE_BYTES_MIN: u32 = 1 << 20;

/// The partitions held, shared with the writers.
#[derive(Clone)]
pub(crate) struct Partitions(Arc<Held>);

struct Held {
    claims: Mutex<HashMap<TopicPartition, Arc<Claim>>>,
    /// Positions committed since the last hint.
    committed: Mutex<HashMap<TopicPartition, i64>>,
    metrics: Arc<SinkMetrics>,
}

impl Partitions {
    fn claims<T>(&self, act: impl FnOnce(&mut HashMap<TopicPartition, Arc<Claim>>) -> T) -> T {
        act(&mut self.0.claims.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn committed(&self) -> HashMap<TopicPartition, i64> {
        std::mem::take(&mut *self.0.committed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn of_topic(&self, topic: &str) -> Vec<TopicPartition> {
        self.claims(|claims| claims.keys().filter(|at| &*at.topic == topic).cloned().collect())
    }
}

fn stream(at: &TopicPartition) -> StreamName {
    StreamName(format!("kafka:{at}"))
}

fn partition(stream: &StreamName) -> Option<TopicPartition> {
    let (topic, partition) = stream.0.strip_prefix("kafka:")?.rsplit_once(':')?;
    Some(TopicPartition { topic: topic.into(), partition: partition.parse().ok()? })
}

impl Streams for Partitions {
    fn holds(&self, claim: &Claim) -> bool {
        partition(&claim.stream)
            .is_some_and(|at| self.claims(|claims| claims.get(&at).is_some_and(|held| held.epoch == claim.epoch)))
    }

    /// A partition that was revoked is not held any more, so this is another claim behind the group's back, as after
    /// a long pause of this process. To skip the partition would leave it to nobody, should the group still count it
    /// as ours; so the process ends, joins again after its restart, and claims what it is given.
    fn lost(&self, claim: &Claim) -> Result<(), SinkError> {
        Err(SinkError::Fenced(claim.stream.clone()))
    }

    fn committed(&self, advance: &Advance) {
        if let (Some(at), Ok(next)) = (partition(&advance.claim.stream), advance.position.parse()) {
            self.0.metrics.reached(&at, next);
            self.0.committed.lock().unwrap_or_else(PoisonError::into_inner).insert(at, next);
        }
    }
}

/// Claims partitions as they are assigned, beside the reader, so that those it holds already are not held up.
struct Owner {
    partitions: Partitions,
    target: Target,
    lifecycle: Lifecycle,
    runtime: Handle,
    claimed: std::sync::mpsc::Sender<Vec<(TopicPartition, Claim)>>,
}

impl Assignment for Owner {
    fn assigned(&self, partitions: &[TopicPartition]) -> Option<Vec<Start>> {
        if partitions.is_empty() {
            return Some(Vec::new());
        }
        let (target, claimed, partitions) = (self.target.clone(), self.claimed.clone(), partitions.to_vec());
        let (soft, metrics) = (self.lifecycle.soft().clone(), Arc::clone(&self.partitions.0.metrics));
        let claiming = async move {
            let claims = partitions.into_iter().map(|at| {
                let (target, metrics) = (target.clone(), Arc::clone(&metrics));
                async move { (at.clone(), claim(&target, &stream(&at), &metrics).await) }
            });
            let claims = futures::stream::iter(claims).buffer_unordered(CLAIMS).collect();
            if let Some(claims) = soft.run_until_cancelled(claims).await {
                // Nobody takes it any more when the reader has ended.
                drop(claimed.send(claims));
            }
            anyhow::Ok(())
        };
        let _context = self.runtime.enter();
        self.lifecycle.spawn_finite("claim partitions", claiming);
        None
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.partitions.claims(|claims| claims.remove(at));
            self.partitions.0.metrics.released(at);
        }
    }

    fn end(&self, partition: &TopicPartition, offset: i64) {
        self.partitions.0.metrics.end(partition, offset);
    }
}

/// What the reader needs to set up lanes.
pub(crate) struct Reader {
    pub(crate) config: SinkConfig,
    pub(crate) kafka: KafkaConfig,
    pub(crate) target: Target,
    pub(crate) schemas: SchemaFollower,
    pub(crate) dead_letters: Arc<DeadLetters>,
    pub(crate) metrics: Arc<SinkMetrics>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) runtime: Handle,
}

/// A topic's way to its writer.
struct Lane {
    fetches: mpsc::Sender<Fetch>,
    room: Arc<Semaphore>,
    capacity: u32,
    /// Taken off Kafka, but without room in the lane yet.
    waiting: VecDeque<Waiting>,
    paused: bool,
}

/// Records of one partition, under the claim they were read under: the partition may be lost and come back at
/// another offset, and these must not count as progress then.
struct Waiting {
    claim: Arc<Claim>,
    at: TopicPartition,
    records: Vec<Record>,
    bytes: usize,
}

impl Reader {
    /// Runs until the soft stop, then until the lanes have written what they hold.
    pub(crate) fn run(self) -> Result<(), SinkError> {
        let _context = self.runtime.enter();
        let held = Held { claims: Mutex::default(), committed: Mutex::default(), metrics: Arc::clone(&self.metrics) };
        let partitions = Partitions(Arc::new(held));
        let (claimed, claims) = std::sync::mpsc::channel();
        let owner = Owner {
            claimed,
            partitions: partitions.clone(),
            target: self.target.clone(),
            lifecycle: self.lifecycle.clone(),
            runtime: self.runtime.clone(),
        };
        let instance_id = self.config.instance_id.as_deref();
        let consumer = Consumer::connect(&self.kafka, &self.config.group, instance_id, owner)?;
        let mut lanes: HashMap<Arc<str>, Lane> = HashMap::new();
        let mut hinted = Instant::now();
        let mut patience = Patience::new("reading from Kafka");
        while !self.lifecycle.soft().is_cancelled() {
            for claims in claims.try_iter() {
                self.take_over(&consumer, &partitions, claims)?;
            }
            let is_waiting = consumer.is_assigning() || lanes.values().any(|lane| lane.paused);
            let timeout = if is_waiting { POLL_WAITING } else { POLL };
            let (taken, outcome) = take(&consumer, &partitions, timeout);
            match outcome {
                Ok(()) if taken.is_empty() => {}
                Ok(()) => patience.succeeded(),
                Err(error @ (KafkaError::Fatal(_) | KafkaError::Replaced { .. })) => return Err(error.into()),
                Err(error @ KafkaError::OffsetGone { .. }) => {
                    tracing::error!("{error}");
                    self.metrics.failing("kafka reader", &error, Instant::now(), None);
                }
                // Repaired by the client itself.
                Err(error) => drop(patience.failed(Disposition::Retry, &error)),
            }
            let mut arrived: HashSet<Arc<str>> = HashSet::new();
            for waiting in taken {
                let topic = Arc::clone(&waiting.at.topic);
                if !lanes.contains_key(&topic) {
                    lanes.insert(Arc::clone(&topic), self.lane(&topic, &partitions, lanes.len() + 1));
                }
                if let Some(lane) = lanes.get_mut(&topic) {
                    lane.waiting.push_back(waiting);
                }
                arrived.insert(topic);
            }
            for (topic, lane) in &mut lanes {
                self.pass_on(&consumer, &partitions, topic, lane, arrived.contains(topic))?;
            }
            if hinted.elapsed() > HINT_INTERVAL {
                hinted = Instant::now();
                hint(&consumer, &partitions);
            }
        }
        self.drain(lanes);
        hint(&consumer, &partitions);
        Ok(())
    }

    /// Begins to read what was assigned and is claimed now.
    fn take_over(
        &self,
        consumer: &Consumer<Owner>,
        partitions: &Partitions,
        claims: Vec<(TopicPartition, Claim)>,
    ) -> Result<(), SinkError> {
        let mut starts = Vec::with_capacity(claims.len());
        for (at, claim) in claims {
            let next = claim.position.as_ref().map(|position| {
                let fault = |_| SinkError::Position { stream: claim.stream.clone(), position: position.clone() };
                position.parse::<i64>().map_err(fault)
            });
            let next = next.transpose()?;
            partitions.claims(|claims| claims.insert(at.clone(), Arc::new(claim)));
            self.metrics.held(&at, next);
            starts.push((at, next.map_or(Start::Beginning, Start::Offset)));
        }
        consumer.assign(starts);
        Ok(())
    }

    /// Sets up the tasks of a topic; `lanes` share the memory.
    fn lane(&self, topic: &str, partitions: &Partitions, lanes: usize) -> Lane {
        let share = capacity(&self.config) / u32::try_from(lanes).unwrap_or(u32::MAX);
        let capacity = share.max(LANE_BYTES_MIN);
        let (fetches, fetched) = mpsc::channel(FETCHES);
        let (chunks, decoded) = mpsc::channel(CHUNKS);
        let decoder = Decoder {
            schemas: self.schemas.clone(),
            partitions: Some(self.kafka.partitions),
            lifecycle: self.lifecycle.clone(),
            chunks,
        };
        let writer = Writer {
            target: self.target.clone(),
            config: self.config.clone(),
            metrics: Arc::clone(&self.metrics),
            streams: partitions.clone(),
            dead_letters: Some(Arc::clone(&self.dead_letters)),
            lifecycle: self.lifecycle.clone(),
            name: topic.to_owned(),
        };
        self.lifecycle.spawn(format!("decode {topic}"), decoder.run(fetched));
        self.lifecycle.spawn(format!("write {topic}"), writer.run(decoded));
        let room = Arc::new(Semaphore::new(usize::try_from(capacity).expect("32 bits fit")));
        Lane { fetches, room, capacity, waiting: VecDeque::new(), paused: false }
    }

    /// Moves what waits into the lane; pauses the topic if there is no room soon, and resumes it once all has moved.
    fn pass_on(
        &self,
        consumer: &Consumer<Owner>,
        partitions: &Partitions,
        topic: &str,
        lane: &mut Lane,
        arrived: bool,
    ) -> Result<(), SinkError> {
        while let Some(Waiting { claim, at, records, bytes }) = lane.waiting.pop_front() {
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, lane.capacity);
            let patience = if lane.paused { Duration::ZERO } else { FULL };
            // Many small fetches fill the queue before the memory.
            let room = async {
                let room = Arc::clone(&lane.room).acquire_many_owned(permits);
                tokio::time::timeout(patience, futures::future::join(room, lane.fetches.reserve())).await
            };
            match self.runtime.block_on(self.lifecycle.soft().run_until_cancelled(room)) {
                // A stop: what waits is read again.
                None => return Ok(()),
                Some(Ok((room, place))) => {
                    let room = room.expect("the semaphore is never closed");
                    // A lane ends before a stop only when the process is about to end.
                    if let Ok(place) = place {
                        place.send(Fetch { claim, records, bytes, room });
                    }
                }
                Some(Err(_)) => {
                    lane.waiting.push_front(Waiting { claim, at, records, bytes });
                    // Again if something arrived nonetheless, as from a partition assigned since.
                    if !lane.paused || arrived {
                        consumer.pause(&partitions.of_topic(topic))?;
                        lane.paused = true;
                        self.metrics.paused();
                        tracing::debug!(topic, "paused: its writer has no room");
                    }
                    return Ok(());
                }
            }
        }
        if lane.paused {
            consumer.resume(&partitions.of_topic(topic))?;
            lane.paused = false;
            tracing::debug!(topic, "resumed");
        }
        Ok(())
    }

    /// Lets the lanes finish before the partitions are given up, so that their next owner need not repeat the work.
    fn drain(&self, lanes: HashMap<Arc<str>, Lane>) {
        let rooms: Vec<(Arc<Semaphore>, u32)> = lanes.values().map(|l| (Arc::clone(&l.room), l.capacity)).collect();
        drop(lanes);
        let empty = async {
            for (room, capacity) in rooms {
                // All permits are back once everything is written or dropped.
                drop(room.acquire_many(capacity).await);
            }
        };
        self.runtime.block_on(self.lifecycle.hard().run_until_cancelled(empty));
    }
}

/// Takes off what is there, up to [`TAKE`] records, by partition and claim; waits only for the first.
fn take(
    consumer: &Consumer<Owner>,
    partitions: &Partitions,
    timeout: Duration,
) -> (Vec<Waiting>, Result<(), KafkaError>) {
    let mut taken: Vec<Waiting> = Vec::new();
    let mut timeout = timeout;
    for _ in 0..TAKE {
        let record = match consumer.poll(timeout) {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(error) => return (taken, Err(error)),
        };
        timeout = Duration::ZERO;
        // No claim: the partition was lost between reading and here.
        let Some(claim) = partitions.claims(|claims| claims.get(&record.at).cloned()) else { continue };
        let bytes = record.bytes() + RECORD_OVERHEAD;
        match taken.iter_mut().find(|waiting| Arc::ptr_eq(&waiting.claim, &claim)) {
            Some(waiting) => {
                waiting.records.push(record);
                waiting.bytes += bytes;
            }
            None => taken.push(Waiting { claim, at: record.at.clone(), records: vec![record], bytes }),
        }
    }
    (taken, Ok(()))
}

fn hint(consumer: &Consumer<Owner>, partitions: &Partitions) {
    let committed = partitions.committed();
    if let Err(error) = consumer.hint(committed.iter().map(|(at, next)| (at, *next))) {
        tracing::debug!(%error, "offsets could not be told to Kafka");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_and_partitions_correspond() {
        let at = TopicPartition { topic: "cdc-events-t".into(), partition: 7 };
        assert_eq!(stream(&at).0, "kafka:cdc-events-t:7");
        assert_eq!(partition(&stream(&at)), Some(at));
        assert_eq!(partition(&StreamName("node:1".to_owned())), None);
    }
}
