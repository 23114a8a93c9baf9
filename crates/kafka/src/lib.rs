//! Everything that talks to Kafka.
//!
//! - [`Publisher`] sends changes and reports the position up to which every one of them is acknowledged.
//! - [`Consumer`] reads a group's share of the event topics, starting where its owner says.
//! - [`BarrierReader`] says which agents have met a mark, and where the event topics end.
//! - [`SchemaFollower`] keeps every table schema of topic [`SCHEMA_TOPIC`] at hand.
//!
//! What librdkafka is told is in [`KafkaConfig`]; where its defaults would lose, reorder or hoard, they are pinned
//! there.

mod acknowledgements;
mod barrier;
mod config;
mod consumer;
mod context;
mod error;
mod follower;
mod publisher;
mod topic;

pub use barrier::{BarrierReader, Extent};
pub use config::{Compression, KafkaConfig};
pub use consumer::{Assignment, Consumer, Headers, Record, Start, TopicPartition};
pub use error::KafkaError;
pub use follower::SchemaFollower;
pub use publisher::{Outgoing, Publisher, PublisherCounts};
pub use topic::{
    BARRIER_TOPIC, DEAD_LETTER_SIZE, DEAD_LETTER_TOPIC, POSITION_HEADER, SCHEMA_TOPIC, TopicTemplate, partition_of,
};
