//! Which schema is in force at a place in the log.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use cdc_model::{
    CellValue, Change, ChangeBody, Clustering, ColumnState, CqlValue, RowState, TableId, TableSchema, WriteTime,
};

use super::{
    builtin::{self, Meaning},
    file::{Definition, RowKind, SchemaFault, SchemaFile, SchemaRow},
    rows::{Key, Rows, derive},
    truncation::{Truncation, truncations},
};
use crate::Schemas;

/// Dropped tables remembered, the latest: their mutations stand in the log before their drop does.
const RETIRED_MAX: usize = 1000;

type Name = (String, String);

/// The schemas of a node's tables, followed through its log.
///
/// Begin with what is known ([`Self::from_file`]) or with nothing, give [`Self::apply`] all changes of one mutation before
/// decoding the next, and every mutation is decoded with the schema it was written with. Cassandra's rows of
/// `system_schema` are resolved by write time, because a node also logs those it gets from others, at any later time. A
/// table of which only a part is known (altered since, created before the log begins) stays unknown: it is not guessed.
#[derive(Clone, Debug)]
pub struct SchemaHistory {
    meanings: HashMap<TableId, Meaning>,
    rows: Rows,
    /// Tables whose rows are all known.
    whole: HashSet<Name>,
    tables: HashMap<TableId, Arc<TableSchema>>,
    current: HashMap<Name, TableId>,
    retired: VecDeque<TableId>,
}

/// What following led to.
#[derive(Clone, Default, Debug)]
pub struct Followed {
    /// Tables that are new or changed.
    pub tables: Vec<Arc<TableSchema>>,
    /// Tables that were dropped; they stay decodable.
    pub dropped: Vec<Arc<TableSchema>>,
    pub truncations: Vec<Truncation>,
    /// Tables that cannot be decoded.
    pub faults: Vec<SchemaFault>,
}

impl Schemas for SchemaHistory {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        self.tables.get(&id).cloned()
    }
}

impl Default for SchemaHistory {
    fn default() -> Self {
        Self::new()
    }
}

impl SchemaHistory {
    /// Knows the system tables that describe others, and nothing else.
    pub fn new() -> Self {
        let mut this = Self {
            meanings: HashMap::new(),
            rows: Rows::default(),
            whole: HashSet::new(),
            tables: HashMap::new(),
            current: HashMap::new(),
            retired: VecDeque::new(),
        };
        for (table, meaning) in builtin::tables() {
            this.meanings.insert(table.id, meaning);
            this.tables.insert(table.id, Arc::new(table));
        }
        this
    }

    /// Begins with a file's tables, and tells which of them cannot be used.
    pub fn from_file(file: SchemaFile) -> (Self, Vec<SchemaFault>) {
        let mut this = Self::new();
        for table in &file.retired {
            // A file that was edited by hand may hold anything.
            if let Ok(table) = table.clone().new() {
                let id = table.id;
                this.tables.insert(id, Arc::new(table));
                this.retire(id);
            }
        }
        this.rows = Rows::of(&file);
        let names = this.rows.names();
        this.whole = names.iter().cloned().collect();
        let faults = this.derive(names).faults;
        (this, faults)
    }

    /// What [`Self::from_file`] takes back.
    pub fn to_file(&self) -> SchemaFile {
        let is_known = |key: &Key| self.whole.contains(&(key.keyspace.clone(), key.name.clone()));
        let (rows, deletions) = self.rows.list(|key| key.kind == RowKind::Type || is_known(key));
        let retired = self.retired.iter().filter_map(|id| self.tables.get(id)).map(|table| (**table).clone());
        SchemaFile { rows, deletions, retired: retired.collect(), ..SchemaFile::default() }
    }

    /// Whether changes of this table belong to [`Self::apply`], so that the decoder must not skip them.
    pub fn follows(&self, table: TableId) -> bool {
        self.meanings.contains_key(&table)
    }

