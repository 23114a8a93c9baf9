#![doc = include_str!("../../../docs/target.md")]

mod relation;

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cdc_model::{
    Clustering, ColumnId, ColumnKind, ColumnState, CqlType, RowState, TableSchema, TruncatedAt, ValueBytes, WriteTime,
    canonical_value,
};

pub(crate) use self::relation::{Relation, TargetColumn};
use crate::{
    PostgresConfig, TargetError,
    conceal::Concealment,
    settings::{Fault, TableSettings},
    value::{Unrepresentable, encode_key},
};

/// Bytes of an identifier (`NAMEDATALEN` less one), beyond which PostgreSQL cuts silently.
pub(crate) const IDENTIFIER_MAX: usize = 63;
pub(crate) const STATIC_SUFFIX: &str = "__static";
const VIEW_SUFFIX: &str = "__all";

/// Columns of the pipeline, in every target table.
pub(crate) const OWN_PREFIX: &str = "_cdc_";
pub(crate) const WRITTEN_AT: &str = "_cdc_written_at";
pub(crate) const STATE: &str = "_cdc_state";
pub(crate) const EXPIRES_AT: &str = "_cdc_expires_at";
pub(crate) const TOKEN: &str = "_cdc_token";
/// Only where a key cannot be rebuilt from its columns.
pub(crate) const KEY: &str = "_cdc_key";

/// Quotes an identifier.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Quotes a string.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// By a column's place in one version of a schema, its id in another; `None` if it is not there.
pub(crate) type Translation = Vec<Option<ColumnId>>;

/// A source table with its targets.
#[derive(Debug)]
pub(crate) struct Layout {
    /// All that is known of the table, by whatever writer.
    pub(crate) schema: Arc<TableSchema>,
    /// The version it was made for.
    pub(crate) source: Arc<TableSchema>,
    /// Of the target in `_cdc.tables`.
    pub(crate) generation: i64,
    /// What was captured there is gone; of that generation, too.
    pub(crate) truncated: TruncatedAt,
    pub(crate) rows: Relation,
    /// Only if the table has static columns.
    pub(crate) statics: Option<Relation>,
    /// Quoted name of the view over both.
    pub(crate) view: String,
    /// Clustering keys of other bytes may be the same row to Cassandra.
    has_equal_keys: bool,
    /// Of collections whose elements or keys of other bytes may be the same to it, their type.
    equal_paths: HashMap<ColumnId, CqlType>,
    /// Of columns that are masked or left out.
    concealed: HashMap<ColumnId, Concealment>,
    /// Of columns that were dropped and added again, until when cells belong to the former one.
    added_again: HashMap<ColumnId, WriteTime>,
}

impl Layout {
    pub(crate) fn new(config: &PostgresConfig, schema: Arc<TableSchema>) -> Result<Self, TargetError> {
        let settings = config.table(&schema);
        let wrong = |problem: String, fix: &str| TargetError::Layout {
            table: schema.full_name(),
            problem,
            fix: fix.to_owned(),
        };
        if let Some(Fault { key, problem, fix }) = settings.faults_with(&schema).into_iter().next() {
            return Err(wrong(format!("{}.{key} {problem}", TableSettings::path(&schema.full_name())), &fix));
        }
        let bare = config.target_name(&schema);
        let longest = format!("{bare}{STATIC_SUFFIX}");
        if longest.len() > IDENTIFIER_MAX {
            let problem = format!("target name {longest:?} is longer than {IDENTIFIER_MAX} bytes");
            return Err(wrong(problem, "shorten postgres.table_name, or set a name for the table in postgres.tables"));
        }
        let relation = |kind, name: &str| Relation::new(config, &settings, &schema, kind, name);
        let (rows, statics) = (relation(ColumnKind::Regular, &bare), relation(ColumnKind::Static, &longest));
        let named = rows.key.iter().chain(rows.values.iter().chain(&statics.values).map(|(_, column)| column));
        if let Some(taken) = named.map(|column| &column.name).find(|name| name.starts_with(OWN_PREFIX)) {
            let problem = format!("column {taken:?} begins with {OWN_PREFIX}, which the pipeline keeps for itself");
            return Err(wrong(problem, "name it otherwise in postgres.tables, or leave the table out"));
        }
        let path = |(id, column): (u16, &cdc_model::Column)| match &column.ty {
            CqlType::Set { element: path, frozen: false } | CqlType::Map { key: path, frozen: false, .. } => {
                path.has_equal_forms().then(|| (ColumnId(id), path.as_ref().clone()))
            }
            _ => None,
        };
        let concealment = |(id, column): (u16, &cdc_model::Column)| {
            let mask = settings.mask(&column.name);
            (mask.is_some() || settings.excludes(&column.name))
                .then(|| (ColumnId(id), Concealment::new(mask, &column.ty)))
        };
        let added_again = |(id, column): (u16, &cdc_model::Column)| {
            let dropped = column.dropped.is_none().then(|| schema.dropped_until(&column.name))?;
            Some((ColumnId(id), WriteTime(dropped?)))
        };
        let has_statics = schema.live_columns(ColumnKind::Static).next().is_some();
        Ok(Self {
            has_equal_keys: schema.clustering.iter().any(|column| column.ty.has_equal_forms()),
            equal_paths: (0u16..).zip(&schema.columns).filter_map(path).collect(),
            concealed: (0u16..).zip(&schema.columns).filter_map(concealment).collect(),
            added_again: (0u16..).zip(&schema.columns).filter_map(added_again).collect(),
            source: Arc::clone(&schema),
            generation: 0,
            truncated: TruncatedAt::default(),
            rows,
            statics: has_statics.then_some(statics),
            view: format!("{}.{}", quote(&config.schema), quote(&format!("{bare}{VIEW_SUFFIX}"))),
            schema,
        })
    }

