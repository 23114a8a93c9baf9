//! The clustering key of a row as one comparable, hashable byte string.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Clustering values in key order, each as i32 length (-1: null) and bytes; empty for a table without clustering.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Clustering(Bytes);

impl std::fmt::Debug for Clustering {
    /// Shows the length only, because keys must not reach logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clustering({} bytes)", self.0.len())
    }
}

impl Clustering {
    pub fn new<V: AsRef<[u8]>>(values: impl IntoIterator<Item = Option<V>>) -> Self {
        let mut out = BytesMut::new();
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    let value = value.as_ref();
                    out.put_i32(i32::try_from(value.len()).expect("a clustering value is under 64 KiB"));
                    out.put_slice(value);
                }
            }
        }
        Self(out.freeze())
    }

    /// As [`Self::new`], with one allocation of the right size.
    pub fn of(values: &[Option<&[u8]>]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        let mut out = Vec::with_capacity(values.iter().map(|value| 4 + value.map_or(0, <[u8]>::len)).sum());
        for value in values {
            let length = value.map(|value| i32::try_from(value.len()).expect("a clustering value is under 64 KiB"));
            out.put_i32(length.unwrap_or(-1));
            out.put_slice(value.unwrap_or_default());
        }
        Self(Bytes::from(out))
    }

    /// Takes back what [`Self::as_bytes`] gave; `None` if the lengths do not add up.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        let this = Self(bytes);
        let mut rest = this.0.clone();
        while !rest.is_empty() {
            next(&mut rest)?;
        }
        Some(this)
    }

    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Values in key order; `None` is a null component, which only COMPACT STORAGE tables have.
    pub fn values(&self) -> impl Iterator<Item = Option<Bytes>> + use<> {
        let mut rest = self.0.clone();
        std::iter::from_fn(move || if rest.is_empty() { None } else { next(&mut rest) })
    }
}

fn next(rest: &mut Bytes) -> Option<Option<Bytes>> {
    let length = rest.try_get_i32().ok()?;
    match usize::try_from(length) {
        Err(_) => Some(None),
        Ok(length) if length <= rest.len() => Some(Some(rest.split_to(length))),
        Ok(_) => None,
    }
}
