//! Which schema is in force at a place in the log.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use cdc_model::{
    CellValue, Change, ChangeBody, Clustering, ColumnState, CqlValue, RowState, TableId, TableSchema, WriteTime,
};

use super::{
    builtin::{self, Meaning},
    file::{Definition, RowKind, SchemaFault, SchemaFile, SchemaRow},
    rows::{Name, Place, Rows, derive},
    truncation::{Truncation, truncations},
};
use crate::Schemas;

/// Dropped tables remembered, the latest: their mutations stand in the log before their drop does.
const RETIRED_MAX: usize = 1000;

/// The schemas of a node's tables, followed through its log.
///
/// Begin with what is known ([`Self::from_file`]) or with nothing, give [`Self::apply`] all changes of one mutation
/// before decoding the next, and every mutation is decoded with the schema it was written with. Cassandra's rows of
/// `system_schema` are resolved by write time, because a node also logs those it gets from others, at any later time. A
/// table of which only a part is known (altered since, created before the log begins) stays unknown: it is not guessed.
///
/// A file may be ahead of the log, and a table in it then has its newest schema from the start: columns are known by
/// name, dropped ones included, and nothing the log says of it before that takes it back.
#[derive(Clone, Debug)]
pub struct SchemaHistory {
    meanings: HashMap<TableId, Meaning>,
    rows: Rows,
    /// Tables whose rows are all known, and up to when their changes are in them whether the log has said so or not.
    whole: HashMap<TableId, i64>,
    tables: HashMap<TableId, Arc<TableSchema>, foldhash::fast::RandomState>,
    live: HashMap<TableId, Name>,
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
    #[inline]
    fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.tables.get(&id)
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
            whole: HashMap::new(),
            tables: HashMap::default(),
            live: HashMap::new(),
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
        let tables = this.rows.tables();
        this.know(&tables, file.reflected_us.as_ref());
        let faults = this.derive(tables.into_iter().collect()).faults;
        (this, faults)
    }

    /// What [`Self::from_file`] takes back.
    pub fn to_file(&self) -> SchemaFile {
        let (rows, deletions) = self.rows.list(|table| self.whole.contains_key(&table));
        let retired = self.retired.iter().filter_map(|id| self.tables.get(id)).map(|table| (**table).clone());
        let reflected_us = Some(self.whole.iter().map(|(id, until)| (*id, *until)).collect());
        SchemaFile { rows, deletions, retired: retired.collect(), reflected_us, ..SchemaFile::default() }
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
        let mut mutation = SchemaMutation::default();
        let mut truncated = Vec::new();
        for change in changes {
            match self.meanings.get(&change.table.id) {
                Some(Meaning::Row(kind)) => self.delete(*kind, change, &mut mutation),
                Some(Meaning::Local) => truncated.extend(truncations(change)),
                Some(Meaning::Nothing) | None => {}
            }
        }
        if mutation.is_empty() {
            return Followed { truncations: truncated, ..Followed::default() };
        }
        let known = self.rows.tables().into_iter().chain(self.live.clone());
        let mut touched: BTreeSet<(TableId, Name)> = known.filter(|(_, name)| mutation.touches(name)).collect();
        for row in mutation.rows.iter_mut().filter(|row| row.definition.kind() != RowKind::Type) {
            let name = Name { keyspace: row.keyspace.clone(), name: row.name.clone() };
            row.table = row.table.or_else(|| mutation.born.get(&name).copied());
            touched.extend(row.table.map(|table| (table, name)));
        }
        self.whole.extend(mutation.whole().into_iter().map(|id| (id, i64::MIN)));
        // What a file that is ahead of the log has told already is no news.
        let is_news = |row: &SchemaRow| {
            let reflected = row.table.and_then(|table| self.whole.get(&table));
            reflected.is_none_or(|reflected| *reflected < row.written_us)
        };
        let news = mutation.rows.into_iter().filter(is_news).collect();
        self.rows.write_all(news);
        Followed { truncations: truncated, ..self.derive(touched) }
    }

    /// Takes over a schema read from the node, as it is now: tables it does not hold were dropped.
    pub fn refresh(&mut self, file: SchemaFile) -> Followed {
        let read = Rows::of(&file);
        let tables = read.tables();
        self.rows.forget(|id| tables.contains_key(&id));
        self.rows.write_all(read.list(|_| true).0);
        self.know(&tables, None);
        let gone: Vec<TableId> = self.live.keys().filter(|id| !tables.contains_key(id)).copied().collect();
        let mut dropped = Vec::new();
        for id in gone {
            self.live.remove(&id);
            dropped.extend(self.tables.get(&id).cloned());
            self.retire(id);
        }
        Followed { dropped, ..self.derive(tables.into_iter().collect()) }
    }

    /// Tables whose rows were read all at once.
    fn know(&mut self, tables: &HashMap<TableId, Name>, reflected: Option<&BTreeMap<TableId, i64>>) {
        for (id, name) in tables {
            let reflected = match reflected {
                Some(reflected) => reflected.get(id).copied(),
                None => self.rows.written(name, *id),
            };
            self.whole.insert(*id, reflected.unwrap_or(i64::MIN));
        }
    }

    /// Deletes what a change deletes, and keeps for later what it writes.
    fn delete(&mut self, kind: RowKind, change: &Change, mutation: &mut SchemaMutation) {
        let Some(keyspace) = text(&change.partition_key) else { return };
        match &change.body {
            ChangeBody::DeletePartition(deletion) => {
                let all = Place { keyspace: keyspace.clone(), kind, name: String::new(), column: String::new() };
                self.rows.delete(all, deletion.time.0);
                mutation.keyspaces.insert(keyspace);
            }
            ChangeBody::DeleteRange(range) => {
                let columns = change.table.clustering.len();
                self.rows.delete_where(&keyspace, kind, range.deletion.time.0, |(name, column)| {
                    range.covers(&change.table, &Clustering::new([name, column].into_iter().take(columns).map(Some)))
                });
                mutation.keyspaces.insert(keyspace);
            }
            ChangeBody::Row { clustering, row } => {
                let mut values = clustering.values().flatten().filter_map(text);
                let Some(name) = values.next().filter(|name| !name.is_empty()) else { return };
                let column = values.next().unwrap_or_default();
                if kind == RowKind::Type {
                    // Any table of the keyspace may use it.
                    mutation.keyspaces.insert(keyspace.clone());
                } else {
                    mutation.names.insert(Name { keyspace: keyspace.clone(), name: name.clone() });
                }
                if let Some(deletion) = row.deletion {
                    if kind == RowKind::Column {
                        mutation.shrunk.insert(Name { keyspace: keyspace.clone(), name: name.clone() });
                    }
                    let (keyspace, name, column) = (keyspace.clone(), name.clone(), column.clone());
                    self.rows.delete(Place { keyspace, kind, name, column }, deletion.time.0);
                }
                if let Some(definition) = definition(kind, &change.table, row) {
                    let (written_us, table) = (written(row).0, definition.table());
                    if let Some(id) = table {
                        mutation.born.insert(Name { keyspace: keyspace.clone(), name: name.clone() }, id);
                    }
                    mutation.rows.push(SchemaRow { keyspace, name, column, table, written_us, definition });
                }
            }
            ChangeBody::Static(_) => {}
        }
    }

    /// Brings these tables up to their rows.
    fn derive(&mut self, touched: BTreeSet<(TableId, Name)>) -> Followed {
        let mut followed = Followed::default();
        for (id, name) in touched {
            let derived = match derive(&self.rows, id, &name) {
                Ok(Some(_)) if !self.whole.contains_key(&id) => {
                    Err("the log holds only changes of it; its schema must come from the node or a file".to_owned())
                }
                Ok(Some(table)) => match self.tables.get(&id) {
                    Some(known) => known.evolve(table).map(Some).map_err(|error| error.to_string()),
                    None => Ok(Some(table)),
                },
                derived => derived,
            };
            match derived {
                Ok(Some(table)) => {
                    self.live.insert(id, name);
                    // A node deletes its own tables' rows at every start and writes them again.
                    self.retired.retain(|retired| *retired != id);
                    if self.tables.get(&id).is_none_or(|known| **known != table) {
                        let table = Arc::new(table);
                        self.tables.insert(id, Arc::clone(&table));
                        followed.tables.push(table);
                    }
                }
                Ok(None) => {
                    if self.live.remove(&id).is_some() {
                        self.whole.remove(&id);
                        followed.dropped.extend(self.tables.get(&id).cloned());
                        self.retire(id);
                    }
                }
                Err(cause) => {
                    // Undecodable rather than decoded with what it was before.
                    if !self.follows(id) {
                        self.tables.remove(&id);
                    }
                    followed.faults.push(SchemaFault { table: name.to_string(), cause });
                }
            }
        }
        followed
    }

    fn retire(&mut self, id: TableId) {
        if self.follows(id) || self.retired.contains(&id) {
            return;
        }
        self.retired.push_back(id);
        if self.retired.len() <= RETIRED_MAX {
            return;
        }
        let Some(oldest) = self.retired.pop_front() else { return };
        self.rows.forget(|id| id == oldest);
        self.whole.remove(&oldest);
        if let Some(table) = self.tables.remove(&oldest) {
            let name = Name { keyspace: table.keyspace.clone(), name: table.name.clone() };
            if !self.live.values().any(|live| *live == name) {
                self.rows.forget_deletions(&name);
            }
        }
    }
}

