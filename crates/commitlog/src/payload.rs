use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::cursor::Cursor;

/// An entry's payload, as a part of what was read at once: long values share that, short ones are copied out of it.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    pub(crate) whole: &'a Bytes,
    pub(crate) start: usize,
    end: usize,
}

impl<'a> Payload<'a> {
    /// # Panics
    /// If the range is not within `whole`.
    #[inline]
    pub(crate) fn new(whole: &'a Bytes, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= whole.len());
        Self { whole, start: range.start, end: range.end }
    }

    /// Keeps all that was read at once alive.
    pub fn to_bytes(&self) -> Bytes {
        self.whole.slice(self.start..self.end)
    }

    /// Its ranges are of `whole`.
    #[inline]
    pub(crate) fn cursor(&self) -> Cursor<'a> {
        Cursor::within(&self.whole[..self.end], self.start)
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.whole[self.start..self.end]
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(whole: &'a Bytes) -> Self {
        Self::new(whole, 0..whole.len())
    }
}

impl std::fmt::Debug for Payload<'_> {
    /// Shows the length only, because values must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}
