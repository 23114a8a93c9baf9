//! The target database.

use std::sync::Arc;

use cdc_model::{Change, LocalTime, TableSchema};

use crate::{Advance, ApplyError, Claim, PostgresConfig, StreamName, TargetError};

/// What an apply did; rows are counted once per batch, however many changes they had.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Applied {
    pub rows_written: usize,
    /// Rows whose changes were all known already.
    pub rows_stale: usize,
    pub quarantined: usize,
}

/// A connected target database. Clones share the pool.
#[derive(Clone)]
pub struct Target {}

#[expect(clippy::unused_async, reason = "unfinished")]
impl Target {
    /// Connects, and brings schema `_cdc` up to date.
    pub async fn connect(_config: &PostgresConfig) -> Result<Self, TargetError> {
        Err(TargetError::Unfinished)
    }

    /// Creates the target tables of a source table, or adds what they lack. Idempotent; `apply` does it by itself.
    pub async fn prepare_table(&self, _table: Arc<TableSchema>) -> Result<(), TargetError> {
        Err(TargetError::Unfinished)
    }

    /// Takes a stream over: from now on every earlier claim of it is fenced.
    pub async fn claim(&self, _stream: &StreamName) -> Result<Claim, TargetError> {
        Err(TargetError::Unfinished)
    }

    /// Merges changes into the target and moves positions, rows never later than positions.
    pub async fn apply(&self, _changes: Vec<Change>, _commit: &[Advance]) -> Result<Applied, ApplyError> {
        Err(TargetError::Unfinished.into())
    }

    /// Rewrites or removes rows in which something has expired by `now`; returns how many. Call until it returns 0.
    pub async fn sweep_expired(&self, _now: LocalTime) -> Result<usize, TargetError> {
        Err(TargetError::Unfinished)
    }
}
