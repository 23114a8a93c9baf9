//! Changes in Avro single-object encoding.

use std::sync::{Arc, LazyLock};

use apache_avro::{Schema, rabin::Rabin};
use bytes::Bytes;
use cdc_model::{Change, TableId, TableSchema};

use crate::{WireError, reader::Reader, writer};

/// The Avro schema of a change, documented field by field.
pub const CHANGE_SCHEMA: &str = include_str!("../schemas/change-v1.avsc");

const MARKER: [u8; 2] = [0xc3, 0x01];
const HEADER_LENGTH: usize = 10;

/// Where a decoder finds the tables that records speak of.
pub trait SchemaLookup {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>>;
}

/// CRC-64-AVRO of the schema's canonical form.
pub fn fingerprint() -> u64 {
    static FINGERPRINT: LazyLock<u64> = LazyLock::new(|| {
        let schema = Schema::parse_str(CHANGE_SCHEMA).expect("the schema that is compiled in is valid");
        let bytes = schema.fingerprint::<Rabin>().bytes;
        u64::from_le_bytes(bytes.try_into().expect("CRC-64 has eight bytes"))
    });
    *FINGERPRINT
}

pub fn encode_change(change: &Change) -> Bytes {
    let mut out = Vec::with_capacity(64 + change.weight());
    encode_change_into(change, &mut out);
    out.into()
}

/// Appends the record to a buffer, which saves the allocation where the bytes are copied anyway.
pub fn encode_change_into(change: &Change, out: &mut Vec<u8>) {
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&fingerprint().to_le_bytes());
    writer::change(out, change);
}

/// The table a record speaks of, if it is a change at all.
pub fn table_of(record: &[u8]) -> Option<TableId> {
    let body = record.strip_prefix(&MARKER)?.strip_prefix(&fingerprint().to_le_bytes())?;
    Some(TableId(uuid::Uuid::from_bytes(*body.first_chunk()?)))
}

/// Decodes one record; values are slices of it.
///
/// # Errors
/// [`WireError::awaits_schema`] tells what a later schema may cure from what stays undecodable.
pub fn decode_change(record: Bytes, schemas: &impl SchemaLookup) -> Result<Change, WireError> {
    let Some((header, _)) = record.split_first_chunk::<HEADER_LENGTH>().filter(|(h, _)| h.starts_with(&MARKER)) else {
        return Err(WireError::NotSingleObject);
    };
    let mut found = [0; 8];
    found.copy_from_slice(&header[2..]);
    let found = u64::from_le_bytes(found);
    if found != fingerprint() {
        return Err(WireError::UnknownFormat(found));
    }
    let mut reader = Reader::new(record, HEADER_LENGTH);
    let id = TableId(reader.uuid()?);
    let table = schemas.table(id).ok_or(WireError::UnknownTable(id))?;
    let partition_key = reader.partition_key()?;
    let body = reader.body(&table)?;
    let provenance = reader.provenance()?;
    reader.end()?;
    Ok(Change { table, partition_key, body, provenance })
}
