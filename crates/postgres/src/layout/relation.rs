//! One target table and the statements on it.

use std::{
    fmt::Write,
    sync::atomic::{AtomicUsize, Ordering},
};

use cdc_model::{ColumnId, ColumnKind, ColumnState, CqlType, LocalTime, RowState, TableSchema, ValueBytes};
use tokio_postgres::types::Type;

use super::{EXPIRES_AT, KEY, STATE, TOKEN, WRITTEN_AT, literal, quote};
use crate::{
    OnUnrepresentable, PostgresConfig,
    conceal::Concealment,
    settings::{Mask, TableSettings},
    value::{Encoded, Unrepresentable, encode_visible, is_reversible, pg_type, sql_name},
};

/// A column of a target table that holds one of the source's.
#[derive(Clone, Debug)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    /// Name in the source.
    pub(crate) source: String,
    /// Of the values that are left by a mask.
    pub(crate) cql: CqlType,
    pub(crate) pg: Type,
    /// For the comment.
    pub(crate) masked: Option<String>,
    shown: Shown,
    unrepresentable: OnUnrepresentable,
}

#[derive(Clone, Debug)]
enum Shown {
    Value,
    Null,
    Fixed(String),
}

impl TargetColumn {
    fn key(settings: &TableSettings, name: &str, cql: &CqlType) -> Self {
        Self {
            name: settings.target_name(name).to_owned(),
            source: name.to_owned(),
            cql: cql.clone(),
            pg: pg_type(cql),
            masked: None,
            shown: Shown::Value,
            unrepresentable: OnUnrepresentable::Quarantine,
        }
    }

    fn value(config: &PostgresConfig, settings: &TableSettings, name: &str, cql: &CqlType) -> Self {
        let own = settings.columns.get(name).and_then(|column| column.unrepresentable);
        let unrepresentable = own.or(settings.unrepresentable).unwrap_or(config.unrepresentable);
        let column = Self { unrepresentable, ..Self::key(settings, name, cql) };
        let Some(mask) = settings.mask(name) else { return column };
        let concealment = Concealment::new(Some(mask), cql);
        let cql = concealment.masked_type(cql);
        let (shown, pg) = match mask {
            Mask::Null => (Shown::Null, column.pg),
            Mask::Fixed(text) => (Shown::Fixed(text.clone()), Type::TEXT),
            Mask::Hash(_) => (Shown::Value, pg_type(&cql)),
        };
        Self { masked: Some(concealment.describe(mask)), cql, pg, shown, ..column }
    }

    /// Whether the cell can be rebuilt from the column, if it was encoded as exact.
    fn is_reversible(&self) -> bool {
        matches!(self.shown, Shown::Value) && is_reversible(&self.cql)
    }

    /// What the target holds of a column; `None` if nothing of it is visible.
    pub(crate) fn encode(&self, column: &ColumnState, now: LocalTime) -> Option<Result<Encoded, Unrepresentable>> {
        let fixed = |bytes| column.is_visible(now).then_some(Ok(Encoded { bytes, exact: false }));
        match &self.shown {
            Shown::Value => encode_visible(&self.cql, column, now, self.unrepresentable),
            Shown::Null => fixed(None),
            Shown::Fixed(text) => fixed(Some(text.as_bytes().into())),
        }
    }
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
    /// Of late all rows were new.
    pub(crate) growth: Habit,
    /// Of late most rows left nothing of older ones.
    pub(crate) superseding: Habit,
}

/// What is expected of the next large batch: for how many on end it was so.
#[derive(Debug, Default)]
pub(crate) struct Habit(AtomicUsize);

impl Habit {
    /// So many that what is so now and then does not reach them.
    const STEADY: usize = 8;

    pub(crate) fn is_steady(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::STEADY
    }

