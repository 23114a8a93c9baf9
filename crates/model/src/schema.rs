//! Table schemas as `system_schema` describes them, kept so that everything ever written stays decodable.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ValueBytes, WriteTime};

/// Id by which the commit log names a table; a re-created table has a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TableId(pub Uuid);

/// One word, as it is looked up for every entry of the log: no two tables of a cluster were made at the same time.
impl Hash for TableId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = self.0.as_u64_pair();
        state.write_u64(high ^ low);
    }
}

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

    /// Of all user-defined types in it together.
    fn fields(&self) -> usize {
        match self {
            Self::List { element, .. } | Self::Set { element, .. } | Self::Vector { element, .. } => element.fields(),
            Self::Map { key, value, .. } => key.fields() + value.fields(),
            Self::Tuple(elements) => elements.iter().map(Self::fields).sum(),
            Self::Udt { fields, .. } => fields.iter().map(|(_, ty)| 1 + ty.fields()).sum(),
            _ => 0,
        }
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
            Self::Custom(class) if class.ends_with(".LexicalUUIDType") => Some(16),
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

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ColumnKind {
    Regular,
    Static,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub ty: CqlType,
    pub kind: ColumnKind,
    /// Set once dropped: cells written at or before it belong to the dropped column. If the name was added again, a
    /// live column of that name stands beside this one.
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
    ///
    /// A column that was dropped since is marked so and keeps the type it had; one that was dropped and added again
    /// since gets a new id, for it is another column.
    pub fn evolve(&self, newer: Self) -> Result<Self, SchemaError> {
        let mut columns = self.columns.clone();
        let position = |columns: &[Column], name: &str, is_live: bool| {
            columns.iter().rposition(|column| column.name == name && column.dropped.is_none() == is_live)
        };
        let (gone, mut live): (Vec<_>, Vec<_>) = newer.columns.into_iter().partition(|c| c.dropped.is_some());
        for gone in gone {
            let known = position(&columns, &gone.name, false);
            if known.is_some_and(|index| columns[index].dropped >= gone.dropped) {
                continue;
            }
            match position(&columns, &gone.name, true).or(known) {
                Some(index) => columns[index].dropped = gone.dropped,
                None => columns.push(gone),
            }
        }
        live.sort_by(|a, b| a.name.cmp(&b.name));
        for column in live {
            match position(&columns, &column.name, true) {
                Some(index) => columns[index] = column,
                None => columns.push(column),
            }
        }
        Self { columns, ..newer }.checked()
    }

    /// What two versions tell together, where it is not known which is newer, with the columns known here keeping their
    /// [`ColumnId`]. User-defined types only grow; of two that are as large, the other version's is taken.
    pub fn join(&self, mut other: Self) -> Result<Self, SchemaError> {
        let drops: Vec<Option<i64>> = other.columns.iter().map(|column| other.dropped_until(&column.name)).collect();
        let mut drops = drops.into_iter();
        other.columns.retain(|column| self.dropped_until(&column.name) <= drops.next().flatten());
        for column in other.columns.iter_mut().filter(|column| column.dropped.is_none()) {
            let known = self.columns.iter().find(|known| known.name == column.name && known.dropped.is_none());
            if let Some(known) = known.filter(|known| known.ty.fields() > column.ty.fields()) {
                column.ty = known.ty.clone();
            }
        }
        self.evolve(other)
    }

    /// `keyspace.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.keyspace, self.name)
    }

    pub fn column(&self, id: ColumnId) -> &Column {
        &self.columns[usize::from(id.0)]
    }

    /// The live column of this name, else the one dropped last.
    pub fn column_id(&self, name: &[u8]) -> Option<ColumnId> {
        let named = self.columns.iter().enumerate().filter(|(_, column)| column.name.as_bytes() == name);
        let (index, _) = named.max_by_key(|(_, column)| column.dropped.unwrap_or(i64::MAX))?;
        u16::try_from(index).ok().map(ColumnId)
    }

    /// Columns that exist now, of one kind, with their ids.
    pub fn live_columns(&self, kind: ColumnKind) -> impl Iterator<Item = (ColumnId, &Column)> {
        (0u16..)
            .map(ColumnId)
            .zip(&self.columns)
            .filter(move |(_, column)| column.kind == kind && column.dropped.is_none())
    }

    /// Up to when cells of this name belong to a column that was dropped, even if it was added again since.
    pub fn dropped_until(&self, name: &str) -> Option<i64> {
        self.columns.iter().filter(|column| column.name == name).filter_map(|column| column.dropped).max()
    }

    /// Whether a cell of this write time belongs to the column before it was dropped.
    pub fn is_dropped(&self, id: ColumnId, time: WriteTime) -> bool {
        self.dropped_until(&self.column(id).name).is_some_and(|dropped| time.0 <= dropped)
    }

    /// Splits a partition key into its columns' values; `None` if the lengths do not add up.
    pub fn split_partition_key(&self, key: &[u8]) -> Option<Vec<ValueBytes>> {
        if self.partition_key.len() == 1 {
            return Some(vec![key.into()]);
        }
        let mut values = Vec::with_capacity(self.partition_key.len());
        let mut rest = key;
        for _ in &self.partition_key {
            let (length, behind) = rest.split_first_chunk::<2>()?;
            let (value, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            values.push(value.into());
            rest = behind.split_first()?.1;
        }
        rest.is_empty().then_some(values)
    }

    /// What [`Self::split_partition_key`] splits.
    pub fn join_partition_key(values: &[impl AsRef<[u8]>]) -> ValueBytes {
        use bytes::BufMut;
        if let [only] = values {
            return only.as_ref().into();
        }
        let mut key = bytes::BytesMut::new();
        for value in values {
            let value = value.as_ref();
            key.put_u16(u16::try_from(value.len()).expect("a key component is under 64 KiB"));
            key.put_slice(value);
            key.put_u8(0);
        }
        key.freeze().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(&str, CqlType, Option<i64>)]) -> TableSchema {
        let column = |(name, ty, dropped): &(&str, CqlType, Option<i64>)| Column {
            name: (*name).to_owned(),
            ty: ty.clone(),
            kind: ColumnKind::Regular,
            dropped: *dropped,
        };
        let table = TableSchema {
            id: TableId(Uuid::nil()),
            keyspace: "k".to_owned(),
            name: "t".to_owned(),
            partition_key: vec![KeyColumn { name: "id".to_owned(), ty: CqlType::Int, reversed: false }],
            clustering: Vec::new(),
            columns: columns.iter().map(column).collect(),
            cdc: true,
            gc_grace_seconds: 0,
        };
        table.new().unwrap()
    }

    #[test]
    fn a_column_dropped_and_added_again_is_another_column() {
        use CqlType::{Blob, Int, Text};
        let first = table(&[("a", Text, None), ("b", Int, None)]);
        let dropped = first.evolve(table(&[("a", Text, Some(5)), ("b", Int, None)])).unwrap();
        assert_eq!(dropped.column_id(b"a"), Some(ColumnId(0)));
        assert_eq!(dropped.column(ColumnId(0)).dropped, Some(5));
        let again = dropped.evolve(table(&[("a", Blob, None), ("a", Text, Some(5)), ("b", Int, None)])).unwrap();
        assert_eq!(again.column_id(b"a"), Some(ColumnId(2)));
        assert_eq!((&again.column(ColumnId(0)).ty, &again.column(ColumnId(2)).ty), (&Text, &Blob));
        assert!(again.is_dropped(ColumnId(2), WriteTime(5)) && !again.is_dropped(ColumnId(2), WriteTime(6)));
        // Seen at once, as by a schema that is read rarely: the same.
        let newest = table(&[("a", Blob, None), ("a", Text, Some(5)), ("b", Int, None)]);
        assert_eq!(first.evolve(newest.clone()).unwrap(), again);
        assert_eq!(again.evolve(newest).unwrap(), again, "nothing new");
        let twice = again.evolve(table(&[("a", Blob, Some(9)), ("b", Int, None)])).unwrap();
        assert_eq!((twice.column_id(b"a"), twice.dropped_until("a")), (Some(ColumnId(2)), Some(9)));
        assert_eq!(twice.live_columns(ColumnKind::Regular).count(), 1);
    }

    #[test]
    fn versions_join_to_the_same_whichever_is_newer() {
        use CqlType::{Blob, Int, Text};
        let versions = [
            table(&[("a", Text, None)]),
            table(&[("a", Text, None), ("b", Int, None)]),
            table(&[("a", Text, Some(5)), ("b", Int, None)]),
            table(&[("a", Blob, None), ("a", Text, Some(5)), ("b", Int, None)]),
            table(&[("a", Blob, Some(9)), ("b", Int, None)]),
        ];
        for (newer, after) in versions.iter().enumerate() {
            for before in &versions[..=newer] {
                let (known, late) = (before.join(after.clone()).unwrap(), after.join(before.clone()).unwrap());
                assert_eq!(&late, after, "nothing older takes anything back");
                let names = |table: &TableSchema| table.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
                assert!(names(&known).starts_with(&names(before)), "ids stay");
                for name in ["a", "b"] {
                    let live = |table: &TableSchema| {
                        let of_name = |column: &&Column| column.name == name && column.dropped.is_none();
                        table.columns.iter().find(of_name).map(|column| column.ty.clone())
                    };
                    assert_eq!(live(&known), live(after));
                    assert_eq!(known.dropped_until(name), after.dropped_until(name));
                }
            }
        }
    }

    #[test]
    fn a_user_type_that_was_altered_leaves_the_column_what_it_is() {
        let udt = |fields: &[&str]| CqlType::Udt {
            keyspace: "k".to_owned(),
            name: "u".to_owned(),
            fields: fields.iter().map(|field| ((*field).to_owned(), CqlType::Int)).collect(),
            frozen: false,
        };
        let altered = table(&[("a", udt(&["x"]), None)]).evolve(table(&[("a", udt(&["x", "y"]), None)])).unwrap();
        assert_eq!((altered.columns.len(), &altered.columns[0].ty), (1, &udt(&["x", "y"])));
    }
}
