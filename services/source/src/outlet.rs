//! Where captured changes go.

use cdc_kafka::Publisher;
use cdc_model::Change;
use cdc_postgres::Target;
use tokio::sync::{mpsc, watch};

/// The channel behind the capture.
pub enum Outlet {
    /// To Kafka; a change is durable once the broker has acknowledged it. The position file says where to resume.
    Kafka(Publisher),
    /// Straight to PostgreSQL, which commits the position with the rows and says where to resume. The agent claims
    /// the stream `node:<host id>` itself, because only Cassandra knows the host id.
    Direct(Target),
    /// To a consumer in this process, which acknowledges by sequence number.
    Channel(ChannelOutlet),
}

/// Batches out, acknowledgements back. The receiver sets the watch to the sequence number of the last batch
/// that is durable; everything up to it counts as durable.
pub struct ChannelOutlet {
    pub batches: mpsc::Sender<ChannelBatch>,
    pub durable: watch::Receiver<u64>,
}

#[derive(Debug)]
pub struct ChannelBatch {
    /// Counts up from 1 without gaps within one run of the agent.
    pub sequence: u64,
    pub changes: Vec<Change>,
}
