//! Table schemas as `system_schema` describes them, kept so that everything ever written stays decodable.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::WriteTime;

/// Id by which the commit log names a table; a re-created table has a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TableId(pub Uuid);

/// Index of a regular or static column in [`TableSchema::columns`]. Stable for the life of a process: later
/// versions of a schema append, they never renumber. Persisted and sent data use names instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ColumnId(pub u16);

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum CqlType {
    Ascii,
    BigInt,
    Blob,
    Boolean,
    Counter,
    Date,
    Decimal,
    Double,
    Duration,
    /// `org.apache.cassandra.db.marshal.EmptyType`, a leftover of COMPACT STORAGE.
    Empty,
    Float,
    Inet,
    Int,
    SmallInt,
    Text,
    Time,
    Timestamp,
    TimeUuid,
    TinyInt,
    Uuid,
    Varint,
    List {
        element: Box<CqlType>,
        frozen: bool,
    },
    Set {
        element: Box<CqlType>,
        frozen: bool,
    },
    Map {
        key: Box<CqlType>,
        value: Box<CqlType>,
        frozen: bool,
    },
    Tuple(Vec<CqlType>),
    Udt {
        keyspace: String,
        name: String,
        fields: Vec<(String, CqlType)>,
        frozen: bool,
    },
    Vector {
        element: Box<CqlType>,
        dimension: u32,
    },
    /// A type given by its Java class, which we carry but do not interpret.
    Custom(String),
}

impl CqlType {
    /// A non-frozen collection or UDT: stored as one cell per element ("complex" in Cassandra).
    pub fn is_multi_cell(&self) -> bool {
        matches!(
            self,
            Self::List { frozen: false, .. }
                | Self::Set { frozen: false, .. }
                | Self::Map { frozen: false, .. }
                | Self::Udt { frozen: false, .. }
        )
    }

    /// Bytes of every value, where the storage format leaves the length out (`AbstractType.valueLengthIfFixed`):
    /// not for tinyint, smallint, date, time, inet, counter.
    pub fn fixed_length(&self) -> Option<usize> {
        match self {
            Self::Empty => Some(0),
            Self::Boolean => Some(1),
            Self::Int | Self::Float => Some(4),
            Self::BigInt | Self::Timestamp | Self::Double => Some(8),
            Self::Uuid | Self::TimeUuid => Some(16),
            Self::Vector { element, dimension } => {
                element.fixed_length()?.checked_mul(usize::try_from(*dimension).ok()?)
            }
            _ => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyColumn {
    pub name: String,
    pub ty: CqlType,
    /// `CLUSTERING ORDER BY ... DESC`; always false in the partition key.
    pub reversed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ColumnKind {
    Regular,
    Static,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub ty: CqlType,
    pub kind: ColumnKind,
    /// Set once dropped: cells written at or before it belong to the dropped column.
    pub dropped: Option<i64>,
}

/// One table. Built by [`TableSchema::new`]; a newer version by [`TableSchema::evolve`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSchema {
    pub id: TableId,
    pub keyspace: String,
    pub name: String,
    pub partition_key: Vec<KeyColumn>,
    pub clustering: Vec<KeyColumn>,
    /// Regular and static columns, dropped ones too, in the order of [`ColumnId`].
    pub columns: Vec<Column>,
    /// `WITH cdc = true`.
    pub cdc: bool,
    /// Seconds a tombstone must be kept.
    pub gc_grace_seconds: i64,
}

#[derive(thiserror::Error, Debug)]
pub enum SchemaError {
    #[error("table {0} has no partition key column")]
    NoPartitionKey(String),
    #[error("table {0} has more than 65535 columns")]
    TooManyColumns(String),
}

impl TableSchema {
    pub fn new(mut self) -> Result<Self, SchemaError> {
        self.columns.sort_by(|a, b| (a.dropped.is_some(), &a.name).cmp(&(b.dropped.is_some(), &b.name)));
        // A column that was dropped and added again stands twice in system_schema; the live one describes its cells.
        let mut seen = std::collections::HashSet::new();
        self.columns.retain(|column| seen.insert(column.name.clone()));
        self.checked()
    }

    fn checked(self) -> Result<Self, SchemaError> {
        if self.partition_key.is_empty() {
            return Err(SchemaError::NoPartitionKey(self.full_name()));
        }
        if self.columns.len() > usize::from(u16::MAX) {
            return Err(SchemaError::TooManyColumns(self.full_name()));
        }
        Ok(self)
    }

    /// The newer version of this table, with the columns known here keeping their [`ColumnId`].
    pub fn evolve(&self, newer: Self) -> Result<Self, SchemaError> {
        let mut by_name: HashMap<String, Column> = newer.columns.into_iter().map(|c| (c.name.clone(), c)).collect();
        let mut columns: Vec<Column> =
            self.columns.iter().map(|old| by_name.remove(&old.name).unwrap_or_else(|| old.clone())).collect();
        let mut added: Vec<Column> = by_name.into_values().collect();
        added.sort_by(|a, b| a.name.cmp(&b.name));
        columns.extend(added);
        Self { columns, ..newer }.checked()
    }

    /// `keyspace.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.keyspace, self.name)
    }

    pub fn column(&self, id: ColumnId) -> &Column {
        &self.columns[usize::from(id.0)]
    }

    pub fn column_id(&self, name: &[u8]) -> Option<ColumnId> {
        let index = self.columns.iter().position(|column| column.name.as_bytes() == name)?;
        u16::try_from(index).ok().map(ColumnId)
    }

    /// Columns that exist now, of one kind, with their ids.
    pub fn live_columns(&self, kind: ColumnKind) -> impl Iterator<Item = (ColumnId, &Column)> {
        (0u16..)
            .map(ColumnId)
            .zip(&self.columns)
            .filter(move |(_, column)| column.kind == kind && column.dropped.is_none())
    }

    /// Whether a cell of this write time belongs to the column before it was dropped.
    pub fn is_dropped(&self, id: ColumnId, time: WriteTime) -> bool {
        self.column(id).dropped.is_some_and(|dropped| time.0 <= dropped)
    }

    /// Splits a partition key into its columns' values; `None` if the lengths do not add up.
    pub fn split_partition_key(&self, key: &bytes::Bytes) -> Option<Vec<bytes::Bytes>> {
        if self.partition_key.len() == 1 {
            return Some(vec![key.clone()]);
        }
        let mut values = Vec::with_capacity(self.partition_key.len());
        let mut rest = key.clone();
        for _ in &self.partition_key {
            let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
            if rest.len() < 2 + length + 1 {
                return None;
            }
            values.push(rest.slice(2..2 + length));
            rest = rest.slice(2 + length + 1..);
        }
        rest.is_empty().then_some(values)
    }

    /// What [`Self::split_partition_key`] splits.
    pub fn join_partition_key(values: &[bytes::Bytes]) -> bytes::Bytes {
        use bytes::BufMut;
        if let [only] = values {
            return only.clone();
        }
        let mut key = bytes::BytesMut::new();
        for value in values {
            key.put_u16(u16::try_from(value.len()).expect("a key component is under 64 KiB"));
            key.put_slice(value);
            key.put_u8(0);
        }
        key.freeze()
    }
}
