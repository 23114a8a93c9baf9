//! Which bytes of a segment are entries.
//!
//! A segment is a chain of sections. Each begins with an 8-byte sync marker that is zero while the section is open and
//! later points at the next marker; entries (size, CRC of the size, payload, CRC of both) fill the section.
//!
//! **Believed** is an entry whose two CRCs hold. One whose CRCs do not hold is "not yet" while its section is open, and
//! damaged once a marker covers it: then it is skipped and reported, never silently. Writers fill their entries
//! concurrently, but order is kept: nothing behind an entry is read before it.
//!
//! The file changes under the reader, so bytes that failed a check are never judged twice: they are read again, and
//! only bytes read after the section's marker was seen valid can be called damaged.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use bytes::Bytes;
use cdc_model::{SegmentId, SegmentPosition};
use crc32fast::Hasher;

use crate::{
    Format, SegmentFile,
    header::{self, HEADER_MAX, HeaderError},
};

/// What the reader may believe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// Sections that end at or before this offset (the index's).
    Durable(u64),
    /// Sections whose sync marker is valid.
    Marker,
    /// Beyond the last marker: every entry whose two CRCs hold.
    Live,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadLimit {
    pub fence: Fence,
    /// Nothing more will be written to the segment: the end of its data is its end, whatever the durable offset.
    pub finished: bool,
    /// Payload bytes after which the call returns; at least one entry is read.
    pub max_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOutcome {
    /// The budget is used up; call again.
    More,
    /// Nothing more to read yet.
    Waiting,
    /// The segment is finished and read to its end.
    End,
}

/// Bytes that were skipped because they cannot be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where the skipped bytes begin.
    pub at: SegmentPosition,
    pub bytes: u64,
    pub kind: DamageKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamageKind {
    /// The entry's payload does not match its CRC; the entry was skipped.
    Payload,
    /// The entry's size is impossible or does not match its CRC; the rest of the section was skipped.
    Size,
    /// Zeros where an entry should be: a reserved entry never written; the rest of the section was skipped.
    Zeros,
    /// The section's marker was half written; its entries were read on their own CRCs (0 bytes skipped).
    TornMarker,
    /// The last section points behind the end of the file; what is complete was read.
    Truncated,
    /// A finished segment ends in an incomplete entry no marker covers.
    TornTail,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadReport {
    pub outcome: ReadOutcome,
    pub entries: u64,
    /// Payload bytes handed out.
    pub bytes: u64,
    pub damage: Vec<Damage>,
}

#[derive(thiserror::Error, Debug)]
pub enum ReadError {
    #[error("cannot read segment {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("segment {path} cannot be read: {reason}")]
    Unsupported { path: PathBuf, reason: String },
    #[error("segment {path} has a damaged header: {reason}")]
    Header { path: PathBuf, reason: String },
    #[error("segment {path} has a damaged sync marker at {at}: {reason}")]
    Marker { path: PathBuf, at: SegmentPosition, reason: &'static str },
    #[error("entry of {size} bytes at {at} of segment {path} is over the limit of {limit}; raise entry_bytes_max")]
    EntryTooLarge { path: PathBuf, at: SegmentPosition, size: u64, limit: u64 },
}

const MARKER: u64 = 8;
/// Size, its CRC, and the CRC behind the payload.
const OVERHEAD: u64 = 12;
/// No mutation is shorter: below it Cassandra calls the size damaged.
const PAYLOAD_MIN: u64 = 10;
/// One read, and the memory a slice of it keeps alive, while there is a backlog.
const CHUNK_MAX: u64 = 256 << 10;
/// First read after a pause: enough for a few entries, cheap when there are none.
const CHUNK_MIN: u64 = 4 << 10;
/// A file of nothing but damage must not grow a report without end.
const DAMAGE_MAX: usize = 1000;

/// Reads one segment from front to back, while it is being written or after.
#[derive(Debug)]
pub struct SegmentReader {
    input: Input,
    format: Format,
    entry_bytes_max: u64,
    /// Marker at the start of the section `offset` lies in.
    section: u64,
    /// Where that section ends; known once its marker is valid.
    section_end: Option<u64>,
    offset: u64,
    /// Furthest section end seen by [`Self::backlog`].
    frontier: u64,
    /// The torn tail was reported.
    tail_reported: bool,
}

/// What stands at an offset, by its CRCs.
enum Entry {
    Whole {
        payload: Bytes,
    },
    /// The size can be trusted, the payload cannot (yet).
    Broken {
        size: u64,
    },
    /// The size can be trusted and is over the limit.
    TooLarge {
        size: u64,
    },
    /// Eight zeros, or the end of the file.
    Nothing,
    /// Neither size nor payload can be trusted.
    Unreadable,
}

enum Marker {
    /// Zeros, or behind the end of the file.
    Absent,
    Valid {
        next: u64,
    },
    /// The pointer is there, the CRC is still zero.
    Torn {
        next: u64,
    },
    Damaged,
}

impl SegmentReader {
    /// Default for the longest entry: the longest mutation of a segment of 128 MiB.
    pub const ENTRY_BYTES_MAX: u64 = 64 << 20;

    /// `resume_offset`: 0 or the end of an entry handed out before. `None`: the header is not there yet.
    /// `entry_bytes_max` bounds the memory for one entry; see [`Self::ENTRY_BYTES_MAX`].
    pub fn open(file: &SegmentFile, resume_offset: u64, entry_bytes_max: u64) -> Result<Option<Self>, ReadError> {
        let input = Input::open(file)?;
        let start = input.read(0, HEADER_MAX as u64)?;
        let header = match header::parse(&start, file.id.0) {
            Ok(header) => header,
            Err(HeaderError::Incomplete) => return Ok(None),
            Err(HeaderError::Damaged(reason)) => return Err(ReadError::Header { path: file.path.clone(), reason }),
            Err(HeaderError::Unsupported(reason)) => {
                return Err(ReadError::Unsupported { path: file.path.clone(), reason });
            }
        };
        let mut reader = Self {
            input,
            format: header.format,
            entry_bytes_max,
            section: header.length,
            section_end: None,
            offset: header.length + MARKER,
            frontier: header.length,
            tail_reported: false,
        };
        // What was read before passed every marker it needed, a torn one included.
        while let Marker::Valid { next } | Marker::Torn { next } = reader.input.marker(reader.section, true)? {
            if next > resume_offset || next < reader.section + MARKER {
                break;
            }
            reader.enter(next);
        }
        reader.offset = reader.offset.max(resume_offset);
        reader.frontier = reader.section;
        Ok(Some(reader))
    }

    /// Format to decode the payloads with.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Everything before it was handed out or reported as damaged.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// End of the last section whose marker is valid, as far as the reader has looked. Less than [`Self::offset`]
    /// while entries were read live beyond it: those Cassandra would not replay after a crash.
    pub fn covered(&self) -> u64 {
        self.section_end.unwrap_or(self.section)
    }

    /// Bytes behind valid markers that were not read yet (walks the markers: meant for a metric, not for each poll).
    pub fn backlog(&mut self) -> Result<u64, ReadError> {
        self.frontier = self.frontier.max(self.section);
        while let Marker::Valid { next } = self.input.marker(self.frontier, false)? {
            if next < self.frontier + MARKER {
                break;
            }
            self.frontier = next;
        }
        Ok(self.frontier.saturating_sub(self.offset))
    }

    /// Reads on from where it stands; calls `entry` with the end position and payload of each complete entry.
    ///
    /// The position handed to `entry` is one to resume from. After an error the reader stands where it stood; the
    /// entries handed out before it count.
    pub fn read(
        &mut self,
        limit: ReadLimit,
        entry: &mut dyn FnMut(SegmentPosition, Bytes),
    ) -> Result<ReadReport, ReadError> {
        let mut report = ReadReport { outcome: ReadOutcome::More, entries: 0, bytes: 0, damage: Vec::new() };
        match self.read_on(limit, entry, &mut report) {
            // Nothing skipped goes untold: the error comes again with the next call.
            Err(_) if !report.damage.is_empty() => Ok(report),
            outcome => outcome.map(|outcome| ReadReport { outcome, ..report }),
        }
    }

    fn read_on(
        &mut self,
        limit: ReadLimit,
        entry: &mut dyn FnMut(SegmentPosition, Bytes),
        report: &mut ReadReport,
    ) -> Result<ReadOutcome, ReadError> {
        let idle = if limit.finished { ReadOutcome::End } else { ReadOutcome::Waiting };
        loop {
            if report.bytes >= limit.max_bytes as u64 && report.entries > 0 || report.damage.len() >= DAMAGE_MAX {
                return Ok(ReadOutcome::More);
            }
            // Live, entries come first and markers only when entries fail: an entry that holds needs no marker.
            if self.section_end.is_none() && limit.fence != Fence::Live && !self.close_section(limit, report)? {
                return Ok(self.rest(idle));
            }
            let end = match self.section_end {
                // Fewer bytes than a size are no entry.
                Some(end) if end - self.offset < 4 => {
                    self.enter(end);
                    continue;
                }
                Some(end) => match limit.fence {
                    Fence::Durable(durable) if end > durable && !limit.finished => {
                        return Ok(self.rest(idle));
                    }
                    _ => end,
                },
                None => u64::MAX,
            };
            match self.entry_at(self.offset, end)? {
                Entry::Whole { payload } => {
                    self.offset += payload.len() as u64 + OVERHEAD;
                    report.entries += 1;
                    report.bytes += payload.len() as u64;
                    entry(self.position(self.offset), payload);
                }
                Entry::TooLarge { size } => {
                    let (path, at) = (self.input.path.clone(), self.position(self.offset));
                    return Err(ReadError::EntryTooLarge { path, at, size, limit: self.entry_bytes_max });
                }
                failed if self.section_end.is_some() => self.skip(end, &failed, report),
                failed => {
                    if !self.close_section(limit, report)? {
                        if limit.finished && !matches!(failed, Entry::Nothing) && !self.tail_reported {
                            self.tail_reported = true;
                            let bytes = self.input.length()?.saturating_sub(self.offset);
                            report.damage.push(self.damage(bytes, DamageKind::TornTail));
                        }
                        return Ok(self.rest(idle));
                    }
                }
            }
        }
    }

    /// Steps over what a marker covers but no CRC vouches for.
    fn skip(&mut self, end: u64, failed: &Entry, report: &mut ReadReport) {
        let rest = end - self.offset;
        let length = self.input.length;
        let (bytes, kind) = match failed {
            Entry::Broken { size } if self.offset + size + OVERHEAD <= length => (size + OVERHEAD, DamageKind::Payload),
            _ if end > length => (rest, DamageKind::Truncated),
            Entry::Broken { size } => (size + OVERHEAD, DamageKind::Payload),
            Entry::Nothing => (rest, DamageKind::Zeros),
            Entry::Whole { .. } | Entry::TooLarge { .. } | Entry::Unreadable => (rest, DamageKind::Size),
        };
        report.damage.push(self.damage(bytes, kind));
        self.offset += bytes;
    }

    /// Looks whether the open section's marker has become valid. False: the section is still open.
    fn close_section(&mut self, limit: ReadLimit, report: &mut ReadReport) -> Result<bool, ReadError> {
        let next = match self.input.marker(self.section, limit.finished)? {
            Marker::Absent => return Ok(false),
            // The two words are not written at once.
            Marker::Torn { .. } | Marker::Damaged if !limit.finished => return Ok(false),
            Marker::Valid { next } | Marker::Torn { next } if next < self.section + MARKER => {
                if !limit.finished {
                    return Ok(false);
                }
                return Err(self.fault("it points backwards"));
            }
            Marker::Damaged => return Err(self.fault("its CRC does not hold")),
            Marker::Valid { next } => next,
            Marker::Torn { next } => {
                if next > self.input.length()? {
                    return Err(self.fault("it is half written and points behind the end of the file"));
                }
                report.damage.push(Damage { at: self.position(self.section), bytes: 0, kind: DamageKind::TornMarker });
                next
            }
        };
        if next < self.offset {
            return Err(self.fault("it points into an entry that was read"));
        }
        if next > self.input.length()? && !limit.finished {
            return Ok(false);
        }
        self.section_end = Some(next);
        // Bytes read before the marker was valid may have been half written.
        self.input.forget();
        Ok(true)
    }

    fn fault(&self, reason: &'static str) -> ReadError {
        ReadError::Marker { path: self.input.path.clone(), at: self.position(self.section), reason }
    }

    fn enter(&mut self, section: u64) {
        self.section = section;
        self.section_end = None;
        self.offset = section + MARKER;
    }

    fn rest(&mut self, outcome: ReadOutcome) -> ReadOutcome {
        self.input.forget();
        self.input.next_chunk = CHUNK_MIN;
        outcome
    }

    fn position(&self, offset: u64) -> SegmentPosition {
        SegmentPosition { segment: self.input.id, offset }
    }

    fn damage(&self, bytes: u64, kind: DamageKind) -> Damage {
        Damage { at: self.position(self.offset), bytes, kind }
    }

    /// Judges the bytes at `at`, of a section that ends at `end`. Bytes that fail were read after this call began, or
    /// since [`Input::forget`].
    fn entry_at(&mut self, at: u64, end: u64) -> Result<Entry, ReadError> {
        let entry = self.check_entry(at, end)?;
        let believed = matches!(entry, Entry::Whole { .. } | Entry::TooLarge { .. });
        if believed || self.input.chunk_at == at {
            return Ok(entry);
        }
        self.input.forget();
        self.check_entry(at, end)
    }

    fn check_entry(&mut self, at: u64, end: u64) -> Result<Entry, ReadError> {
        let Some(head) = self.input.bytes(at, MARKER)? else { return Ok(Entry::Nothing) };
        let head = self.input.chunk[head].first_chunk::<8>().copied().unwrap_or_default();
        if head == [0; 8] {
            return Ok(Entry::Nothing);
        }
        let [size, size_crc] = words(head);
        let mut crc = Hasher::new();
        crc.update(&head[..4]);
        let size = u64::from(size);
        if crc.clone().finalize() != size_crc || size < PAYLOAD_MIN || size + OVERHEAD > end.saturating_sub(at) {
            return Ok(Entry::Unreadable);
        }
        if size > self.entry_bytes_max && at + size + OVERHEAD <= self.input.length {
            return Ok(Entry::TooLarge { size });
        }
        // `None` beyond the end of the file, so a size over the limit never allocates.
        let Some(range) = self.input.bytes(at, size + OVERHEAD)? else { return Ok(Entry::Broken { size }) };
        let payload = range.start + 8..range.end - 4;
        crc.update(&self.input.chunk[payload.clone()]);
        if crc.finalize().to_be_bytes() != self.input.chunk[range.end - 4..range.end] {
            return Ok(Entry::Broken { size });
        }
        Ok(Entry::Whole { payload: self.input.chunk.slice(payload) })
    }
}

fn words(bytes: [u8; 8]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

/// The file, and the piece of it read last.
#[derive(Debug)]
struct Input {
    file: File,
    path: PathBuf,
    id: SegmentId,
    /// Of the file when it was last asked for.
    length: u64,
    chunk: Bytes,
    chunk_at: u64,
    /// Grows while reading runs on, so that a poll of an idle file reads little.
    next_chunk: u64,
}

impl Input {
    fn open(segment: &SegmentFile) -> Result<Self, ReadError> {
        let path = segment.path.clone();
        let file = File::open(&path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
        let chunk_at = u64::MAX;
        let mut input =
            Self { file, path, id: segment.id, length: 0, chunk: Bytes::new(), chunk_at, next_chunk: CHUNK_MIN };
        input.length()?;
        Ok(input)
    }

    /// Length of the file now; that of a direct-I/O segment grows.
    fn length(&mut self) -> Result<u64, ReadError> {
        self.length = self.file.metadata().map_err(|source| self.failed(source))?.len();
        Ok(self.length)
    }

    fn forget(&mut self) {
        self.chunk = Bytes::new();
        self.chunk_at = u64::MAX;
    }

    /// Where in the chunk the file's bytes `[at, at + length)` stand; reads them unless they are there. `None`: the
    /// file ends before.
    fn bytes(&mut self, at: u64, length: u64) -> Result<Option<std::ops::Range<usize>>, ReadError> {
        if let Some(range) = self.held(at, length) {
            return Ok(Some(range));
        }
        if at + length > self.length && at + length > self.length()? {
            return Ok(None);
        }
        let wanted = length.max(self.next_chunk);
        self.next_chunk = (self.next_chunk * 4).min(CHUNK_MAX);
        self.chunk = self.read(at, wanted)?;
        self.chunk_at = at;
        Ok(self.held(at, length))
    }

    fn held(&self, at: u64, length: u64) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(at.checked_sub(self.chunk_at)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        (end <= self.chunk.len()).then_some(start..end)
    }

    /// Up to `length` bytes at `at`, fewer at the end of the file.
    fn read(&self, at: u64, length: u64) -> Result<Bytes, ReadError> {
        let length = usize::try_from(length.min(self.length.saturating_sub(at))).unwrap_or(usize::MAX);
        let mut chunk: Vec<u8> = Vec::with_capacity(length);
        while chunk.len() < length {
            let from = at + chunk.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut chunk), from) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
        Ok(Bytes::from(chunk))
    }

    /// `settled`: nothing writes to the file any more, so what was read before still holds.
    fn marker(&mut self, at: u64, settled: bool) -> Result<Marker, ReadError> {
        if settled && let Some(range) = self.held(at, MARKER) {
            let bytes = self.chunk[range].first_chunk::<8>().copied().unwrap_or_default();
            return Ok(self.judge_marker(at, bytes));
        }
        let Some(first) = self.peek(at)? else { return Ok(Marker::Absent) };
        let marker = self.judge_marker(at, first);
        // The CRC does not cover the pointer, which may have been caught half written: it must read alike twice.
        if matches!(marker, Marker::Valid { .. }) && !settled && self.peek(at)? != Some(first) {
            return Ok(Marker::Absent);
        }
        Ok(marker)
    }

    fn judge_marker(&self, at: u64, bytes: [u8; 8]) -> Marker {
        let [next, stored] = words(bytes);
        let next = u64::from(next);
        let id = self.id.0.to_be_bytes();
        let mut crc = Hasher::new();
        crc.update(&id[4..]);
        crc.update(&id[..4]);
        crc.update(&u32::try_from(at).unwrap_or(u32::MAX).to_be_bytes());
        match (next, stored) {
            (0, 0) => Marker::Absent,
            (_, stored) if stored == crc.finalize() => Marker::Valid { next },
            (_, 0) => Marker::Torn { next },
            _ => Marker::Damaged,
        }
    }

    /// The file's eight bytes at `at`, or `None` if it ends before.
    fn peek(&self, at: u64) -> Result<Option<[u8; 8]>, ReadError> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, source: io::Error) -> ReadError {
        ReadError::Io { path: self.path.clone(), source }
    }
}
