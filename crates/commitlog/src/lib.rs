//! Reads Cassandra commit-log segments: bytes in, changes out; synchronous, no panics on any input.
//!
//! [`SegmentReader`] turns a segment file into entries (one mutation each) and decides which of them may be believed;
//! [`Decoder`] turns an entry's payload into [`cdc_model::Change`]s with the help of the tables' schemas.
//! Plain segments of format versions 7 to 9 are read; compressed and encrypted ones are refused by name.

mod cursor;
mod decode;
mod header;
mod layout;
mod reader;
mod schema;
mod segment;

pub use decode::{DecodeError, Decoder, Schemas};
pub use header::Format;
pub use reader::{Damage, DamageKind, Fence, ReadError, ReadLimit, ReadOutcome, ReadReport, SegmentReader};
pub use schema::{
    Definition, RowKind, SchemaDeletion, SchemaFault, SchemaFile, SchemaFileError, SchemaRow,
};
pub use segment::{CaptureMode, Index, SegmentFile, list_segments, read_index};
