//! Answers once everything written before the call is visible in PostgreSQL.
//!
//! A mark with a fresh id is written, at `ALL`, into the commit log of every node that logs captured tables. A write that
//! was acknowledged before is in the logs of the nodes that acknowledged it, in front of the mark. An agent hands a mark on
//! only after everything in front of it:
//!
//! - *Direct mode*: PostgreSQL commits the mark with the position that passes it, so with or after all rows before it.
//!   The barrier waits for the mark of every node.
//! - *Kafka*: the agent publishes the mark once all records before it are acknowledged. When the marks of all nodes are
//!   there, everything to wait for is in front of the ends of the event topics as they are then, and the barrier waits until
//!   the positions of all their partitions have come so far.
//!
//! Nothing in it depends on a clock. What was parked in `_cdc.dlq` counts as delivered, because positions pass it. A mark may
//! get lost with what a node that crashed has forgotten, so it is written again to nodes that are slow to answer: each mark
//! of an id says the same, later ones even more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use cdc_cassandra::{Cassandra, MarkError, MarkTable, MarkedNode, checks::Wanted};
use cdc_kafka::{BarrierReader, Extent, KafkaConfig, KafkaError, TopicPartition};
use cdc_model::NodeId;
use cdc_postgres::{StreamName, Target, TargetError};
use tokio::sync::Mutex;
use uuid::Uuid;

/// Between two looks into PostgreSQL: small against what a commit takes, and no load.
const POLL: Duration = Duration::from_millis(5);
/// Longer than a mark takes in the capture modes `live` and `marker`.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct BarrierSettings {
    /// `source.barrier_table`, as the agents have it.
    pub marks: MarkTable,
    /// `source.tables`, as the agents have it.
    pub captured: Vec<Wanted>,
}