    pub(crate) fn relation(&self, kind: ColumnKind) -> Option<&Relation> {
        match kind {
            ColumnKind::Regular => Some(&self.rows),
            ColumnKind::Static => self.statics.as_ref(),
        }
    }

    /// Whether all that a version of the table's schema tells is known here.
    pub(crate) fn covers(&self, other: &Arc<TableSchema>) -> bool {
        Arc::ptr_eq(&self.source, other)
            || self.schema.join(TableSchema::clone(other)).is_ok_and(|joined| joined == *self.schema)
    }

    /// What the columns of a version of the schema are called here; those that are gone, or of which there is another
    /// of the same name by now, are nobody's. `None` if nothing changes.
    pub(crate) fn translation(&self, table: &TableSchema) -> Option<Translation> {
        if *self.schema == *table && self.added_again.is_empty() {
            return None;
        }
        let of_column = |column: &cdc_model::Column| {
            let same = column.dropped.is_none()
                && self.schema.dropped_until(&column.name) == table.dropped_until(&column.name);
            let id = self.schema.column_id(column.name.as_bytes()).filter(|_| same)?;
            self.schema.column(id).dropped.is_none().then_some(id)
        };
        Some(table.columns.iter().map(of_column).collect())
    }

    /// Leaves out cells of columns that are gone: nobody can see them any more.
    pub(crate) fn forget(&self, row: &mut RowState) {
        row.columns.retain_mut(|(id, state)| {
            let Some(dropped) = self.added_again.get(id) else { return self.schema.column(*id).dropped.is_none() };
            match state {
                ColumnState::Simple(cell) => cell.time > *dropped,
                ColumnState::Complex(complex) => {
                    complex.deletion = complex.deletion.filter(|deletion| deletion.time > *dropped);
                    complex.cells.retain(|(_, cell)| cell.time > *dropped);
                    complex.deletion.is_some() || !complex.cells.is_empty()
                }
            }
        });
    }

    /// The clustering key in the one form of all that Cassandra takes for the same row.
    pub(crate) fn canonical(&self, clustering: Clustering) -> Clustering {
        if !self.has_equal_keys {
            return clustering;
        }
        let columns = self.schema.clustering.iter().zip(clustering.values());
        Clustering::new(columns.map(|(column, value)| value.map(|value| canonical_value(&column.ty, value))))
    }

    /// Elements of sets and keys of maps in such a form.
    pub(crate) fn canonical_elements(&self, row: &mut RowState) {
        if self.equal_paths.is_empty() {
            return;
        }
        for (id, state) in &mut row.columns {
            if let (ColumnState::Complex(complex), Some(path)) = (state, self.equal_paths.get(id)) {
                *complex = std::mem::take(complex).with_canonical_paths(path);
            }
        }
    }

    /// Whether clear values of the table must not be kept.
    pub(crate) fn is_masked(&self) -> bool {
        !self.concealed.is_empty()
    }

    /// Takes out what must not be in PostgreSQL.
    pub(crate) fn conceal(&self, row: &mut RowState) {
        if self.concealed.is_empty() {
            return;
        }
        for (id, state) in &mut row.columns {
            if let Some(concealment) = self.concealed.get(id) {
                concealment.apply(state);
            }
        }
    }

    /// The key columns of a row, or of a static row or partition if there is no clustering.
    pub(crate) fn encode_key(
        &self,
        partition: &[u8],
        clustering: Option<&Clustering>,
    ) -> Result<Vec<ValueBytes>, (Option<String>, Unrepresentable)> {
        let malformed = (None, Unrepresentable::Malformed("key"));
        let partition = self.schema.split_partition_key(partition).ok_or(malformed.clone())?;
        let clustering_values =
            clustering.into_iter().flat_map(Clustering::values).map(|value| value.map(ValueBytes::from));
        let values = partition.into_iter().map(Some).chain(clustering_values);
        let columns = self.rows.key.iter().take(match clustering {
            Some(_) => self.rows.key.len(),
            None => self.rows.partition_columns,
        });
        let mut key = Vec::with_capacity(columns.len());
        let wanted = columns.len();
        for (column, value) in columns.zip(values) {
            let value = value.ok_or((Some(column.name.clone()), Unrepresentable::NullKey))?;
            key.push(encode_key(&column.cql, &value).map_err(|error| (Some(column.name.clone()), error))?);
        }
        if key.len() == wanted { Ok(key) } else { Err(malformed) }
    }
}

/// What [`KEY`] holds.
pub(crate) fn join_key(partition: &[u8], clustering: Option<&Clustering>) -> Bytes {
    let clustering = clustering.map_or(&[][..], |clustering| clustering.as_bytes());
    let mut out = BytesMut::with_capacity(4 + partition.len() + clustering.len());
    out.put_u32(u32::try_from(partition.len()).expect("a partition key is under 64 KiB"));
    out.put_slice(partition);
    out.put_slice(clustering);
    out.freeze()
}

/// Partition key and clustering of what [`join_key`] joined.
pub(crate) fn split_key(mut key: Bytes) -> Option<(ValueBytes, Clustering)> {
    let length = usize::try_from(key.try_get_u32().ok()?).ok()?;
    let partition = (length <= key.len()).then(|| key.split_to(length))?;
    Some((partition.into(), Clustering::from_bytes(key)?))
}
