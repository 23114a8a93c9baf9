//! Reads `cdc_raw` on a thread of its own.
//!
//! A scan lists the folder and decides which segments are final ([`final_segments`]); a pass reads every segment
//! that may have more, oldest first. A segment is finished when a read that began after it was known to be final
//! came to its end: so the last write to it cannot be missed, whenever Cassandra switched.
//!
//! A barrier's mark is handed on only once everything is that was acknowledged before it was written. Of its own segment
//! that is read before it, but at a switch a slow write keeps the end of the older segment from being read, while the
//! newer one already is. So a mark waits until nothing is left in any older segment ([`OpenSegment::is_taken`]).

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use cdc_commitlog::{
    CaptureMode, DamageKind, Fence, ReadError, ReadLimit, ReadOptions, ReadOutcome, SegmentFile, SegmentReader,
    list_segments, read_index,
};
use cdc_model::SegmentId;
use tokio_util::sync::CancellationToken;

use crate::{
    SourceError, SourceMetrics,
    intake::{Halted, Intake},
    position::Finished,
    segment::{SegmentView, final_segments, may_read_live},
};

/// A reserve segment lies in the folder long before it is written to, so a switch does not wait for a scan.
const SCAN_INTERVAL: Duration = Duration::from_millis(25);
/// The active segment, the reserve, and one that is being closed: polled. Older ones wait for their end.
const POLLED: usize = 3;
/// Payload bytes read between two looks at the stop signal.
const READ_BYTES: usize = 256 << 10;
const IO_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Capture {
    pub(crate) directory: PathBuf,
    pub(crate) mode: CaptureMode,
    pub(crate) poll_interval: Duration,
    pub(crate) read_options: ReadOptions,
    pub(crate) intake: Intake,
    pub(crate) finished: Finished,
    pub(crate) metrics: Arc<SourceMetrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) open: BTreeMap<SegmentId, OpenSegment>,
}

pub(crate) struct OpenSegment {
    file: SegmentFile,
    view: SegmentView,
    reader: Option<SegmentReader>,
    is_final: bool,
    /// Removed by someone else; what an open reader can still read is read.
    vanished: bool,
    /// Read to the end of what there was.
    drained: bool,
    /// The same after it had left the polled ones.
    parked: bool,
    /// Where the reader stood when there was nothing more, and what was synced then.
    read_to: u64,
    read_synced: u64,
    /// Not a memory-mapped segment: only what is synced is read, whatever the mode.
    grows: bool,
    /// Cannot be read further; a person will want to know what is wrong once it is final.
    damage: Vec<String>,
    stuck: bool,
    retry_at: Option<Instant>,
}

/// Why a segment's read stopped.
enum Step {
    /// Nothing more for now.
    Waiting,
    /// Read to its end, or as far as it can be; not to be read again.
    Finished,
}

impl Capture {
    /// Until stopped. What was read by then has been handed on.
    pub(crate) fn run(mut self) -> Result<(), SourceError> {
        let mut scanned: Option<Instant> = None;
        let mut scan_error: Option<Instant> = None;
        if let Err(failure) = self.intake.look_for_truncations() {
            return failure.map(|Halted| ());
        }
        while !self.stop.is_cancelled() {
            if scanned.is_none_or(|at| at.elapsed() >= SCAN_INTERVAL) {
                if let Err(error) = self.scan()
                    && scan_error.is_none_or(|at| at.elapsed() > Duration::from_secs(10))
                {
                    scan_error = Some(Instant::now());
                    tracing::error!(directory = %self.directory.display(), %error, "cannot look into cdc_raw");
                }
                scanned = Some(Instant::now());
            }
            let busy = match self.pass() {
                Ok(busy) => busy,
                Err(None) => break,
                Err(Some(error)) => return Err(error),
            };
            self.metrics.caught_up(!busy);
            if !busy {
                match self.intake.compare_schema().map_err(Ok).and_then(|()| self.intake.look_for_truncations()) {
                    Ok(()) => {}
                    Err(Ok(Halted)) => break,
                    Err(Err(error)) => return Err(error),
                }
                std::thread::sleep(self.poll_interval);
            }
        }
        // Entries taken before the stop; a channel that is gone has said why itself.
        match self.intake.flush() {
            Err(Some(error)) => return Err(error),
            Err(None) => tracing::debug!("the channel closed before the capture"),
            Ok(()) => {}
        }
        Ok(())
    }

    fn scan(&mut self) -> io::Result<()> {
        for file in list_segments(&self.directory)? {
            if !self.finished.contains(file.id) && !self.open.contains_key(&file.id) {
                let view = SegmentView { id: file.id, index: None, links: 2, bytes: 0 };
                tracing::debug!(segment = file.id.0, "segment found");
                self.open.insert(file.id, OpenSegment::new(file, view));
            }
        }
        // Newest first, index before links: what `SegmentView` asks for.
        for segment in self.open.values_mut().rev().filter(|segment| !segment.is_final) {
            segment.look()?;
        }
        let views: Vec<SegmentView> = self.open.values().map(|segment| segment.view).collect();
        for id in final_segments(&views) {
            self.open.get_mut(&id).expect("the view of an open segment").is_final = true;
        }
        self.metrics.segments.store(self.open.len() as u64, Relaxed);
        let unread = |segment: &OpenSegment| {
            let synced = segment.view.index.map_or(0, |index| index.offset);
            if segment.drained { 0 } else { synced.saturating_sub(self.intake.offset(segment.file.id)) }
        };
        self.metrics.backlog.store(self.open.values().map(unread).sum(), Relaxed);
        Ok(())
    }

