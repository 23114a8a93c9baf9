//! Which bytes of a segment are entries.
//!
//! A segment is a chain of sections. Each begins with an 8-byte sync marker that is zero while the section is open and
//! later points at the next marker; entries (size, CRC of the size, payload, CRC of both) fill the section.
//!
//! **Believed** is an entry whose two CRCs hold. One whose CRCs do not hold is "not yet" while its section is open, and
//! damaged once a marker covers it: then it is skipped and reported, never silently. Writers fill their entries
//! concurrently, but order is kept: nothing behind an entry is read before it.
//!
//! In a compressed or encrypted segment a section is written at once, with its marker, and made plain as a whole (module
//! `section`). Offsets are logical there: a section counts with its plain length and the eight bytes of its marker, as
//! in Cassandra's memory. So they agree with the index, and a plain segment would have the same ones.
//!
//! The file changes under the reader, so bytes that failed a check are never judged twice: they are read again, and
//! only bytes read after the section's marker was seen valid can be called damaged.

use std::{io, ops::Range, path::PathBuf};

use cdc_model::SegmentPosition;
use crc32fast::Hasher;

use crate::{
    Format, Keystore, Payload, SegmentFile,
    header::{self, HEADER_MAX, HeaderError},
    input::{Input, MARKER, Marker, words},
    section::Sections,
};

/// What the reader may believe. In a compressed or encrypted segment nothing stands behind the last marker, so there
/// [`Self::Live`] is [`Self::Marker`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// Sections that end at or before this (logical) offset, the index's.
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
    /// As many as offsets go on by; those in the file, of the tail of a compressed or encrypted segment.
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
    /// The last section points behind the end of the file. What is complete was read; nothing of it if it is
    /// compressed or encrypted.
    Truncated,
    /// A finished segment ends in bytes no marker covers: an incomplete entry, or a section never completely written.
    TornTail,
    /// A compressed or encrypted section cannot be made plain, and was skipped. With 0 bytes: only the length Cassandra
    /// wrote in front of it is wrong, and its entries were read.
    Section,
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
    #[error("section of {size} bytes at {at} of segment {path} is over the limit of {limit}; raise section_bytes_max")]
    SectionTooLarge { path: PathBuf, at: SegmentPosition, size: u64, limit: u64 },
}

/// What a reader needs beside the file.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Longest entry that is read; bounds the memory for one. See [`SegmentReader::ENTRY_BYTES_MAX`].
    pub entry_bytes_max: u64,
    /// Longest section of a compressed or encrypted segment, made plain: as long as a segment at most. It and what it
    /// is made from are in memory at a time. See [`SegmentReader::SECTION_BYTES_MAX`].
    pub section_bytes_max: u64,
    /// For encrypted segments.
    pub keystore: Option<Keystore>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            entry_bytes_max: SegmentReader::ENTRY_BYTES_MAX,
            section_bytes_max: SegmentReader::SECTION_BYTES_MAX,
            keystore: None,
        }
    }
}

/// Size, its CRC, and the CRC behind the payload.
const OVERHEAD: u64 = 12;
/// No mutation is shorter: below it Cassandra calls the size damaged.
const PAYLOAD_MIN: u64 = 10;
/// A file of nothing but damage must not grow a report without end.
const DAMAGE_MAX: usize = 1000;

/// The place of a sync marker: as offsets count, and in the file. The same number in a plain segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) logical: u64,
    pub(crate) disk: u64,
}

/// Reads one segment from front to back, while it is being written or after.
#[derive(Debug)]
pub struct SegmentReader {
    pub(crate) input: Input,
    format: Format,
    /// Of nothing: to make one asks what the processor can, to copy one does not.
    crc: Hasher,
    entry_bytes_max: u64,
    /// What makes sections plain that are not.
    pub(crate) sections: Option<Sections>,
    /// Marker of the first section.
    start: Place,
    /// Marker at the start of the section `offset` lies in.
    pub(crate) section: Place,
    /// Sections before that one.
    passed: u64,
    /// Where that section ends; known once its marker is valid, and the section plain.
    pub(crate) section_end: Option<Place>,
    pub(crate) offset: u64,
    /// Furthest section end seen by [`Self::backlog`].
    frontier: Place,
    /// The torn tail was reported.
    tail_reported: bool,
}

