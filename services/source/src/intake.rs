//! Entries in, batches out: decodes what is captured and knows how far the batch in hand reaches.

use std::{
    cell::Cell,
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use cdc_cassandra::{MarkTable, checks::Wanted};
use cdc_commitlog::{DecodeError, Decoder, Format, Payload, SegmentReader, Truncation};
use cdc_model::{
    Change, Marker, NodeId, Provenance, SegmentId, SegmentPosition, TableId, TableSchema, TableTruncation,
};
use tokio::sync::mpsc;

use crate::{
    SourceError, SourceMetrics,
    position::Offsets,
    quarantine::Quarantine,
    schema::{Comparison, Schemas},
    truncation::Truncations,
};

/// How long a mutation may be ahead of the schema before it counts as undecodable. Cassandra itself cannot decode a
/// mutation of a table it does not know, so a node's schema is never behind its log by more than its own reading.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(5);
/// The same for a table whose updates can be skipped: usually one that was dropped.
const SKIPPABLE_PATIENCE: Duration = Duration::from_millis(500);
const REFRESH_INTERVAL: Duration = Duration::from_millis(200);
/// How often writes of a table with `cdc = false` make the agent look whether it still is so. The log itself says
/// when that changes, but not where a segment without CDC has disappeared unread.
const CDC_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often a batch without changes tells how far the log was read, so that a restart does not read it again.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// Changes on their way to the channel.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Counts up from 1.
    pub(crate) sequence: u64,
    pub(crate) changes: Vec<Change>,
    /// To be sent before the changes: some of them come again behind it.
    pub(crate) truncations: Vec<TableTruncation>,
    /// How far the log is captured once this batch is durable.
    pub(crate) offsets: Offsets,
    /// Segments whose last change is in this batch or an earlier one.
    pub(crate) finished: Vec<SegmentId>,
    /// Everything the log held before them is in this batch or an earlier one.
    pub(crate) markers: Vec<Marker>,
}

impl Batch {
    /// Rows of a snapshot, which move no position.
    pub(crate) fn copied(changes: Vec<Change>, offsets: Offsets) -> Self {
        let (truncations, finished, markers) = (Vec::new(), Vec::new(), Vec::new());
        Self { sequence: 0, changes, truncations, offsets, finished, markers }
    }
}

/// The agent is stopping, or what is behind it has.
#[derive(Debug)]
pub(crate) struct Halted;

/// What captured tables are.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) wanted: Arc<[Wanted]>,
    /// Read along with them, for this process alone.
    pub(crate) marks: MarkTable,
}

impl Captured {
    pub(crate) fn contains(&self, table: &TableSchema) -> bool {
        table.cdc && self.matches(table)
    }

    /// Captured, or would be with `cdc = true`.
    pub(crate) fn matches(&self, table: &TableSchema) -> bool {
        self.wanted.iter().any(|wanted| wanted.matches(table))
    }
}

pub(crate) struct Intake {
    pub(crate) node: NodeId,
    pub(crate) captured: Captured,
    pub(crate) schemas: Schemas,
    pub(crate) quarantine: Quarantine,
    pub(crate) truncations: Truncations,
    pub(crate) metrics: Arc<SourceMetrics>,
    outbox: mpsc::Sender<Batch>,
    batch_bytes: usize,
    pub(crate) decoder: Decoder,
    /// Noted by the entry at hand.
    noted: Vec<(Arc<TableSchema>, Truncation)>,
    pub(crate) truncated: Vec<TableTruncation>,
    /// Tables that are in the log and not in the schema: dropped.
    gone: HashSet<TableId>,
    malformed_refresh: Option<Instant>,
    comparison: Comparison,
    refreshed: Instant,
    offsets: Offsets,
    pub(crate) changes: Vec<Change>,
    weight: usize,
    holds_slices: bool,
    finished: Vec<SegmentId>,
    /// Met, with something older not yet taken.
    held_markers: Vec<(SegmentId, Marker)>,
    markers: Vec<Marker>,
    sequence: u64,
    flushed: Instant,
    flushed_offsets: Offsets,
    /// Set instead of reading on; entries after it are not counted as read.
    pub(crate) failed: Option<Result<Halted, SourceError>>,
}

