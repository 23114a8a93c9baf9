//! Rows of `system_schema`, the newest of each, and the tables they describe.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use cdc_model::{Column, ColumnKind, CqlType, KeyColumn, TableId, TableSchema, UdtResolver, parse_type};
use uuid::Uuid;

use super::file::{Definition, RowKind, SchemaDeletion, SchemaFile, SchemaRow};

/// Cassandra's default, for tables that do not say.
const GC_GRACE_SECONDS: i32 = 864_000;
/// Stands for the table of rows that belong to none: those of user types.
const NO_TABLE: TableId = TableId(Uuid::nil());

/// Keyspace and name of a table, view or user type.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Name {
    pub(super) keyspace: String,
    pub(super) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.keyspace, self.name)
    }
}

/// A row's place in `system_schema`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) keyspace: String,
    pub(super) kind: RowKind,
    pub(super) name: String,
    pub(super) column: String,
}

/// A row: of one table, since one of the same name may follow it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    keyspace: String,
    kind: RowKind,
    name: String,
    table: TableId,
    column: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    written: i64,
    definition: Definition,
}

/// The newest of each row by write time, whatever the order they come in.
///
/// Cassandra resolves cell by cell. Schema rows are written whole, so this is the same, but for `cdc`, which a node
/// with CDC switched off leaves out (`SchemaKeyspace.addTableParamsToRowBuilder`).
#[derive(Clone, Default, Debug)]
pub(super) struct Rows {
    rows: BTreeMap<Key, Row>,
    /// Up to when nothing that was written at a place is there any more; an empty name means the whole keyspace.
    deleted: BTreeMap<Place, i64>,
}

impl Rows {
    pub(super) fn of(file: &SchemaFile) -> Self {
        let mut rows = Self::default();
        for SchemaDeletion { keyspace, kind, name, column, deleted_us } in file.deletions.iter().cloned() {
            rows.delete(Place { keyspace, kind, name, column }, deleted_us);
        }
        rows.write_all(file.rows.clone());
        rows
    }

    /// Takes over rows that were read together: columns belong to the table that is among them.
    pub(super) fn write_all(&mut self, rows: Vec<SchemaRow>) {
        let (tables, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.definition.table().is_some());
        tables.into_iter().chain(others).for_each(|row| self.write(row));
    }

    /// A column's row without its table goes to the newest of the name; where there is none it says nothing.
    pub(super) fn write(&mut self, row: SchemaRow) {
        let SchemaRow { keyspace, name, column, table, written_us: written, mut definition } = row;
        let kind = definition.kind();
        let all = Place { keyspace: keyspace.clone(), kind, name: String::new(), column: String::new() };
        let own = Place { name: name.clone(), column: column.clone(), ..all.clone() };
        if [all, own].iter().any(|place| self.deleted.get(place).is_some_and(|deleted| *deleted >= written)) {
            return;
        }
        let table = match kind {
            RowKind::Type => Some(NO_TABLE),
            RowKind::Table | RowKind::View => definition.table(),
            RowKind::Column | RowKind::DroppedColumn => table.or_else(|| self.newest(&keyspace, &name)),
        };
        let Some(table) = table else { return };
        let key = Key { keyspace, kind, name, table, column };
        match self.rows.get_mut(&key) {
            Some(known) if known.written > written => known.definition.take_cdc(&definition),
            Some(known) => {
                definition.take_cdc(&known.definition);
                *known = Row { written, definition };
            }
            None => _ = self.rows.insert(key, Row { written, definition }),
        }
    }

    pub(super) fn delete(&mut self, place: Place, at: i64) {
        let Place { keyspace, kind, name, column } = place.clone();
        let everything = name.is_empty();
        self.delete_where(&keyspace, kind, at, |key| everything || (*key.0 == *name && *key.1 == *column));
        let deleted = self.deleted.entry(place).or_insert(at);
        *deleted = at.max(*deleted);
    }

    /// Deletes what was written up to then where the name and column are covered.
    pub(super) fn delete_where(
        &mut self,
        keyspace: &str,
        kind: RowKind,
        at: i64,
        covers: impl Fn((&str, &str)) -> bool,
    ) {
        self.rows.retain(|key, row| {
            let is_other = key.keyspace != keyspace || key.kind != kind || row.written > at;
            is_other || !covers((&key.name, &key.column))
        });
    }

    /// Forgets the rows of tables, as if they had never been there.
    pub(super) fn forget(&mut self, is_forgotten: impl Fn(TableId) -> bool) {
        self.rows.retain(|key, _| key.table == NO_TABLE || !is_forgotten(key.table));
    }

    /// Forgets up to when rows of a name were deleted.
    pub(super) fn forget_deletions(&mut self, name: &Name) {
        let is_own = |place: &Place| place.keyspace == name.keyspace && place.name == name.name;
        self.deleted.retain(|place, _| place.kind == RowKind::Type || !is_own(place));
    }

    fn of_table(&self, name: &Name, kind: RowKind, table: TableId) -> impl Iterator<Item = (&str, &Row)> {
        let (keyspace, name) = (name.keyspace.clone(), name.name.clone());
        let first = Key { keyspace, kind, name, table, column: String::new() };
        self.rows
            .range(first.clone()..)
            .take_while(move |(key, _)| {
                key.table == table && key.name == first.name && key.kind == kind && key.keyspace == first.keyspace
            })
            .map(|(key, row)| (key.column.as_str(), row))
    }

