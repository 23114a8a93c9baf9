//! What a source table looks like in PostgreSQL.
//!
//! # Tables
//!
//! A Cassandra table `shop.orders` is kept as
//!
//! | relation | content |
//! |---|---|
//! | `cdc_orders` | its rows that are live now, and nothing else |
//! | `cdc_orders__static` | its static columns, one row per partition that has any; only if the table has static columns |
//! | `cdc_orders__all` | a view that joins the two, as `SELECT * FROM orders` shows them |
//!
//! The name comes from the template `table_name` (default `cdc_{table}`, may contain `{keyspace}`), the schema from
//! `schema` (default `public`). Columns keep their names, including case; the primary key is Cassandra's primary key
//! (partition key, then clustering columns). New columns of the source are added at once; columns dropped there stay
//! here and are no longer written.
//!
//! Four columns (or five) belong to the pipeline:
//!
//! | column | content |
//! |---|---|
//! | `_cdc_written_at bigint` | newest write time of anything in the row, microseconds since 1970 |
//! | `_cdc_state bytea` | times of every cell and deletion; NULL while the row is *uniform* (below) |
//! | `_cdc_expires_at timestamptz` | when something in the row expires next; NULL without TTL |
//! | `_cdc_token bigint` | Murmur3 token of the partition |
//! | `_cdc_key bytea` | the key as Cassandra serialises it; only where a key column is `varint`, `decimal` or a frozen collection, tuple or user-defined type, whose bytes cannot be rebuilt from the column |
//!
//! A row is *uniform* if it was written by `INSERT`s of one write time, has neither TTLs nor tombstones, and all its
//! values can be rebuilt from the columns to the last bit; then the columns and `_cdc_written_at` are its whole state.
//! That is the common case, and it costs nothing but the bigint. Write times are in no index, so updates stay
//! heap-only (`fillfactor` is 80).
//!
//! # Types
//!
//! | CQL | PostgreSQL |
//! |---|---|
//! | `ascii`, `text`, `varchar` | `text` |
//! | `tinyint`, `smallint` | `smallint` |
//! | `int` | `integer` |
//! | `bigint`, `counter` | `bigint` |
//! | `varint`, `decimal` | `numeric` |
//! | `float`, `double` | `real`, `double precision` |
//! | `boolean` | `boolean` |
//! | `blob`, types given by a Java class | `bytea` |
//! | `uuid`, `timeuuid` | `uuid` |
//! | `inet` | `inet` |
//! | `date` | `date` |
//! | `time` | `time` (microseconds; the nanoseconds are kept in the state) |
//! | `timestamp` | `timestamptz` |
//! | `duration` | `text`, ISO 8601 with nanoseconds: `P1Y2M3DT4H5M6.000000007S` |
//! | `list`, `set`, `tuple`, `vector` | `jsonb` array; sets in Cassandra's order |
//! | `map`, user-defined type | `jsonb` object |
//!
//! In `jsonb`, numbers keep every digit; NaN and infinities are the strings `"NaN"`, `"Infinity"`, `"-Infinity"`;
//! blobs are `"0x…"`; uuids, addresses, dates, times and timestamps (RFC 3339, milliseconds, UTC) are strings. Map keys
//! that are not text are written as the string of their JSON form. An *empty* value of a type that has none (a
//! zero-length `int`, say) is NULL in the column and kept in the state.
//!
//! # What does not fit
//!
//! A change PostgreSQL cannot hold (text with a NUL character, a timestamp outside its range, a number beyond
//! `numeric`, a key column of no value, a `time` key of fractional microseconds, a key `-0.0`) goes to
//! `_cdc.dlq`, complete but for no value in its message; all other rows go on. Two partitions whose keys are
//! equal in PostgreSQL though not in Cassandra (`decimal` 1.5 and 1.50) collide: the second is quarantined.
//!
//! Within a partition Cassandra itself takes such values for one clustering key, one element of a set, one key of a map,
//! and answers whichever bytes happened to win: numbers of another scale or with needless leading bytes, all NaNs, tuples
//! and user-defined types whose last components are NULL or missing. Here they are one row or element too, in one form:
//! the shortest.

