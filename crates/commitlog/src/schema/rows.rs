//! Rows of `system_schema`, the newest of each, and the tables they describe.

use std::collections::{BTreeMap, BTreeSet};

use cdc_model::{Column, ColumnKind, CqlType, KeyColumn, TableSchema, UdtResolver, parse_type};

use super::file::{Definition, RowKind, SchemaDeletion, SchemaFile, SchemaRow};

/// Cassandra's default, for tables that do not say.
const GC_GRACE_SECONDS: i32 = 864_000;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) keyspace: String,
    pub(super) kind: RowKind,
    pub(super) name: String,
    pub(super) column: String,
}

impl Key {
    fn new(keyspace: &str, kind: RowKind, name: &str, column: &str) -> Self {
        Self { keyspace: keyspace.to_owned(), kind, name: name.to_owned(), column: column.to_owned() }
    }

    pub(super) fn of(row: &SchemaRow) -> Self {
        Self::new(&row.keyspace, row.definition.kind(), &row.name, &row.column)
    }

    /// The key under which a deletion of all rows of a kind in a keyspace is kept: no row has an empty name.
    pub(super) fn all(keyspace: &str, kind: RowKind) -> Self {
        Self::new(keyspace, kind, "", "")
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    written: i64,
    /// `None`: deleted.
    definition: Option<Definition>,
}

/// The newest of each row by write time, whatever the order they come in.
///
/// Cassandra resolves cell by cell. Schema rows are written whole, so this is the same, but for `cdc`, which a node
/// with CDC switched off leaves out (`SchemaKeyspace.addTableParamsToRowBuilder`).
#[derive(Clone, Default, Debug)]
pub(super) struct Rows(BTreeMap<Key, Slot>);

impl Rows {
    pub(super) fn of(file: &SchemaFile) -> Self {
        let mut rows = Self::default();
        file.deletions.iter().for_each(|deletion| rows.delete(key_of(deletion), deletion.deleted_us));
        file.rows.iter().for_each(|row| rows.write(row.clone()));
        rows
    }

    pub(super) fn write(&mut self, row: SchemaRow) {
        let all = self.0.get(&Key::all(&row.keyspace, row.definition.kind()));
        if all.is_some_and(|all| all.written >= row.written_us) {
            return;
        }
        let mut definition = row.definition;
        let key = Key { keyspace: row.keyspace, kind: definition.kind(), name: row.name, column: row.column };
        match self.0.get_mut(&key) {
            Some(known) if known.written > row.written_us || known.written == row.written_us && known.is_deleted() => {
                known.keep_cdc_of(&definition);
            }
            Some(known) => {
                if let (Some(cdc @ None), Some(Some(older))) = (cdc_of(&mut definition), known.cdc()) {
                    *cdc = Some(older);
                }
                *known = Slot { written: row.written_us, definition: Some(definition) };
            }
            None => {
                self.0.insert(key, Slot { written: row.written_us, definition: Some(definition) });
            }
        }
    }

    pub(super) fn delete(&mut self, key: Key, at: i64) {
        let slot = self.0.entry(key).or_insert(Slot { written: at, definition: None });
        if slot.written <= at {
            *slot = Slot { written: at, definition: None };
        }
    }

    /// Deletes what a deletion of a whole keyspace or of a range of its rows covers.
    pub(super) fn delete_where(&mut self, keyspace: &str, kind: RowKind, at: i64, covers: impl Fn(&Key) -> bool) {
        for (key, slot) in self.0.range_mut(Key::all(keyspace, kind)..) {
            if key.keyspace != keyspace || key.kind != kind {
                break;
            }
            if slot.written <= at && covers(key) {
                *slot = Slot { written: at, definition: None };
            }
        }
    }

    /// Forgets the other rows, as if they had never been there; deletions stay.
    pub(super) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.0.retain(|key, slot| slot.is_deleted() || keep(key));
    }

    /// Forgets all there is of a table, deletions too.
    pub(super) fn forget(&mut self, keyspace: &str, name: &str) {
        self.0.retain(|key, _| key.kind == RowKind::Type || key.keyspace != keyspace || key.name != name);
    }

    fn in_kind(&self, keyspace: &str, kind: RowKind, name: &str) -> impl Iterator<Item = (&str, &Definition)> {
        self.0
            .range(Key::new(keyspace, kind, name, "")..)
            .take_while(move |(key, _)| key.keyspace == keyspace && key.kind == kind && key.name == name)
            .filter_map(|(key, slot)| Some((key.column.as_str(), slot.definition.as_ref()?)))
    }

