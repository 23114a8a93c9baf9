//! What the whole pipeline agrees on: table schemas, changes, row states and the merge.
//!
//! Everything here is pure: no I/O, no clock, no async. Values stay in Cassandra's own serialised form
//! ([`ValueBytes`]) from capture to the target, because Cassandra's rules compare bytes;
//! [`CqlValue`] decodes them where a person or PostgreSQL needs them.

mod canonical;
mod cell;
mod change;
mod clustering;
mod codec;
mod marker;
mod order;
mod parse;
mod position;
mod row;
mod schema;
mod token;
mod tombstones;
mod truncation;
mod value;
mod value_bytes;

pub use canonical::canonical_value;
pub use cell::{Cell, CellValue, DeletionTime, Liveness, LocalTime, WriteTime};
pub use change::{Change, ChangeBody, Provenance, RowKey};
pub use clustering::Clustering;
pub use codec::{StateError, decode_row, decode_tombstones, encode_row, encode_tombstones};
pub use marker::Marker;
pub use order::compare_values;
pub use parse::{TypeError, UdtResolver, parse_type};
pub use position::{NodeId, Progress, SegmentId, SegmentPosition};
pub use row::{ColumnState, ComplexState, RowState, VisibleColumn};
pub use schema::{Column, ColumnId, ColumnKind, CqlType, KeyColumn, SchemaError, TableId, TableSchema};
pub use token::{Token, TokenRange, token};
pub use tombstones::{Bound, PartitionTombstones, RangeTombstone};
pub use truncation::{TableTruncation, TruncatedAt};
pub use value::{CqlValue, ValueError};
pub use value_bytes::ValueBytes;