use std::{collections::HashMap, fmt::Write, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cdc_model::{
    Clustering, ColumnId, ColumnKind, ColumnState, CqlType, RowState, TableSchema, ValueBytes, canonical_value,
};
use tokio_postgres::types::Type;

use crate::{
    PostgresConfig, TargetError,
    value::{Unrepresentable, encode_key, is_reversible, pg_type, sql_name},
};

/// Bytes of an identifier (`NAMEDATALEN` less one), beyond which PostgreSQL cuts silently.
const IDENTIFIER_MAX: usize = 63;

/// Columns of the pipeline, in every target table.
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

/// A column of a target table that holds one of the source's.
#[derive(Clone, Debug)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    pub(crate) cql: CqlType,
    pub(crate) pg: Type,
}

impl TargetColumn {
    fn new(name: &str, cql: &CqlType) -> Self {
        Self { name: name.to_owned(), cql: cql.clone(), pg: pg_type(cql) }
    }
}

/// A source table with its targets.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) rows: Relation,
    /// Only if the table has static columns.
    pub(crate) statics: Option<Relation>,
    /// Quoted name of the view over both.
    pub(crate) view: String,
    /// Clustering keys of other bytes may be the same row to Cassandra.
    has_equal_keys: bool,
    /// Of collections whose elements or keys of other bytes may be the same to it, their type.
    equal_paths: HashMap<ColumnId, CqlType>,
}

/// One target table, and the statements on it.
#[derive(Debug)]
pub(crate) struct Relation {
    pub(crate) kind: ColumnKind,
    /// Quoted, with schema.
    pub(crate) name: String,
    pub(crate) key: Vec<TargetColumn>,
    /// How many of the key columns are the partition's.
    pub(crate) partition_columns: usize,
    /// Sorted by id.
    pub(crate) values: Vec<(ColumnId, TargetColumn)>,
    /// Whether there is a column [`KEY`].
    pub(crate) stores_key: bool,
    pub(crate) sql: Sql,
}

#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) select_rows: String,
    pub(crate) select_partitions: String,
    pub(crate) select_expired: String,
    pub(crate) insert: String,
    pub(crate) update: String,
    pub(crate) delete: String,
}

impl Layout {
    pub(crate) fn new(config: &PostgresConfig, schema: Arc<TableSchema>) -> Result<Self, TargetError> {
        let bare = config.table_name.replace("{table}", &schema.name).replace("{keyspace}", &schema.keyspace);
        let longest = format!("{bare}__static");
        if longest.len() > IDENTIFIER_MAX {
            return Err(TargetError::Layout {
                table: schema.full_name(),
                problem: format!("target name {longest:?} is longer than {IDENTIFIER_MAX} bytes"),
                fix: "shorten postgres.table_name".to_owned(),
            });
        }
        let names = schema.partition_key.iter().chain(&schema.clustering).map(|column| &column.name);
        if let Some(taken) = names.chain(schema.columns.iter().map(|c| &c.name)).find(|name| name.starts_with("_cdc_"))
        {
            return Err(TargetError::Layout {
                table: schema.full_name(),
                problem: format!("column {taken:?} begins with _cdc_, which the pipeline keeps for itself"),
                fix: "rename the column or leave the table out".to_owned(),
            });
        }
        let has_statics = schema.live_columns(ColumnKind::Static).next().is_some();
        let path = |(id, column): (u16, &cdc_model::Column)| match &column.ty {
            CqlType::Set { element: path, frozen: false } | CqlType::Map { key: path, frozen: false, .. } => {
                path.has_equal_forms().then(|| (ColumnId(id), path.as_ref().clone()))
            }
            _ => None,
        };
        Ok(Self {
            has_equal_keys: schema.clustering.iter().any(|column| column.ty.has_equal_forms()),
            equal_paths: (0u16..).zip(&schema.columns).filter_map(path).collect(),
            rows: Relation::new(config, &schema, ColumnKind::Regular, &bare),
            statics: has_statics.then(|| Relation::new(config, &schema, ColumnKind::Static, &longest)),
            view: format!("{}.{}", quote(&config.schema), quote(&format!("{bare}__all"))),
            schema,
        })
    }

