//! The file of a segment, the piece of it read last, and its sync markers.
//!
//! In a plain segment an offset is one in the file. In a compressed or encrypted one the entries' offsets are logical:
//! they lie in the plain bytes of a section, which the reader [holds](Input::hold) here.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::PathBuf};

use bytes::Bytes;
use cdc_model::SegmentId;
use crc32fast::Hasher;

use crate::{ReadError, SegmentFile};

/// Length of a sync marker.
pub(crate) const MARKER: u64 = 8;
/// One read, and the memory a slice of it keeps alive, while there is a backlog.
const CHUNK_MAX: u64 = 256 << 10;
/// First read after a pause: enough for a few entries, cheap when there are none.
const CHUNK_MIN: u64 = 4 << 10;

pub(crate) enum Marker {
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

pub(crate) fn words(bytes: [u8; 8]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

/// The file, and the piece of it read last.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    pub(crate) path: PathBuf,
    pub(crate) id: SegmentId,
    /// End of what can be read: that of the file when it was last asked for, or of the section held.
    pub(crate) length: u64,
    pub(crate) chunk: Bytes,
    pub(crate) chunk_at: u64,
    /// Plain bytes of a section, and where they begin.
    held: Option<(u64, Bytes)>,
    /// Nothing is written to the file any more, and the piece was read since that is known: it need not be read again.
    settled: bool,
    /// Grows while reading runs on, so that a poll of an idle file reads little.
    next_chunk: u64,
}

impl Input {
    pub(crate) fn open(segment: &SegmentFile) -> Result<Self, ReadError> {
        let path = segment.path.clone();
        let file = File::open(&path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
        let chunk_at = u64::MAX;
        let mut input = Self {
            file,
            path,
            id: segment.id,
            length: 0,
            chunk: Bytes::new(),
            chunk_at,
            held: None,
            settled: false,
            next_chunk: CHUNK_MIN,
        };
        input.length()?;
        Ok(input)
    }

    /// End of what can be read now: a file written with direct I/O grows.
    pub(crate) fn length(&mut self) -> Result<u64, ReadError> {
        if self.held.is_none() {
            self.length = self.file_length()?;
        }
        Ok(self.length)
    }

    pub(crate) fn file_length(&self) -> Result<u64, ReadError> {
        Ok(self.file.metadata().map_err(|source| self.failed(source))?.len())
    }

    /// From now on these bytes are read, at the offsets from `at` on; the file only by [`Self::file_bytes`] and for
    /// markers.
    pub(crate) fn hold(&mut self, at: u64, plain: Vec<u8>) {
        self.length = at + plain.len() as u64;
        self.held = Some((at, Bytes::from(plain)));
        self.forget();
    }

    /// Back to the file.
    pub(crate) fn release(&mut self) {
        if self.held.take().is_some() {
            self.length = 0;
            self.forget();
        }
    }

    pub(crate) fn forget(&mut self) {
        self.chunk = Bytes::new();
        self.chunk_at = u64::MAX;
    }

    /// Whether something may still be written to the file. If not, what was read before that was so is read again, and
    /// nothing more than once.
    pub(crate) fn settle(&mut self, settled: bool) {
        if settled && !self.settled {
            self.forget();
        }
        self.settled = settled;
    }

    /// Forgets what may have been half written when it was read; whether there was such.
    pub(crate) fn forget_unsettled(&mut self) -> bool {
        if !self.settled {
            self.forget();
        }
        !self.settled
    }

    /// The next read is a small one.
    pub(crate) fn pause(&mut self) {
        self.forget();
        self.next_chunk = CHUNK_MIN;
    }

    /// Where in the chunk the file's bytes `[at, at + length)` stand; reads them unless they are there. `None`: the
    /// file ends before.
    pub(crate) fn bytes(&mut self, at: u64, length: u64) -> Result<Option<Range<usize>>, ReadError> {
        if let Some(range) = self.in_chunk(at, length) {
            return Ok(Some(range));
        }
        if at + length > self.length && at + length > self.length()? {
            return Ok(None);
        }
        let wanted = length.max(self.next_chunk);
        self.next_chunk = (self.next_chunk * 4).min(CHUNK_MAX);
        let old = std::mem::take(&mut self.chunk);
        self.chunk_at = u64::MAX;
        self.chunk = match &self.held {
            None => self.read_into(emptied(old), at, wanted)?,
            Some((start, plain)) => piece(plain, at.saturating_sub(*start), wanted),
        };
        self.chunk_at = at;
        Ok(self.in_chunk(at, length))
    }

    fn in_chunk(&self, at: u64, length: u64) -> Option<Range<usize>> {
        let start = usize::try_from(at.checked_sub(self.chunk_at)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        (end <= self.chunk.len()).then_some(start..end)
    }

    /// Up to `length` of the file's bytes at `at`, fewer at the end of it.
    pub(crate) fn read(&self, at: u64, length: u64) -> Result<Bytes, ReadError> {
        self.read_into(Vec::new(), at, length)
    }

    fn read_into(&self, chunk: Vec<u8>, at: u64, length: u64) -> Result<Bytes, ReadError> {
        self.fill(chunk, at, length.min(self.length.saturating_sub(at))).map(Bytes::from)
    }

    /// So many of the file's bytes at `at`, fewer if it has become shorter.
    pub(crate) fn file_bytes(&self, at: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        self.fill(Vec::new(), at, length)
    }

    fn fill(&self, mut chunk: Vec<u8>, at: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        chunk.reserve_exact(length);
        while chunk.len() < length {
            let from = at + chunk.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut chunk), from) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno.into())),
            }
        }
        Ok(chunk)
    }

    /// `settled`: nothing writes to the file any more, so what was read before still holds.
    pub(crate) fn marker(&mut self, at: u64, settled: bool) -> Result<Marker, ReadError> {
        if settled && let Some(range) = self.in_chunk(at, MARKER) {
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

    pub(crate) fn judge_marker(&self, at: u64, bytes: [u8; 8]) -> Marker {
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

    /// The file's bytes at `at`, or `None` if it ends before.
    pub(crate) fn peek<const N: usize>(&self, at: u64) -> Result<Option<[u8; N]>, ReadError> {
        let mut bytes = [0; N];
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

/// The memory of a chunk of which nobody holds a part: it is in the cache still, and new memory is cleared first. Not that
/// of a long entry, which would be kept for good.
fn emptied(mut chunk: Bytes) -> Vec<u8> {
    if !chunk.is_unique() || chunk.len() as u64 > CHUNK_MAX {
        return Vec::new();
    }
    chunk.clear();
    chunk.into()
}

/// A copy, so that an entry that is kept does not keep a whole section; unless that is small.
fn piece(plain: &Bytes, at: u64, length: u64) -> Bytes {
    let start = usize::try_from(at).unwrap_or(usize::MAX).min(plain.len());
    if plain.len() as u64 <= CHUNK_MAX {
        return plain.slice(start..);
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(plain.len() - start);
    Bytes::copy_from_slice(&plain[start..start + length])
}
