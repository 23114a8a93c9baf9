//! What the agent has done and how far behind it is.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use cdc_commitlog::CaptureMode;
use cdc_model::{Progress, SegmentPosition};
use serde::Serialize;

use crate::{
    intake::Batch,
    position::Offsets,
    snapshot::{SnapshotStatus, Snapshots},
};

/// Shared by the parts of a running agent and whoever shows its state.
#[derive(Default, Debug)]
pub struct SourceMetrics {
    /// Complete entries read, whatever table they are of.
    pub(crate) entries: AtomicU64,
    /// Changes of captured tables decoded.
    pub(crate) changes: AtomicU64,
    /// Payload bytes read.
    pub(crate) bytes: AtomicU64,
    /// Entries skipped because their table is not in the schema any more.
    pub(crate) dropped_tables: AtomicU64,
    /// `TRUNCATE`s of captured tables.
    pub(crate) truncations: AtomicU64,
    /// Entries kept in quarantine.
    pub(crate) quarantined: AtomicU64,
    /// Segments kept in quarantine.
    pub(crate) damaged_segments: AtomicU64,
    /// Segments someone else deleted before they were captured.
    pub(crate) lost_segments: AtomicU64,
    pub(crate) deleted_segments: AtomicU64,
    /// Segments not yet read to their end.
    pub(crate) segments: AtomicU64,
    pub(crate) backlog: AtomicU64,
    pub(crate) directory_bytes: AtomicU64,
    captured: AtomicU64,
    durable: AtomicU64,
    behind: AtomicBool,
    state: Mutex<State>,
    snapshots: Arc<Snapshots>,
}

#[derive(Default, Debug)]
struct State {
    running: Option<CaptureMode>,
    progress: Option<Progress>,
    caught_up: Option<Instant>,
}

/// The agent's state for `/status`.
#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    /// `None` until Cassandra has answered and the capture has begun.
    pub mode: Option<CaptureMode>,
    /// The capture runs, everything readable was read, and everything read is durable.
    pub idle: bool,
    pub entries: u64,
    pub changes: u64,
    pub bytes_read: u64,
    pub quarantined_entries: u64,
    pub damaged_segments: u64,
    pub lost_segments: u64,
    pub deleted_segments: u64,
    pub open_segments: u64,
    /// Bytes that Cassandra has synced and the agent has not read.
    pub backlog_bytes: u64,
    /// Batches read that are not durable.
    pub unacknowledged_batches: u64,
    /// Length of all files in `cdc_raw`; Cassandra rejects writes when it reaches `cdc_total_space`.
    pub cdc_raw_bytes: u64,
    /// Seconds since everything readable had been read; 0 while that is so.
    pub behind_seconds: f64,
    /// Of the oldest open segment, `segment:offset`.
    pub received: Option<String>,
    pub sent: Option<String>,
    pub durable: Option<String>,
    pub persisted: Option<String>,
    /// Those that wait or run.
    pub snapshots: Vec<SnapshotStatus>,
}

impl SourceMetrics {
    /// Asked for through the admin server, too.
    pub fn snapshots(&self) -> &Arc<Snapshots> {
        &self.snapshots
    }

    /// Cheap enough to be polled.
    pub fn status(&self) -> SourceStatus {
        // Durable first: a batch captured between the two looks must not seem durable.
        let durable = self.durable.load(Relaxed);
        let unacknowledged_batches = self.captured.load(Relaxed).saturating_sub(durable);
        let behind = self.behind.load(Relaxed);
        let state = self.state();
        let position = |of: fn(&Progress) -> SegmentPosition| {
            let position = state.progress.as_ref().map(of).filter(|position| *position != SegmentPosition::START);
            position.map(|position| position.to_string())
        };
        SourceStatus {
            mode: state.running,
            idle: state.running.is_some() && state.caught_up.is_some() && !behind && unacknowledged_batches == 0,
            entries: self.entries.load(Relaxed),
            changes: self.changes.load(Relaxed),
            bytes_read: self.bytes.load(Relaxed),
            quarantined_entries: self.quarantined.load(Relaxed),
            damaged_segments: self.damaged_segments.load(Relaxed),
            lost_segments: self.lost_segments.load(Relaxed),
            deleted_segments: self.deleted_segments.load(Relaxed),
            open_segments: self.segments.load(Relaxed),
            backlog_bytes: self.backlog.load(Relaxed),
            unacknowledged_batches,
            cdc_raw_bytes: self.directory_bytes.load(Relaxed),
            behind_seconds: if behind { state.caught_up.map_or(0.0, |at| at.elapsed().as_secs_f64()) } else { 0.0 },
            received: position(Progress::received),
            sent: position(Progress::sent),
            durable: position(Progress::durable),
            persisted: position(Progress::reclaimable),
            snapshots: self.snapshots.unfinished(),
        }
    }

