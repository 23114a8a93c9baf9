//! Reading the primitives of the serialisation; every length is checked against what is left.

use std::ops::Range;

/// What is wrong with the bytes.
pub(crate) type Fault = &'static str;

pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    /// All before `at` counts as read.
    pub(crate) fn within(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    #[inline]
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        // Never behind the end: `at` only moves through `take`.
        self.bytes.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn end(&self) -> usize {
        self.bytes.len()
    }

    /// Never back, and never behind the end.
    #[inline]
    pub(crate) fn go_on_at(&mut self, at: usize) {
        self.at = at.clamp(self.at, self.bytes.len());
    }

    /// The range of the next `length` bytes.
    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Result<Range<usize>, Fault> {
        if length > self.bytes.len() - self.at {
            return Err("a length is over the end of the mutation");
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        Ok(range)
    }

    #[inline(always)]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let array = self.rest().first_chunk::<N>().ok_or("the mutation ends early")?;
        self.at += N;
        Ok(*array)
    }

    #[inline(always)]
    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    /// Cassandra's unsigned vint: as many extra bytes as the first byte has leading ones.
    #[inline(always)]
    pub(crate) fn uvint(&mut self) -> Result<u64, Fault> {
        let first = self.u8()?;
        if first < 0x80 { Ok(u64::from(first)) } else { self.long_uvint(first) }
    }

    #[inline(never)]
    fn long_uvint(&mut self, first: u8) -> Result<u64, Fault> {
        let extra = first.leading_ones() as usize;
        let high = if extra >= 7 { 0 } else { u64::from(first & (0xff >> extra)) };
        // One load where it cannot run over the end; most vints are time stamps of six to eight bytes.
        let low = match self.rest().first_chunk::<8>() {
            Some(word) => u64::from_be_bytes(*word) >> (8 * (8 - extra)),
            None => {
                let bytes = self.rest().get(..extra).ok_or("the mutation ends inside a number")?;
                bytes.iter().fold(0, |low, byte| low << 8 | u64::from(*byte))
            }
        };
        self.at += extra;
        Ok(if extra == 8 { low } else { high << (8 * extra) | low })
    }

    /// A count or length, at most what is left: nothing counted is shorter than a byte.
    #[inline]
    pub(crate) fn length(&mut self) -> Result<usize, Fault> {
        let length = self.uvint()?;
        match usize::try_from(length) {
            Ok(length) if length <= self.bytes.len() - self.at => Ok(length),
            _ => Err("a length is over the end of the mutation"),
        }
    }

    /// Length and bytes.
    #[inline]
    pub(crate) fn sized(&mut self) -> Result<Range<usize>, Fault> {
        let length = self.length()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read() {
        let cases: [(&[u8], u64); 11] = [
            (&[0x7f], 0x7f),
            (&[0x80, 0x80], 0x80),
            (&[0xbf, 0xff], 0x3fff),
            (&[0xc0, 0x40, 0x00], 0x4000),
            (&[0xef, 0xff, 0xff, 0xff], 0x0fff_ffff),
            (&[0xf0, 0x10, 0, 0, 0], 0x1000_0000),
            (&[0xf8, 1, 2, 3, 4, 5], 0x01_0203_0405),
            (&[0xfc, 0xe9, 0x33, 0x0d, 0x89, 0x3d, 0xf0], 0xe933_0d89_3df0),
            (&[0xfe, 1, 2, 3, 4, 5, 6, 7], 0x01_0203_0405_0607),
            (&[0xff, 0, 0, 0, 0, 0, 0, 0, 1], 1),
            (&[0xff; 9], u64::MAX),
        ];
        for (bytes, value) in cases {
            assert_eq!(Cursor::within(bytes, 0).uvint(), Ok(value), "{bytes:02x?}");
            let padded = [bytes, &[0xaa; 8]].concat();
            let mut cursor = Cursor::within(&padded, 0);
            assert_eq!((cursor.uvint(), cursor.at()), (Ok(value), bytes.len()), "{bytes:02x?}");
            for end in 0..bytes.len() {
                assert!(Cursor::within(&bytes[..end], 0).uvint().is_err());
            }
        }
    }

    #[test]
    fn a_length_never_exceeds_what_is_left() {
        assert!(Cursor::within(&[3, 1, 2], 0).sized().is_err());
        assert_eq!(Cursor::within(&[2, 1, 2], 0).sized(), Ok(1..3));
        assert!(Cursor::within(&[0xff; 9], 0).sized().is_err());
    }
}
