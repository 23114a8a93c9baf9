//! Table schemas for topic `cdc-schemas`.

use bytes::Bytes;
use cdc_model::{TableId, TableSchema};
use serde::{Deserialize, Serialize};

use crate::WireError;

pub(crate) const VERSION: u32 = 1;

#[derive(Serialize)]
struct Out<'a> {
    version: u32,
    table: &'a TableSchema,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct In {
    table: TableSchema,
}

/// Key of a table's record in `cdc-schemas`: its id as text.
pub fn schema_key(table: TableId) -> String {
    table.0.to_string()
}

pub fn encode_schema(table: &TableSchema) -> Bytes {
    serde_json::to_vec(&Out { version: VERSION, table }).expect("a table schema is plain data").into()
}

pub fn decode_schema(record: &[u8]) -> Result<TableSchema, WireError> {
    let invalid = |error: serde_json::Error| WireError::Schema(error.to_string());
    let Version { version } = serde_json::from_slice(record).map_err(invalid)?;
    if version != VERSION {
        return Err(WireError::SchemaVersion(version));
    }
    let In { table } = serde_json::from_slice(record).map_err(invalid)?;
    table.new().map_err(|error| WireError::Schema(error.to_string()))
}
