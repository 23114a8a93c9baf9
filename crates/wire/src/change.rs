//! Changes and truncations in Avro single-object encoding.

use std::sync::{Arc, LazyLock};

use apache_avro::{Schema, rabin::Rabin};
use bytes::Bytes;
use cdc_model::{Change, TableId, TableSchema, TableTruncation};

use crate::{WireError, reader::Reader, writer};

/// The Avro schema of a change, documented field by field.
pub const CHANGE_SCHEMA: &str = include_str!("../schemas/change-v1.avsc");

/// The Avro schema of a truncation.
pub const TRUNCATION_SCHEMA: &str = include_str!("../schemas/truncation-v1.avsc");

const MARKER: [u8; 2] = [0xc3, 0x01];
const HEADER_LENGTH: usize = 10;

/// Where a decoder finds the tables that records speak of.
pub trait SchemaLookup {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>>;
}

/// CRC-64-AVRO of the schema's canonical form.
pub fn fingerprint() -> u64 {
    static FINGERPRINT: LazyLock<u64> = LazyLock::new(|| fingerprint_of(CHANGE_SCHEMA));
    *FINGERPRINT
}

/// The same of [`TRUNCATION_SCHEMA`].
pub fn truncation_fingerprint() -> u64 {
    static FINGERPRINT: LazyLock<u64> = LazyLock::new(|| fingerprint_of(TRUNCATION_SCHEMA));
    *FINGERPRINT
}

fn fingerprint_of(schema: &str) -> u64 {
    let schema = Schema::parse_str(schema).expect("the schema that is compiled in is valid");
    let bytes = schema.fingerprint::<Rabin>().bytes;
    u64::from_le_bytes(bytes.try_into().expect("CRC-64 has eight bytes"))
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

pub fn encode_truncation(truncation: &TableTruncation) -> Bytes {
    let mut out = MARKER.to_vec();
    out.extend_from_slice(&truncation_fingerprint().to_le_bytes());
    writer::truncation(&mut out, truncation);
    out.into()
}

/// The table a record speaks of, if it is a change or a truncation at all.
pub fn table_of(record: &[u8]) -> Option<TableId> {
    let rest = record.strip_prefix(&MARKER)?;
    let of = |fingerprint: u64| rest.strip_prefix(&fingerprint.to_le_bytes());
    let body = of(fingerprint()).or_else(|| of(truncation_fingerprint()))?;
    Some(TableId(uuid::Uuid::from_bytes(*body.first_chunk()?)))
}

/// Decodes one record; values are slices of it.
///
/// # Errors
/// [`WireError::awaits_schema`] tells what a later schema may cure from what stays undecodable.
pub fn decode_change(record: Bytes, schemas: &impl SchemaLookup) -> Result<Change, WireError> {
    let found = format_of(&record)?;
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

/// Decodes a record if it is a truncation; `None` if it is anything else.
///
/// # Errors
/// As of [`decode_change`].
pub fn decode_truncation(record: Bytes, schemas: &impl SchemaLookup) -> Result<Option<TableTruncation>, WireError> {
    if format_of(&record) != Ok(truncation_fingerprint()) {
        return Ok(None);
    }
    let mut reader = Reader::new(record, HEADER_LENGTH);
    let id = TableId(reader.uuid()?);
    let at = reader.truncated_at()?;
    reader.end()?;
    let table = schemas.table(id).ok_or(WireError::UnknownTable(id))?;
    Ok(Some(TableTruncation { table, at }))
}

fn format_of(record: &[u8]) -> Result<u64, WireError> {
    let Some((header, _)) = record.split_first_chunk::<HEADER_LENGTH>().filter(|(h, _)| h.starts_with(&MARKER)) else {
        return Err(WireError::NotSingleObject);
    };
    let mut found = [0; 8];
    found.copy_from_slice(&header[2..]);
    Ok(u64::from_le_bytes(found))
}