    pub(crate) fn relation(&self, kind: ColumnKind) -> Option<&Relation> {
        match kind {
            ColumnKind::Regular => Some(&self.rows),
            ColumnKind::Static => self.statics.as_ref(),
        }
    }

    /// Whether this describes the table at least as well as another version of its schema does.
    pub(crate) fn covers(&self, other: &TableSchema) -> bool {
        *self.schema == *other || self.schema.columns.len() > other.columns.len()
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

    /// The key columns of a row, or of a static row or partition if there is no clustering.
    pub(crate) fn encode_key(
        &self,
        partition: &Bytes,
        clustering: Option<&Clustering>,
    ) -> Result<Vec<ValueBytes>, (Option<String>, Unrepresentable)> {
        let malformed = (None, Unrepresentable::Malformed("key"));
        let partition = self.schema.split_partition_key(partition).ok_or(malformed.clone())?;
        let clustering_values =
            clustering.into_iter().flat_map(Clustering::values).map(|value| value.map(ValueBytes::from));
        let values = partition.into_iter().map(|value| Some(value.into())).chain(clustering_values);
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
pub(crate) fn join_key(partition: &Bytes, clustering: Option<&Clustering>) -> Bytes {
    let clustering = clustering.map_or(&[][..], |clustering| clustering.as_bytes());
    let mut out = BytesMut::with_capacity(4 + partition.len() + clustering.len());
    out.put_u32(u32::try_from(partition.len()).expect("a partition key is under 64 KiB"));
    out.put_slice(partition);
    out.put_slice(clustering);
    out.freeze()
}

/// Partition key and clustering of what [`join_key`] joined.
pub(crate) fn split_key(mut key: Bytes) -> Option<(Bytes, Clustering)> {
    let length = usize::try_from(key.try_get_u32().ok()?).ok()?;
    let partition = (length <= key.len()).then(|| key.split_to(length))?;
    Some((partition, Clustering::from_bytes(key)?))
}

impl Relation {
    fn new(config: &PostgresConfig, schema: &TableSchema, kind: ColumnKind, bare: &str) -> Self {
        let clustering: &[_] = if kind == ColumnKind::Static { &[] } else { &schema.clustering };
        let key = schema.partition_key.iter().chain(clustering).map(|c| TargetColumn::new(&c.name, &c.ty));
        let key: Vec<TargetColumn> = key.collect();
        let values: Vec<(ColumnId, TargetColumn)> =
            schema.live_columns(kind).map(|(id, c)| (id, TargetColumn::new(&c.name, &c.ty))).collect();
        let stores_key = key.iter().any(|column| !is_reversible(&column.cql));
        let name = format!("{}.{}", quote(&config.schema), quote(bare));
        let sql = Sql::new(&name, &key, schema.partition_key.len(), &values, stores_key);
        let partition_columns = schema.partition_key.len();
        Self { kind, name, key, partition_columns, values, stores_key, sql }
    }

    /// Values that [`crate::value::decode`] can rebuild a uniform row from, in the order the statements select them.
    pub(crate) fn reversible(&self) -> impl Iterator<Item = (ColumnId, &TargetColumn)> {
        reversible(&self.values)
    }
}

fn reversible(values: &[(ColumnId, TargetColumn)]) -> impl Iterator<Item = (ColumnId, &TargetColumn)> {
    values.iter().filter(|(_, column)| is_reversible(&column.cql)).map(|(id, column)| (*id, column))
}

impl Sql {
    fn new(
        name: &str,
        key: &[TargetColumn],
        partition_columns: usize,
        values: &[(ColumnId, TargetColumn)],
        stores_key: bool,
    ) -> Self {
        let partition = key.get(..partition_columns).unwrap_or(key);
        // What every read gives: version, then state, then the values a uniform row is rebuilt from.
        let mut stored = format!("t.ctid, t.xmin, t.{WRITTEN_AT}, t.{STATE}");
        for (_, column) in reversible(values) {
            push(&mut stored, format_args!(", t.{}", quote(&column.name)));
        }
        // And where the key is not known beforehand: the key.
        let whole_key =
            if stores_key { format!("t.{KEY}") } else { list(key.iter().map(|c| format!("t.{}", quote(&c.name)))) };
        let known_key = if stores_key { format!(", t.{KEY}") } else { String::new() };
        let equal = |columns: &[TargetColumn]| {
            let terms: Vec<String> =
                columns.iter().enumerate().map(|(i, c)| format!("t.{} = k.k{i}", quote(&c.name))).collect();
            terms.join(" and ")
        };
        let keys = |columns: &[TargetColumn]| {
            let arrays = list(columns.iter().enumerate().map(|(i, c)| format!("${}::{}[]", i + 1, sql_name(&c.pg))));
            let names = list((0..columns.len()).map(|i| format!("k{i}")));
            format!("unnest({arrays}) with ordinality as k({names}, i)")
        };
        // One lookup per key, whatever the planner thinks of the table's size (see `transact::read`).
        let each = |columns: &[TargetColumn], selected: std::fmt::Arguments<'_>| {
            let (keys, equal) = (keys(columns), equal(columns));
            format!(
                "t.* from {keys} cross join lateral (select {selected} from {name} as t where {equal} offset 0) as t"
            )
        };
        let metas: Vec<(&str, Type)> =
            [(WRITTEN_AT, Type::INT8), (STATE, Type::BYTEA), (EXPIRES_AT, Type::TIMESTAMPTZ)].into_iter().collect();
        let written: Vec<(String, Type)> = values
            .iter()
            .map(|(_, c)| (quote(&c.name), c.pg.clone()))
            .chain(metas.into_iter().map(|(name, ty)| (name.to_owned(), ty)))
            .collect();
        let fixed =
            [(TOKEN.to_owned(), Type::INT8)].into_iter().chain(stores_key.then(|| (KEY.to_owned(), Type::BYTEA)));
        let all: Vec<(String, Type)> =
            key.iter().map(|c| (quote(&c.name), c.pg.clone())).chain(fixed).chain(written.iter().cloned()).collect();
        let columns = list(all.iter().map(|(name, _)| name.clone()));
        let arrays = list(all.iter().enumerate().map(|(i, (_, ty))| format!("${}::{}[]", i + 1, sql_name(ty))));
        let set = list(written.iter().enumerate().map(|(i, (name, _))| format!("{name} = k.v{i}")));
        let set_arrays = list(written.iter().enumerate().map(|(i, (_, ty))| format!("${}::{}[]", i + 3, sql_name(ty))));
        let set_names = list((0..written.len()).map(|i| format!("v{i}")));
        Self {
            select_rows: format!("-- cdc: read rows\nselect k.i, {}", each(key, format_args!("{stored}{known_key}"))),
            select_partitions: format!(
                "-- cdc: read partitions\nselect k.i, {}",
                each(partition, format_args!("{stored}, {whole_key}"))
            ),
            select_expired: format!(
                "-- cdc: find expired rows\nselect {whole_key} from {name} as t where t.{EXPIRES_AT} <= \
                 ($1::timestamptz[])[1] order by t.{EXPIRES_AT} limit $2"
            ),
            insert: format!("-- cdc: insert rows\ninsert into {name} ({columns}) select * from unnest({arrays})"),
            update: format!(
                "-- cdc: update rows\nwith written as (update {name} as t set {set} from unnest($1::tid[], $2::xid[], \
                 {set_arrays}) as k(c, x, {set_names}) where t.ctid = k.c and t.xmin = k.x returning 1) \
                 select _cdc.require((select count(*) from written), cardinality($1))"
            ),
            delete: format!(
                "-- cdc: delete rows\nwith written as (delete from {name} as t using unnest($1::tid[], $2::xid[]) as \
                 k(c, x) where t.ctid = k.c and t.xmin = k.x returning 1) \
                 select _cdc.require((select count(*) from written), cardinality($1))"
            ),
        }
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn push(out: &mut String, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a String takes all text");
}