    /// Appends all metrics in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        use std::fmt::Write;
        let status = self.status();
        let metrics: [(&str, &str, &str, f64); 15] = [
            ("cdc_backlog_bytes", "gauge", "Synced bytes of the log not yet read.", float(status.backlog_bytes)),
            ("cdc_source_behind_seconds", "gauge", "Since everything readable had been read.", status.behind_seconds),
            ("cdc_source_idle", "gauge", "1: all that is readable is durable.", f64::from(u8::from(status.idle))),
            (
                "cdc_source_unacknowledged_batches",
                "gauge",
                "Batches read that are not durable.",
                float(status.unacknowledged_batches),
            ),
            ("cdc_source_segments", "gauge", "Segments not yet read to their end.", float(status.open_segments)),
            ("cdc_source_cdc_raw_bytes", "gauge", "Length of all files in cdc_raw.", float(status.cdc_raw_bytes)),
            ("cdc_source_entries_total", "counter", "Log entries read, of any table.", float(status.entries)),
            ("cdc_source_changes_total", "counter", "Changes of captured tables.", float(status.changes)),
            ("cdc_source_read_bytes_total", "counter", "Payload bytes read.", float(status.bytes_read)),
            (
                "cdc_source_dropped_table_entries_total",
                "counter",
                "Entries of tables not in the schema any more.",
                float(self.dropped_tables.load(Relaxed)),
            ),
            (
                "cdc_source_truncations_total",
                "counter",
                "TRUNCATEs of captured tables.",
                float(self.truncations.load(Relaxed)),
            ),
            (
                "cdc_source_quarantined_entries_total",
                "counter",
                "Entries that could not be decoded.",
                float(status.quarantined_entries),
            ),
            (
                "cdc_source_damaged_segments_total",
                "counter",
                "Segments kept in quarantine.",
                float(status.damaged_segments),
            ),
            (
                "cdc_source_lost_segments_total",
                "counter",
                "Segments deleted by someone else before they were captured.",
                float(status.lost_segments),
            ),
            (
                "cdc_source_deleted_segments_total",
                "counter",
                "Segments deleted after all of them was durable.",
                float(status.deleted_segments),
            ),
        ];
        for (name, kind, help, value) in metrics.into_iter().chain(self.snapshots.metrics()) {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")
                .expect("writing to a String does not fail");
        }
    }

    pub(crate) fn started(&self, mode: CaptureMode, offsets: &Offsets) {
        let mut state = self.state();
        state.running = Some(mode);
        state.progress = Some(Progress::resume(offsets.low().unwrap_or(SegmentPosition::START)));
    }

    pub(crate) fn caught_up(&self, yes: bool) {
        if yes || !self.behind.load(Relaxed) {
            self.state().caught_up = Some(Instant::now());
        }
        self.behind.store(!yes, Relaxed);
    }

    pub(crate) fn captured(&self, batch: &Batch) {
        self.captured.store(batch.sequence, Relaxed);
        self.advance(&batch.offsets, Progress::receive);
    }

    pub(crate) fn sent(&self, offsets: &Offsets) {
        self.advance(offsets, Progress::send);
    }

    pub(crate) fn acknowledged(&self, sequence: u64, offsets: &Offsets) {
        self.advance(offsets, Progress::acknowledge);
        self.durable.store(sequence, Relaxed);
    }

    pub(crate) fn persisted(&self, offsets: &Offsets) {
        self.advance(offsets, Progress::persist);
    }

    fn advance(&self, offsets: &Offsets, step: fn(&mut Progress, SegmentPosition)) {
        if let (Some(progress), Some(low)) = (&mut self.state().progress, offsets.low()) {
            step(progress, low);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus knows only floats")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequence: u64, offsets: &str) -> Batch {
        let (truncations, changes, finished, markers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Batch { sequence, truncations, changes, offsets: offsets.parse().unwrap(), finished, markers }
    }

    #[test]
    fn idle_means_read_and_durable() {
        let metrics = SourceMetrics::default();
        assert!(!metrics.status().idle, "not started");
        metrics.started(CaptureMode::Live, &Offsets::default());
        assert!(!metrics.status().idle, "nothing looked at yet");
        metrics.caught_up(true);
        assert!(metrics.status().idle);
        metrics.captured(&batch(1, "7:10"));
        metrics.sent(&"7:10".parse().unwrap());
        assert!(!metrics.status().idle, "read and not durable");
        metrics.acknowledged(1, &"7:10".parse().unwrap());
        assert!(metrics.status().idle);
        metrics.caught_up(false);
        assert!(!metrics.status().idle, "more to read");
    }
}
