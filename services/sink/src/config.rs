//! The `sink:` section.

use std::time::Duration;

use cdc_postgres::FloodLimit;
use serde::{Deserialize, Serialize};

const GROUP: &str = "cdc-connect";
/// Measured by others as the knee of the curve: larger batches gain little and cost latency and memory.
const BATCH_ROWS: usize = 5_000;
const BATCH_BYTES: usize = 8 << 20;
/// An expired cell is gone within about a second.
const SWEEP_INTERVAL_MS: u64 = 500;
const PURGE_INTERVAL_S: u64 = 3600;
/// What Kafka keeps by default, the longest a change can be under way: seven days.
const PURGE_HORIZON_S: u32 = 7 * 86_400;
/// Far more than single bad rows, and few enough to look at.
const DLQ_ROWS_MAX: usize = 1_000;
const DLQ_WINDOW_MS: u64 = 60_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkConfig {
    /// Changes written at once, at most.
    pub batch_rows: usize,
    /// Bytes written at once, at most; about twice as much waits in memory.
    pub batch_bytes: usize,
    /// Kafka consumer group; sinks of one group share the work.
    pub group: String,
    /// Names this sink among those of its group, across restarts; its partitions wait for it while it restarts.
    pub instance_id: Option<String>,
    /// Milliseconds between two looks for expired cells.
    pub sweep_interval_ms: u64,
    /// Seconds between two looks for deletions to forget.
    pub purge_interval_s: u64,
    /// Seconds a deletion is kept beyond its table's `gc_grace_seconds`.
    pub purge_horizon_s: u32,
    /// Dead letters of one table within the window, at most; with more the table halts.
    pub dlq_rows_max: usize,
    pub dlq_window_ms: u64,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            batch_rows: BATCH_ROWS,
            batch_bytes: BATCH_BYTES,
            group: GROUP.to_owned(),
            instance_id: None,
            sweep_interval_ms: SWEEP_INTERVAL_MS,
            purge_interval_s: PURGE_INTERVAL_S,
            purge_horizon_s: PURGE_HORIZON_S,
            dlq_rows_max: DLQ_ROWS_MAX,
            dlq_window_ms: DLQ_WINDOW_MS,
        }
    }
}

impl SinkConfig {
    /// Every fault at once, each naming its field; empty if there is none.
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=100_000).contains(&self.batch_rows) {
            faults.push(format!("sink.batch_rows is {}: use 1 to 100000", self.batch_rows));
        }
        if !(64 << 10..=1 << 30).contains(&self.batch_bytes) {
            faults.push(format!("sink.batch_bytes is {}: use {} to {}", self.batch_bytes, 64 << 10, 1 << 30));
        }
        if self.group.is_empty() {
            faults.push("sink.group is empty: name the consumer group, such as cdc-connect".to_owned());
        }
        let legal = |id: &&String| {
            (1..=249).contains(&id.len()) && id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if let Some(id) = self.instance_id.as_ref().filter(|id| !legal(id) || [".", ".."].contains(&id.as_str())) {
            faults.push(format!(
                "sink.instance_id is `{id}`: use 1 to 249 letters, digits, `.`, `_` and `-`, different for each sink, or \
                 leave it out"
            ));
        }
        if !(10..=3_600_000).contains(&self.sweep_interval_ms) {
            faults.push(format!("sink.sweep_interval_ms is {}: use 10 to 3600000", self.sweep_interval_ms));
        }
        if !(1..=30 * 86_400).contains(&self.purge_interval_s) {
            faults.push(format!("sink.purge_interval_s is {}: use 1 to {}", self.purge_interval_s, 30 * 86_400));
        }
        if !(1..=10_000_000).contains(&self.dlq_rows_max) {
            faults.push(format!("sink.dlq_rows_max is {}: use 1 to 10000000", self.dlq_rows_max));
        }
        if !(1_000..=86_400_000).contains(&self.dlq_window_ms) {
            faults.push(format!("sink.dlq_window_ms is {}: use 1000 to 86400000", self.dlq_window_ms));
        }
        faults
    }

    pub(crate) fn flood_limit(&self) -> FloodLimit {
        FloodLimit { letters: self.dlq_rows_max, window: Duration::from_millis(self.dlq_window_ms) }
    }
}