/// What one mutation says of `system_schema`.
#[derive(Default)]
struct SchemaMutation {
    rows: Vec<SchemaRow>,
    /// Tables whose own row is among them.
    born: BTreeMap<Name, TableId>,
    names: HashSet<Name>,
    /// Tables of which a column is deleted.
    shrunk: HashSet<Name>,
    /// Keyspaces of which anything may have changed.
    keyspaces: HashSet<String>,
}

impl SchemaMutation {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.names.is_empty() && self.keyspaces.is_empty()
    }

    fn touches(&self, name: &Name) -> bool {
        self.names.contains(name) || self.keyspaces.contains(&name.keyspace)
    }

    /// Tables of which everything is here.
    ///
    /// An `ALTER TABLE` repeats the table's row and holds the columns it changes, key columns where it renames or masks
    /// them (`SchemaKeyspace.addAlterTableToSchemaMutation`). What tells a `CREATE TABLE` apart is that the id, which is
    /// a time, and the columns are of the same time, and that it deletes no column, as a rename does. The node's own
    /// tables have an id made of their name and are written whole.
    fn whole(&self) -> Vec<TableId> {
        const TOLERANCE_US: u64 = 60_000_000;
        let is_whole = |(name, id): &(&Name, &TableId)| {
            let keys = self.rows.iter().filter(|row| row.keyspace == name.keyspace && row.name == name.name);
            let mut keys = keys
                .filter(|row| matches!(&row.definition, Definition::Column { kind, .. } if kind == "partition_key"))
                .peekable();
            if keys.peek().is_none() || self.shrunk.contains(*name) {
                return false;
            }
            let Some(made) = id.0.get_timestamp() else { return id.0.get_version_num() == 3 };
            let (seconds, nanoseconds) = made.to_unix();
            let made = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            let made = made.saturating_add(i64::from(nanoseconds / 1000));
            keys.all(|key| made.abs_diff(key.written_us) < TOLERANCE_US)
        };
        self.born.iter().filter(is_whole).map(|(_, id)| *id).collect()
    }
}

fn text(bytes: &[u8]) -> Option<String> {
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
