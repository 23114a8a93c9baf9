use std::sync::Arc;

use bytes::Bytes;
use cdc_model::{Change, Provenance, TableId, TableSchema};

use crate::Format;

/// Where the decoder finds schemas: of all tables of the node, dropped columns included.
pub trait Schemas {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>>;
}

#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// Stands before other updates in its mutation, so it cannot be skipped without its schema.
    #[error("table {} is not known and its update cannot be skipped; refresh the schema", .0.0)]
    UnknownTable(TableId),
    #[error("column {column} of table {table} is not known; refresh the schema")]
    UnknownColumn { table: String, column: String },
    #[error("mutation is malformed at byte {offset}{}: {what}", .table.as_ref().map(|t| format!(" (table {t})")).unwrap_or_default())]
    Malformed { table: Option<String>, offset: usize, what: &'static str },
}

/// Decodes mutations; keeps what it learned of the tables' columns between calls, so use one per thread.
#[derive(Debug, Default)]
pub struct Decoder {}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes one entry's payload and appends the changes of captured tables to `out`, all of them or on error none.
    ///
    /// An update of an uncaptured table is skipped; so is one of an unknown table where the format allows it, and the
    /// table's id is returned: it may be one created since the schema was read.
    pub fn decode(
        &mut self,
        _format: Format,
        _payload: &Bytes,
        _at: Provenance,
        _schemas: &impl Schemas,
        _captured: &impl Fn(&TableSchema) -> bool,
        _out: &mut Vec<Change>,
    ) -> Result<Option<TableId>, DecodeError> {
        Ok(None)
    }
}