    fn get(&self, keyspace: &str, kind: RowKind, name: &str) -> Option<&Definition> {
        self.in_kind(keyspace, kind, name).next().map(|(_, definition)| definition)
    }

    /// Keyspace and name of every table and view.
    pub(super) fn names(&self) -> BTreeSet<(String, String)> {
        let is_table = |(key, slot): &(&Key, &Slot)| {
            matches!(key.kind, RowKind::Table | RowKind::View) && slot.definition.is_some()
        };
        self.0.iter().filter(is_table).map(|(key, _)| (key.keyspace.clone(), key.name.clone())).collect()
    }

    /// What is put into a file: these rows, and what is known to be deleted.
    pub(super) fn list(&self, keep: impl Fn(&Key) -> bool) -> (Vec<SchemaRow>, Vec<SchemaDeletion>) {
        let (mut rows, mut deletions) = (Vec::new(), Vec::new());
        for (key, slot) in &self.0 {
            let Key { keyspace, kind, name, column } = key.clone();
            match &slot.definition {
                Some(definition) if keep(key) => {
                    let (written_us, definition) = (slot.written, definition.clone());
                    rows.push(SchemaRow { keyspace, name, column, written_us, definition });
                }
                Some(_) => {}
                None => deletions.push(SchemaDeletion { keyspace, kind, name, column, deleted_us: slot.written }),
            }
        }
        (rows, deletions)
    }
}

impl Slot {
    fn is_deleted(&self) -> bool {
        self.definition.is_none()
    }

    fn cdc(&self) -> Option<Option<bool>> {
        match self.definition {
            Some(Definition::Table { cdc, .. } | Definition::View { cdc, .. }) => Some(cdc),
            _ => None,
        }
    }

    fn keep_cdc_of(&mut self, older: &Definition) {
        if let (Definition::Table { cdc: older, .. }, Some(Definition::Table { cdc, .. })) =
            (older, &mut self.definition)
        {
            *cdc = cdc.or(*older);
        }
    }
}

fn cdc_of(definition: &mut Definition) -> Option<&mut Option<bool>> {
    match definition {
        Definition::Table { cdc, .. } | Definition::View { cdc, .. } => Some(cdc),
        _ => None,
    }
}

fn key_of(deletion: &SchemaDeletion) -> Key {
    Key::new(&deletion.keyspace, deletion.kind, &deletion.name, &deletion.column)
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
        match self.rows.get(self.keyspace, RowKind::Type, name)? {
            Definition::Type { fields } => Some(fields),
            _ => None,
        }
    }
}

/// The table or view of this name; `None` if there is none.
pub(super) fn derive(rows: &Rows, keyspace: &str, name: &str) -> Result<Option<TableSchema>, String> {
    let own = rows.get(keyspace, RowKind::Table, name).or_else(|| rows.get(keyspace, RowKind::View, name));
    let Some(Definition::Table { id, cdc, gc_grace_seconds } | Definition::View { id, cdc, gc_grace_seconds }) = own
    else {
        return Ok(None);
    };
    let types = Types { rows, keyspace };
    let parse = |column: &str, text: &str| -> Result<CqlType, String> {
        parse_type(text, &types).map_err(|error| format!("column {column}: {error}"))
    };
    let (mut partition_key, mut clustering, mut columns) = (Vec::new(), Vec::new(), Vec::new());
    for (column, definition) in rows.in_kind(keyspace, RowKind::Column, name) {
        let Definition::Column { kind, position, reversed, ty } = definition else { continue };
        let (name, ty) = (column.to_owned(), parse(column, ty)?);
        match kind.as_str() {
            "partition_key" => partition_key.push((*position, KeyColumn { name, ty, reversed: false })),
            "clustering" => clustering.push((*position, KeyColumn { name, ty, reversed: *reversed })),
            kind => columns.push(Column { name, ty, kind: column_kind(kind), dropped: None }),
        }
    }
    for (column, definition) in rows.in_kind(keyspace, RowKind::DroppedColumn, name) {
        let Definition::DroppedColumn { kind, ty, dropped_us } = definition else { continue };
        let (name, ty) = (column.to_owned(), parse(column, ty)?);
        columns.push(Column { name, ty, kind: column_kind(kind), dropped: Some(*dropped_us) });
    }
    let schema = TableSchema {
        id: *id,
        keyspace: keyspace.to_owned(),
        name: name.to_owned(),
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
        return Err("a key column is missing".to_owned());
    }
    Ok(columns.into_iter().map(|(_, column)| column).collect())
}

fn column_kind(kind: &str) -> ColumnKind {
    if kind == "static" { ColumnKind::Static } else { ColumnKind::Regular }
}