impl Intake {
    #[expect(clippy::too_many_arguments, reason = "the parts of the capture meet here once")]
    pub(crate) fn new(
        node: NodeId,
        captured: Captured,
        schemas: Schemas,
        quarantine: Quarantine,
        truncations: Truncations,
        metrics: Arc<SourceMetrics>,
        outbox: mpsc::Sender<Batch>,
        batch_bytes: usize,
        offsets: Offsets,
    ) -> Self {
        Self {
            node,
            captured,
            schemas,
            quarantine,
            truncations,
            metrics,
            outbox,
            batch_bytes,
            decoder: Decoder::new(),
            noted: Vec::new(),
            truncated: Vec::new(),
            gone: HashSet::new(),
            malformed_refresh: None,
            comparison: Comparison::default(),
            refreshed: Instant::now(),
            flushed_offsets: offsets.clone(),
            offsets,
            changes: Vec::new(),
            weight: 0,
            holds_slices: false,
            finished: Vec::new(),
            held_markers: Vec::new(),
            markers: Vec::new(),
            sequence: 0,
            flushed: Instant::now(),
            failed: None,
        }
    }

    /// Where reading of the segment goes on after the entries taken so far.
    pub(crate) fn offset(&self, segment: SegmentId) -> u64 {
        self.offsets.get(segment).unwrap_or(0)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.weight >= self.batch_bytes
    }

    /// Takes one entry. After a failure does nothing.
    pub(crate) fn entry(&mut self, format: Format, end: SegmentPosition, payload: Payload<'_>) {
        if self.failed.is_some() {
            return;
        }
        let before = self.changes.len();
        if let Err(failure) = self.decode(format, end, payload) {
            self.changes.truncate(before);
            self.failed = Some(failure);
            return;
        }
        self.count(self.changes.len() - before);
        for (table, truncation) in std::mem::take(&mut self.noted) {
            if let Err(failure) = self.truncated(table, &truncation) {
                self.failed = Some(failure);
                return;
            }
        }
        self.offsets.set(end);
        self.metrics.entries.fetch_add(1, Relaxed);
    }

    /// So many changes were added.
    pub(crate) fn count(&mut self, taken: usize) {
        self.metrics.changes.fetch_add(taken as u64, Relaxed);
        self.weight += taken * size_of::<Change>();
        self.holds_slices |= taken > 0;
    }

    /// The entries since the last call came from one read of this many bytes: changes are slices of what was read
    /// and keep all of it alive.
    pub(crate) fn read_was(&mut self, bytes: u64) {
        if std::mem::take(&mut self.holds_slices) {
            self.weight += usize::try_from(bytes).unwrap_or(usize::MAX);
        }
    }

    fn decode(
        &mut self,
        format: Format,
        end: SegmentPosition,
        payload: Payload<'_>,
    ) -> Result<(), Result<Halted, SourceError>> {
        let at = Provenance { node: self.node, position: end };
        let before = self.changes.len();
        let began = Instant::now();
        loop {
            let without_cdc = Cell::new(false);
            let history = &self.schemas.history;
            let captured = |table: &TableSchema| {
                without_cdc.set(without_cdc.get() || (!table.cdc && self.captured.matches(table)));
                self.captured.contains(table) || history.follows(table.id) || self.captured.marks.is(table)
            };
            let outcome = self.decoder.decode(format, payload, at, history, &captured, &mut self.changes);
            if without_cdc.get() && self.refreshed.elapsed() >= CDC_CHECK_INTERVAL {
                self.changes.truncate(before);
                self.refresh().map_err(Ok)?;
                continue;
            }
            let (unknown, patience) = match &outcome {
                Ok(None) => {
                    self.follow(format, end, payload, before);
                    return Ok(());
                }
                Ok(Some(table)) => (Some(*table), SKIPPABLE_PATIENCE),
                Err(DecodeError::UnknownTable(table)) => (Some(*table), SCHEMA_PATIENCE),
                Err(DecodeError::UnknownColumn { .. }) => (None, SCHEMA_PATIENCE),
                // A stale type shows as bytes left over, so the schema is read once more, but not for each of many.
                Err(DecodeError::Malformed { .. }) => (None, Duration::ZERO),
            };
            let malformed = matches!(outcome, Err(DecodeError::Malformed { .. }));
            let recently = self.malformed_refresh.is_some_and(|at| at.elapsed() < SCHEMA_PATIENCE);
            let known_gone = unknown.is_some_and(|table| self.gone.contains(&table));
            let give_up = if malformed { recently } else { known_gone || began.elapsed() >= patience };
            if !give_up {
                self.changes.truncate(before);
                if malformed {
                    self.malformed_refresh = Some(Instant::now());
                } else if began.elapsed() > REFRESH_INTERVAL / 2 {
                    self.schemas.source.pause(REFRESH_INTERVAL).map_err(Ok)?;
                }
                self.refresh().map_err(Ok)?;
                continue;
            }
            if let Some(table) = unknown
                && self.gone.insert(table)
            {
                tracing::info!(table = %table.0, "the log holds writes of a table that is not in the schema: dropped");
            }
            return match outcome {
                Ok(_) => {
                    self.metrics.dropped_tables.fetch_add(1, Relaxed);
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(position = %end, %error, "entry cannot be decoded and goes to quarantine");
                    self.metrics.quarantined.fetch_add(1, Relaxed);
                    self.quarantine.keep_entry(end, &payload, &error.to_string()).map_err(|error| Err(error.into()))
                }
            };
        }
    }

