//! The agent beside a Cassandra node: captures its commit log and hands changes on.

mod config;
mod metrics;
mod outlet;

use std::sync::Arc;

use cdc_cassandra::CassandraConfig;
use cdc_runtime::Lifecycle;

pub use config::SourceConfig;
pub use metrics::{SourceMetrics, SourceStatus};
pub use outlet::{ChannelBatch, ChannelOutlet, Outlet};

/// Runs the agent until `lifecycle` stops it. Waits for Cassandra as long as it takes.
///
/// `metrics` is shared with the admin server: [`SourceMetrics::status`] is its `/status`.
pub async fn run(
    config: SourceConfig,
    cassandra: CassandraConfig,
    outlet: Outlet,
    metrics: Arc<SourceMetrics>,
    lifecycle: Lifecycle,
) -> Result<(), SourceError> {
    let _ = (config, cassandra, outlet, metrics, lifecycle);
    std::future::pending().await
}

#[derive(thiserror::Error, Debug)]
pub enum SourceError {
    #[error("source configuration: {0}")]
    Config(String),
}
