//! A serialised value, held in place while it is short.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    hash::{Hash, Hasher},
    ops::{Deref, Range},
};

use bytes::Bytes;

/// A value in Cassandra's serialised form: as on the CQL wire, of a cell, a path or a key.
///
/// Most values are numbers, identifiers and short texts. Up to [`Self::HELD`] bytes stand in the value itself, so that
/// making, copying and dropping it touches no memory others count references in; what is longer shares the bytes it
/// was cut from.
#[derive(Clone)]
pub struct ValueBytes(Form);

#[derive(Clone)]
enum Form {
    Held { length: u8, bytes: [u8; ValueBytes::HELD] },
    Shared(Bytes),
}

impl ValueBytes {
    /// What makes the value as large as its shared form and no larger.
    pub const HELD: usize = 38;

    pub const EMPTY: Self = Self(Form::Held { length: 0, bytes: [0; Self::HELD] });

    /// A part of `whole`, which a long value keeps alive.
    ///
    /// # Panics
    /// If the range is not within `whole`.
    #[inline(always)]
    pub fn of(whole: &Bytes, range: Range<usize>) -> Self {
        match (whole[range.start..].first_chunk(), u8::try_from(range.len())) {
            // A copy of a length known here is a few moves; what it takes too much is never looked at.
            (Some(chunk), Ok(length)) if range.len() <= Self::HELD => Self(Form::Held { length, bytes: *chunk }),
            _ => Self::cut(whole, range),
        }
    }

    fn cut(whole: &Bytes, range: Range<usize>) -> Self {
        Self::held(&whole[range.clone()]).unwrap_or_else(|| Self(Form::Shared(whole.slice(range))))
    }

    /// As [`Self::of`], without moving the value.
    #[inline(always)]
    pub fn set(&mut self, whole: &Bytes, range: Range<usize>) {
        match (&mut self.0, u8::try_from(range.len())) {
            (Form::Held { length, bytes }, Ok(short)) if range.len() <= Self::HELD => {
                *length = short;
                // A copy of a length known here is a few moves; what it takes too much is never looked at.
                match whole[range.start..].first_chunk() {
                    Some(chunk) => *bytes = *chunk,
                    None => bytes[..range.len()].copy_from_slice(&whole[range]),
                }
            }
            (form, _) => *form = Form::Shared(whole.slice(range)),
        }
    }

    #[inline]
    fn held(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::HELD];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        let length = u8::try_from(value.len()).ok()?;
        Some(Self(Form::Held { length, bytes }))
    }

    /// As [`Bytes`]: a copy of a short value, another reference to a long one.
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Form::Held { .. } => Bytes::copy_from_slice(self),
            Form::Shared(bytes) => bytes.clone(),
        }
    }
}

impl Deref for ValueBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Form::Held { length, bytes } => &bytes[..usize::from(*length)],
            Form::Shared(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for ValueBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for ValueBytes {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl From<Bytes> for ValueBytes {
    fn from(bytes: Bytes) -> Self {
        Self::held(&bytes).unwrap_or(Self(Form::Shared(bytes)))
    }
}

impl From<Vec<u8>> for ValueBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl<const N: usize> From<[u8; N]> for ValueBytes {
    fn from(bytes: [u8; N]) -> Self {
        bytes[..].into()
    }
}

/// Copies.
impl From<&[u8]> for ValueBytes {
    fn from(bytes: &[u8]) -> Self {
        Self::held(bytes).unwrap_or_else(|| Self(Form::Shared(Bytes::copy_from_slice(bytes))))
    }
}

impl Default for ValueBytes {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl PartialEq for ValueBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for ValueBytes {}

impl Hash for ValueBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl PartialOrd for ValueBytes {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ValueBytes {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(other)
    }
}

impl std::fmt::Debug for ValueBytes {
    /// Shows the length only, because values must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_whichever_way_they_are_held() {
        let whole = Bytes::from_iter(0..100u8);
        for length in [0, 1, ValueBytes::HELD - 1, ValueBytes::HELD, ValueBytes::HELD + 1, 90] {
            let part = ValueBytes::of(&whole, 3..3 + length);
            assert_eq!(&*part, &whole[3..3 + length]);
            let bytes = part.to_bytes();
            assert_eq!(bytes, whole.slice(3..3 + length));
            for other in [bytes.clone().into(), bytes.to_vec().into(), ValueBytes::from(&bytes[..])] {
                assert_eq!((&part, part.cmp(&other)), (&other, Ordering::Equal));
            }
            // A long value is not copied.
            assert_eq!(length > ValueBytes::HELD, bytes.as_ptr() == whole[3..].as_ptr());
        }
        assert!(ValueBytes::of(&whole, 1..50) > ValueBytes::of(&whole, 0..3));
        assert_eq!(size_of::<ValueBytes>(), size_of::<Bytes>() + 8);
    }
}
