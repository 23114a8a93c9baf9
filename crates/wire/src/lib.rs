//! Changes and table schemas as they travel through Kafka.
//!
//! A change is one Avro record ([`CHANGE_SCHEMA`]) in single-object encoding: the two bytes `C3 01`, the schema's
//! CRC-64-AVRO fingerprint (8 bytes, little-endian), the binary body. The schema speaks of rows and cells, not of a
//! table's columns, so no DDL ever changes it; values stay Cassandra-serialised, so nothing is lost. The body is
//! written and read by hand because a tree of generic Avro values costs several microseconds per record; tests hold
//! it equal to `apache-avro` in both directions.
//!
//! That a table was truncated is a record of its own ([`TRUNCATION_SCHEMA`]), told from a change by its fingerprint.
//!
//! A table schema is plain JSON, `{"version": 1, "table": {...}}`, in the compacted topic `cdc-schemas` under
//! [`schema_key`].

mod change;
mod error;
mod reader;
mod schema;
mod writer;

pub use change::{
    CHANGE_SCHEMA, SchemaLookup, TRUNCATION_SCHEMA, decode_change, decode_truncation, encode_change,
    encode_change_into, encode_truncation, fingerprint, table_of, truncation_fingerprint,
};
pub use error::WireError;
pub use schema::{decode_schema, encode_schema, schema_key};