    /// Takes the changes of system tables and the marks, which are for this process, out of those since `before`: a
    /// mutation is of one keyspace.
    fn follow(&mut self, format: Format, end: SegmentPosition, payload: Payload<'_>, before: usize) {
        let marks = &self.captured.marks;
        if self.changes.get(before).is_some_and(|change| change.table.keyspace == marks.keyspace) {
            for change in self.changes.extract_if(before.., |change| marks.is(&change.table)) {
                let marker = MarkTable::barrier(&change).map(|id| Marker { id, node: self.node });
                self.held_markers.extend(marker.map(|marker| (end.segment, marker)));
            }
        }
        if self.changes.get(before).is_some_and(|change| self.schemas.history.follows(change.table.id)) {
            let changes = self.changes.split_off(before);
            self.noted = self.schemas.follow(format, end, &payload, &changes, &self.captured, &self.metrics);
        }
    }

    fn refresh(&mut self) -> Result<(), Halted> {
        self.schemas.refresh()?;
        self.refreshed = Instant::now();
        Ok(())
    }

    /// To be called when everything there is was read: sees that the schema is the node's.
    pub(crate) fn compare_schema(&mut self) -> Result<(), Halted> {
        self.comparison.run(&mut self.schemas)
    }

    /// The segment was read to its end, and nothing will be written to it any more.
    pub(crate) fn finish(&mut self, segment: SegmentId, reader: Option<SegmentReader>) {
        self.truncations.finish(segment, reader);
        self.offsets.remove(segment);
        self.finished.push(segment);
    }

    pub(crate) fn holds_markers(&self) -> bool {
        !self.held_markers.is_empty()
    }

    /// Lets go with the next batch of markers that stood in segments of which this says that everything older is taken.
    pub(crate) fn release_markers(&mut self, older_are_taken: impl Fn(SegmentId) -> bool) {
        let released = self.held_markers.extract_if(.., |(segment, _)| older_are_taken(*segment));
        self.markers.extend(released.map(|(_, marker)| marker));
    }

    /// Hands on what there is. Blocks while the channel is full: that is the back-pressure on reading. `Err(None)`: what
    /// is behind the capture has stopped.
    pub(crate) fn flush(&mut self) -> Result<(), Option<SourceError>> {
        let moved = self.offsets != self.flushed_offsets && self.flushed.elapsed() >= POSITION_INTERVAL;
        let nothing = self.changes.is_empty() && self.truncated.is_empty() && self.markers.is_empty();
        if nothing && self.finished.is_empty() && !moved {
            return Ok(());
        }
        // The position must not overtake the schema that is known at it.
        self.schemas.store.save().map_err(|error| Some(error.into()))?;
        self.sequence += 1;
        let batch = Batch {
            sequence: self.sequence,
            changes: std::mem::take(&mut self.changes),
            truncations: std::mem::take(&mut self.truncated),
            offsets: self.offsets.clone(),
            finished: std::mem::take(&mut self.finished),
            markers: std::mem::take(&mut self.markers),
        };
        self.weight = 0;
        self.flushed = Instant::now();
        self.flushed_offsets = self.offsets.clone();
        self.metrics.captured(&batch);
        self.outbox.blocking_send(batch).map_err(|_| None)
    }
}
