//! A schema as a file: rows of `system_schema`, one JSON object per line.
//!
//! ```json
//! {"version":1,"rows":[
//! {"keyspace":"shop","name":"orders","written_us":1700000000000000,"is":{"table":{"id":"…","cdc":true,"gc_grace_seconds":864000}}},
//! {"keyspace":"shop","name":"orders","column":"id","written_us":…,"is":{"column":{"kind":"partition_key","position":0,"reversed":false,"type":"uuid"}}},
//! {"keyspace":"shop","name":"orders","column":"old","written_us":…,"is":{"dropped_column":{"kind":"regular","type":"text","dropped_us":…}}},
//! {"keyspace":"shop","name":"address","written_us":…,"is":{"type":{"fields":[["street","text"],["zip","int"]]}}}
//! ]}
//! ```
//!
//! `written_us` is the row's write time; without it the row is older than anything in a log. `deletions` (rows known to
//! be deleted), `retired` (tables that were dropped and whose mutations may still be unread) and `reflected_us` are
//! there when the file is a saved [`crate::SchemaHistory`].

use std::{collections::BTreeMap, fs, io, path::Path, path::PathBuf};

use cdc_model::{TableId, TableSchema};
use serde::{Deserialize, Serialize};

use super::rows::{Rows, derive};

const VERSION: u32 = 1;

#[derive(thiserror::Error, Debug)]
pub enum SchemaFileError {
    #[error("cannot read schema file {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a schema file; make one with `cdc log schema --contact-point HOST`")]
    Syntax { path: PathBuf, source: serde_json::Error },
    #[error("schema file {path} has version {found}, this release reads {VERSION}; use the release that wrote it")]
    Version { path: PathBuf, found: u32 },
}

/// Why a table cannot be decoded although its rows are there.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("schema of table {table} cannot be used: {cause}")]
pub struct SchemaFault {
    pub table: String,
    pub cause: String,
}

/// Which table of `system_schema` a row stands in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    Table,
    View,
    Column,
    DroppedColumn,
    Type,
}

/// What a row says, as far as decoding needs it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Definition {
    /// `cdc` is null where the node that made the change has CDC switched off.
    Table {
        id: TableId,
        cdc: Option<bool>,
        gc_grace_seconds: Option<i32>,
    },
    View {
        id: TableId,
        cdc: Option<bool>,
        gc_grace_seconds: Option<i32>,
    },
    /// `kind` is `partition_key`, `clustering`, `regular` or `static`.
    Column {
        kind: String,
        position: i32,
        reversed: bool,
        #[serde(rename = "type")]
        ty: String,
    },
    /// Cells written at or before `dropped_us` belong to this column.
    DroppedColumn {
        kind: String,
        #[serde(rename = "type")]
        ty: String,
        dropped_us: i64,
    },
    Type {
        fields: Vec<(String, String)>,
    },
}

impl Definition {
    /// Of a row of `dropped_columns`. Its time, in milliseconds, is all that Cassandra itself knows after a restart.
    pub fn dropped_column(kind: String, ty: String, dropped_ms: i64) -> Self {
        Self::DroppedColumn { kind, ty, dropped_us: dropped_ms.saturating_mul(1000) }
    }

    pub fn kind(&self) -> RowKind {
        match self {
            Self::Table { .. } => RowKind::Table,
            Self::View { .. } => RowKind::View,
            Self::Column { .. } => RowKind::Column,
            Self::DroppedColumn { .. } => RowKind::DroppedColumn,
            Self::Type { .. } => RowKind::Type,
        }
    }
}

/// A row of `system_schema`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaRow {
    pub keyspace: String,
    /// Of the table, view or user type.
    pub name: String,
    /// Of the column, for rows that are about one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub column: String,
    /// Which table of this name a column belongs to; without it, the newest in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableId>,
    #[serde(default = "before_any_log", skip_serializing_if = "is_before_any_log")]
    pub written_us: i64,
    #[serde(rename = "is")]
    pub definition: Definition,
}

/// A row that is known not to be there; with an empty name, all of the keyspace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaDeletion {
    pub keyspace: String,
    pub kind: RowKind,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub column: String,
    pub deleted_us: i64,
}

fn before_any_log() -> i64 {
    SchemaFile::BEFORE_ANY_LOG
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_before_any_log(written: &i64) -> bool {
    *written == SchemaFile::BEFORE_ANY_LOG
}

/// All a node's tables, to be kept as a file. See the module for its form.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaFile {
    pub version: u32,
    pub rows: Vec<SchemaRow>,
    #[serde(default)]
    pub deletions: Vec<SchemaDeletion>,
    #[serde(default)]
    pub retired: Vec<TableSchema>,
    /// Up to when changes of a table, by their write time, are contained in its rows for certain. Without it: up to its
    /// own row's, which every change of a table writes again.
    #[serde(default)]
    pub reflected_us: Option<BTreeMap<TableId, i64>>,
}

impl Default for SchemaFile {
    fn default() -> Self {
        Self { version: VERSION, rows: Vec::new(), deletions: Vec::new(), retired: Vec::new(), reflected_us: None }
    }
}

impl SchemaFile {
    /// [`SchemaRow::written_us`] of a row that loses against every row in a log.
    pub const BEFORE_ANY_LOG: i64 = i64::MIN + 1;

    pub fn new(rows: Vec<SchemaRow>) -> Self {
        Self { rows, ..Self::default() }
    }

    pub fn read(path: &Path) -> Result<Self, SchemaFileError> {
        let path = path.to_owned();
        let text = fs::read(&path).map_err(|source| SchemaFileError::Io { path: path.clone(), source })?;
        match Self::parse(&text) {
            Ok(file) if file.version != VERSION => Err(SchemaFileError::Version { path, found: file.version }),
            Ok(file) => Ok(file),
            Err(source) => Err(SchemaFileError::Syntax { path, source }),
        }
    }

    /// What [`Self::to_json`] gave; the version is not looked at.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    pub fn is_current(&self) -> bool {
        self.version == VERSION
    }

    /// One row per line.
    pub fn to_json(&self) -> String {
        fn list<T: Serialize>(items: &[T]) -> String {
            let lines: Vec<String> =
                items.iter().map(|item| serde_json::to_string(item).expect("rows are plain data")).collect();
            if lines.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", lines.join(",\n")) }
        }
        let reflected = serde_json::to_string(&self.reflected_us).expect("a map of numbers");
        format!(
            "{{\"version\":{},\"rows\":{},\"deletions\":{},\"retired\":{},\"reflected_us\":{reflected}}}\n",
            self.version,
            list(&self.rows),
            list(&self.deletions),
            list(&self.retired)
        )
    }

    /// The tables and views it describes, and what is wrong with the others.
    pub fn tables(&self) -> (Vec<TableSchema>, Vec<SchemaFault>) {
        let rows = Rows::of(self);
        let (mut tables, mut faults) = (Vec::new(), Vec::new());
        for (id, name) in rows.tables() {
            match derive(&rows, id, &name) {
                Ok(Some(table)) => tables.push(table),
                Ok(None) => {}
                Err(cause) => faults.push(SchemaFault { table: name.to_string(), cause }),
            }
        }
        (tables, faults)
    }
}
