use std::{io, path::PathBuf};

use bytes::Bytes;
use cdc_model::SegmentPosition;

use crate::{Format, SegmentFile};

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

/// Reads one segment from front to back, while it is being written or after.
#[derive(Debug)]
pub struct SegmentReader {}

impl SegmentReader {
    pub const ENTRY_BYTES_MAX: u64 = 64 << 20;

    /// `resume_offset`: 0 or the end of an entry handed out before. `None`: the header is not there yet.
    /// `entry_bytes_max` bounds the memory for one entry; see [`Self::ENTRY_BYTES_MAX`].
    pub fn open(_file: &SegmentFile, _resume_offset: u64, _entry_bytes_max: u64) -> Result<Option<Self>, ReadError> {
        Ok(None)
    }

    /// Reads on from where it stands; calls `entry` with the end position and payload of each complete entry.
    pub fn read(
        &mut self,
        _limit: ReadLimit,
        _entry: &mut dyn FnMut(SegmentPosition, Bytes),
    ) -> Result<ReadReport, ReadError> {
        Ok(ReadReport { outcome: ReadOutcome::Waiting, entries: 0, bytes: 0, damage: Vec::new() })
    }

    /// Format to decode the payloads with.
    pub fn format(&self) -> Format {
        Format::V7
    }

    /// Everything before it was handed out or reported as damaged.
    pub fn offset(&self) -> u64 {
        0
    }

    /// End of the last section whose marker is valid, as far as the reader has looked. Less than [`Self::offset`]
    /// while entries were read live beyond it: those Cassandra would not replay after a crash.
    pub fn covered(&self) -> u64 {
        0
    }

    /// Bytes behind valid markers that were not read yet (walks the markers: meant for a metric, not for each poll).
    pub fn backlog(&mut self) -> Result<u64, ReadError> {
        Ok(0)
    }
}
