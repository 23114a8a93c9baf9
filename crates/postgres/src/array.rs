//! Array parameters, rows to copy and result columns in PostgreSQL's binary form, without a Rust type per SQL type: most
//! values are the same bytes in Cassandra and in PostgreSQL and are only copied.

use std::error::Error;

use bytes::{BufMut, Bytes, BytesMut};
use cdc_model::ValueBytes;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// A one-dimensional array of encoded elements, as it is sent; `None` is NULL.
pub(crate) struct Array {
    element: Type,
    fields: BytesMut,
    length: i32,
    has_nulls: bool,
}

impl Array {
    pub(crate) fn new(element: Type) -> Self {
        Self { element, fields: BytesMut::new(), length: 0, has_nulls: false }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn push<V: AsRef<[u8]>>(&mut self, value: Option<V>) {
        self.length += 1;
        self.has_nulls |= value.is_none();
        put_field(&mut self.fields, value);
    }

    pub(crate) fn collect(element: Type, values: impl IntoIterator<Item: AsRef<[u8]>>) -> Self {
        let mut array = Self::new(element);
        values.into_iter().for_each(|value| array.push(Some(value)));
        array
    }
}

/// Length and bytes, as arrays and `COPY` take them.
#[inline]
fn put_field<V: AsRef<[u8]>>(out: &mut BytesMut, value: Option<V>) {
    let Some(value) = value else { return out.put_i32(-1) };
    let value = value.as_ref();
    out.put_i32(i32::try_from(value.len()).expect("Cassandra has no values of 2 GiB"));
    out.put_slice(value);
}

impl std::fmt::Debug for Array {
    /// Leaves the elements out, because they are values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({} x {})", self.length, self.element)
    }
}

impl ToSql for Array {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.reserve(20 + self.fields.len());
        out.put_i32(i32::from(!self.is_empty()));
        out.put_i32(i32::from(self.has_nulls));
        out.put_u32(self.element.oid());
        if !self.is_empty() {
            out.put_i32(self.length);
            out.put_i32(1);
        }
        out.put_slice(&self.fields);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// Rows as `COPY … FROM STDIN (FORMAT binary)` takes them.
pub(crate) struct CopyRows(BytesMut);

impl CopyRows {
    pub(crate) fn new() -> Self {
        Self(BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]))
    }

    /// A row of as many values as the statement names columns.
    pub(crate) fn push<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>> + Clone) {
        self.0.put_i16(i16::try_from(values.clone().count()).expect("a table has at most 1600 columns"));
        values.for_each(|value| put_field(&mut self.0, value));
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.0.put_i16(-1);
        self.0.freeze()
    }
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