/// What stands at an offset, by its CRCs.
enum Entry {
    /// The payload stands there in the chunk.
    Whole { payload: Range<usize> },
    /// The size can be trusted, the payload cannot (yet).
    Broken { size: u64 },
    /// The size can be trusted and is over the limit.
    TooLarge { size: u64 },
    /// Eight zeros, or the end of the file.
    Nothing,
    /// Neither size nor payload can be trusted.
    Unreadable,
}

impl SegmentReader {
    /// Default for the longest entry: the longest mutation of a segment of 128 MiB.
    pub const ENTRY_BYTES_MAX: u64 = 64 << 20;

    /// Default for the longest section: that of a segment of 128 MiB.
    pub const SECTION_BYTES_MAX: u64 = 128 << 20;

    /// As [`Self::open_with`] with the default limits but `entry_bytes_max`, and without a keystore.
    pub fn open(file: &SegmentFile, resume_offset: u64, entry_bytes_max: u64) -> Result<Option<Self>, ReadError> {
        Self::open_with(file, resume_offset, &ReadOptions { entry_bytes_max, ..ReadOptions::default() })
    }

    /// `resume_offset`: 0 or the end of an entry handed out before. `None`: the header is not there yet.
    pub fn open_with(file: &SegmentFile, resume_offset: u64, options: &ReadOptions) -> Result<Option<Self>, ReadError> {
        let input = Input::open(file)?;
        let start = input.read(0, HEADER_MAX as u64)?;
        let unsupported = |reason| ReadError::Unsupported { path: file.path.clone(), reason };
        let header = match header::parse(&start, file.id.0) {
            Ok(header) => header,
            Err(HeaderError::Incomplete) => return Ok(None),
            Err(HeaderError::Damaged(reason)) => return Err(ReadError::Header { path: file.path.clone(), reason }),
            Err(HeaderError::Unsupported(reason)) => return Err(unsupported(reason)),
        };
        let section = Place { logical: header.length, disk: header.length };
        let mut reader = Self {
            input,
            format: header.format,
            crc: Hasher::new(),
            entry_bytes_max: options.entry_bytes_max,
            sections: Sections::new(header.encoding, options).map_err(unsupported)?,
            start: section,
            section,
            passed: 0,
            section_end: None,
            offset: section.logical + MARKER,
            frontier: section,
            tail_reported: false,
        };
        reader.resume(resume_offset)?;
        Ok(Some(reader))
    }

    /// Goes back to the beginning, and holds nothing in memory. The file may be gone from its folder.
    pub fn rewind(&mut self) {
        self.input.release();
        self.input.pause();
        (self.section, self.section_end, self.passed) = (self.start, None, 0);
        self.offset = self.start.logical + MARKER;
    }

    /// Goes to the section the offset lies in. What was read before passed every marker it needed, a torn one included;
    /// the last one only if an entry behind the next marker was read, as no entry ends within a marker.
    fn resume(&mut self, offset: u64) -> Result<(), ReadError> {
        if self.is_transformed() {
            self.resume_sections(offset)?;
        } else {
            while let Marker::Valid { next } | Marker::Torn { next } = self.input.marker(self.section.disk, true)? {
                if next + MARKER >= offset || next < self.section.disk + MARKER {
                    break;
                }
                self.enter(Place { logical: next, disk: next });
            }
        }
        self.offset = self.offset.max(offset);
        self.frontier = self.section;
        Ok(())
    }

    /// The segment is compressed or encrypted: it is read a section at a time, once Cassandra has written it to disk,
    /// so that only [`CaptureMode::Durable`](crate::CaptureMode::Durable) says what to expect of it.
    pub fn is_transformed(&self) -> bool {
        self.sections.is_some()
    }

