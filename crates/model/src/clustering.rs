//! The clustering key of a row as one comparable, hashable byte string.

use smallvec::SmallVec;

use crate::ValueBytes;

/// Clustering values in key order, each as i32 length (-1: null) and bytes; empty for a table without clustering.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Clustering(ValueBytes);

impl std::fmt::Debug for Clustering {
    /// Shows the length only, because keys must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clustering({} bytes)", self.0.len())
    }
}

impl Clustering {
    pub fn new<V: AsRef<[u8]>>(values: impl IntoIterator<Item = Option<V>>) -> Self {
        let mut out: SmallVec<[u8; 64]> = SmallVec::new();
        for value in values {
            let value = value.as_ref().map(AsRef::as_ref);
            let length =
                value.map_or(-1, |value| i32::try_from(value.len()).expect("a clustering value is under 64 KiB"));
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(value.unwrap_or_default());
        }
        Self(if out.spilled() { out.into_vec().into() } else { out[..].into() })
    }

    /// Takes back what [`Self::as_bytes`] gave; `None` if the lengths do not add up.
    pub fn from_bytes(bytes: impl Into<ValueBytes>) -> Option<Self> {
        let this = Self(bytes.into());
        let mut rest = &this.0[..];
        while !rest.is_empty() {
            next(&mut rest)?;
        }
        Some(this)
    }

    pub fn as_bytes(&self) -> &ValueBytes {
        &self.0
    }

    /// Values in key order; `None` is a null component, which only COMPACT STORAGE tables have.
    pub fn values(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || if rest.is_empty() { None } else { next(&mut rest) })
    }
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (value, tail) = match usize::try_from(i32::from_be_bytes(*length)) {
        Err(_) => (None, tail),
        Ok(length) => tail.split_at_checked(length).map(|(value, tail)| (Some(value), tail))?,
    };
    *rest = tail;
    Some(value)
}
