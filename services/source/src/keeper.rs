//! Follows what is durable: writes the position file and deletes segments, in this order.
//!
//! **Invariant:** a segment is deleted only after a position that calls it finished is on disk, and a position is
//! written only of batches that are durable, without a gap.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use cdc_commitlog::{list_segments, read_index};
use cdc_model::SegmentId;
use tokio::sync::{mpsc, oneshot};

use crate::{
    SourceError, SourceMetrics,
    outlet::Durable,
    position::{Finished, Offsets, Position},
    position_file::{PositionFile, PositionFileError},
    segment::{SegmentView, may_delete},
};

/// How old the position file may be: what a restart reads again at most, beside what was in flight.
const PERSIST_INTERVAL: Duration = Duration::from_millis(500);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A batch on its way, without its changes.
pub(crate) struct Note {
    /// Counts up from 1 with what is sent.
    pub(crate) sequence: u64,
    pub(crate) of: Of,
}

pub(crate) enum Of {
    /// The position moves to the offsets.
    Log { captured: u64, offsets: Offsets, finished: Vec<SegmentId> },
    /// Somebody waits for it.
    Snapshot(oneshot::Sender<()>),
}

pub(crate) struct Keeper {
    pub(crate) disk: Disk,
    pub(crate) position: Position,
    pub(crate) metrics: Arc<SourceMetrics>,
}

impl Keeper {
    /// Until `notes` is closed and everything noted is durable and on disk.
    pub(crate) async fn run(
        mut self,
        mut notes: mpsc::Receiver<Note>,
        mut durable: Durable,
    ) -> Result<(), SourceError> {
        let mut pending: VecDeque<Note> = VecDeque::new();
        let mut open = true;
        let mut dirty = false;
        let mut written = Instant::now();
        let mut swept: Option<Instant> = None;
        let mut tick = tokio::time::interval(PERSIST_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Every arm is cancel-safe: a channel, a watch and an interval.
            tokio::select! {
                note = notes.recv(), if open => match note {
                    Some(note) => pending.push_back(note),
                    None => open = false,
                },
                sequence = durable.changed(), if !pending.is_empty() => {
                    sequence?;
                }
                _ = tick.tick() => {}
            }
            let upto = durable.sequence();
            let mut any_finished = false;
            while let Some(note) = pending.pop_front_if(|note| note.sequence <= upto) {
                match note.of {
                    Of::Log { captured, offsets, finished } => {
                        self.metrics.acknowledged(captured, &offsets);
                        any_finished |= !finished.is_empty();
                        finished.into_iter().for_each(|segment| self.position.finished.insert(segment));
                        self.position.offsets = offsets;
                        dirty = true;
                    }
                    // Who waited may have been cancelled.
                    Of::Snapshot(durable) => drop(durable.send(())),
                }
            }
            let done = !open && pending.is_empty();
            let write = dirty && (done || any_finished || written.elapsed() >= PERSIST_INTERVAL);
            let sweep = (write && any_finished) || swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
            if write || sweep {
                // What the file says when the sweep looks is what `position` says: nothing newer is swept by.
                self.disk =
                    self.disk.work((write || dirty).then(|| self.position.clone()), sweep, &self.metrics).await?;
                if write || dirty {
                    self.metrics.persisted(&self.position.offsets);
                    dirty = false;
                    written = Instant::now();
                }
                if sweep {
                    swept = Some(Instant::now());
                }
            }
            if done {
                return Ok(());
            }
        }
    }
}

/// The position file and the folder it allows to delete in.
pub(crate) struct Disk {
    pub(crate) file: PositionFile,
    pub(crate) directory: PathBuf,
    /// As the file has it.
    pub(crate) finished: Finished,
}

impl Disk {
    /// Writes the position if there is one, then deletes what it allows, off the async threads.
    async fn work(
        mut self,
        position: Option<Position>,
        sweep: bool,
        metrics: &Arc<SourceMetrics>,
    ) -> Result<Self, PositionFileError> {
        let metrics = Arc::clone(metrics);
        let work = move || {
            if let Some(position) = position {
                self.file.write(&position)?;
                self.finished = position.finished;
            }
            if sweep && let Err(error) = sweep_directory(&self.directory, &self.finished, &metrics) {
                tracing::error!(directory = %self.directory.display(), %error, "cannot delete captured segments");
            }
            Ok(self)
        };
        tokio::task::spawn_blocking(work).await.expect("writing a position does not panic")
    }
}

fn sweep_directory(directory: &Path, finished: &Finished, metrics: &SourceMetrics) -> io::Result<()> {
    let mut left = 0;
    for segment in list_segments(directory)? {
        let index = read_index(&segment)?;
        let metadata = match fs::metadata(&segment.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let view = SegmentView { id: segment.id, index, links: metadata.nlink(), bytes: metadata.len() };
        if finished.contains(segment.id) && may_delete(&view) {
            // The log first: an index alone says nothing to anyone, a log alone would look like a reserve.
            remove(&segment.path)?;
            remove(&segment.index_path())?;
            metrics.deleted_segments.fetch_add(1, Relaxed);
            tracing::debug!(segment = segment.id.0, "captured segment deleted");
        } else {
            left += metadata.len();
        }
    }
    metrics.directory_bytes.store(left, Relaxed);
    Ok(())
}

/// Cassandra deletes here too.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments by id, each with its index text and whether Cassandra still has it.
    fn directory(segments: &[(u64, Option<&str>, bool)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["cdc_raw", "commitlog"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        for (id, index, kept) in segments {
            let name = format!("CommitLog-7-{id}.log");
            let path = root.path().join("cdc_raw").join(&name);
            fs::write(&path, b"bytes").unwrap();
            if *kept {
                fs::hard_link(&path, root.path().join("commitlog").join(&name)).unwrap();
            }
            if let Some(index) = index {
                fs::write(root.path().join("cdc_raw").join(format!("CommitLog-7-{id}_cdc.idx")), index).unwrap();
            }
        }
        root
    }

    #[test]
    fn only_finished_segments_that_cassandra_is_done_with_are_deleted() {
        let segments = [
            (1, Some("5\nCOMPLETED"), true),
            (2, Some("5"), true),
            (3, Some("5"), false),
            (4, None, true),
            (5, None, false),
            (6, Some("5\nCOMPLETED"), false),
        ];
        let root = directory(&segments);
        let mut finished = Finished::default();
        (1..6).for_each(|id| finished.insert(SegmentId(id)));
        let metrics = SourceMetrics::default();
        sweep_directory(&root.path().join("cdc_raw"), &finished, &metrics).unwrap();
        let left: Vec<u64> = list_segments(&root.path().join("cdc_raw")).unwrap().iter().map(|s| s.id.0).collect();
        assert_eq!(left, [2, 4, 6], "2 and 4 are still Cassandra's, 6 is not captured");
        assert_eq!(fs::read_dir(root.path().join("cdc_raw")).unwrap().count(), 5, "no index outlives its segment");
        assert_eq!(metrics.directory_bytes.load(Relaxed), 15);
    }
}