    pub(crate) fn saw(&self, holds: bool) {
        if holds {
            self.0.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.store(0, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Sql {
    pub(crate) select_rows: String,
    pub(crate) select_partitions: String,
    pub(crate) select_expired: String,
    /// Whether [`Self::copy`] may stand for [`Self::insert`] in this transaction, which it binds the table to.
    pub(crate) may_copy: String,
    pub(crate) copy: String,
    pub(crate) insert: String,
    pub(crate) update: String,
    /// Replaces the rows that are uniform and older by uniform ones, and says which of those given it were.
    pub(crate) supersede: String,
    pub(crate) delete: String,
}

impl Relation {
    pub(super) fn new(
        config: &PostgresConfig,
        settings: &TableSettings,
        schema: &TableSchema,
        kind: ColumnKind,
        bare: &str,
    ) -> Self {
        let clustering: &[_] = if kind == ColumnKind::Static { &[] } else { &schema.clustering };
        let key = schema.partition_key.iter().chain(clustering);
        let key: Vec<TargetColumn> = key.map(|c| TargetColumn::key(settings, &c.name, &c.ty)).collect();
        let values: Vec<(ColumnId, TargetColumn)> = schema
            .live_columns(kind)
            .filter(|(_, column)| !settings.excludes(&column.name))
            .map(|(id, c)| (id, TargetColumn::value(config, settings, &c.name, &c.ty)))
            .collect();
        let stores_key = key.iter().any(|column| !is_reversible(&column.cql));
        let name = format!("{}.{}", quote(&config.schema), quote(bare));
        let sql = Sql::new(&name, &key, schema.partition_key.len(), &values, stores_key);
        let partition_columns = schema.partition_key.len();
        Self {
            kind,
            name,
            key,
            partition_columns,
            values,
            stores_key,
            sql,
            growth: Habit::default(),
            superseding: Habit::default(),
        }
    }

    /// Columns by which a stored row's key is known, for [`Self::decode_key`].
    pub(crate) fn whole_key(&self) -> String {
        whole_key(&self.key, self.stores_key)
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = &TargetColumn> {
        self.key.iter().chain(self.values.iter().map(|(_, column)| column))
    }

    /// What the target holds of a row's columns, and whether the row is uniform: no more than that, live and written at
    /// its newest write time.
    pub(crate) fn encode(
        &self,
        row: &RowState,
        now: LocalTime,
        values: &mut Vec<Option<ValueBytes>>,
    ) -> Result<bool, (String, Unrepresentable)> {
        let time = row.newest_write();
        let mut uniform = row.deletion.is_none()
            && match row.liveness {
                None => self.kind == ColumnKind::Static,
                Some(marker) => marker.time == time && marker.ttl == 0 && marker.expires == LocalTime::NONE,
            }
            && row.columns.iter().all(|(_, column)| match column {
                ColumnState::Simple(cell) => cell.time == time && cell.ttl == 0 && cell.local == LocalTime::NONE,
                ColumnState::Complex(_) => false,
            });
        let mut columns = row.columns.iter().peekable();
        for (id, column) in &self.values {
            // Left out of the target: its times are in the state only.
            while columns.next_if(|(other, _)| other < id).is_some() {
                uniform = false;
            }
            let Some((_, state)) = columns.next_if(|(other, _)| other == id) else {
                values.push(None);
                continue;
            };
            let encoded = column.encode(state, now).transpose().map_err(|error| (column.name.clone(), error))?;
            uniform &= encoded.as_ref().is_some_and(|encoded| encoded.exact);
            values.push(encoded.and_then(|encoded| encoded.bytes));
        }
        Ok(uniform && columns.peek().is_none())
    }

    /// A query of something of each row whose key is given, by the columns of the key in arrays, after its place in them.
    pub(crate) fn select_of_each(&self, what: &str, selected: &str) -> String {
        format!("-- cdc: {what}\nselect k.i, {}", each(&self.name, &self.key, format_args!("{selected}")))
    }

    /// Values that [`crate::value::decode`] can rebuild a uniform row from, in the order the statements select them.
    pub(crate) fn reversible(&self) -> impl Iterator<Item = (ColumnId, &TargetColumn)> {
        reversible(&self.values)
    }
}

fn reversible(values: &[(ColumnId, TargetColumn)]) -> impl Iterator<Item = (ColumnId, &TargetColumn)> {
    values.iter().filter(|(_, column)| column.is_reversible()).map(|(id, column)| (*id, column))
}

fn whole_key(key: &[TargetColumn], stores_key: bool) -> String {
    if stores_key { format!("t.{KEY}") } else { list(key.iter().map(|c| format!("t.{}", quote(&c.name)))) }
}

fn equal(key: &[TargetColumn]) -> String {
    let terms: Vec<String> = key.iter().enumerate().map(|(i, c)| format!("t.{} = k.k{i}", quote(&c.name))).collect();
    terms.join(" and ")
}

/// One lookup per key, whatever the planner thinks of the table's size (see `transact::read`).
fn each(name: &str, columns: &[TargetColumn], selected: std::fmt::Arguments<'_>) -> String {
    let equal = equal(columns);
    let arrays = list(columns.iter().enumerate().map(|(i, c)| format!("${}::{}[]", i + 1, sql_name(&c.pg))));
    let names = list((0..columns.len()).map(|i| format!("k{i}")));
    format!(
        "t.* from unnest({arrays}) with ordinality as k({names}, i) cross join lateral \
         (select {selected} from {name} as t where {equal} offset 0) as t"
    )
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
        let whole_key = whole_key(key, stores_key);
        let known_key = if stores_key { format!(", t.{KEY}") } else { String::new() };
        let each = |columns: &[TargetColumn], selected: std::fmt::Arguments<'_>| each(name, columns, selected);
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
        let types = list(all.iter().map(|(column, _)| format!("pg_typeof(t.{column})")));
        let expected = list(all.iter().map(|(_, ty)| format!("'{}'::regtype", sql_name(ty))));
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
            // Unlike an insert, a copy casts nothing, so a type that someone has changed would be given other bytes; and
            // it knows no row-level security.
            may_copy: format!(
                "-- cdc: may copy\nselect not row_security_active({}::regclass) and array[{types}] = array[{expected}] \
                 from (select) as one left join {name} as t on false",
                literal(name)
            ),
            copy: format!("-- cdc: copy rows\ncopy {name} ({columns}) from stdin (format binary)"),
            insert: format!("-- cdc: insert rows\ninsert into {name} ({columns}) select * from unnest({arrays})"),
            update: format!(
                "-- cdc: update rows\nwith written as (update {name} as t set {set} from unnest($1::tid[], $2::xid[], \
                 {set_arrays}) as k(c, x, {set_names}) where t.ctid = k.c and t.xmin = k.x returning 1) \
                 select _cdc.require((select count(*) from written), cardinality($1))"
            ),
            // A value of each column, so that nothing of the older row is left.
            supersede: format!(
                "-- cdc: supersede rows\nupdate {name} as t set {} from unnest({}) with ordinality as k({}, i) \
                 cross join lateral (select t.ctid as c from {name} as t where {} and t.{STATE} is null \
                 and t.{WRITTEN_AT} < k.w offset 0) as f where t.ctid = f.c \
                 and not exists (select from _cdc.tombstones where table_id = ${}) returning k.i",
                list(
                    values
                        .iter()
                        .enumerate()
                        .map(|(i, (_, c))| format!("{} = k.v{i}", quote(&c.name)))
                        .chain([format!("{WRITTEN_AT} = k.w")])
                ),
                list(
                    key.iter()
                        .chain(values.iter().map(|(_, c)| c))
                        .map(|c| sql_name(&c.pg))
                        .chain([sql_name(&Type::INT8)])
                        .enumerate()
                        .map(|(i, ty)| format!("${}::{ty}[]", i + 1))
                ),
                list(
                    (0..key.len())
                        .map(|i| format!("k{i}"))
                        .chain((0..values.len()).map(|i| format!("v{i}")))
                        .chain(["w".to_owned()])
                ),
                equal(key),
                key.len() + values.len() + 2,
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
