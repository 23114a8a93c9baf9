//! Schemas of tables: from a file, and followed in the log itself.

mod builtin;
mod file;
mod history;
mod rows;
mod truncation;

pub use file::{Definition, RowKind, SchemaDeletion, SchemaFault, SchemaFile, SchemaFileError, SchemaRow};
pub use history::{Followed, SchemaHistory};
pub use truncation::Truncation;