    /// Every table known, dropped ones too.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.tables.values()
    }

    /// Takes in all changes of one mutation; those of tables that are not followed say nothing here.
    pub fn apply(&mut self, changes: &[Change]) -> Followed {
        let mut touched = Touched::default();
        let mut truncated = Vec::new();
        for change in changes {
            match self.meanings.get(&change.table.id) {
                Some(Meaning::Row(kind)) => self.fold(*kind, change, &mut touched),
                Some(Meaning::Local) => truncated.extend(truncations(change)),
                Some(Meaning::Nothing) | None => {}
            }
        }
        let mut names = touched.names;
        for keyspace in &touched.keyspaces {
            let of = |(own, _): &&Name| own == keyspace;
            names.extend(self.rows.names().iter().filter(of).cloned());
            names.extend(self.current.keys().filter(of).cloned());
        }
        let keys = touched.keys;
        self.whole.extend(touched.born.into_iter().filter(|(name, id)| is_whole(*id, keys.get(name))).map(|(n, _)| n));
        Followed { truncations: truncated, ..self.derive(names) }
    }

    /// Takes over a schema read from the node, as it is now: what it does not hold was dropped.
    ///
    /// It may be ahead of the log. Rows keep their write times, so what the log then repeats changes nothing.
    pub fn refresh(&mut self, file: SchemaFile) -> Followed {
        let keys: HashSet<Key> = file.rows.iter().map(Key::of).collect();
        self.rows.retain(|key| keys.contains(key));
        let mut names: BTreeSet<Name> = self.current.keys().cloned().collect();
        file.rows.into_iter().for_each(|row| self.rows.write(row));
        let known = self.rows.names();
        self.whole = known.iter().cloned().collect();
        names.extend(known);
        self.derive(names)
    }

    fn fold(&mut self, kind: RowKind, change: &Change, touched: &mut Touched) {
        let Some(keyspace) = text(&change.partition_key) else { return };
        match &change.body {
            ChangeBody::DeletePartition(deletion) => {
                self.rows.delete(Key::all(&keyspace, kind), deletion.time.0);
                self.rows.delete_where(&keyspace, kind, deletion.time.0, |_| true);
                touched.keyspaces.insert(keyspace);
            }
            ChangeBody::DeleteRange(range) => {
                let has_column = change.table.clustering.len() > 1;
                self.rows.delete_where(&keyspace, kind, range.deletion.time.0, |key| {
                    let values = [&key.name, &key.column].into_iter().take(1 + usize::from(has_column));
                    range.covers(&change.table, &Clustering::new(values.map(Some)))
                });
                touched.keyspaces.insert(keyspace);
            }
            ChangeBody::Row { clustering, row } => {
                let mut values = clustering.values().flatten().filter_map(|value| text(&value));
                let Some(name) = values.next().filter(|name| !name.is_empty()) else { return };
                let column = values.next().unwrap_or_default();
                let own = (keyspace.clone(), name.clone());
                match kind {
                    RowKind::Type => _ = touched.keyspaces.insert(keyspace.clone()),
                    _ => _ = touched.names.insert(own.clone()),
                }
                if let Some(deletion) = row.deletion {
                    let key = Key { keyspace: keyspace.clone(), kind, name: name.clone(), column: column.clone() };
                    self.rows.delete(key, deletion.time.0);
                }
                if let Some(definition) = definition(kind, &change.table, row) {
                    let written_us = written(row).0;
                    match &definition {
                        Definition::Table { id, .. } | Definition::View { id, .. } => {
                            touched.born.insert(own, *id);
                        }
                        Definition::Column { kind, .. } if kind == "partition_key" => {
                            touched.keys.entry(own).or_default().push(written_us);
                        }
                        _ => {}
                    }
                    self.rows.write(SchemaRow { keyspace, name, column, written_us, definition });
                }
            }
            ChangeBody::Static(_) => {}
        }
    }

    /// Brings the tables of these names up to their rows.
    fn derive(&mut self, names: BTreeSet<Name>) -> Followed {
        let mut followed = Followed::default();
        for name in names {
            let derived = match derive(&self.rows, &name.0, &name.1) {
                Ok(Some(_)) if !self.whole.contains(&name) => {
                    Err("the log holds only changes of it; its schema must come from the node or a file".to_owned())
                }
                derived => derived,
            };
            let known = self.current.get(&name).copied();
            if let Some(id) = known
                && derived.as_ref().ok().and_then(Option::as_ref).is_none_or(|table| table.id != id)
            {
                self.current.remove(&name);
                followed.dropped.extend(self.tables.get(&id).cloned());
                self.retire(id);
            }
            let evolved = match derived {
                Ok(Some(table)) => match self.tables.get(&table.id) {
                    Some(known) => known.evolve(table).map_err(|error| error.to_string()),
                    None => Ok(table),
                },
                Ok(None) => {
                    self.whole.remove(&name);
                    continue;
                }
                Err(cause) => Err(cause),
            };
            match evolved {
                Ok(table) => {
                    self.current.insert(name, table.id);
                    self.retired.retain(|id| *id != table.id);
                    if self.tables.get(&table.id).is_none_or(|known| **known != table) {
                        let table = Arc::new(table);
                        self.tables.insert(table.id, Arc::clone(&table));
                        followed.tables.push(table);
                    }
                }
                Err(cause) => {
                    // Undecodable rather than decoded with what it was before.
                    if let Some(id) = known.filter(|id| !self.follows(*id)) {
                        self.tables.remove(&id);
                    }
                    followed.faults.push(SchemaFault { table: format!("{}.{}", name.0, name.1), cause });
                }
            }
        }
        followed
    }

    fn retire(&mut self, id: TableId) {
        if self.follows(id) {
            return;
        }
        self.retired.push_back(id);
        if self.retired.len() > RETIRED_MAX
            && let Some(oldest) = self.retired.pop_front()
            && let Some(table) = self.tables.remove(&oldest)
            && !self.current.contains_key(&(table.keyspace.clone(), table.name.clone()))
        {
            self.rows.forget(&table.keyspace, &table.name);
        }
    }
}

