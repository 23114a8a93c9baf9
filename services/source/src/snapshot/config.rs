//! The `source.snapshot:` section.

use std::time::Duration;

use cdc_cassandra::Consistency;
use serde::{Deserialize, Serialize};

/// Few, because each is a read that the node's clients compete with, and a page that changes compete with.
const PARALLEL: usize = 2;
/// Enough for `COPY`, which is what rows that are new are written with, and a few milliseconds of Cassandra's time.
const PAGE_ROWS: u32 = 1_000;
/// Cassandra's `write_request_timeout` of 2 s, in which an older write may still be on its way, and what clocks differ by.
const CLOCK_SKEW_MS: u64 = 5_000;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapshotConfig {
    /// What is copied without being asked for.
    pub start: SnapshotStart,
    /// Which part of the ring this agent copies.
    pub ranges: SnapshotRanges,
    pub consistency: ReadConsistency,
    /// Ranges read at a time.
    pub parallel: usize,
    /// Rows asked for at once, at most; fewer of large ones.
    pub page_rows: u32,
    /// At most; none is as fast as Cassandra and the channel are without getting slower.
    pub rows_per_second: Option<u32>,
    /// Write times may be ahead of or behind this agent's clock by this much, delays until a write is visible included.
    pub clock_skew_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotStart {
    /// Nothing: reading whole tables is a load that somebody chooses the time for.
    #[default]
    OnDemand,
    /// Every captured table once, also those that are captured later.
    Initial,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotRanges {
    /// Those that this node is the primary replica of: the agents of all nodes copy each row once.
    #[default]
    Primary,
    /// The whole ring: for the only agent of a cluster.
    All,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadConsistency {
    One,
    LocalOne,
    Quorum,
    #[default]
    LocalQuorum,
    All,
}

impl From<ReadConsistency> for Consistency {
    fn from(consistency: ReadConsistency) -> Self {
        match consistency {
            ReadConsistency::One => Self::One,
            ReadConsistency::LocalOne => Self::LocalOne,
            ReadConsistency::Quorum => Self::Quorum,
            ReadConsistency::LocalQuorum => Self::LocalQuorum,
            ReadConsistency::All => Self::All,
        }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            start: SnapshotStart::default(),
            ranges: SnapshotRanges::default(),
            consistency: ReadConsistency::default(),
            parallel: PARALLEL,
            page_rows: PAGE_ROWS,
            rows_per_second: None,
            clock_skew_ms: CLOCK_SKEW_MS,
        }
    }
}

impl SnapshotConfig {
    pub(crate) fn clock_skew(&self) -> Duration {
        Duration::from_millis(self.clock_skew_ms)
    }

    pub(crate) fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !(1..=64).contains(&self.parallel) {
            faults.push(format!("source.snapshot.parallel is {}: use 1 to 64", self.parallel));
        }
        if !(1..=100_000).contains(&self.page_rows) {
            faults.push(format!("source.snapshot.page_rows is {}: use 1 to 100000", self.page_rows));
        }
        if self.rows_per_second == Some(0) {
            faults
                .push("source.snapshot.rows_per_second is 0: use at least 1, or leave it out for no limit".to_owned());
        }
        if !(100..=600_000).contains(&self.clock_skew_ms) {
            faults.push(format!("source.snapshot.clock_skew_ms is {}: use 100 to 600000", self.clock_skew_ms));
        }
        faults
    }
}