    /// Reads whatever there is; whether there was anything. `Err(None)`: stopped.
    fn pass(&mut self) -> Result<bool, Option<SourceError>> {
        let mut busy = false;
        let polled = self.open.keys().rev().nth(POLLED - 1).copied().unwrap_or(SegmentId(0));
        let ids: Vec<SegmentId> = self.open.keys().copied().collect();
        for id in ids {
            let segment = self.open.get_mut(&id).expect("listed above");
            if !segment.is_final && (segment.stuck || segment.parked) {
                segment.reader = None;
                continue;
            }
            match segment.read(self.mode, &self.read_options, &mut self.intake, &self.metrics, &mut busy)? {
                Step::Waiting => (segment.drained, segment.parked) = (true, id < polled),
                Step::Finished => {
                    let segment = self.open.remove(&id).expect("listed above");
                    self.finish(segment)?;
                    busy = true;
                }
            }
        }
        let (open, mode) = (&self.open, self.mode);
        self.intake.release_markers(|segment| open.range(..segment).all(|(_, older)| older.is_taken(mode)));
        if self.intake.holds_markers() {
            self.open.values_mut().for_each(|segment| segment.parked = false);
        }
        self.intake.flush()?;
        Ok(busy)
    }

    fn finish(&mut self, segment: OpenSegment) -> Result<(), SourceError> {
        if segment.vanished && segment.view.index.is_some() {
            let segment = segment.file.id.0;
            tracing::error!(segment, "a segment was deleted by someone else before it was captured to its end");
            self.metrics.lost_segments.fetch_add(1, Relaxed);
        } else if !segment.damage.is_empty() {
            tracing::error!(segment = segment.file.id.0, damage = ?segment.damage, "segment goes to quarantine");
            self.metrics.damaged_segments.fetch_add(1, Relaxed);
            self.intake.quarantine.keep_segment(&segment.file, &segment.damage)?;
        }
        tracing::debug!(segment = segment.file.id.0, "segment read to its end");
        self.finished.insert(segment.file.id);
        self.intake.finish(segment.file.id, segment.reader);
        Ok(())
    }
}

impl OpenSegment {
    fn new(file: SegmentFile, view: SegmentView) -> Self {
        Self {
            file,
            view,
            reader: None,
            is_final: false,
            vanished: false,
            drained: false,
            parked: false,
            read_to: 0,
            read_synced: 0,
            grows: false,
            damage: Vec::new(),
            stuck: false,
            retry_at: None,
        }
    }