/// What one mutation was about.
#[derive(Default)]
struct Touched {
    names: BTreeSet<Name>,
    keyspaces: BTreeSet<String>,
    /// Tables with a row of their own, and their ids.
    born: BTreeMap<Name, TableId>,
    /// When the partition key's columns in it were written.
    keys: BTreeMap<Name, Vec<i64>>,
}

/// Whether a mutation with a table's row and these columns of its partition key holds all of the table.
///
/// An `ALTER TABLE` repeats the table's row and holds the columns it changes, key columns where it renames or masks them
/// (`SchemaKeyspace.addAlterTableToSchemaMutation`). What tells a `CREATE TABLE` apart is that the id, which is a time,
/// and the columns are of the same time. The node's own tables have an id made of their name and are written whole.
fn is_whole(id: TableId, keys: Option<&Vec<i64>>) -> bool {
    const TOLERANCE_US: i64 = 60_000_000;
    let Some(keys) = keys else { return false };
    let Some(made) = id.0.get_timestamp() else { return id.0.get_version_num() == 3 };
    let (seconds, nanoseconds) = made.to_unix();
    let made = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let made = made.saturating_add(i64::from(nanoseconds / 1000));
    keys.iter().all(|written| made.abs_diff(*written) < TOLERANCE_US.unsigned_abs())
}

fn text(bytes: &Bytes) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// When what is there was written; schema rows are written whole.
fn written(row: &RowState) -> WriteTime {
    let cells = row.columns.iter().filter_map(|(_, state)| match state {
        ColumnState::Simple(cell) => Some(cell.time),
        ColumnState::Complex(_) => None,
    });
    cells.max().unwrap_or(WriteTime::NONE)
}

/// What a row of `system_schema` says; `None` if it lacks what it must have.
fn definition(kind: RowKind, table: &TableSchema, row: &RowState) -> Option<Definition> {
    let value = |name: &str| {
        let id = table.column_id(name.as_bytes())?;
        let (_, state) = row.columns.iter().find(|(own, _)| *own == id)?;
        match state {
            ColumnState::Simple(cell) => match &cell.value {
                CellValue::Live(bytes) => CqlValue::decode(&table.column(id).ty, bytes).ok(),
                _ => None,
            },
            ColumnState::Complex(_) => None,
        }
    };
    let string = |name| match value(name)? {
        CqlValue::Text(text) => Some(text),
        _ => None,
    };
    let strings = |name| match value(name)? {
        CqlValue::List(values) => {
            let text = |value| if let Some(CqlValue::Text(text)) = value { Some(text) } else { None };
            values.into_iter().map(text).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    let int = |name| if let CqlValue::Int(number) = value(name)? { Some(number) } else { None };
    Some(match kind {
        RowKind::Table | RowKind::View => {
            let CqlValue::Uuid(id) = value("id")? else { return None };
            let cdc = value("cdc").map(|cdc| cdc == CqlValue::Boolean(true));
            let (id, gc_grace_seconds) = (TableId(id), int("gc_grace_seconds"));
            if kind == RowKind::Table {
                Definition::Table { id, cdc, gc_grace_seconds }
            } else {
                Definition::View { id, cdc, gc_grace_seconds }
            }
        }
        RowKind::Column => Definition::Column {
            kind: string("kind")?,
            position: int("position")?,
            reversed: string("clustering_order").is_some_and(|order| order.eq_ignore_ascii_case("desc")),
            ty: string("type")?,
        },
        RowKind::DroppedColumn => {
            let CqlValue::Timestamp(dropped_ms) = value("dropped_time")? else { return None };
            Definition::dropped_column(string("kind").unwrap_or_default(), string("type")?, dropped_ms)
        }
        RowKind::Type => {
            Definition::Type { fields: strings("field_names")?.into_iter().zip(strings("field_types")?).collect() }
        }
    })
}
