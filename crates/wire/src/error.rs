use cdc_model::TableId;

/// Why bytes are not a change or a table schema. Never holds a key or a value.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The schema may still come: read `cdc-schemas` further, then decode again.
    #[error("table {} is not in cdc-schemas", .0.0)]
    UnknownTable(TableId),
    /// As [`Self::UnknownTable`], for a column added since.
    #[error("table {table} has no column {column} in cdc-schemas")]
    UnknownColumn { table: String, column: String },
    #[error("record does not begin with C3 01; it was not written by cdc")]
    NotSingleObject,
    #[error("record has schema fingerprint {0:016x}, which this release does not know; update the reader")]
    UnknownFormat(u64),
    #[error("record is damaged at byte {offset}: {reason}")]
    Malformed { offset: usize, reason: &'static str },
    #[error("table schema has version {0}, this release reads up to {max}; update the reader", max = crate::schema::VERSION)]
    SchemaVersion(u32),
    #[error("table schema is not valid: {0}")]
    Schema(String),
}

impl WireError {
    /// A short name of the cause, for dead letters and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownTable(_) => "UNKNOWN_TABLE",
            Self::UnknownColumn { .. } => "UNKNOWN_COLUMN",
            Self::NotSingleObject => "NOT_SINGLE_OBJECT",
            Self::UnknownFormat(_) => "UNKNOWN_FORMAT",
            Self::Malformed { .. } => "MALFORMED",
            Self::SchemaVersion(_) => "SCHEMA_VERSION",
            Self::Schema(_) => "SCHEMA_INVALID",
        }
    }

    /// Whether a newer schema may cure it, so that the record must wait rather than be set aside.
    pub fn awaits_schema(&self) -> bool {
        match self {
            Self::UnknownTable(_) | Self::UnknownColumn { .. } => true,
            Self::NotSingleObject
            | Self::UnknownFormat(_)
            | Self::Malformed { .. }
            | Self::SchemaVersion(_)
            | Self::Schema(_) => false,
        }
    }
}
