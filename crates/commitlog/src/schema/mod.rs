//! Schemas of tables: from a file, and followed in the log itself.

mod file;
mod rows;

pub use file::{Definition, RowKind, SchemaDeletion, SchemaFault, SchemaFile, SchemaFileError, SchemaRow};