    /// The table or view of this name whose row was written last.
    fn newest(&self, keyspace: &str, name: &str) -> Option<TableId> {
        let of = |kind| {
            let first = Key { keyspace: keyspace.into(), kind, name: name.into(), table: NO_TABLE, column: "".into() };
            let is_own = move |key: &Key| key.kind == kind && key.keyspace == keyspace && key.name == name;
            self.rows.range(first..).take_while(move |(key, _)| is_own(key))
        };
        let tables = of(RowKind::Table).chain(of(RowKind::View));
        tables.max_by_key(|(_, row)| row.written).map(|(key, _)| key.table)
    }

    /// Every table and view.
    pub(super) fn tables(&self) -> HashMap<TableId, Name> {
        let tables = self.rows.keys().filter(|key| matches!(key.kind, RowKind::Table | RowKind::View));
        tables.map(|key| (key.table, Name { keyspace: key.keyspace.clone(), name: key.name.clone() })).collect()
    }

    /// When a table's own row was written, which every change of the table does.
    pub(super) fn written(&self, name: &Name, table: TableId) -> Option<i64> {
        let of = |kind| self.of_table(name, kind, table).next().map(|(_, row)| row.written);
        of(RowKind::Table).or_else(|| of(RowKind::View))
    }

    /// What is put into a file: user types, the rows of these tables, and what is known to be deleted.
    pub(super) fn list(&self, keep: impl Fn(TableId) -> bool) -> (Vec<SchemaRow>, Vec<SchemaDeletion>) {
        let rows = self.rows.iter().filter(|(key, _)| key.table == NO_TABLE || keep(key.table)).map(|(key, row)| {
            let Key { keyspace, kind, name, table, column } = key.clone();
            let table = matches!(kind, RowKind::Column | RowKind::DroppedColumn).then_some(table);
            let (written_us, definition) = (row.written, row.definition.clone());
            SchemaRow { keyspace, name, column, table, written_us, definition }
        });
        let deletions = self.deleted.iter().map(|(place, deleted_us)| {
            let Place { keyspace, kind, name, column } = place.clone();
            SchemaDeletion { keyspace, kind, name, column, deleted_us: *deleted_us }
        });
        (rows.collect(), deletions.collect())
    }
}

impl Definition {
    /// The table whose own row it is.
    pub(super) fn table(&self) -> Option<TableId> {
        match self {
            Self::Table { id, .. } | Self::View { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// Takes over `cdc` where it is left out here.
    fn take_cdc(&mut self, other: &Self) {
        if let (Self::Table { cdc, .. }, Self::Table { cdc: other, .. }) = (self, other) {
            *cdc = cdc.or(*other);
        }
    }
}

struct Types<'a> {
    rows: &'a Rows,
    keyspace: &'a str,
}

impl UdtResolver for Types<'_> {
    fn keyspace(&self) -> &str {
        self.keyspace
    }

    fn fields(&self, name: &str) -> Option<&[(String, String)]> {
        let (keyspace, name) = (self.keyspace.to_owned(), name.to_owned());
        let key = Key { keyspace, kind: RowKind::Type, name, table: NO_TABLE, column: String::new() };
        match &self.rows.rows.get(&key)?.definition {
            Definition::Type { fields } => Some(fields),
            _ => None,
        }
    }
}

/// The table or view of this id; `None` if there is none.
pub(super) fn derive(rows: &Rows, id: TableId, name: &Name) -> Result<Option<TableSchema>, String> {
    let own = |kind| rows.of_table(name, kind, id).next().map(|(_, row)| &row.definition);
    let own = own(RowKind::Table).or_else(|| own(RowKind::View));
    let Some(Definition::Table { cdc, gc_grace_seconds, .. } | Definition::View { cdc, gc_grace_seconds, .. }) = own
    else {
        return Ok(None);
    };
    let types = Types { rows, keyspace: &name.keyspace };
    let parse = |column: &str, text: &str| -> Result<CqlType, String> {
        parse_type(text, &types).map_err(|error| format!("column {column}: {error}"))
    };
    let (mut partition_key, mut clustering, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for (column, row) in rows.of_table(name, RowKind::Column, id) {
        let Definition::Column { kind, position, reversed, ty } = &row.definition else { continue };
        let (name, ty) = (column.to_owned(), parse(column, ty)?);
        match kind.as_str() {
            "partition_key" => partition_key.push((*position, KeyColumn { name, ty, reversed: false })),
            "clustering" => clustering.push((*position, KeyColumn { name, ty, reversed: *reversed })),
            kind => columns.push(Column { name, ty, kind: column_kind(kind), dropped: None }),
        }
    }
    for (column, row) in rows.of_table(name, RowKind::DroppedColumn, id) {
        let Definition::DroppedColumn { kind, ty, dropped_us } = &row.definition else { continue };
        let (name, ty) = (column.to_owned(), parse(column, ty)?);
        columns.push(Column { name, ty, kind: column_kind(kind), dropped: Some(*dropped_us) });
    }
    let schema = TableSchema {
        id,
        keyspace: name.keyspace.clone(),
        name: name.name.clone(),
        partition_key: in_order(partition_key)?,
        clustering: in_order(clustering)?,
        columns,
        cdc: cdc.unwrap_or(false),
        gc_grace_seconds: gc_grace_seconds.unwrap_or(GC_GRACE_SECONDS).into(),
    };
    schema.new().map(Some).map_err(|error| error.to_string())
}

fn in_order(mut columns: Vec<(i32, KeyColumn)>) -> Result<Vec<KeyColumn>, String> {
    columns.sort_by_key(|(position, _)| *position);
    if columns.iter().zip(0..).any(|((position, _), expected)| *position != expected) {
        return Err("its key columns are not known".to_owned());
    }
    Ok(columns.into_iter().map(|(_, column)| column).collect())
}

fn column_kind(kind: &str) -> ColumnKind {
    if kind == "static" { ColumnKind::Static } else { ColumnKind::Regular }
}
