//! Array parameters and result columns in PostgreSQL's binary form, without a Rust type per SQL type: most values are
//! the same bytes in Cassandra and in PostgreSQL and are only copied.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use cdc_model::ValueBytes;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// A one-dimensional array of encoded elements; `None` is NULL.
pub(crate) struct Array {
    element: Type,
    values: Vec<Option<ValueBytes>>,
}

impl Array {
    pub(crate) fn new(element: Type) -> Self {
        Self { element, values: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn push(&mut self, value: Option<ValueBytes>) {
        self.values.push(value);
    }

    pub(crate) fn collect(element: Type, values: impl IntoIterator<Item: Into<ValueBytes>>) -> Self {
        Self { element, values: values.into_iter().map(|value| Some(value.into())).collect() }
    }
}

impl std::fmt::Debug for Array {
    /// Leaves the elements out, because they are values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} x {})", self.values.len(), self.element)
    }
}

impl ToSql for Array {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let payload: usize = self.values.iter().map(|value| 4 + value.as_ref().map_or(0, |value| value.len())).sum();
        out.reserve(20 + payload);
        out.put_i32(i32::from(!self.values.is_empty()));
        out.put_i32(i32::from(self.values.iter().any(Option::is_none)));
        out.put_u32(self.element.oid());
        if !self.values.is_empty() {
            out.put_i32(i32::try_from(self.values.len())?);
            out.put_i32(1);
        }
        for value in &self.values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_i32(i32::try_from(value.len())?);
                    out.put_slice(value);
                }
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A result column as it came.
pub(crate) struct Raw(pub(crate) Option<ValueBytes>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(Some(raw.into())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
