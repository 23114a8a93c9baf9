//! Compares a table in Cassandra with its targets in PostgreSQL while both are written, and reports only what is really
//! wrong: what is under way at the time is told apart by a barrier through the whole pipeline, never by waiting.
//!
//! 1. One pass over Cassandra folds each row into a leaf, by the highest bits of its token; one pass over PostgreSQL sums
//!    up the same leaves with its own hash. ([`compare`](Reconciler::compare))
//! 2. Leaves that differ are read row by row on both sides. Rows that differ are suspects, no more.
//! 3. A suspect is judged by what each side shows before and after a barrier, at `ALL` where it takes that (`judge`).

#![doc = include_str!("../../../docs/reconciliation.md")]

pub mod barrier;
mod compare;
mod judge;
mod mend;
mod outcome;
mod pipeline;
mod progress;
mod repair;
mod sample;
mod scope;
pub mod service;
mod settle;

pub use cdc_postgres::Strategy;
pub use compare::{Options, Pass, ReconcileError, Reconciler};
pub use judge::{Class, Classes};
pub use outcome::{Coverage, Finding, Gap, Outcome, Repairs, Rows};
pub use pipeline::PipelineBarrier;
pub use progress::{Progress, Stage};
pub use repair::{Repair, RepairBounds};
pub use sample::{Sample, Sampled};
pub use scope::{Only, Scope, Written};