    fn look(&mut self) -> io::Result<()> {
        // An index that is gone is no news; one that was seen tells that the segment was worth reading.
        self.view.index = read_index(&self.file)?.or(self.view.index);
        match fs::metadata(&self.file.path) {
            Ok(metadata) => {
                self.view.links = metadata.nlink();
                self.view.bytes = metadata.len();
                self.grows |= !may_read_live(metadata.len());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.vanished = true;
                self.is_final = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Reads to the end of what there is.
    fn read(
        &mut self,
        mode: CaptureMode,
        options: &ReadOptions,
        intake: &mut Intake,
        metrics: &SourceMetrics,
        busy: &mut bool,
    ) -> Result<Step, Option<SourceError>> {
        if self.stuck {
            return Ok(Step::Finished);
        }
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return Ok(Step::Waiting);
        }
        // Before reading: what is decided on must not be newer than what is read.
        let finished = self.is_final;
        let synced = Fence::Durable(self.view.index.map_or(0, |index| index.offset));
        let fence = match mode {
            CaptureMode::Live if self.grows => synced,
            CaptureMode::Live => Fence::Live,
            CaptureMode::Marker => Fence::Marker,
            CaptureMode::Durable => synced,
        };
        if !finished && fence == Fence::Durable(0) {
            return Ok(Step::Waiting);
        }
        loop {
            if intake.schemas.source.stop.is_cancelled() {
                return Err(None);
            }
            let limit = ReadLimit { fence, finished, max_bytes: READ_BYTES };
            let outcome = match self.read_some(limit, options, intake) {
                Ok(None) if finished => return Ok(Step::Finished),
                Ok(None) => return Ok(Step::Waiting),
                Ok(Some(report)) => {
                    if report.entries > 0 {
                        *busy = true;
                        metrics.caught_up(false);
                    }
                    metrics.bytes.fetch_add(report.bytes, Relaxed);
                    intake.read_was(report.bytes);
                    for damage in report.damage {
                        let (at, bytes, kind) = (damage.at, damage.bytes, damage.kind);
                        // How a segment ends when its writer was killed: nothing in it was ever acknowledged as synced.
                        if matches!(kind, DamageKind::TornTail | DamageKind::TornMarker) {
                            tracing::info!(position = %at, bytes, ?kind, "segment ends where its writer died");
                            continue;
                        }
                        tracing::error!(position = %at, bytes, ?kind, "segment is damaged");
                        self.damage.push(format!("{kind:?} at {at}, {bytes} bytes skipped"));
                    }
                    report.outcome
                }
                Err(error) => return self.failed(error).map_err(Some),
            };
            match intake.failed.take() {
                None => {}
                Some(Ok(Halted)) => return Err(None),
                Some(Err(error)) => return Err(Some(error)),
            }
            match outcome {
                ReadOutcome::End => return Ok(Step::Finished),
                ReadOutcome::Waiting => {
                    self.read_to = self.reader.as_ref().map_or(0, SegmentReader::offset);
                    if let Fence::Durable(synced) = fence {
                        self.read_synced = synced;
                    }
                    return Ok(Step::Waiting);
                }
                ReadOutcome::More if intake.is_full() => intake.flush()?,
                ReadOutcome::More => {}
            }
        }
    }

    /// `None`: there is nothing to read yet, or (vanished) any more.
    fn read_some(
        &mut self,
        limit: ReadLimit,
        options: &ReadOptions,
        intake: &mut Intake,
    ) -> Result<Option<cdc_commitlog::ReadReport>, ReadError> {
        if self.reader.is_none() {
            if self.vanished {
                return Ok(None);
            }
            let resume = intake.offset(self.file.id);
            self.reader = SegmentReader::open_with(&self.file, resume, options)?;
        }
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let format = reader.format();
        reader.read(limit, &mut |end, payload| intake.entry(format, end, payload)).map(Some)
    }

    /// Whether everything is read that was written here before anything that was read of newer segments.
    ///
    /// A sync goes from old to new, and so does a look at what is synced from new to old: where only that is read, it is
    /// enough to have read it. Elsewhere a write that was acknowledged is in the file, which begins as zeros: where nothing
    /// but zeros is left, none is.
    fn is_taken(&self, mode: CaptureMode) -> bool {
        if mode == CaptureMode::Durable || (mode == CaptureMode::Live && self.grows) {
            return !self.stuck && self.view.index.map_or(0, |index| index.offset) <= self.read_synced;
        }
        // Of a file that is gone nothing is known until the next look at the folder.
        is_zeros(&self.file.path, self.read_to).unwrap_or(false)
    }

    fn failed(&mut self, error: ReadError) -> Result<Step, SourceError> {
        match error {
            ReadError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                self.vanished = true;
                self.is_final = true;
                Ok(Step::Waiting)
            }
            ReadError::Io { .. } => {
                tracing::error!(error = %error, cause = ?std::error::Error::source(&error), "will try again");
                self.reader = None;
                self.retry_at = Some(Instant::now() + IO_RETRY);
                Ok(Step::Waiting)
            }
            ReadError::Header { .. } | ReadError::Marker { .. } => {
                tracing::error!(segment = self.file.id.0, %error, "segment cannot be read further");
                self.damage.push(error.to_string());
                self.stuck = true;
                self.reader = None;
                Ok(if self.is_final { Step::Finished } else { Step::Waiting })
            }
            // Not this segment but all of them: a person must choose what to do.
            ReadError::Unsupported { .. } | ReadError::EntryTooLarge { .. } | ReadError::SectionTooLarge { .. } => {
                Err(error.into())
            }
        }
    }
}

fn is_zeros(path: &Path, from: u64) -> io::Result<bool> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(true),
            read if buffer[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use cdc_commitlog::Index;

    use super::*;

    #[test]
    fn an_older_segment_is_taken_when_nothing_readable_is_left_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("CommitLog-7-1.log");
        let mut bytes = vec![0; 1 << 20];
        bytes[..100].fill(1);
        fs::write(&path, &bytes).unwrap();
        let file = list_segments(folder.path()).unwrap().remove(0);
        let view = SegmentView { id: file.id, index: None, links: 2, bytes: 1 << 20 };
        let mut segment = OpenSegment::new(file, view);
        // Live, or by markers: what is left is looked at.
        segment.read_to = 100;
        assert!(segment.is_taken(CaptureMode::Live) && segment.is_taken(CaptureMode::Marker));
        segment.read_to = 99;
        assert!(!segment.is_taken(CaptureMode::Live));
        // A write behind one that is not finished, of which nothing is there yet.
        segment.read_to = 100;
        bytes[900_000] = 1;
        fs::write(&path, &bytes).unwrap();
        assert!(!segment.is_taken(CaptureMode::Live));
        // Where only what is synced is read: that it was, as far as it is synced now.
        assert!(segment.is_taken(CaptureMode::Durable), "nothing of it is for capture");
        segment.view.index = Some(Index { offset: 500, completed: false });
        assert!(!segment.is_taken(CaptureMode::Durable));
        segment.read_synced = 500;
        assert!(segment.is_taken(CaptureMode::Durable));
        fs::remove_file(&path).unwrap();
        assert!(!segment.is_taken(CaptureMode::Live), "whether it was read is known at the next look");
    }
}
