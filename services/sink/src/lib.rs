//! Applies changes to PostgreSQL.
//!
//! What both modes share is the [`writer`]: it takes chunks of changes with the position they reach, folds what is
//! queued into one batch, and hands rows and positions to the target together. While a batch is being written the
//! next one gathers, so latency follows the commit time at low traffic and batches grow with traffic.
//!
//! - Direct mode: an [`Applier`] per agent; the agent sends batches and watches the durable position.
//! - Kafka mode: [`run()`]; a reader thread, and per topic a lane that decodes and a writer. A table that cannot go on
//!   pauses its own topic and no other.
//!
//! Nothing is given up: an environment that fails is waited out, a halted table is tried again every half minute, what
//! cannot be applied or decoded is a dead letter before the position passes it. Positions live in
//! PostgreSQL, guarded by claims: whoever claims a stream last may write it, so a process that lost a partition
//! without noticing cannot move its position.

mod applier;
mod config;
mod dead_letter;
mod error;
mod lane;
mod lot;
mod metrics;
mod poison;
mod reader;
mod retry;
mod run;
mod sweeper;
mod writer;

pub use applier::{Applier, Batch, BatchSender, Closed};
pub use config::SinkConfig;
pub use error::SinkError;
pub use metrics::{FailingStatus, PartitionStatus, SinkMetrics, SinkStatus};
pub use poison::decode_again;
pub use run::{connect, run};