pub struct Barrier {
    cassandra: Cassandra,
    target: Target,
    /// One barrier at a time reads on in the topic.
    kafka: Option<Mutex<BarrierReader>>,
    settings: BarrierSettings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passed {
    pub id: Uuid,
    /// Nodes whose logs were waited for.
    pub nodes: usize,
    /// From the call on.
    pub round_trip: Duration,
}

#[derive(thiserror::Error, Debug)]
pub enum BarrierError {
    /// Also where a node could not take the mark: [`MarkError::Unwritten`].
    #[error(transparent)]
    Mark(#[from] MarkError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("not everything has arrived within {after:?}: {}", list(missing))]
    TimedOut { after: Duration, missing: Vec<Missing> },
}

/// What a barrier was still waiting for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Cassandra had not acknowledged the mark.
    Write,
    Node(MarkedNode),
    Partition {
        at: TopicPartition,
        records: i64,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write => f.write_str("Cassandra has not acknowledged the mark"),
            Self::Node(node) => write!(f, "{node}: its agent has not delivered the marker"),
            Self::Partition { at: TopicPartition { topic, partition }, records } => {
                write!(f, "topic {topic} partition {partition}: its sink has {records} records to apply")
            }
        }
    }
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Barrier {
    /// `kafka`: where agents publish to; `None` in direct mode.
    pub async fn connect(
        cassandra: Cassandra,
        target: Target,
        kafka: Option<&KafkaConfig>,
        settings: BarrierSettings,
    ) -> Result<Self, BarrierError> {
        let kafka = match kafka {
            Some(kafka) => Some(Mutex::new(Box::pin(BarrierReader::connect(kafka)).await?)),
            None => None,
        };
        Ok(Self { cassandra, target, kafka, settings })
    }

    /// The node that marks are written through.
    pub fn cassandra(&self) -> &Cassandra {
        &self.cassandra
    }

    /// Returns once everything that Cassandra acknowledged before the call is visible in PostgreSQL, but for what is in
    /// `_cdc.dlq`. May be called again after any error, and by several at once.
    ///
    /// # Errors
    /// [`BarrierError::TimedOut`] says what was missing; [`MarkError::Unwritten`] which node did not take the mark.
    pub async fn pass(&self, timeout: Duration) -> Result<Passed, BarrierError> {
        self.pass_for(None, timeout).await
    }

    /// The same for some captured tables alone, which through Kafka wait for no others.
    ///
    /// # Errors
    /// As [`Self::pass`].
    pub async fn pass_for(&self, tables: Option<&[Wanted]>, timeout: Duration) -> Result<Passed, BarrierError> {
        let began = Instant::now();
        let id = Uuid::new_v4();
        let mut missing = vec![Missing::Write];
        let passing = Box::pin(self.wait(id, tables, &mut missing));
        let passed = tokio::time::timeout(timeout, passing).await;
        match passed {
            Ok(nodes) => Ok(Passed { id, nodes: nodes?, round_trip: began.elapsed() }),
            Err(_) => Err(BarrierError::TimedOut { after: timeout, missing }),
        }
    }

    async fn wait(
        &self,
        id: Uuid,
        tables: Option<&[Wanted]>,
        missing: &mut Vec<Missing>,
    ) -> Result<usize, BarrierError> {
        let marks = self.cassandra.prepare_marks(&self.settings.marks, &self.settings.captured).await?;
        let kafka = match &self.kafka {
            Some(kafka) => Some(kafka.lock().await),
            None => None,
        };
        if let Some(kafka) = &kafka {
            kafka.follow().await?;
        }
        self.cassandra.mark(&marks, id, &|_| true).await?;
        let mut nodes: BTreeMap<NodeId, MarkedNode> = marks.nodes().map(|node| (node.id, node)).collect();
        let expected = nodes.len();
        let mut written = Instant::now();
        loop {
            missing.clear();
            missing.extend(nodes.values().copied().map(Missing::Node));
            let arrived: BTreeSet<NodeId> = match &kafka {
                Some(kafka) => {
                    kafka.next().await?.filter(|marker| marker.id == id).map(|m| m.node).into_iter().collect()
                }
                None => self.target.marked_nodes(id).await?,
            };
            nodes.retain(|node, _| !arrived.contains(node));
            if nodes.is_empty() {
                break;
            }
            if written.elapsed() >= WRITE_AGAIN {
                written = Instant::now();
                if let Err(error) = self.cassandra.mark(&marks, id, &|node| nodes.contains_key(&node)).await {
                    tracing::debug!(%error, "a mark was not written again");
                }
            }
            if kafka.is_none() {
                tokio::time::sleep(POLL).await;
            }
        }
        if let Some(kafka) = kafka {
            let captured = marks.tables.into_iter().filter(|(keyspace, name)| {
                tables.is_none_or(|tables| {
                    let named = |table: &Wanted| table.table.as_ref().is_none_or(|wanted| wanted == name);
                    tables.iter().any(|table| table.keyspace == *keyspace && named(table))
                })
            });
            let extents = kafka.extents(&captured.collect::<Vec<_>>()).await?;
            drop(kafka);
            self.applied(extents, missing).await?;
        }
        Ok(expected)
    }

    /// Waits until the sinks have applied all records of these.
    async fn applied(
        &self,
        mut extents: BTreeMap<TopicPartition, Extent>,
        missing: &mut Vec<Missing>,
    ) -> Result<(), BarrierError> {
        loop {
            let streams = extents.keys().map(stream).collect();
            let positions = self.target.positions(streams).await?;
            let next =
                |at: &TopicPartition| positions.get(&stream(at)).and_then(|position| position.parse::<i64>().ok());
            // Records that were removed before anything of the partition was applied are waited for in vain.
            extents.retain(|at, Extent { low, high }| next(at).unwrap_or(*low) < *high);
            if extents.is_empty() {
                return Ok(());
            }
            missing.clear();
            missing.extend(extents.iter().map(|(at, Extent { low, high })| Missing::Partition {
                at: at.clone(),
                records: high - next(at).unwrap_or(*low),
            }));
            tokio::time::sleep(POLL).await;
        }
    }
}

/// As the sinks name it.
fn stream(at: &TopicPartition) -> StreamName {
    StreamName(format!("kafka:{at}"))
}
