//! What a comparison has done so far, to be looked at from outside.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Both stores are read whole.
    Passes,
    /// Leaves that differ are read row by row.
    Rows,
}

#[derive(Default, Debug)]
pub struct Progress {
    stage: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    rows: AtomicU64,
    suspects: AtomicU64,
    findings: AtomicU64,
}

impl Progress {
    pub fn stage(&self) -> Stage {
        if self.stage.load(Ordering::Relaxed) == 0 { Stage::Passes } else { Stage::Rows }
    }

    /// Token ranges, or leaves that differed, and how many there are.
    pub fn done(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Read from Cassandra.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub fn suspects(&self) -> u64 {
        self.suspects.load(Ordering::Relaxed)
    }

    pub fn findings(&self) -> u64 {
        self.findings.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self, stage: Stage, total: usize) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total as u64, Ordering::Relaxed);
        self.stage.store(u8::from(stage == Stage::Rows), Ordering::Relaxed);
    }

    pub(crate) fn add_done(&self, count: usize) {
        self.done.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_rows(&self, count: usize) {
        self.rows.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_suspects(&self, count: usize) {
        self.suspects.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_findings(&self, count: usize) {
        self.findings.fetch_add(count as u64, Ordering::Relaxed);
    }
}