    /// `plain`, the compressor's class, or `encrypted`.
    pub fn encoding(&self) -> &'static str {
        self.sections.as_ref().map_or("plain", Sections::encoding)
    }

    /// Sections read to their end.
    pub fn sections(&self) -> u64 {
        self.passed
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
        self.section_end.unwrap_or(self.section).logical
    }

    /// Bytes behind valid markers that were not read yet (walks the markers: meant for a metric, not for each poll).
    pub fn backlog(&mut self) -> Result<u64, ReadError> {
        let seen = self.section_end.unwrap_or(self.section);
        if seen.disk > self.frontier.disk {
            self.frontier = seen;
        }
        while let Marker::Valid { next } = self.input.marker(self.frontier.disk, false)? {
            let Some(next) = self.follow(self.frontier, next)? else { break };
            self.frontier = next;
        }
        Ok(self.frontier.logical.saturating_sub(self.offset))
    }

    /// Where the section ends whose marker stands at `at`, by what it says itself.
    fn follow(&self, at: Place, next: u64) -> Result<Option<Place>, ReadError> {
        if next < at.disk + MARKER {
            return Ok(None);
        }
        let Some(sections) = &self.sections else { return Ok(Some(Place { logical: next, disk: next })) };
        let length = sections.stated_length(&self.input, at.disk, next)?;
        let whole = next <= self.input.file_length()?;
        Ok(length.filter(|_| whole).map(|length| Place { logical: at.logical + MARKER + length, disk: next }))
    }

    /// Reads on from where it stands; calls `entry` with the end position and payload of each complete entry.
    ///
    /// The position handed to `entry` is one to resume from. After an error the reader stands where it stood; the
    /// entries handed out before it count.
    pub fn read(
        &mut self,
        limit: ReadLimit,
        entry: &mut dyn FnMut(SegmentPosition, Payload<'_>),
    ) -> Result<ReadReport, ReadError> {
        let mut report = ReadReport { outcome: ReadOutcome::More, entries: 0, bytes: 0, damage: Vec::new() };
        let before = self.offset;
        self.input.settle(limit.finished && !self.is_transformed());
        match self.read_on(limit, entry, &mut report) {
            // Nothing skipped goes untold: the error comes again with the next call, which starts behind it.
            Err(_) if !report.damage.is_empty() && self.offset > before => Ok(report),
            outcome => outcome.map(|outcome| ReadReport { outcome, ..report }),
        }
    }

    fn read_on(
        &mut self,
        limit: ReadLimit,
        entry: &mut dyn FnMut(SegmentPosition, Payload<'_>),
        report: &mut ReadReport,
    ) -> Result<ReadOutcome, ReadError> {
        let idle = if limit.finished { ReadOutcome::End } else { ReadOutcome::Waiting };
        loop {
            if report.bytes >= limit.max_bytes as u64 && report.entries > 0 || report.damage.len() >= DAMAGE_MAX {
                return Ok(ReadOutcome::More);
            }
            // Live, entries come first and markers only when entries fail: an entry that holds needs no marker.
            if self.section_end.is_none()
                && (limit.fence != Fence::Live || self.is_transformed())
                && !self.close_section(limit, report)?
            {
                if limit.finished && self.is_transformed() {
                    self.report_tail(self.section.disk, report)?;
                }
                return Ok(self.rest(idle));
            }
            let end = match self.section_end {
                // Fewer bytes than a size are no entry.
                Some(end) if end.logical.saturating_sub(self.offset) < 4 => {
                    self.enter(end);
                    continue;
                }
                Some(Place { logical: end, .. }) => match limit.fence {
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
                    entry(self.position(self.offset), Payload::new(&self.input.chunk, payload));
                }
                Entry::TooLarge { size } => {
                    let (path, at) = (self.input.path.clone(), self.position(self.offset));
                    return Err(ReadError::EntryTooLarge { path, at, size, limit: self.entry_bytes_max });
                }
                failed if self.section_end.is_some() => self.skip(end, &failed, report),
                failed => {
                    if !self.close_section(limit, report)? {
                        if limit.finished && !matches!(failed, Entry::Nothing) {
                            self.report_tail(self.offset, report)?;
                        }
                        return Ok(self.rest(idle));
                    }
                }
            }
        }
    }

    /// The finished file goes on behind what can be read, from `disk` on.
    fn report_tail(&mut self, disk: u64, report: &mut ReadReport) -> Result<(), ReadError> {
        let bytes = self.input.length()?.saturating_sub(disk);
        if bytes > 0 && !self.tail_reported {
            self.tail_reported = true;
            report.damage.push(self.damage(bytes, DamageKind::TornTail));
        }
        Ok(())
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
    pub(crate) fn close_section(&mut self, limit: ReadLimit, report: &mut ReadReport) -> Result<bool, ReadError> {
        // Of a section that was made plain the chunk holds other bytes than the file's.
        let settled = limit.finished && !self.is_transformed();
        let mut torn = false;
        let next = match self.input.marker(self.section.disk, settled)? {
            Marker::Absent => return Ok(false),
            // The two words are not written at once.
            Marker::Torn { .. } | Marker::Damaged if !limit.finished => return Ok(false),
            Marker::Valid { next } | Marker::Torn { next } if next < self.section.disk + MARKER => {
                if !limit.finished {
                    return Ok(false);
                }
                return Err(self.fault("it points backwards"));
            }
            Marker::Damaged => return Err(self.fault("its CRC does not hold")),
            Marker::Torn { .. } if self.is_transformed() => return Err(self.fault("it is half written")),
            Marker::Valid { next } => next,
            Marker::Torn { next } => {
                if next > self.input.length()? {
                    return Err(self.fault("it is half written and points behind the end of the file"));
                }
                torn = true;
                next
            }
        };
        if self.is_transformed() {
            return self.open_section(next, limit.finished, report);
        }
        if next < self.offset {
            return Err(self.fault("it points into an entry that was read"));
        }
        if next > self.input.length()? && !limit.finished {
            return Ok(false);
        }
        if torn {
            let at = self.position(self.section.logical);
            report.damage.push(Damage { at, bytes: 0, kind: DamageKind::TornMarker });
        }
        self.section_end = Some(Place { logical: next, disk: next });
        // Bytes read before the marker was valid may have been half written.
        self.input.forget_unsettled();
        Ok(true)
    }

    pub(crate) fn fault(&self, reason: &'static str) -> ReadError {
        ReadError::Marker { path: self.input.path.clone(), at: self.position(self.section.logical), reason }
    }

    pub(crate) fn enter(&mut self, section: Place) {
        self.passed += u64::from(section.disk != self.section.disk);
        self.section = section;
        self.section_end = None;
        self.offset = section.logical + MARKER;
        self.input.release();
    }

    fn rest(&mut self, outcome: ReadOutcome) -> ReadOutcome {
        self.input.pause();
        outcome
    }

    pub(crate) fn position(&self, offset: u64) -> SegmentPosition {
        SegmentPosition { segment: self.input.id, offset }
    }

    fn damage(&self, bytes: u64, kind: DamageKind) -> Damage {
        Damage { at: self.position(self.offset), bytes, kind }
    }

    /// Judges the bytes at `at`, of a section that ends at `end`. Bytes that fail were read after this call began, or
    /// since it [settled](Input::settle).
    #[inline(always)]
    fn entry_at(&mut self, at: u64, end: u64) -> Result<Entry, ReadError> {
        let entry = self.check_entry(at, end)?;
        let believed = matches!(entry, Entry::Whole { .. } | Entry::TooLarge { .. });
        if believed || self.input.chunk_at == at || !self.input.forget_unsettled() {
            return Ok(entry);
        }
        self.check_entry_again(at, end)
    }

    /// Apart from the first look, which is inlined where entries are read.
    #[cold]
    fn check_entry_again(&mut self, at: u64, end: u64) -> Result<Entry, ReadError> {
        self.check_entry(at, end)
    }

    #[inline(always)]
    fn check_entry(&mut self, at: u64, end: u64) -> Result<Entry, ReadError> {
        let Some(head) = self.input.bytes(at, MARKER)? else { return Ok(Entry::Nothing) };
        let head = self.input.chunk[head].first_chunk::<8>().copied().unwrap_or_default();
        if head == [0; 8] {
            return Ok(Entry::Nothing);
        }
        let [size, size_crc] = words(head);
        let mut crc = self.crc.clone();
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
        Ok(Entry::Whole { payload })
    }
}
