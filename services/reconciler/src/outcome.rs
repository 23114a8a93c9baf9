//! What came out of a comparison. No value of a row is in it, and no key unless it is asked for.

use std::collections::BTreeMap;

use cdc_model::{RowKey, TokenRange};
use serde::{Deserialize, Serialize};

use crate::{Class, Sampled, Written};

#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// `keyspace.table` in Cassandra.
    pub table: String,
    /// As in the API, with what of the range was compared.
    pub strategy: &'static str,
    pub range: TokenRange,
    /// Of a sample; nothing else was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sampled>,
    /// Rows not written then were left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Seconds since 1970.
    pub began_at: i64,
    pub seconds: f64,
    pub rows: Rows,
    pub coverage: Coverage,
    /// How many findings of each class; all of them, also those beyond what is kept in `findings`.
    pub classes: BTreeMap<Class, u64>,
    pub findings: Vec<Finding>,
    /// Rows that looked different at first.
    pub suspects: u64,
    /// Suspects that never stood still, but whose newest version had always arrived; the next run compares them again.
    pub in_motion: u64,
    /// If any were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repairs: Option<Repairs>,
    /// `native`: PostgreSQL's own hash of rows; `portable`: SHA-256.
    pub hash: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Repairs {
    pub dry_run: bool,
    /// Findings of the classes asked for.
    pub wanted: u64,
    /// Proven right afterwards.
    pub done: u64,
    /// How many the share of the table's rows allows.
    pub allowed: u64,
    /// Whether there were more than that; from then on nothing was repaired.
    pub stopped: bool,
}

#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Rows {
    /// Static rows included.
    pub cassandra: u64,
    pub postgres: u64,
}

/// Of the tokens that were to be compared.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// From 0 to 1.
    pub share: f64,
    pub gaps: Vec<Gap>,
}

/// Tokens of which nothing is proven, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    #[serde(flatten)]
    pub range: TokenRange,
    pub why: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub class: Class,
    pub token: i64,
    /// SHA-256 of the key as Cassandra serialises it.
    pub key_sha256: String,
    pub is_static: bool,
    /// Of the target, where values differ; empty if the row is missing or extra.
    pub columns: Vec<String>,
    /// SHA-256 of the key and the hashes of the columns that PostgreSQL should show; `None` if Cassandra has no such row, or
    /// PostgreSQL cannot hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cassandra_checksum: Option<String>,
    /// The same of what PostgreSQL shows, if it has the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_checksum: Option<String>,
    /// Newest write time Cassandra tells, microseconds since 1970.
    pub cassandra_written_at: Option<i64>,
    /// Newest write time PostgreSQL knows, deletions included.
    pub postgres_written_at: Option<i64>,
    /// Whether Cassandra was read at `ALL`.
    pub read_at_all: bool,
    /// Barriers that passed before this was said.
    pub barriers: u32,
    /// What kept it from being proven, or the likely cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Whether it was set right, and proven to be so by another barrier.
    pub repaired: bool,
    /// Whether somebody tried: it was changed, or meant to be.
    pub attempted: bool,
    /// For whoever may see keys.
    #[serde(skip)]
    pub key: RowKey,
}

impl Outcome {
    /// Rows proven wrong.
    pub fn drift(&self) -> u64 {
        self.classes.iter().filter(|(class, _)| class.is_drift()).map(|(_, count)| count).sum()
    }

    /// Rows proven wrong that were not repaired.
    pub fn remaining(&self) -> u64 {
        self.drift() - self.repairs.map_or(0, |repairs| repairs.done)
    }

    /// Rows proven wrong among those compared, in percent.
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    pub fn drift_percentage(&self) -> f64 {
        100.0 * self.drift() as f64 / self.rows.cassandra.max(self.rows.postgres).max(1) as f64
    }
}
