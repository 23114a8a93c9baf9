//! Reads Cassandra commit-log segments: bytes in, changes out; synchronous, no panics on any input.
//!
//! [`SegmentReader`] turns a segment file into entries (one mutation each) and decides which of them may be believed;
//! [`Decoder`] turns an entry's payload into [`cdc_model::Change`]s with the help of the tables' schemas.
//!
//! Segments of format versions 7 to 9 are read: plain ones, whether memory-mapped or written with direct I/O; compressed
//! ones, by any compressor of Cassandra's own; and ones encrypted with a key of a [`Keystore`]. A compressor or cipher
//! of another name is refused by that name.

mod compression;
mod cursor;
mod decode;
mod encryption;
mod header;
mod input;
mod keystore;
mod layout;
mod payload;
mod reader;
mod schema;
mod section;
mod segment;

pub use decode::{DecodeError, Decoder, Schemas};
pub use header::Format;
pub use keystore::{Keystore, KeystoreError};
pub use payload::Payload;
pub use reader::{
    Damage, DamageKind, Fence, ReadError, ReadLimit, ReadOptions, ReadOutcome, ReadReport, SegmentReader,
};
pub use schema::{
    Definition, Followed, RowKind, SchemaDeletion, SchemaFault, SchemaFile, SchemaFileError, SchemaHistory, SchemaRow,
    Truncation,
};
pub use segment::{CaptureMode, Index, SegmentFile, list_segments, read_index};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
