//! Snapshots for Prometheus.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Snapshots, State};

#[derive(Default)]
pub(super) struct Figures {
    pub(super) rows: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) pause_ms: AtomicU64,
}

impl Snapshots {
    /// Name, kind, help and value.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floats")]
    pub(crate) fn metrics(&self) -> [(&'static str, &'static str, &'static str, f64); 6] {
        let unfinished = self.unfinished();
        let left: usize = unfinished.iter().map(|status| status.ranges_total - status.ranges_done).sum();
        let done = unfinished.iter().find(|status| status.state == State::Running);
        let pause = self.figures.pause_ms.load(Relaxed) as f64 / 1000.0;
        [
            ("cdc_snapshot_unfinished", "gauge", "Snapshots that wait or run.", unfinished.len() as f64),
            ("cdc_snapshot_ranges_left", "gauge", "Ranges of them that are not copied.", left as f64),
            (
                "cdc_snapshot_done_ratio",
                "gauge",
                "How much of the running snapshot is copied; 1 without one.",
                done.map_or(1.0, |status| status.done_percent / 100.0),
            ),
            (
                "cdc_snapshot_rows_total",
                "counter",
                "Rows copied and acknowledged.",
                self.figures.rows.load(Relaxed) as f64,
            ),
            (
                "cdc_snapshot_failures_total",
                "counter",
                "Reads that failed and were made again.",
                self.figures.failures.load(Relaxed) as f64,
            ),
            ("cdc_snapshot_pause_seconds", "gauge", "Wait after a page, because Cassandra got slower.", pause),
        ]
    }
}
