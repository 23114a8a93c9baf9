//! CQL access: sessions and schema.
